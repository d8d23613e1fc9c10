"""Seconds, processor seconds and memory of a call, and what the machine could do: the ruler of [bench.py](bench.py).

Two ways to do the same take turns in one process, so that what else the machine does falls on both alike.
"""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from r1mini.model import ModelConfig

UNTIMED = 2  # runs before those that are timed: one to warm up, one whose memory is measured


class Stopwatch:
    """(Wall, processor) seconds of the laps of one run."""

    def __init__(self, device: torch.device):
        self.device = device
        self.laps: dict[str, tuple[float, float]] = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        self.wait()
        begun = time.perf_counter(), time.process_time()
        yield
        self.wait()
        self.laps[name] = time.perf_counter() - begun[0], time.process_time() - begun[1]

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Run = Callable[[Stopwatch], float]  # returns how much it did: tokens, judgements


@dataclass
class Runs:
    """Of one side: how much each timed run did, its laps ("all" and parts of it), and the peak memory of one more."""

    amounts: list[float] = field(default_factory=list)
    laps: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    peak_bytes: int | None = None

    @contextmanager
    def measured(self, number: int, device: torch.device) -> Iterator[Stopwatch]:
        """Of run `number`: nothing of the first, memory of the second, times of the others."""
        watch = Stopwatch(device)
        with self.peak_memory(device) if number == 1 else nullcontext(), watch.lap("all"):
            yield watch
        if number >= UNTIMED:
            self.laps.append(watch.laps)

    @contextmanager
    def peak_memory(self, device: torch.device) -> Iterator[None]:
        """Most bytes in use at a time, above those in use before; None where the system does not tell."""
        status = lambda key: 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])
        gc.collect()
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before, most = torch.cuda.memory_allocated(device), partial(torch.cuda.max_memory_allocated, device)
            else:
                ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept, would hide what is asked for
                Path("/proc/self/clear_refs").write_text("5")
                before, most = status("VmRSS"), partial(status, "VmHWM")
        except (OSError, AttributeError):
            before = most = None
        yield
        if most:
            self.peak_bytes = max(0, most() - before)


def in_turns(ours: Run, theirs: Run | None, repeats: int, device: torch.device) -> list[Runs]:
    """Ours, theirs, ours, theirs …; or ours alone."""
    sides = [(call, Runs()) for call in (ours, theirs) if call]
    for number in range(UNTIMED + repeats):
        for call, runs in sides:
            with runs.measured(number, device) as watch:
                amount = call(watch)
            if number >= UNTIMED:
                runs.amounts.append(amount)
    return [runs for _, runs in sides]


# -- the machine's limits -----------------------------------------------------------------------------------------------


def matrices(config: ModelConfig) -> list[tuple[int, int, int]]:
    """(rows, columns, number) of what a token is multiplied by on its way; the vocabulary comes last."""
    D, C, L = config.hidden_size, config.head_dim, config.num_hidden_layers
    H, K, wide = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    return [(H * C, D, L), (K * C, D, 2 * L), (D, H * C, L), (wide, D, 2 * L), (D, wide, L), (config.vocab_size, D, 1)]


def fastest(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call: the best of a few stretches of 10 ms or more."""
    def stretch(calls: int) -> float:
        watch = Stopwatch(device)
        with watch.lap("all"):
            for _ in range(calls):
                call()
        return watch.laps["all"][0] / calls

    stretch(1)
    once = stretch(1)
    calls = max(1, round(0.01 / once))
    return min(once, *(stretch(calls) for _ in range(5 if once < 0.1 else 1)))


@torch.inference_mode()
def product_rate(config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of the model's matrix products alone, for so many tokens at a time."""
    operations = seconds = 0.0
    for out, into, number in matrices(config):
        x, weight = (torch.randn(n, into, device=device, dtype=dtype) for n in (rows, out))
        seconds += number * fastest(lambda: F.linear(x, weight), device)
        operations += number * 2 * rows * out * into
    return operations / seconds


def copy_rate(device: torch.device, numbers: int = 2**26) -> float:
    """Bytes a second, read and written, of copies that no cache holds."""
    x = torch.zeros(numbers, device=device)
    y = torch.zeros_like(x)
    return 2 * x.nbytes / fastest(lambda: y.copy_(x), device)


def machine_limits(config: ModelConfig, device: torch.device) -> dict[str, Any]:
    """Operations a second by precision and tokens at a time, and bytes a second."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    sizes = (1, 64, 1024, 8192) if device.type == "cuda" else (1, 64, 1024)  # a GPU is not busy with a thousand
    return {"copy": copy_rate(device), **{name: {rows: product_rate(config, rows, kind, device) for rows in sizes}
                                          for name, kind in kinds.items()}}


def least_seconds(config: ModelConfig, limits: Mapping[str, Any], rows: Sequence[tuple[float, float]], bf16: bool,
                  batch: int = 0, passes: int = 1) -> float:
    """What the machine needs at least: operations over products' rate or bytes over copies' rate, whichever is longer.

    `rows` are (prompt, completion) lengths; only completions reach the vocabulary. `batch` rows are decoded at a time: for
    each token of theirs all weights are read, and every row's keys and values; 0: no decoding. Backward is two passes.
    """
    C, L, H, K = config.head_dim, config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads
    *layers, (V, D, _) = matrices(config)
    weights, head = sum(out * into * number for out, into, number in layers), V * D
    tokens, made = sum(map(sum, rows)), sum(new for _, new in rows)
    scores = sum((given + new) ** 2 / 2 for given, new in rows)  # of causal attention
    operations = passes * 2 * (tokens * weights + made * head + scores * 2 * H * C * L)
    read = 0.0
    if batch:
        past = sum(new * given + new**2 / 2 for given, new in rows)  # whose keys and values are read
        read = made / batch * (weights + head) + past * 2 * K * C * L
    return max(operations / max(limits["bf16" if bf16 else "fp32"].values()), read * (2 if bf16 else 4) / limits["copy"])
