"""Benchmark: `python -m r1mini.bench`, against the machine's limits, transformers and TRL.

Each figure is compared with a limit measured in the same run: matrix products of the model's
shapes, and memory copies. If transformers and TRL are installed, they and r1mini take turns on the
same weights and prompts, and each ratio compares two consecutive runs. docs/speed.md says what is
counted. Left out: several GPUs, torch.compile.
"""

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from statistics import median

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor

from r1mini import checkpoint
from r1mini.answers import equivalent
from r1mini.bench import reference
from r1mini.bench.timing import Runs, Stopwatch, alternate, least_seconds, machine_limits
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.config import option, run_script, validate
from r1mini.evaluation.figures import MISSING, table_head, table_row
from r1mini.infra import files
from r1mini.infra.device import autocast, pick_device
from r1mini.model.attention import PackedAttention
from r1mini.model.config import ModelConfig
from r1mini.model.init import init_weights
from r1mini.model.transformer import Transformer
from r1mini.records import Group, Problem
from r1mini.rl.config import GRPOConfig
from r1mini.rl.grpo import group_advantages
from r1mini.rl.learner import update_minibatch
from r1mini.rl.samples import make_samples
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams
from r1mini.sandbox import judge
from r1mini.tasks.corpus import document
from r1mini.training import optim
from r1mini.training.logprobs import collate, token_logprobs

QWEN = {"rope_theta": 1e6, "attention_bias": True, "max_position_embeddings": 32_768}
LARGE_VOCABULARY = 151_936
SHAPES = {  # vocabulary, width, layers, query heads, key heads, MLP width, head size
    "1m": ModelConfig(1024, 128, 4, 4, 1, 320, 32),
    "30m": ModelConfig(4096, 512, 8, 8, 2, 1408, 64),
    "0.5b": ModelConfig(LARGE_VOCABULARY, 896, 24, 14, 2, 4864, 64, **QWEN),
    "1.5b": ModelConfig(LARGE_VOCABULARY, 1536, 28, 12, 2, 8960, 128, **QWEN),
}
PROBLEMS, COMPLETIONS = 8, 8  # of a GRPO step
SFT_ROWS, SFT_LENGTHS = 32, (64, 256)
MEAN_LENGTH = 64  # of ragged completions: one token id in 64 is an end token
LEARNING_RATE = 1e-6  # too small to change the lengths of completions during the benchmark
MEASURED = ("decode", "prefill", "sft", "grpo", "logprobs", "rewards")
Row = dict  # of the table
Measured = tuple  # table_figures' arguments, without the shape


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


# -- one timed run of r1mini: returns its number of tokens ----------------------------------------


def decode(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    completions: int,
    params: SamplingParams,
    rows: int,
    watch: Stopwatch,
) -> int:
    groups = sample(model, tokenizer, prompts, completions, params, seed=0, max_rows=rows)
    return sum(len(rollout.completion_ids) for group in groups for rollout in group)


@torch.inference_mode()
def prefill(model: Transformer, tokens_BT: Tensor, watch: Stopwatch) -> int:
    B, T = tokens_BT.shape
    position_M = torch.arange(T, device=tokens_BT.device).repeat(B)
    attention = PackedAttention([T] * B, keep_kv=True, device=tokens_BT.device)
    hidden_MD = model.hidden(tokens_BT.flatten(), position_M, attention)
    model.lm_head(hidden_MD[T - 1 :: T])
    return tokens_BT.numel()


def grpo_step(
    cfg: GRPOConfig,
    policy: Transformer,
    optimizers: Sequence[torch.optim.Optimizer],
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    device: torch.device,
    watch: Stopwatch,
) -> int:
    params = SamplingParams(cfg.max_new_tokens)
    with watch.lap("sampling"), autocast(device, cfg.bf16):
        sampled = sample(
            policy, tokenizer, prompts, cfg.completions, params, seed=0, max_rows=cfg.sampler_rows
        )
    with watch.lap("learner"):
        groups = [Group(Problem("", "", "", ""), rollouts, [], ()) for rollouts in sampled]
        rewards_NG = torch.arange(cfg.completions).float().expand(len(groups), -1)
        samples = make_samples(cfg, policy, groups, group_advantages(rewards_NG))
        update_minibatch(cfg, policy, None, optimizers, samples, LEARNING_RATE)
    return sum(len(rollout.completion_ids) for rollouts in sampled for rollout in rollouts)


def sft_step(
    model: Transformer,
    optimizers: Sequence[torch.optim.Optimizer],
    rows: Sequence[Sequence[int]],
    bf16: bool,
    losses: list[float],
    watch: Stopwatch,
) -> int:
    batch = collate([([], row) for row in rows]).to(model.lm_head.weight.device)
    with autocast(batch.tokens_BT.device, bf16):
        logp_BT = token_logprobs(model, batch)
    loss = -logp_BT.sum() / batch.target_BT.sum()
    loss.backward()
    optim.step(optimizers, model.parameters(), LEARNING_RATE, 1.0)
    losses.append(float(loss.detach()))
    return sum(map(len, rows))


def logprobs(model: Transformer, tokens_BT: Tensor, bf16: bool, watch: Stopwatch) -> int:
    batch = collate([([], row) for row in tokens_BT.tolist()]).to(tokens_BT.device)
    with autocast(tokens_BT.device, bf16):
        logp_BT = token_logprobs(model, batch)
    (-logp_BT.sum()).backward()
    model.zero_grad(set_to_none=True)
    return tokens_BT.numel()


# -- the models and their prompts -----------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model to measure."""

    cfg: Config
    name: str
    model: Transformer
    stop_ids: frozenset[int]  # that end a ragged completion
    limits: dict  # of the machine, on this model's shapes
    device: torch.device
    libraries: dict[str, str]  # versions of transformers and TRL, if they are measured too

    def cast_model(self) -> Transformer:
        return self.model.to(torch.bfloat16 if self.cfg.bf16 else torch.float32)

    def tokenizer(self, case: str) -> Tokenizer:
        stop_ids = self.stop_ids if case == "ragged" else frozenset()
        return word_tokenizer(self.model.config.vocab_size, stop_ids)

    def prompts(self, number: int, length: int) -> list[list[int]]:
        """Random ids; for the embedded model, text like its training data."""
        if self.name == "embedded":
            tokenizer, ids = checkpoint.load_tokenizer("base"), []
            rows = (document(self.cfg.seed, index) for index in count())
            while len(ids) < number * length:
                ids += tokenizer.encode("".join(next(rows).values()))
            return [ids[i * length :][:length] for i in range(number)]
        generator = torch.Generator().manual_seed(self.cfg.seed)
        vocab_size = self.model.config.vocab_size
        return torch.randint(vocab_size, (number, length), generator=generator).tolist()

    def min_seconds(self, rows: Sequence[tuple[float, float]], **options) -> float:
        return least_seconds(self.model.config, self.limits, rows, self.cfg.bf16, **options)

    def trainer_options(self) -> dict:
        return {"repeats": self.cfg.repeats, "bf16": self.cfg.bf16, "rate": LEARNING_RATE}


def load_subject(
    cfg: Config, name: str, device: torch.device, libraries: dict[str, str]
) -> Subject:
    if name == "embedded":
        model, tokenizer = checkpoint.load("base", device)
        stop_ids = tokenizer.stop_ids
    else:
        model = random_model(SHAPES[name], cfg.seed, device)
        stop_ids = frozenset(range(model.config.vocab_size // MEAN_LENGTH))
    limits = machine_limits(model.config, device)
    return Subject(cfg, name, model, stop_ids, limits, device, libraries)


def random_model(config: ModelConfig, seed: int, device: torch.device) -> Transformer:
    """A model with small output weights, so that next tokens are nearly uniform. At full size, a
    wide model repeats its last token, and lengths are not geometric."""
    with device:
        model = Transformer(config)
    init_weights(model, seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
    return model


def word_tokenizer(vocab_size: int, stop_ids: frozenset[int] = frozenset()) -> Tokenizer:
    """A tokenizer with one word per id (`w3` is 3), so that any ids have a text. No model can
    sample the id of <end>.

    >>> word_tokenizer(8).encode("w3 w7"), sorted(word_tokenizer(8).stop_ids)
    ([3, 7], [8])
    >>> sorted(word_tokenizer(8, frozenset([2, 5])).stop_ids)
    [2, 5]
    """
    vocabulary = {f"w{i}": i for i in range(vocab_size)} | {"<end>": vocab_size}
    backend = Backend(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, stop_ids or [vocab_size])


def text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


# -- the measurements: each yields the figures of table rows ---------------------------------------


def measure_decode(s: Subject) -> Iterator[Measured]:
    """Ragged: a queue of four times as many rows as are decoded at a time."""
    for case, queue, new in (("equal", 1, s.cfg.new_tokens), ("ragged", 4, 8 * MEAN_LENGTH)):
        for rows in s.cfg.batch:
            yield decode_row(s, case, queue * rows, rows, new)
    s.model.float()


def decode_row(s: Subject, case: str, total: int, rows: int, new: int) -> Measured:
    """`total` completions of at most `new` tokens, `rows` at a time."""
    model, tokenizer = s.cast_model(), s.tokenizer(case)
    completions = COMPLETIONS if rows % COMPLETIONS == 0 else 1  # of a prompt, as in RL
    ids = s.prompts(total // completions, s.cfg.prompt_tokens)
    prompts, other = list(map(text, ids)), None
    ours = partial(decode, model, tokenizer, prompts, completions, SamplingParams(new), rows)
    if s.libraries:
        prompts_BT = torch.tensor(ids, device=s.device).repeat_interleave(completions, 0)
        hf_model = reference.to_transformers(model, tokenizer.stop_ids)
        other = partial(reference.decode, hf_model, prompts_BT, new, rows, tokenizer.stop_ids)
    sides = alternate(ours, other, s.cfg.repeats, s.device)
    mean = median(sides[0].amounts) / total
    limit = s.min_seconds([(s.cfg.prompt_tokens, mean)] * total, batch=rows)
    return f"decode {rows}, {case}", sides, limit


def measure_prefill(s: Subject) -> Iterator[Measured]:
    T, model = s.cfg.prompt_tokens, s.cast_model()
    hf_model = reference.to_transformers(model, s.stop_ids) if s.libraries else None
    for rows in s.cfg.batch:
        tokens_BT = torch.tensor(s.prompts(rows, T), device=s.device)
        ours = partial(prefill, model, tokens_BT)
        other = hf_model and partial(reference.prefill, hf_model, tokens_BT)
        sides = alternate(ours, other, s.cfg.repeats, s.device)
        yield f"prefill {rows} × {T}", sides, s.min_seconds([(T - 1, 1)] * rows)
    s.model.float()


def measure_sft(s: Subject) -> Iterator[Measured]:
    random, losses, trl_losses = Random(s.cfg.seed), [], []
    ids = s.prompts(SFT_ROWS, SFT_LENGTHS[1])
    rows = [row[: random.randint(*SFT_LENGTHS)] for row in ids]
    optimizers = optim.build_optimizers(s.model, "adamw", 0.0)
    ours = partial(sft_step, s.model, optimizers, rows, s.cfg.bf16, losses)
    if "trl" in s.libraries:
        tokenizer = s.tokenizer("equal")
        sides = reference.sft(ours, s.model, tokenizer, rows, trl_losses, **s.trainer_options())
    else:
        sides = alternate(ours, None, s.cfg.repeats, s.device)
    loss = f"loss {losses[0]:.6f}" + (f", TRL {trl_losses[0]:.6f}" if trl_losses else "")
    title = f"SFT step, {SFT_ROWS} × {SFT_LENGTHS[0]} to {SFT_LENGTHS[1]} ({loss})"
    yield title, sides, s.min_seconds([(0, len(row)) for row in rows], passes=3)


def measure_grpo(s: Subject) -> Iterator[Measured]:
    prompt, new, B = s.cfg.prompt_tokens, s.cfg.new_tokens, PROBLEMS * COMPLETIONS
    cfg = GRPOConfig(
        problems=PROBLEMS,
        completions=COMPLETIONS,
        minibatches=1,
        max_new_tokens=new,
        optimizer="adamw",
        clip_high=0.2,
        bf16=s.cfg.bf16,
        learner_tokens=s.cfg.learner_tokens,
    )
    prompts = list(map(text, s.prompts(PROBLEMS, prompt)))
    optimizers = optim.build_optimizers(s.model, "adamw", 0.0)
    for case in ("equal", "ragged"):
        tokenizer = s.tokenizer(case)
        ours = partial(grpo_step, cfg, s.model, optimizers, tokenizer, prompts, s.device)
        if "trl" in s.libraries:
            options = s.trainer_options()
            sides = reference.grpo(ours, s.model, tokenizer, prompts, COMPLETIONS, new, **options)
        else:
            sides = alternate(ours, None, s.cfg.repeats, s.device)
        mean = median(sides[0].amounts) / B
        # Each prompt is computed once for all its completions.
        once, alone = [(prompt, 0)] * PROBLEMS, [(prompt, 0)] * B
        whole = [(prompt, mean)] * B
        sampling = s.min_seconds(once) + s.min_seconds(whole, batch=B) - s.min_seconds(alone)
        learner = (
            s.min_seconds(once, passes=3)
            + s.min_seconds(whole, passes=3)
            - s.min_seconds(alone, passes=3)
        )
        size = f"{PROBLEMS} × {COMPLETIONS} × ({prompt} + {new})"
        yield f"GRPO step, {size}, {case}", sides, sampling + learner
        yield f"GRPO sampling, {case}", sides, sampling, "sampling"
        yield f"GRPO learner, {case}", sides, learner, "learner"


def measure_logprobs(s: Subject) -> Iterator[Measured]:
    """Forward and backward pass of one row with a large vocabulary, mainly for its peak memory."""
    model = random_model(replace(s.model.config, vocab_size=LARGE_VOCABULARY), s.cfg.seed, s.device)
    length = s.cfg.prompt_tokens + s.cfg.new_tokens
    tokens_BT = torch.arange(length, device=s.device)[None] % LARGE_VOCABULARY
    other = None
    if "trl" in s.libraries:
        trl_model = reference.with_fused_head(reference.to_transformers(model, s.stop_ids))
        other = partial(reference.logprobs, trl_model, tokens_BT, s.cfg.bf16)
    ours = partial(logprobs, model, tokens_BT, s.cfg.bf16)
    sides = alternate(ours, other, s.cfg.repeats, s.device)
    limit = least_seconds(model.config, s.limits, [(0, length)], s.cfg.bf16, passes=3)
    yield f"log-probabilities, {length} tokens, vocabulary {LARGE_VOCABULARY}", sides, limit


def measure_rewards(cfg: Config) -> Iterator[Measured]:
    """Small programs in the sandbox, and answers compared with gold answers; in one thread."""
    tests = [{"stdin": "21\n", "stdout": "42\n"}]
    program = "print(2 * int(input()))"
    pairs = [(rf"\frac{{{n}}}{{7}}", f"{n}/7") for n in range(1, 51)]
    judge_programs = lambda watch: sum(judge(program, tests, time_limit=2) for _ in pairs)
    check_answers = lambda watch: sum(equivalent(gold, answer) for gold, answer in pairs)
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
    sides: Sequence[Runs],
    limit_seconds: float | None = None,
    lap: str = "all",
) -> Row:
    """Medians over the runs. `times`: our throughput divided by the other side's; median, minimum
    and maximum over the pairs of runs."""
    row = {"shape": shape, "what": what}
    for side, runs in zip(("ours", "reference"), sides):
        wall, cpu = zip(*(laps[lap] for laps in runs.laps))
        rates = [amount / seconds for amount, seconds in zip(runs.amounts, wall)]
        row[side] = {
            "seconds": median(wall),
            "cpu_seconds": median(cpu),
            "per_second": median(rates),
            "rates": rates,
            "peak_bytes": runs.peak_bytes if lap == "all" else None,
        }
    if limit_seconds is not None:
        row["of_limit"] = limit_seconds / row["ours"]["seconds"]
    if "reference" in row:
        pairs = zip(row["ours"]["rates"], row["reference"]["rates"])
        ratios = [ours / other for ours, other in pairs]
        row["times"] = [median(ratios), min(ratios), max(ratios)]
    return row


def head(compared: bool) -> str:
    """The table's first two lines."""
    side = ["seconds", "CPU s", "per second", "peak MB"]
    columns = ["shape", "what", *side, "of the limit"]
    if compared:
        columns += [f"reference: {side[0]}", *side[1:], "times as fast"]
    return table_head(columns)


def line(row: Row, compared: bool) -> str:
    """A row of the table."""
    cells = [row["shape"], row["what"], *side_cells(row["ours"])]
    cells.append(f"{row['of_limit']:.0%}" if "of_limit" in row else MISSING)
    if compared:
        cells += side_cells(row.get("reference"))
        times = row.get("times")
        cells.append("{:.2f} ({:.2f} to {:.2f})".format(*times) if times else MISSING)
    return table_row(cells)


def side_cells(side: dict | None) -> list[str]:
    if side is None:
        return [MISSING] * 4
    peak = side["peak_bytes"]
    cells = [f"{side['seconds']:.4g}", f"{side['cpu_seconds']:.4g}", f"{side['per_second']:.0f}"]
    return [*cells, MISSING if peak is None else f"{peak / 2**20:.0f}"]


def machine(device: torch.device) -> dict:
    path = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.*)", path.read_text()) if path.is_file() else None
    info = {"cpu": name[1] if name else platform.machine()}
    if device.type == "cuda":
        info["gpu"] = torch.cuda.get_device_name(device)
    return {**info, "threads": torch.get_num_threads(), "torch": torch.__version__}


def describe_limits(limits: dict) -> str:
    rates = []
    for kind in ("fp32", "bf16"):
        rates.append(f"{kind} " + " / ".join(f"{x / 1e9:.0f}" for x in limits[kind].values()))
    rows = " / ".join(map(str, limits["fp32"]))
    products = f"matrix products of {rows} tokens in GFLOP/s: {'; '.join(rates)}"
    return f"{products}; copies: {limits['copy'] / 1e9:.1f} GB/s"


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
    print(head(bool(libraries)), flush=True)

    def add(shape: str, measured: Iterator[Measured]) -> None:
        for figures in measured:
            row = table_figures(shape, *figures)
            result["rows"].append(row)
            print(line(row, bool(libraries)), flush=True)
            if cfg.json:  # after each row: the next may run out of memory
                files.write_json(Path(cfg.json), result)

    measurements = [measure for name, measure in MEASUREMENTS.items() if name in cfg.what]
    for name in cfg.shapes if measurements else ():
        subject = load_subject(cfg, name, device, libraries)
        result["limits"][name] = subject.limits
        for measure in measurements:
            add(name, measure(subject))
    if "rewards" in cfg.what:
        add("", measure_rewards(cfg))
    for name, limits in result["limits"].items():
        print(f"{name}: {describe_limits(limits)}")
    return result


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.bench"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run_script(main, Config, description=__doc__)
