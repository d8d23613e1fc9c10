"""How fast it is: `python -m r1mini.bench`, beside what the machine could do, and beside transformers and TRL.

Each figure stands next to a limit measured in the same run: matrix products of the model's shapes, and copies of memory.
Where transformers and TRL are installed, theirs and ours take turns on the same weights and prompts, and a ratio is of two
runs side by side. docs/speed.md says what is counted. Left out: several GPUs, torch.compile.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor

import train_grpo
from r1mini import checkpoint, grpo, optim, theirs
from r1mini.answers import equivalent
from r1mini.attention import Packed
from r1mini.batch import collate, token_logprobs
from r1mini.config import autocast, option, require, run
from r1mini.config import device as pick_device
from r1mini.data import corpus_row
from r1mini.measure import Runs, Stopwatch, in_turns, least_seconds, machine_limits
from r1mini.model import ModelConfig, Transformer
from r1mini.rollout import Sampling, sample
from r1mini.sandbox import judge
from r1mini.tokenizer import Tokenizer

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
MEAN_LENGTH = 64  # of ragged completions: one token in so many ends one
RATE = 1e-6  # too little to change the lengths of completions while they are measured


@dataclass(frozen=True)
class Config:
    json: str = option("", "file for the figures")
    shapes: tuple[str, ...] = option(("embedded", "1m"), f"models: embedded, {', '.join(SHAPES)}")
    what: tuple[str, ...] = option(("decode", "prefill", "sft", "grpo", "logprobs", "rewards"), "what is measured")
    batch: tuple[int, ...] = option((1, 16, 64, 256), "rows side by side in decode and prefill")
    prompt_tokens: int = option(64, "length of a prompt")
    new_tokens: int = option(128, "length of a completion; in ragged decode up to 8 times the mean of 64")
    learner_tokens: int = option(4096, "tokens per micro-batch of the GRPO step; a GPU does better with more")
    repeats: int = option(5, "timed runs of each, after two others")
    theirs: bool = option(True, "measure transformers and TRL beside it, where they are installed")
    seed: int = option(0, "seed of weights and prompts")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)")
    bf16: bool = option(False, "bfloat16: the weights in decode and prefill, the compute over fp32 weights elsewhere")


# -- what of r1mini is measured: all that changes with its sampler and its learner --------------------------------------


def decode(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str], group: int, how: Sampling,
           rows: int, watch: Stopwatch) -> int:
    groups = sample(model, tokenizer, prompts, group, how, seed=0, max_rows=rows)
    return sum(len(r.completion_ids) for r in chain(*groups))


@torch.inference_mode()
def prefill(model: Transformer, tokens_BT: Tensor, watch: Stopwatch) -> int:
    B, T = tokens_BT.shape
    position_M = torch.arange(T, device=tokens_BT.device).repeat(B)
    hidden_MD = model.hidden(tokens_BT.flatten(), position_M, Packed([T] * B, keep=True, device=tokens_BT.device))
    model.lm_head(hidden_MD[T - 1 :: T])
    return tokens_BT.numel()


def grpo_step(cfg: train_grpo.Config, policy: Transformer, steppers: Sequence[torch.optim.Optimizer], tokenizer: Tokenizer,
              prompts: Sequence[str], device: torch.device, watch: Stopwatch) -> int:
    with watch.lap("sampling"), autocast(device, cfg.bf16):
        groups = sample(policy, tokenizer, prompts, cfg.completions, Sampling(cfg.max_new_tokens), seed=0,
                        max_rows=cfg.sampler_rows)
    with watch.lap("learner"):
        flat = list(chain(*groups))
        adv_NG = grpo.group_advantages(torch.arange(cfg.completions).float().expand(len(groups), -1))
        old = train_grpo.start(cfg, policy, flat, device)
        train_grpo.update(cfg, policy, None, steppers, RATE, flat, old, adv_NG.flatten(), device)
    return sum(len(r.completion_ids) for r in flat)


def sft_step(model: Transformer, steppers: Sequence[torch.optim.Optimizer], rows: Sequence[Sequence[int]], bf16: bool,
             losses: list[float], watch: Stopwatch) -> int:
    batch = collate([([], row) for row in rows])
    targets = int(batch.target_BT.sum())
    batch = batch.to(model.lm_head.weight.device)
    with autocast(batch.tokens_BT.device, bf16):
        logp_BT = token_logprobs(model, batch)
    loss = -logp_BT.sum() / targets
    loss.backward()
    optim.step(steppers, model.parameters(), RATE, 1.0)
    losses.append(float(loss.detach()))
    return sum(map(len, rows))


def logprobs(model: Transformer, tokens_BT: Tensor, bf16: bool, watch: Stopwatch) -> int:
    batch = collate([([], row) for row in tokens_BT.tolist()]).to(tokens_BT.device)
    with autocast(tokens_BT.device, bf16):
        logp_BT = token_logprobs(model, batch)
    (-logp_BT.sum()).backward()
    model.zero_grad(set_to_none=True)
    return tokens_BT.numel()


# -- the models and their prompts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A model, what ends its ragged completions, and what the machine could do on its shapes."""

    cfg: Config
    name: str
    model: Transformer
    stops: frozenset[int]
    limits: dict[str, Any]
    device: torch.device
    beside: dict[str, str]  # versions of transformers and TRL, if they are measured too

    def tokenizer(self, case: str) -> Tokenizer:
        return words(self.model.config.vocab_size, self.stops if case == "ragged" else frozenset())

    def prompts(self, number: int, length: int) -> list[list[int]]:
        """Random ids; for the embedded model, text of its own kind."""
        if self.name == "embedded":
            tokens, ids, rows = checkpoint.load_tokenizer("base"), [], (corpus_row(self.cfg.seed, i) for i in count())
            while len(ids) < number * length:
                ids += tokens.encode("".join(next(rows).values()))
            return [ids[i * length :][:length] for i in range(number)]
        generator = torch.Generator().manual_seed(self.cfg.seed)
        return torch.randint(self.model.config.vocab_size, (number, length), generator=generator).tolist()

    def least(self, rows: Sequence[tuple[float, float]], **how) -> float:
        return least_seconds(self.model.config, self.limits, rows, self.cfg.bf16, **how)

    def learning(self) -> dict[str, Any]:
        return {"repeats": self.cfg.repeats, "device": self.device, "bf16": self.cfg.bf16, "rate": RATE}


def subject(cfg: Config, name: str, device: torch.device, beside: dict[str, str]) -> Subject:
    if name == "embedded":
        model, tokens = checkpoint.load("base", device)
        stops = tokens.stop_ids
    else:
        model = random_model(SHAPES[name], cfg.seed, device)
        stops = frozenset(range(model.config.vocab_size // MEAN_LENGTH))
    return Subject(cfg, name, model, stops, machine_limits(model.config, device), device, beside)


def random_model(config: ModelConfig, seed: int, device: torch.device) -> Transformer:
    """With small embeddings: next tokens are nearly uniform then. At full size a wide model would repeat its last token, and
    lengths would not be geometric."""
    with device:
        model = Transformer(config)
    model.init_weights(seed)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.1)
    return model


def words(vocab_size: int, stops: frozenset[int] = frozenset()) -> Tokenizer:
    """A tokenizer whose words name their ids, so that any ids are a prompt. <end> is an id that no model can sample.

    >>> words(8).encode("w3 w7"), sorted(words(8).stop_ids), sorted(words(8, frozenset([2, 5])).stop_ids)
    ([3, 7], [8], [2, 5])
    """
    backend = Backend(models.WordLevel({f"w{i}": i for i in range(vocab_size)} | {"<end>": vocab_size}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend, stops or [vocab_size])


def text(ids: Sequence[int]) -> str:
    return " ".join(f"w{i}" for i in ids)


# -- the measurements: each yields rows of the table --------------------------------------------------------------------


def decoding(s: Subject) -> Iterator[dict[str, Any]]:
    """Ragged: a queue of four times the rows, of which so many at a time are decoded."""
    cfg, ours = s.cfg, s.model.to(torch.bfloat16 if s.cfg.bf16 else torch.float32)
    for case, queue, new in (("equal", 1, cfg.new_tokens), ("ragged", 4, 8 * MEAN_LENGTH)):
        tokenizer = s.tokenizer(case)
        other = theirs.model(ours, tokenizer.stop_ids) if s.beside else None
        for rows in cfg.batch:
            group = COMPLETIONS if rows % COMPLETIONS == 0 else 1  # completions of a prompt, as in RL
            ids = s.prompts(queue * rows // group, cfg.prompt_tokens)
            mine = partial(decode, ours, tokenizer, list(map(text, ids)), group, Sampling(new), rows)
            repeated_BT = torch.tensor(ids, device=s.device).repeat_interleave(group, 0)
            others = partial(theirs.decode, other, repeated_BT, new, rows, tokenizer.stop_ids)
            sides = in_turns(mine, others if other else None, cfg.repeats, s.device)
            shape = [(cfg.prompt_tokens, median(sides[0].amounts) / (queue * rows))] * (queue * rows)
            yield row(s.name, f"decode {rows}, {case}", sides, s.least(shape, batch=rows))
    s.model.float()


def prefilling(s: Subject) -> Iterator[dict[str, Any]]:
    T, ours = s.cfg.prompt_tokens, s.model.to(torch.bfloat16 if s.cfg.bf16 else torch.float32)
    other = theirs.model(ours, s.stops) if s.beside else None
    for rows in s.cfg.batch:
        tokens_BT = torch.tensor(s.prompts(rows, T), device=s.device)
        sides = in_turns(partial(prefill, ours, tokens_BT), partial(theirs.prefill, other, tokens_BT) if other else None,
                         s.cfg.repeats, s.device)
        yield row(s.name, f"prefill {rows} × {T}", sides, s.least([(T - 1, 1)] * rows))
    s.model.float()


def sft_steps(s: Subject) -> Iterator[dict[str, Any]]:
    random, losses, their_losses = Random(s.cfg.seed), [], []
    rows = [ids[: random.randint(*SFT_LENGTHS)] for ids in s.prompts(SFT_ROWS, SFT_LENGTHS[1])]
    mine = partial(sft_step, s.model, optim.optimizers(s.model, "adamw", RATE, 0.0), rows, s.cfg.bf16, losses)
    if "trl" in s.beside:
        sides = theirs.sft(mine, s.model, s.tokenizer("equal"), rows, their_losses, **s.learning())
    else:
        sides = in_turns(mine, None, s.cfg.repeats, s.device)
    compared = f"loss {losses[0]:.6f}" + (f", theirs {their_losses[0]:.6f}" if their_losses else "")
    title = f"SFT step, {SFT_ROWS} × {SFT_LENGTHS[0]} to {SFT_LENGTHS[1]} ({compared})"
    yield row(s.name, title, sides, s.least([(0, len(ids)) for ids in rows], passes=3))


def grpo_steps(s: Subject) -> Iterator[dict[str, Any]]:
    given, new, B = s.cfg.prompt_tokens, s.cfg.new_tokens, PROBLEMS * COMPLETIONS
    cfg = train_grpo.Config(problems=PROBLEMS, completions=COMPLETIONS, minibatches=1, max_new_tokens=new, optimizer="adamw",
                            clip_high=0.2, bf16=s.cfg.bf16, learner_tokens=s.cfg.learner_tokens)
    prompts = list(map(text, s.prompts(PROBLEMS, given)))
    steppers = optim.optimizers(s.model, "adamw", RATE, 0.0)
    for case in ("equal", "ragged"):
        tokenizer = s.tokenizer(case)
        mine = partial(grpo_step, cfg, s.model, steppers, tokenizer, prompts, s.device)
        if "trl" in s.beside:
            sides = theirs.grpo(mine, s.model, tokenizer, prompts, COMPLETIONS, new, **s.learning())
        else:
            sides = in_turns(mine, None, s.cfg.repeats, s.device)
        mean = median(sides[0].amounts) / B
        sampled = s.least([(given, 0)] * PROBLEMS) + s.least([(given, mean)] * B, batch=B) - s.least([(given, 0)] * B)
        learned = sum(sign * s.least(rows, passes=3) for sign, rows in (  # a prompt once for all its completions
            (1, [(given, 0)] * PROBLEMS), (1, [(given, mean)] * B), (-1, [(given, 0)] * B)))
        yield row(s.name, f"GRPO step, {PROBLEMS} × {COMPLETIONS} × ({given} + {new}), {case}", sides, sampled + learned)
        yield row(s.name, f"GRPO sampling, {case}", sides, sampled, "sampling")
        yield row(s.name, f"GRPO learner, {case}", sides, learned, "learner")


def large_vocabulary(s: Subject) -> Iterator[dict[str, Any]]:
    """Memory is what this is about: forward and backward of one row, gradients included."""
    ours = random_model(replace(s.model.config, vocab_size=LARGE_VOCABULARY), s.cfg.seed, s.device)
    length = s.cfg.prompt_tokens + s.cfg.new_tokens
    tokens_BT = torch.arange(length, device=s.device)[None] % LARGE_VOCABULARY
    others = None
    if "trl" in s.beside:
        others = partial(theirs.logprobs, theirs.with_fused_head(theirs.model(ours, s.stops)), tokens_BT, s.cfg.bf16)
    sides = in_turns(partial(logprobs, ours, tokens_BT, s.cfg.bf16), others, s.cfg.repeats, s.device)
    yield row(s.name, f"log-probabilities, {length} tokens, vocabulary {LARGE_VOCABULARY}", sides,
              least_seconds(ours.config, s.limits, [(0, length)], s.cfg.bf16, passes=3))


def rewards(cfg: Config) -> Iterator[dict[str, Any]]:
    """Small programs judged, and answers compared with gold answers; by one thread."""
    tests, pairs = [{"stdin": "21\n", "stdout": "42\n"}], [(rf"\frac{{{n}}}{{7}}", f"{n}/7") for n in range(1, 51)]
    programs = lambda watch: sum(judge("print(2 * int(input()))", tests, time_limit=2) for _ in range(50))
    answers = lambda watch: sum(equivalent(gold, answer) for gold, answer in pairs)
    for title, call in (("sandbox judgements", programs), ("answer checks", answers)):
        yield row("", title, in_turns(call, None, cfg.repeats, torch.device("cpu")))


MEASURES: dict[str, Callable[[Subject], Iterator[dict[str, Any]]]] = {
    "decode": decoding, "prefill": prefilling, "sft": sft_steps, "grpo": grpo_steps, "logprobs": large_vocabulary}


# -- the table ----------------------------------------------------------------------------------------------------------


def row(shape: str, what: str, sides: Sequence[Runs], least: float | None = None, lap: str = "all") -> dict[str, Any]:
    """Medians of the runs; `times`: how many times as much a second as theirs, as median, least and most of the pairs."""
    found: dict[str, Any] = {"shape": shape, "what": what}
    for side, runs in zip(("ours", "theirs"), sides):
        wall, cpu = zip(*(laps[lap] for laps in runs.laps))
        rates = [amount / seconds for amount, seconds in zip(runs.amounts, wall)]
        found[side] = {"seconds": median(wall), "cpu_seconds": median(cpu), "per_second": median(rates), "rates": rates,
                       "peak_bytes": runs.peak_bytes if lap == "all" else None}
    if least is not None:
        found["of_limit"] = least / found["ours"]["seconds"]
    if "theirs" in found:
        ratios = [a / b for a, b in zip(found["ours"]["rates"], found["theirs"]["rates"])]
        found["times"] = [median(ratios), min(ratios), max(ratios)]
    return found


def line(found: dict[str, Any], beside: dict[str, str]) -> str:
    """A row in Markdown."""
    cells = [found["shape"], found["what"]]
    for side in ("ours", "theirs") if beside else ("ours",):
        if f := found.get(side):
            peak = f["peak_bytes"]
            cells += [f"{f['seconds']:.4g}", f"{f['cpu_seconds']:.4g}", f"{f['per_second']:.0f}",
                      "–" if peak is None else f"{peak / 2**20:.0f}"]
        else:
            cells += ["–"] * 4
        if side == "ours":
            cells.append(f"{found['of_limit']:.0%}" if "of_limit" in found else "–")
    if beside:
        cells.append("{:.2f} ({:.2f} to {:.2f})".format(*found["times"]) if "times" in found else "–")
    return "| " + " | ".join(cells) + " |"


def machine(device: torch.device) -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.*)", info.read_text()) if info.is_file() else None
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"cpu": named[1] if named else platform.machine(), **gpu, "threads": torch.get_num_threads(),
            "torch": torch.__version__}


def told(limits: dict[str, Any]) -> str:
    products = "; ".join(f"{kind} " + " / ".join(f"{rate / 1e9:.0f}" for rate in limits[kind].values())
                         for kind in ("fp32", "bf16"))
    rows = " / ".join(map(str, limits["fp32"]))
    return f"matrix products of {rows} tokens in GFLOP/s: {products}; copies: {limits['copy'] / 1e9:.1f} GB/s"


def main(cfg: Config) -> dict[str, Any]:
    require(cfg, repeats=cfg.repeats >= 1, prompt_tokens=cfg.prompt_tokens >= 2, new_tokens=cfg.new_tokens >= 1,
            batch=min(cfg.batch) >= 1, learner_tokens=cfg.learner_tokens >= 1)
    for flag, known in (("shapes", ("embedded", *SHAPES)), ("what", Config().what)):
        for name in getattr(cfg, flag):
            grpo.one_of(flag, name, known)
    if cfg.json:
        checkpoint.prepare_folder(Path(cfg.json).parent)
    device, beside = pick_device(cfg.device, cfg.threads), theirs.versions() if cfg.theirs else {}
    result = {"config": asdict(cfg), "machine": machine(device) | beside, "limits": {}, "rows": []}
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    if cfg.theirs and len(beside) < 2:
        print("transformers or TRL is not installed here: what they would do is left out")

    side = " seconds | CPU s | per second | peak MB |"
    head = f"| shape | what |{side} of the limit |" + f" theirs:{side} times as fast |" * bool(beside)
    print(f"{head}\n|" + "---|" * (head.count("|") - 1), flush=True)

    def add(rows: Iterator[dict[str, Any]]) -> None:
        for found in rows:
            result["rows"].append(found)
            print(line(found, beside), flush=True)
            if cfg.json:  # each at once: the next one may find no memory
                checkpoint.write_json(Path(cfg.json), result)

    wanted = [measure for name, measure in MEASURES.items() if name in cfg.what]
    for name in cfg.shapes if wanted else ():
        s = subject(cfg, name, device, beside)
        result["limits"][name] = s.limits
        for measure in wanted:
            add(measure(s))
    if "rewards" in cfg.what:
        add(rewards(cfg))
    for name, limits in result["limits"].items():
        print(f"{name}: {told(limits)}")
    return result


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.bench"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run(main, Config, description=__doc__)
