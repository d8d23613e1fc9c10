"""The flags of sample.py, and its presets: R1's benchmarks."""

from dataclasses import dataclass, replace

from r1mini import tasks
from r1mini.config import DataOptions, DeviceOptions, option, validate
from r1mini.rewards.runner import check_terms


@dataclass(frozen=True)
class SampleConfig(DataOptions, DeviceOptions):
    model: str = option("base", "model folder, embedded model or hub id")
    base: str = option(
        "", "base model of the adapter folder --model, if it is not where the folder says"
    )
    prompt: str = option(
        "",
        "prompt to answer; if --prompt, --prompts, --eval and --reject are all missing: chat in "
        "the terminal, or answer each line of a pipe",
        when="!eval and !reject",
    )
    prompts: str = option(
        "",
        "file of prompts to answer: .jsonl(.gz) or .json with text or messages in column 'prompt', "
        "else one per line",
        when="!eval and !reject",
    )
    system: str = option("", "system message before the prompt", when="!eval and !reject")
    eval: bool = option(False, "evaluate: on held-out problems of --tasks, or on --data")
    reject: bool = option(
        False,
        "rejection sampling: sample training problems, or those of --data, and keep the good "
        "completions as SFT rows",
    )
    data: tuple[str, ...] = option(
        (),
        "problem files for --eval or --reject, instead of --tasks (JSONL, JSON, CSV, Parquet)",
        when="eval|reject",
    )
    instruction: str = option("", "text to append to each prompt of --data", when="data")
    template: str = option(
        "auto",
        "how messages become text: chat (the model's own template), r1-zero or plain; auto: chat "
        "if the model has a template, else plain; text prompts of --data are used unchanged",
        choices=("auto", "chat", "r1-zero", "plain"),
    )
    reference: str = option("", "model from which --eval measures the KL", when="eval")
    reward: str = option(
        "",
        "rewards to compute besides accuracy and format, as in train_grpo.py: name=FOLDER of a "
        "reward model scores general prompts, and --reject keeps the answers of the highest sum",
        when="eval|reject",
    )
    score_thinking: tuple[str, ...] = option(
        (), "reward models that score the whole completion, not only the answer", when="reward"
    )
    out: str = option(
        "", "output file: figures of --eval (JSON), or rows of --reject or --prompts (JSONL)"
    )
    tasks: tuple[str, ...] = option(tasks.DEFAULT, "embedded tasks", when="eval|reject and !data")
    problems: int = option(
        0,
        "problems per task or file (0: 60 per task, all of a file)",
        bounds="0 <= x",
        when="eval|reject",
    )
    samples: int = option(16, "completions per problem", bounds="1 <= x", when="eval|reject")
    temperature: float = option(1.0, "sampling temperature; 0: greedy", bounds="0 <= x")
    top_k: int = option(0, "keep the k most likely tokens (0: all)", bounds="0 <= x")
    top_p: float = option(
        1.0, "keep the most likely tokens that together have this probability", bounds="0 < x <= 1"
    )
    min_p: float = option(
        0.0,
        "keep tokens at least this fraction as likely as the most likely one",
        bounds="0 <= x < 1",
    )
    max_new_tokens: int = option(400, "length limit of a completion", bounds="1 <= x")
    keep: int = option(2, "rows to keep per problem, at most", bounds="1 <= x", when="reject")
    max_thinking: int = option(280, "longest thinking in a kept row, in tokens", when="reject")
    plain_rows: int = option(
        400,
        "non-reasoning rows to add, answered without thinking [R1 §2.3.3]",
        bounds="0 <= x",
        when="reject and !data",
    )
    bf16: bool = option(False, "weights and compute in bfloat16")
    sampler_rows: int = option(
        256,
        "completions sampled in parallel; affects memory, never a completion",
        bounds="1 <= x",
        when="eval|reject|prompts",
    )


BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
BENCHMARKS = {  # [R1 §3]: samples per problem, file, where to download it
    "aime24": (64, "aime24.jsonl", "https://huggingface.co/datasets/HuggingFaceH4/aime_2024"),
    "math500": (
        16,
        "math500.jsonl",
        "https://huggingface.co/datasets/HuggingFaceH4/MATH-500 (test.jsonl)",
    ),
    "gsm8k": (4, "gsm8k.jsonl", "https://github.com/openai/grade-school-math (data/test.jsonl)"),
    "gpqa": (
        64,
        "gpqa_diamond.csv",
        "https://huggingface.co/datasets/Idavidrein/gpqa (its authors ask for consent)",
    ),
    "humaneval": (16, "HumanEval.jsonl.gz", "https://github.com/openai/human-eval (data)"),
}

# R1's protocol [R1 §3]: pass@1 as the mean over samples of up to 32,768 tokens, never greedy.
PRESETS = {
    name: {
        "eval": True,
        "data": (file,),
        "samples": samples,
        "temperature": 0.6,
        "top_p": 0.95,
        "max_new_tokens": 32_768,
        "instruction": "" if name == "humaneval" else BOXED,
    }
    for name, (samples, file, _) in BENCHMARKS.items()
}


def resolve(cfg: SampleConfig) -> SampleConfig:
    """The configuration with the tasks to use. Raises ValueError for a flag that is invalid or
    conflicts with others."""
    validate(cfg)
    embedded = (cfg.eval or cfg.reject) and not cfg.data
    if cfg.eval and cfg.reject:
        raise ValueError("--eval and --reject: choose one")
    for term in check_terms(cfg.reward, cfg.score_thinking):
        if term.start:
            raise ValueError(f"--reward {cfg.reward}: @{term.start:g} has no effect here")
    if cfg.reject and not cfg.out:
        raise ValueError("--reject needs --out, the file for the rows")
    if cfg.prompt and cfg.prompts:
        raise ValueError("--prompt and --prompts: choose one")
    if cfg.out and not (cfg.eval or cfg.reject or cfg.prompts):
        raise ValueError(f"--out {cfg.out}: only --eval, --reject and --prompts write a file")
    if cfg.template != "auto" and embedded:
        raise ValueError(
            f"--template {cfg.template}: has no effect without --data; the embedded tasks' prompts "
            "are plain text"
        )
    unchanged = cfg.temperature > 0 and cfg.top_k == 0 and cfg.top_p == 1 and cfg.min_p == 0
    if cfg.reference and not unchanged:
        raise ValueError(
            f"--reference {cfg.reference}: the KL needs samples of the full distribution: "
            "use --temperature above 0, and no --top-k, --top-p or --min-p"
        )
    if cfg.eval and cfg.out.endswith(".jsonl"):
        raise ValueError(
            f"--out {cfg.out}: must not end in .jsonl, which is for the completions; choose a "
            ".json file for the figures"
        )
    return replace(cfg, tasks=tasks.usable(cfg.tasks, judged=embedded))
