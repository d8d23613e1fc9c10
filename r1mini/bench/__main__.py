"""Benchmark: `python -m r1mini.bench`, against the machine's limits, transformers and TRL.

Each figure is compared with a limit measured in the same run: matrix products of the model's
shapes, and memory copies. If transformers and TRL are installed, they and r1mini take turns on the
same weights and prompts, and each ratio compares two consecutive runs. docs/speed.md says what is
counted. Left out: several GPUs.
"""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from random import Random
from statistics import median

import tokenizers
import torch
from torch import Tensor

from r1mini import checkpoint
from r1mini.answers import equivalent
from r1mini.bench import reference
from r1mini.bench.memory import SHAPES as QWEN_SHAPES
from r1mini.bench.timing import (
    TRAINING_PASSES,
    UNTIMED,
    Run,
    Runs,
    alternate,
    least_seconds,
    machine_limits,
)
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.config import option, run_script, validate
from r1mini.evaluation.figures import MISSING, table_head, table_row
from r1mini.infra import files
from r1mini.infra.device import autocast, pick_device
from r1mini.model.attention import PackedAttention
from r1mini.model.config import ModelConfig
from r1mini.model.init import init_weights
from r1mini.model.transformer import Transformer
from r1mini.records import Problem
from r1mini.rewards.runner import Rewards
from r1mini.rl.config import GRPOConfig
from r1mini.rl.grpo import group_advantages
from r1mini.rl.learner import update_policy
from r1mini.rl.rollouts import sample_groups
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.sandbox import judge
from r1mini.tasks.corpus import document
from r1mini.training import optim
from r1mini.training.logprobs import collate, token_logprobs

LARGE_VOCABULARY = 151_936
SHAPES = {  # vocabulary, width, layers, query heads, key heads, MLP width, head size
    "1m": ModelConfig(1024, 128, 4, 4, 1, 320, 32),
    "30m": ModelConfig(4096, 512, 8, 8, 2, 1408, 64),
    "0.5b": QWEN_SHAPES["0.5B"],
    "1.5b": QWEN_SHAPES["1.5B"],
}
SAME_PROMPT = 8  # rows of a prompt in decode
SFT_ROWS, SFT_LENGTHS = 32, (64, 256)
MEAN_LENGTH = 64  # of ragged completions: one token id in 64 is an end token
LEARNING_RATE = 1e-6  # too small to change the lengths of completions during the benchmark
MEASURED = ("decode", "prefill", "sft", "grpo", "logprobs", "rewards")
SIDE = ("seconds", "CPU s", "per second", "peak MB")
COLUMNS = ("shape", "what", *SIDE, "of the limit", "reference: seconds", *SIDE[1:], "times as fast")
ALL, SAMPLING, LEARNER = (0, -1), (0, 1), (1, -1)  # the marks around a part of a run


@dataclass(frozen=True)
class Config:
    json: str = option("", "file for the figures")
    shapes: tuple[str, ...] = option(("embedded", "1m"), "models", choices=("embedded", *SHAPES))
    what: tuple[str, ...] = option(MEASURED, "what to measure", choices=MEASURED)
    batch: tuple[int, ...] = option(
        (1, 16, 64, 256), "batch sizes of decode and prefill", bounds="1 <= x"
    )
    prompt_tokens: int = option(64, "length of a prompt", bounds="2 <= x")
    new_tokens: int = option(
        128,
        "length of a completion; in ragged decode, 64 on average and up to 8 times that",
        bounds="1 <= x",
    )
    problems: int = option(8, "problems of a GRPO step", bounds="1 <= x")
    completions: int = option(8, "completions of a problem in a GRPO step", bounds="1 <= x")
    learner_tokens: int = option(
        4096, "tokens per micro-batch of the GRPO step; a GPU is faster with more", bounds="1 <= x"
    )
    repeats: int = option(5, "timed runs of each case, after two untimed ones", bounds="1 <= x")
    compare: bool = option(True, "also measure transformers and TRL, if they are installed")
    seed: int = option(0, "seed of weights and prompts")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)", bounds="0 <= x")
    bf16: bool = option(
        False, "bfloat16: weights in decode and prefill, compute over fp32 weights elsewhere"
    )
    compile: bool = option(
        False, "torch.compile r1mini's learner, and on CUDA its decoding step, in the untimed runs"
    )


# -- what r1mini runs; a timed run returns its number of tokens ------------------------------------


def decode(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: list[str],
    completions: int,
    new_tokens: int,
    rows: int,
    compile: bool,
    runs: Runs,
) -> int:
    params, options = SamplingParams(new_tokens), {"max_rows": rows, "compile": compile}
    groups = sample(model, tokenizer, prompts, completions, params, seed=0, **options)
    return sum(len(rollout.completion_ids) for group in groups for rollout in group)


@torch.inference_mode()
def prefill(model: Transformer, tokens_BT: Tensor, runs: Runs) -> int:
    B, T = tokens_BT.shape
    position_M = torch.arange(T, device=tokens_BT.device).repeat(B)
    attention = PackedAttention([T] * B, keep_kv=True, device=tokens_BT.device)
    hidden_MD = model.hidden(tokens_BT.flatten(), position_M, attention)
    model.lm_head(hidden_MD[T - 1 :: T])
    return tokens_BT.numel()


def forward_backward(model: Transformer, rows: list[list[int]], bf16: bool) -> float:
    """Adds the gradient of the mean loss over all tokens of the rows. Returns that loss."""
    batch = collate([([], row) for row in rows]).to(model.device)
    with autocast(model.device, bf16):
        logp_BT = token_logprobs(model, batch)
    loss = -logp_BT.sum() / batch.target_BT.sum()
    loss.backward()
    return float(loss.detach())


# -- the models and their prompts -----------------------------------------------------------------


class Subject:
    """A model to measure: the embedded one, or random weights of a shape.

    stop_ids   end a ragged completion
    limits     of the machine, on this model's shapes
    libraries  versions of transformers and TRL, if they are measured too
    """

    def __init__(self, cfg: Config, name: str, device: torch.device, libraries: dict[str, str]):
        self.cfg, self.name, self.libraries = cfg, name, libraries
        if name == "embedded":
            self.model, tokenizer = checkpoint.load("base", device)
            self.stop_ids = tokenizer.stop_ids
        else:
            self.model = random_model(SHAPES[name], cfg.seed, device)
            self.stop_ids = frozenset(range(self.model.config.vocab_size // MEAN_LENGTH))
        if cfg.compile:
            self.model.compile_layers()
        self.limits = machine_limits(self.model)
        self.least_seconds = partial(least_seconds, self.model, self.limits, cfg.bf16)
        self.alternate = partial(alternate, repeats=cfg.repeats, device=device)

    def tokenizer(self, case: str) -> Tokenizer:
        """A completion ends at a stop id in a ragged case, and never in an equal one: no model can
        sample the id of <end>."""
        vocab_size = self.model.config.vocab_size
        return word_tokenizer(vocab_size, self.stop_ids if case == "ragged" else [vocab_size])

    def prompts(self, number: int, length: int) -> list[list[int]]:
        """Random ids; for the embedded model, text like its training data."""
        if self.name == "embedded":
            encode = checkpoint.load_tokenizer("base").encode
            rows = map(partial(document, self.cfg.seed), count())
            ids = chain.from_iterable(encode("".join(row.values())) for row in rows)
            return [list(islice(ids, length)) for _ in range(number)]
        generator = torch.Generator().manual_seed(self.cfg.seed)
        vocab_size = self.model.config.vocab_size
        return torch.randint(vocab_size, (number, length), generator=generator).tolist()

    def train(self, ours: Run, tokenizer: Tokenizer, of_trl: Callable, *args) -> list[Runs]:
        """Our training steps; if TRL is installed, in turns with its own."""
        if "trl" not in self.libraries:
            return self.alternate(ours, None)
        return reference.train(
            ours,
            self.model,
            tokenizer,
            **of_trl(*args),
            max_steps=UNTIMED + self.cfg.repeats,
            bf16=self.cfg.bf16,
            learning_rate=LEARNING_RATE,
        )


def word_tokenizer(vocab_size: int, stop_ids: Iterable[int]) -> Tokenizer:
    """A word for each id (`w3` is 3), so that any ids have a text, and <end> after the last."""
    vocabulary = {f"w{i}": i for i in range(vocab_size)} | {"<end>": vocab_size}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, stop_ids)


@torch.no_grad()
def random_model(config: ModelConfig, seed: int, device: torch.device) -> Transformer:
    """A model with small output weights, so that next tokens are nearly uniform. At full size, a
    wide model repeats its last token, and lengths are not geometric."""
    with device:
        model = Transformer(config)
    init_weights(model, seed)
    model.lm_head.weight.mul_(0.1)
    return model


# -- the measurements: each yields arguments of `table_figures` after the shape --------------------


def measure_decode(s: Subject) -> Iterator[tuple]:
    """Ragged: a queue of four times as many rows as are decoded at a time."""
    length = s.cfg.prompt_tokens
    for case, queue, new in (("equal", 1, s.cfg.new_tokens), ("ragged", 4, 8 * MEAN_LENGTH)):
        tokenizer = s.tokenizer(case)
        stop_ids = tokenizer.stop_ids
        hf_model = s.libraries and reference.to_transformers(s.model, stop_ids)
        for rows in s.cfg.batch:
            total = queue * rows
            completions = SAME_PROMPT if rows % SAME_PROMPT == 0 else 1  # of a prompt, as in RL
            ids = s.prompts(total // completions, length)
            prompts = list(map(tokenizer.decode, ids))
            prompts_BT = torch.tensor(ids, device=s.model.device).repeat_interleave(completions, 0)
            args = prompts, completions, new, rows, s.cfg.compile
            ours = partial(decode, s.model, tokenizer, *args)
            other = partial(reference.decode, hf_model, prompts_BT, new, rows, stop_ids)
            sides = s.alternate(ours, hf_model and other)
            mean = median(sides[0].amounts) / total
            yield f"decode {rows}, {case}", sides, s.least_seconds([(length, mean)] * total, rows)


def measure_prefill(s: Subject) -> Iterator[tuple]:
    T = s.cfg.prompt_tokens
    hf_model = s.libraries and reference.to_transformers(s.model, s.stop_ids)
    for rows in s.cfg.batch:
        tokens_BT = torch.tensor(s.prompts(rows, T), device=s.model.device)
        ours = partial(prefill, s.model, tokens_BT)
        other = partial(reference.prefill, hf_model, tokens_BT)
        sides = s.alternate(ours, hf_model and other)
        yield f"prefill {rows} × {T}", sides, s.least_seconds([(T - 1, 1)] * rows)


def measure_sft(s: Subject) -> Iterator[tuple]:
    shortest, longest = SFT_LENGTHS
    random = Random(s.cfg.seed)
    rows = [ids[: random.randint(shortest, longest)] for ids in s.prompts(SFT_ROWS, longest)]
    optimizers = optim.build_optimizers(s.model, "adamw", 0.0)

    def step(runs):
        runs.losses.append(forward_backward(s.model, rows, s.cfg.bf16))
        optim.step(optimizers, s.model.parameters(), LEARNING_RATE, 1.0)
        return sum(map(len, rows))

    sides = s.train(step, s.tokenizer("equal"), reference.sft, rows)
    losses = ", TRL ".join(f"{runs.losses[0]:.6f}" for runs in sides)
    title = f"SFT step, {SFT_ROWS} × {shortest} to {longest} (loss {losses})"
    yield title, sides, TRAINING_PASSES * s.least_seconds([(0, len(row)) for row in rows])


def index_reward(completions: list, **_) -> list[float]:
    """Rewards that cost nothing, and are never all equal in a group of more than one."""
    return [float(i % 2) for i in range(len(completions))]


def measure_grpo(s: Subject) -> Iterator[tuple]:
    length, new, N, G = s.cfg.prompt_tokens, s.cfg.new_tokens, s.cfg.problems, s.cfg.completions
    cfg = GRPOConfig(
        progress=False,
        completions=G,
        minibatches=1,
        max_new_tokens=new,
        bf16=s.cfg.bf16,
        compile=s.cfg.compile,
        learner_tokens=s.cfg.learner_tokens,
    )
    rewards = Rewards({"index": index_reward}, {"index": 1.0})
    optimizers = optim.build_optimizers(s.model, "adamw", 0.0)
    prompts = list(map(s.tokenizer("equal").decode, s.prompts(N, length)))
    problems = [Problem("", "", "", prompt) for prompt in prompts]

    def step(tokenizer, runs):
        groups = sample_groups(cfg, s.model, tokenizer, problems, rewards, step=0, attempt=0)
        runs.mark()
        adv_NG = group_advantages(torch.tensor([group.rewards for group in groups]))
        guard = optim.NonFiniteSteps()
        update_policy(cfg, s.model, None, optimizers, groups, adv_NG, 0, LEARNING_RATE, guard)
        return sum(len(rollout.completion_ids) for group in groups for rollout in group.rollouts)

    for case in ("equal", "ragged"):
        tokenizer = s.tokenizer(case)
        args = prompts, index_reward, G, new
        sides = s.train(partial(step, tokenizer), tokenizer, reference.grpo, *args)
        rows = [(length, median(sides[0].amounts) / (N * G))] * (N * G)
        # Each prompt is computed once for all its completions.
        saved = s.least_seconds([(length, 0)] * (N * G - N))
        sampling = s.least_seconds(rows, N * G) - saved
        learner = TRAINING_PASSES * (s.least_seconds(rows) - saved)
        size = f"{N} × {G} × ({length} + {new})"
        yield f"GRPO step, {size}, {case}", sides, sampling + learner
        yield f"GRPO sampling, {case}", sides, sampling, SAMPLING
        yield f"GRPO learner, {case}", sides, learner, LEARNER


def measure_logprobs(s: Subject) -> Iterator[tuple]:
    """Forward and backward pass of one row with a large vocabulary, mainly for its peak memory."""
    device, bf16 = s.model.device, s.cfg.bf16
    model = random_model(replace(s.model.config, vocab_size=LARGE_VOCABULARY), s.cfg.seed, device)
    length, other = s.cfg.prompt_tokens + s.cfg.new_tokens, None
    rows = s.prompts(1, length)

    def ours(runs):
        forward_backward(model, rows, bf16)
        model.zero_grad(set_to_none=True)
        return length

    if "trl" in s.libraries:
        trl_model = reference.with_fused_head(model, s.stop_ids)
        other = partial(reference.logprobs, trl_model, torch.tensor(rows, device=device), bf16)
    sides = s.alternate(ours, other)
    limit = TRAINING_PASSES * least_seconds(model, s.limits, bf16, [(0, length)])
    yield f"log-probabilities, {length} tokens, vocabulary {LARGE_VOCABULARY}", sides, limit


def measure_rewards(cfg: Config) -> Iterator[tuple]:
    """Small programs in the sandbox, and answers compared with gold answers; in one thread."""
    tests = [{"stdin": "21\n", "stdout": "42\n"}]
    program = "print(2 * int(input()))"
    numbers = range(1, 51)
    judge_programs = lambda runs: sum(judge(program, tests, time_limit=2) for _ in numbers)
    check_answers = lambda runs: sum(equivalent(rf"\frac{{{n}}}{{7}}", f"{n}/7") for n in numbers)
    for title, call in ("sandbox judgements", judge_programs), ("answer checks", check_answers):
        yield title, alternate(call, None, cfg.repeats, torch.device("cpu"))


MEASUREMENTS = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "sft": measure_sft,
    "grpo": measure_grpo,
    "logprobs": measure_logprobs,
}


# -- the table ------------------------------------------------------------------------------------


def table_figures(
    shape: str,
    what: str,
    sides: list[Runs],
    limit_seconds: float | None = None,
    part: tuple[int, int] = ALL,
) -> dict:
    """Medians over the runs. `times`: our throughput divided by the other side's; median, minimum
    and maximum over the pairs of runs."""
    row = {"shape": shape, "what": what}
    begin, end = part
    for side, runs in zip(("ours", "reference"), sides):
        timed = [(marks[begin], marks[end]) for marks in runs.marks[UNTIMED:]]
        wall, cpu = ([after[i] - before[i] for before, after in timed] for i in (0, 1))
        rates = [amount / seconds for amount, seconds in zip(runs.amounts[UNTIMED:], wall)]
        row[side] = {
            "seconds": median(wall),
            "cpu_seconds": median(cpu),
            "per_second": median(rates),
            "rates": rates,
            "peak_bytes": runs.peak_bytes if part == ALL else None,
        }
    if limit_seconds is not None:
        row["of_limit"] = limit_seconds / row["ours"]["seconds"]
    if "reference" in row:
        pairs = zip(row["ours"]["rates"], row["reference"]["rates"])
        ratios = [ours / other for ours, other in pairs]
        row["times"] = [median(ratios), min(ratios), max(ratios)]
    return row


def cells(row: dict) -> list[str]:
    """The row's cells in COLUMNS."""
    limit = f"{row['of_limit']:.0%}" if "of_limit" in row else MISSING
    known = [row["shape"], row["what"], *side_cells(row["ours"]), limit]
    if "reference" in row:
        times = "{:.2f} ({:.2f} to {:.2f})".format(*row["times"])
        known += [*side_cells(row["reference"]), times]
    return known + [MISSING] * (len(COLUMNS) - len(known))


def side_cells(side: dict) -> list[str]:
    peak = side["peak_bytes"]
    times = [f"{side['seconds']:.4g}", f"{side['cpu_seconds']:.4g}", f"{side['per_second']:.0f}"]
    return [*times, MISSING if peak is None else f"{peak / 2**20:.0f}"]


def machine(device: torch.device) -> dict:
    path = Path("/proc/cpuinfo")
    name = path.is_file() and re.search(r"model name\s*:\s*(.*)", path.read_text())
    info = {"cpu": name[1] if name else platform.machine()}
    if device.type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
    return info | {"threads": torch.get_num_threads(), "torch": torch.__version__}


def describe_limits(limits: dict) -> str:
    rates = []
    for kind in ("fp32", "bf16"):
        rates.append(f"{kind} " + " / ".join(f"{x / 1e9:.0f}" for x in limits[kind].values()))
    rows = " / ".join(map(str, limits["fp32"]))
    return (
        f"matrix products of {rows} tokens in GFLOP/s: {'; '.join(rates)}; "
        f"copies: {limits['copy'] / 1e9:.1f} GB/s"
    )


def main(cfg: Config) -> dict:
    validate(cfg)
    if cfg.json:
        files.prepare_folder(Path(cfg.json).parent)
    device = pick_device(cfg.device, cfg.threads)
    libraries = reference.versions() if cfg.compare else {}
    info = machine(device) | libraries
    result = {"config": asdict(cfg), "machine": info, "limits": {}, "rows": []}
    print(", ".join(f"{key} {value}" for key, value in info.items()))
    if cfg.compare and len(libraries) < 2:
        print("transformers or TRL is not installed: comparisons that need it are skipped")
    columns = COLUMNS if libraries else COLUMNS[:7]  # those of r1mini alone
    print(table_head(columns), flush=True)

    def add(shape, measured):
        for figures in measured:
            row = table_figures(shape, *figures)
            result["rows"].append(row)
            print(table_row(cells(row)[: len(columns)]), flush=True)
            if cfg.json:  # after each row: the next may run out of memory
                files.write_json(Path(cfg.json), result)

    wanted = [what for what in MEASUREMENTS if what in cfg.what]
    for name in cfg.shapes if wanted else ():
        subject = Subject(cfg, name, device, libraries)
        result["limits"][name] = subject.limits
        for what in wanted:
            in_bf16 = cfg.bf16 and what in ("decode", "prefill")
            subject.model.to(torch.bfloat16 if in_bf16 else torch.float32)
            add(name, MEASUREMENTS[what](subject))
    if "rewards" in cfg.what:
        add("", measure_rewards(cfg))
    for name, limits in result["limits"].items():
        print(f"{name}: {describe_limits(limits)}")
    return result


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.bench"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run_script(main, Config, description=__doc__)
