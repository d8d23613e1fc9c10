"""Wall time, CPU time and memory of a call, and the limits of the machine.

The two sides of a comparison take turns in one process, so that other load on the machine affects
both equally.
"""

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

from r1mini.model.config import ModelConfig

UNTIMED = 2  # runs before the timed ones: one to warm up, one to measure memory


class Stopwatch:
    """(wall, CPU) seconds of the laps of one run."""

    def __init__(self, device: torch.device):
        self.device = device
        self.laps = {}

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        self.synchronize()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.synchronize()
        self.laps[name] = time.perf_counter() - wall, time.process_time() - cpu

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Run = Callable[[Stopwatch], float]  # returns the amount of work: tokens, or judgements


@dataclass
class Runs:
    """One side's timed runs: their amounts of work, their laps ("all" and parts of it), and the
    peak memory of one untimed run."""

    amounts: list[float] = field(default_factory=list)
    laps: list[dict[str, tuple[float, float]]] = field(default_factory=list)
    peak_bytes: int | None = None

    @contextmanager
    def measured(self, number: int, device: torch.device) -> Iterator[Stopwatch]:
        """Measures run `number`: the first is a warm-up, the second measures memory, later ones
        are timed."""
        watch = Stopwatch(device)
        with self.peak_memory(device) if number == 1 else nullcontext(), watch.lap("all"):
            yield watch
        if number >= UNTIMED:
            self.laps.append(watch.laps)

    @contextmanager
    def peak_memory(self, device: torch.device) -> Iterator[None]:
        """Peak bytes in use minus those in use before; None if the system does not report them."""
        gc.collect()
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
                peak = partial(torch.cuda.max_memory_allocated, device)
            else:
                ctypes.CDLL(None).malloc_trim(0)  # else freed memory hides new requests
                Path("/proc/self/clear_refs").write_text("5")
                before, peak = process_bytes("VmRSS"), partial(process_bytes, "VmHWM")
        except (OSError, AttributeError):
            before = peak = None
        yield
        if peak:
            self.peak_bytes = max(0, peak() - before)


def process_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", status)[1])


def alternate(ours: Run, other: Run | None, repeats: int, device: torch.device) -> list[Runs]:
    """Runs ours, other, ours, other, …; or only ours."""
    sides = [(call, Runs()) for call in (ours, other) if call]
    for number in range(UNTIMED + repeats):
        for call, runs in sides:
            with runs.measured(number, device) as watch:
                amount = call(watch)
            if number >= UNTIMED:
                runs.amounts.append(amount)
    return [runs for _, runs in sides]


# -- the machine's limits -------------------------------------------------------------------------


def matrices(config: ModelConfig) -> list[tuple[int, int, int]]:
    """(rows, columns, number) of the weights that multiply each token; the vocabulary is last."""
    D, C, L = config.hidden_size, config.head_dim, config.num_hidden_layers
    H, K = config.num_attention_heads, config.num_key_value_heads
    I, V = config.intermediate_size, config.vocab_size
    attention = [(H * C, D, L), (K * C, D, 2 * L), (D, H * C, L)]
    return [*attention, (I, D, 2 * L), (D, I, L), (V, D, 1)]


def fastest(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call: the best of a few series of 10 ms or more."""

    def series(calls: int) -> float:
        watch = Stopwatch(device)
        with watch.lap("all"):
            for _ in range(calls):
                call()
        return watch.laps["all"][0] / calls

    series(1)
    once = series(1)
    calls = max(1, round(0.01 / once))
    return min(once, *(series(calls) for _ in range(5 if once < 0.1 else 1)))


@torch.inference_mode()
def product_rate(config: ModelConfig, rows: int, dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of the model's matrix products alone, for so many tokens at once."""
    operations = seconds = 0
    for out_features, in_features, number in matrices(config):
        x = torch.randn(rows, in_features, device=device, dtype=dtype)
        weight = torch.randn(out_features, in_features, device=device, dtype=dtype)
        seconds += number * fastest(partial(F.linear, x, weight), device)
        operations += number * 2 * rows * out_features * in_features
    return operations / seconds


def copy_rate(device: torch.device, numbers: int = 2**26) -> float:
    """Bytes per second, read and written, of copies too large for any cache."""
    x = torch.zeros(numbers, device=device)
    y = torch.zeros_like(x)
    return 2 * x.nbytes / fastest(partial(y.copy_, x), device)


def machine_limits(config: ModelConfig, device: torch.device) -> dict:
    """Operations per second by precision and number of tokens, and bytes per second."""
    sizes = [1, 64, 1024]
    if device.type == "cuda":
        sizes.append(8192)  # a thousand tokens do not keep a GPU busy
    limits = {"copy": copy_rate(device)}
    for name, dtype in ("fp32", torch.float32), ("bf16", torch.bfloat16):
        limits[name] = {rows: product_rate(config, rows, dtype, device) for rows in sizes}
    return limits


def least_seconds(
    config: ModelConfig,
    limits: Mapping[str, Any],
    rows: Sequence[tuple[float, float]],
    bf16: bool,
    batch: int = 0,
    passes: int = 1,
) -> float:
    """The least time that the machine needs: operations at the rate of products, or bytes at the
    rate of copies, whichever is longer.

    rows    (prompt, completion) lengths; only completions are multiplied by the vocabulary
    batch   rows decoded at a time: each step reads all weights, and each row's keys and values; 0:
            no decoding
    passes  3 with the backward pass, which is twice the forward pass
    """
    *layers, (V, D, _) = matrices(config)
    (query_width, _, L), (key_width, *_) = layers[:2]
    weights = sum(rows * columns * number for rows, columns, number in layers)
    head = V * D
    tokens = sum(prompt + new for prompt, new in rows)
    new_tokens = sum(new for _, new in rows)
    scores = sum((prompt + new) ** 2 / 2 for prompt, new in rows)  # of causal attention
    operations = passes * 2 * (tokens * weights + new_tokens * head + scores * 2 * query_width * L)
    numbers_read = 0
    if batch:
        past = sum(new * prompt + new**2 / 2 for prompt, new in rows)  # keys and values read
        numbers_read = new_tokens / batch * (weights + head) + past * 2 * key_width * L
    rate = max(limits["bf16" if bf16 else "fp32"].values())
    return max(operations / rate, numbers_read * (2 if bf16 else 4) / limits["copy"])
