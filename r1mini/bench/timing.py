"""Wall time, CPU time and memory of a call, and the limits of the machine.

The two sides of a comparison take turns in one process, so that other load on the machine affects
both equally.
"""

import ctypes
import gc
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.benchmark import Timer

from r1mini.model.transformer import Transformer

UNTIMED = 2  # runs before the timed ones: one to warm up, one to measure memory
TRAINING_PASSES = 3  # a backward pass has twice the operations of the forward pass
COPIED_NUMBERS = 2**26  # too many for any cache


class Runs:
    """The runs of one side. The first is a warm-up, the second measures memory, later ones are
    timed.

    amounts     work of each run: tokens, or judgements
    marks       (wall, CPU) seconds at the start and the end of each run; of a GRPO step also
                between sampling and learner
    losses      of training steps
    peak_bytes  above those in use before; None: the system does not report it
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.amounts, self.marks, self.losses = [], [], []
        self.peak_bytes = None

    def mark(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.marks[-1].append((time.perf_counter(), time.process_time()))

    def begin(self) -> None:
        self.before = reset_peak_bytes(self.device) if len(self.marks) == 1 else None
        self.marks.append([])
        self.mark()

    def end(self) -> None:
        self.mark()
        if self.before is not None:
            self.peak_bytes = max(0, peak_bytes(self.device) - self.before)

    def measure(self, run: "Run") -> None:
        """One run, from `begin` to `end`."""
        self.begin()
        self.amounts.append(run(self))
        self.end()


Run = Callable[[Runs], int]  # returns its amount of work


def reset_peak_bytes(device: torch.device) -> int | None:
    """Returns the bytes in use; None if the system does not report them."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else freed memory hides new requests
        Path("/proc/self/clear_refs").write_text("5")
        return process_bytes("VmRSS")
    except (OSError, AttributeError):
        return None


def peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_bytes("VmHWM")


def process_bytes(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", status)[1])


def alternate(ours: Run, other: Run | None, repeats: int, device: torch.device) -> list[Runs]:
    """Runs ours, other, ours, other, …; or only ours."""
    sides = [(run, Runs(device)) for run in (ours, other) if run]
    for _ in range(UNTIMED + repeats):
        for run, runs in sides:
            runs.measure(run)
    return [runs for _, runs in sides]


# -- the machine's limits -------------------------------------------------------------------------


def matrices(model: Transformer) -> list[Tensor]:
    """The weights that multiply each token; the vocabulary is one of them."""
    return [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]


def fastest(call: Callable[[], Any]) -> float:
    """Seconds of a call: the best of a few series of 10 ms or more."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    once = timer.timeit(1).mean
    calls = max(1, round(0.01 / once))
    return min(timer.timeit(calls).mean for _ in range(5 if once < 0.1 else 1))


@torch.inference_mode()
def product_rate(model: Transformer, rows: int, dtype: torch.dtype) -> float:
    """Operations per second of the model's matrix products alone, for so many tokens at once."""
    operations = seconds = 0
    randn = partial(torch.randn, device=model.device, dtype=dtype)
    shapes = Counter(weight.shape for weight in matrices(model))
    for (out_features, in_features), number in shapes.items():
        x, weight = randn(rows, in_features), randn(out_features, in_features)
        seconds += number * fastest(partial(F.linear, x, weight))
        operations += number * 2 * rows * out_features * in_features
    return operations / seconds


def copy_rate(device: torch.device) -> float:
    """Bytes per second, read and written."""
    x = torch.zeros(COPIED_NUMBERS, device=device)
    return 2 * x.nbytes / fastest(partial(torch.zeros_like(x).copy_, x))


def machine_limits(model: Transformer) -> dict:
    """Operations per second by precision and number of tokens, and bytes per second."""
    sizes = [1, 64, 1024]
    if model.device.type == "cuda":
        sizes.append(8192)  # a thousand tokens do not keep a GPU busy
    limits = {"copy": copy_rate(model.device)}
    for name, dtype in ("fp32", torch.float32), ("bf16", torch.bfloat16):
        limits[name] = {rows: product_rate(model, rows, dtype) for rows in sizes}
    return limits


def least_seconds(
    model: Transformer,
    limits: dict,
    bf16: bool,
    rows: Iterable[tuple[float, float]],
    batch: int = 0,
) -> float:
    """The least time that the machine needs for a forward pass: operations at the rate of products,
    or bytes at the rate of copies, whichever is longer.

    rows    (prompt, completion) lengths; only completions are multiplied by the vocabulary
    batch   rows decoded at a time: each step reads all weights, and each row's keys and values; 0:
            no decoding
    """
    config, head = model.config, model.lm_head.weight.numel()
    layers = sum(weight.numel() for weight in matrices(model)) - head
    head_width = config.head_dim * config.num_hidden_layers
    query_width = config.num_attention_heads * head_width
    key_width = config.num_key_value_heads * head_width
    operations = numbers_read = 0
    for prompt, new in rows:
        length = prompt + new
        scores = length**2 / 2  # of causal attention
        operations += 2 * (length * layers + new * head + scores * 2 * query_width)
        if batch:
            past = new * prompt + new**2 / 2  # keys and values read
            numbers_read += new / batch * (layers + head) + past * 2 * key_width
    rate = max(limits["bf16" if bf16 else "fp32"].values())
    return max(operations / rate, numbers_read * (2 if bf16 else 4) / limits["copy"])
