"""How much memory a run takes, before it takes any.

What the learner keeps for its backward pass is counted on the meta device, where tensors have shapes and no memory, so the
count follows the model as it is. The rest is arithmetic. Left out: the prompts' part of the cache and what repeats them in
attention, the logits of one step, bf16 copies, what the allocator loses to fragments, the tokenizer, Python.

On a CPU the count decides: a process that takes too much is killed there without a word. On CUDA it is told, so the count
refuses only what cannot be, and the worst that the run can come to is tried before the run begins (`rehearse`).
"""

from __future__ import annotations

import dataclasses
import re
from bisect import bisect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from r1mini import distributed
from r1mini.batch import LOGITS
from r1mini.config import memory_flags
from r1mini.model import ModelConfig, Transformer
from r1mini.rollout import GROWTH

GIB = 2**30
CERTAIN = ("weights", "gradients", "optimizer")  # arithmetic, and there at the same time
COUNTED = 0.9  # of the memory that is free, with --learner-tokens 0; the rest is for what is not counted
BUDGETS = {"cuda": [2**k for k in range(8, 17)], "cpu": [2**k for k in range(8, 13)]}  # more is no faster


def kept_bytes(config: ModelConfig, tokens: int, gradient_checkpointing: bool = False) -> int:
    """Bytes in fp32 that the model's pass over so many tokens keeps for the backward pass."""
    with torch.device("meta"):
        model = Transformer(config).to("meta")
        tokens_M = torch.zeros(tokens, dtype=torch.long)
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # held, so that no other takes its place
        return x

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if not gradient_checkpointing:
            keep(q), keep(k), keep(v)  # as the fused kernels do
        return q * 1

    model.gradient_checkpointing = gradient_checkpointing
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(tokens_M, tokens_M, attend)
    total = sum(storage.nbytes() for storage in kept.values())
    if gradient_checkpointing:  # and one layer at a time in full
        total += kept_bytes(dataclasses.replace(config, num_hidden_layers=1), tokens)
    return total


def training(config: ModelConfig, tokens: int, *, optimizer: str, optimizer_on: str = "device", reference: bool = False,
             gradient_checkpointing: bool = False, ranks: int = 1) -> dict[str, int]:
    """Bytes by what they are for, of steps with micro-batches of so many tokens, on the device of each rank. The learner's
    passes have a fifth more than what is kept, for what is there for a moment."""
    with torch.device("meta"):
        model = Transformer(config)
    weights = sum(p.numel() for p in model.parameters())
    matrices = sum(p.numel() for p in model.model.layers.parameters() if p.ndim > 1)
    moments = 2 * weights - (matrices if optimizer == "muon" else 0)  # Muon has one of each matrix
    head = config.vocab_size * config.hidden_size
    logits = 4 * min(LOGITS, tokens * config.vocab_size) + head  # with their softmax, its gradient, and a copy; the head's gradient
    parts = {"weights": weights * (2 if reference else 1), "gradients": weights,
             "optimizer": moments if optimizer_on == "device" else 0}
    found = {name: 4 * -(-count // ranks) for name, count in parts.items()}
    if ranks > 1:  # whole weights to sample from and to save; Muon's matrices
        found["whole weights"] = 4 * weights + (8 * matrices if optimizer == "muon" else 0)
    return {**found, "learner": round(1.2 * kept_bytes(config, tokens, gradient_checkpointing)) + 4 * logits}


def sampling(config: ModelConfig, rows: int, new_tokens: int, bytes_per_number: int) -> int:
    """Bytes of a cache in which all rows go to their limit, and of the half of it that is copied while it grows."""
    slot = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_number
    return rows * slot * (new_tokens if new_tokens <= GROWTH else new_tokens * 3 // 2)


def available(device: torch.device) -> int | None:
    """Bytes that this rank can still have; None where that cannot be told. A limit of cgroup v1, or of a group above, is not
    seen."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.is_file() else None
    free = [int(found[1]) * 1024] if found else []
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()).isdigit():
        cache = re.findall(r"^(?:active_file|inactive_file|slab_reclaimable) (\d+)", (group / "memory.stat").read_text(), re.M)
        free.append(int(limit) - int((group / "memory.current").read_text()) + sum(map(int, cache)))  # the cache goes if need be
    return min(free) // distributed.ranks() if free else None


def told(device: torch.device) -> bool:
    """Whether too little memory is an error, and not the end of the process."""
    return device.type == "cuda"


def require(parts: Mapping[str, int], device: torch.device, config: Any) -> None:
    """Raises ValueError where the sum of the parts is more than can be had, with the flags of a run that lower it."""
    free, takes, advice = available(device), "about", f"at its worst, and {{}} are free: lower {memory_flags(config)}"
    if told(device):
        parts, takes = {name: parts[name] for name in CERTAIN}, "at least"
        less = "give --optimizer-on cpu, or take" if parts["optimizer"] and distributed.ranks() == 1 else "take"
        advice = f"whatever its flags, and {{}} are free: {less} more ranks"
    if free is not None and (needed := sum(parts.values())) > free:
        sizes = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items() if size >= 0.05 * GIB)
        raise ValueError(f"this run takes {takes} {needed / GIB:.1f} GiB ({sizes}) {advice.format(f'{free / GIB:.1f}')}")


def most_tokens(parts: Callable[[int], Mapping[str, int]], free: int | None, device: torch.device) -> int:
    """The most tokens per micro-batch, a power of two, whose `parts` fit what was free before the run took any: so coarse
    that one machine mostly gives the same, and with it the same bits."""
    if free is None:
        raise ValueError("--learner-tokens 0: this system does not tell how much memory is free; give a number")
    fitting = bisect(BUDGETS[device.type], COUNTED * free, key=lambda tokens: sum(parts(tokens).values()))
    return min(distributed.gather([BUDGETS[device.type][max(0, fitting - 1)]]))


def longest_rows(tokens: int, rows: int, given: int, learned: int, group: int = 1) -> list[tuple[list[int], list[int]]]:
    """A micro-batch that fills its budget of tokens: at most so many rows, each as long as can be, `group` of them to a
    prompt; the last is cut to what is left.

    >>> [(len(prompt), len(completion)) for prompt, completion in longest_rows(20, 9, given=2, learned=5, group=2)]
    [(2, 5), (2, 5), (2, 5), (2, 1)]
    """
    made: list[tuple[list[int], list[int]]] = []
    for number in range(rows):
        tokens -= 0 if number % group else given
        size = min(learned, tokens) if made else learned  # the first has to be there, whatever the budget
        if size < 1:
            break
        made.append(([number // group % 256] * given, [0] * size))  # ids that any vocabulary has
        tokens -= size
    return made


def rehearse(worst: Callable[[], None], parts: Mapping[str, int], free: int, device: torch.device) -> None:
    """Does the worst that a run can come to, once and before it begins, beside as much memory as the moments will take, and
    tells what was taken. Where it does not fit, torch raises OutOfMemoryError. Nothing else is left of it."""
    if not told(device):
        return
    moments = torch.empty(parts["optimizer"], dtype=torch.uint8, device=device)
    worst()
    torch.empty_like(moments)  # in the optimizer's step: the gradients, and AdamW's denominators, are as much again
    taken, counted = free - available(device), sum(parts.values())
    print(f"memory at the worst: {taken / GIB:.1f} GiB of {free / GIB:.1f}; by count {counted / GIB:.1f}", flush=True)
    del moments
    torch.cuda.empty_cache()  # the run begins with an allocator as new
