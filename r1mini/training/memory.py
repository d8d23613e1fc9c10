"""Estimates the memory of a run before it starts.

What the learner keeps for its backward pass is counted on the meta device, where tensors have
shapes and no memory, so the count follows the model's code. The rest is arithmetic. Left out: the
prompts' part of the cache and its copies in attention, the logits of one decoding step, bf16
copies, memory lost to fragmentation, the tokenizer, Python.

On a CPU the estimate decides, because a process that uses too much is killed without a message. On
CUDA running out of memory raises an error, so the estimate refuses only what cannot work, and the
worst case is tried before the run begins (`dry_run`).
"""

import dataclasses
import re
from bisect import bisect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r1mini.checkpoint import is_adapter
from r1mini.checkpoint.adapter import planned_adapters
from r1mini.config import TrainOptions, memory_flags
from r1mini.infra import distributed
from r1mini.model import lora
from r1mini.model.config import ModelConfig
from r1mini.model.lora import Plan
from r1mini.model.transformer import Transformer
from r1mini.training.chunked_logprobs import MAX_LOGITS

GIB = 2**30
CERTAIN = ("weights", "gradients", "optimizer")  # arithmetic, and there at the same time
USABLE = 0.9  # share of the free memory that --learner-tokens 0 fills; the rest is not counted
# Micro-batch sizes to choose from; larger ones are not faster.
BUDGETS = {"cuda": [2**k for k in range(8, 17)], "cpu": [2**k for k in range(8, 13)]}


def activation_bytes(
    config: ModelConfig, tokens: int, gradient_checkpointing: bool = False, adapters: Plan = {}
) -> int:
    """Bytes in fp32 that a forward pass over so many tokens keeps for the backward pass. Frozen
    layers, those under `adapters` and the rest beside them, keep less."""
    model = planned_model(config, adapters).to("meta")
    with torch.device("meta"):
        tokens_M = torch.zeros(tokens, dtype=torch.long)
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage  # kept alive, so that no other tensor gets its address
        return x

    def attend(layer, q, k, v):
        if not gradient_checkpointing:
            keep(q), keep(k), keep(v)  # as the fused kernels do
        return q * 1

    model.gradient_checkpointing = gradient_checkpointing
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(tokens_M, tokens_M, attend)
    total = sum(storage.nbytes() for storage in kept.values())
    if gradient_checkpointing:  # and one layer at a time in full
        one_layer = dataclasses.replace(config, num_hidden_layers=1)
        total += activation_bytes(one_layer, tokens, adapters=adapters)
    return total


def planned_model(config: ModelConfig, adapters: Plan) -> Transformer:
    """The model on the meta device, with those of the adapters that fit its number of layers."""
    with torch.device("meta"):
        model = Transformer(config)
        if adapters:
            names = lora.linear_names(config.num_hidden_layers)
            lora.attach(model, {name: x for name, x in adapters.items() if name in names})
    return model


def training_bytes(
    config: ModelConfig, tokens: int, cfg: TrainOptions, reference: bool = False
) -> dict[str, int]:
    """Bytes by purpose, on each rank's device, for micro-batches of this many tokens. The
    learner's passes need a fifth more than the activations that they keep. With LoRA, the base has
    neither gradients nor moments, and the reference shares it (with several ranks, a shard of its
    own)."""
    adapters = planned_adapters(cfg, config)
    model, ranks = planned_model(config, adapters), distributed.world_size()
    own = sum(x.numel() for x in lora.own_parameters(model).values())
    total = sum(x.numel() for x in model.parameters())
    layers = lora.own_parameters(model.model.layers).values()
    matrices = sum(x.numel() for x in layers if x.ndim > 1)
    moments = 2 * own - (matrices if cfg.optimizer == "muon" else 0)  # Muon has one per matrix
    frozen = (total - own) * (base_dtype(cfg).itemsize if adapters else 4)
    copies = 2 if reference else 1
    numbers = {
        "weights": 4 * own * copies + frozen * (copies if ranks > 1 else 1),
        "gradients": 4 * own,
        "optimizer": 4 * moments if cfg.optimizer_on == "device" else 0,
    }
    sizes = {name: -(-count // ranks) for name, count in numbers.items()}
    if ranks > 1:  # whole weights to sample from and to save; Muon's matrices
        muon = 8 * matrices if cfg.optimizer == "muon" else 0
        sizes["whole weights"] = 4 * own + frozen + muon
    activations = activation_bytes(config, tokens, cfg.gradient_checkpointing, adapters)
    # Logits, their softmax, its gradient and a copy; the gradient of the head, if it is trained.
    head = 0 if adapters else config.vocab_size * config.hidden_size
    logits = 4 * min(MAX_LOGITS, tokens * config.vocab_size) + head
    return {**sizes, "learner": round(1.2 * activations) + 4 * logits}


def trains_all_weights(cfg: TrainOptions) -> bool:
    """Whether --lora-rank would train adapters instead."""
    full = getattr(cfg, "lora_rank", 1) == 0 and cfg.model != "new"
    return full and not is_adapter(cfg.model)


def base_dtype(cfg: Any) -> torch.dtype:
    """Of the frozen weights under adapters (--base-dtype)."""
    auto = "bfloat16" if cfg.bf16 else "float32"
    return getattr(torch, auto if cfg.base_dtype == "auto" else cfg.base_dtype)


def available(device: torch.device) -> int | None:
    """Free bytes for this rank; None if the system does not report them. Limits of cgroup v1, or
    of a parent group, are not seen."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]

    def read(path):
        return path.read_text() if path.is_file() else ""

    available_kb = re.findall(r"MemAvailable:\s+(\d+) kB", read(Path("/proc/meminfo")))
    free = [int(kb) * 1024 for kb in available_kb]
    group = Path("/sys/fs/cgroup")
    limit = read(group / "memory.max").strip()
    if limit.isdigit():
        reclaimable = r"^(?:active_file|inactive_file|slab_reclaimable) (\d+)"
        cache = sum(map(int, re.findall(reclaimable, read(group / "memory.stat"), re.M)))
        free.append(int(limit) - int(read(group / "memory.current")) + cache)
    return min(free) // distributed.world_size() if free else None


def raises_oom(device: torch.device) -> bool:
    """Whether running out of memory raises an error, instead of killing the process."""
    return device.type == "cuda"


def require(sizes: Mapping[str, int], device: torch.device, cfg: Any) -> None:
    """Raises ValueError, with the flags that save memory, if the sizes add up to more than is
    free."""
    free = available(device)
    takes, when, advice = "about", "in the worst case", f"lower {memory_flags(cfg)}"
    if raises_oom(device):
        sizes, takes = {name: sizes[name] for name in CERTAIN}, "at least"
        when, advice = "with any other flags", "use more ranks"
        if sizes["optimizer"] and distributed.world_size() == 1:
            advice = f"add --optimizer-on cpu, or {advice}"
    if trains_all_weights(cfg):
        advice = f"add --lora-rank 16, or {advice}"
    needed = sum(sizes.values())
    if free is not None and needed > free:
        large = (f"{name} {size / GIB:.1f}" for name, size in sizes.items() if size >= 0.05 * GIB)
        raise ValueError(
            f"this run needs {takes} {needed / GIB:.1f} GiB ({', '.join(large)}) {when}, but only "
            f"{free / GIB:.1f} GiB are free: {advice}"
        )


def largest_fitting(
    sizes: Callable[[int], Mapping[str, int]], free: int | None, device: torch.device
) -> int:
    """The largest number of tokens per micro-batch, a power of two, whose `sizes(tokens)` fit the
    memory that was free before the run started. Powers of two are so coarse that one machine mostly
    gives the same number, and so the same bits."""
    if free is None:
        raise ValueError(
            "--learner-tokens 0: this system does not report its free memory; give a number"
        )
    budgets = BUDGETS[device.type]
    fitting = bisect(budgets, USABLE * free, key=lambda tokens: sum(sizes(tokens).values()))
    return min(distributed.all_gather([budgets[max(0, fitting - 1)]]))


def longest_rows(
    tokens: int, rows: int, prompt: int, completion: int, group: int = 1
) -> list[tuple[list[int], list[int]]]:
    """A micro-batch that fills its budget of tokens: at most so many rows of the longest prompt and
    completion, `group` of them to a prompt; the last is cut to what is left.

    >>> rows = longest_rows(20, 9, prompt=2, completion=5, group=2)
    >>> [(len(prompt), len(completion)) for prompt, completion in rows]
    [(2, 5), (2, 5), (2, 5), (2, 1)]
    """
    batch = []
    for number in range(rows):
        tokens -= 0 if number % group else prompt
        size = min(completion, tokens) if batch else completion  # there is always one row
        if size < 1:
            break
        batch.append(([number // group % 256] * prompt, [0] * size))  # ids of any vocabulary
        tokens -= size
    return batch


def dry_run(
    worst_case_step: Callable[[], None], sizes: Mapping[str, int], free: int, device: torch.device
) -> None:
    """Try the worst case once before the run begins, while holding as much memory as the optimizer
    will need, and print the peak. If it does not fit, torch raises OutOfMemoryError."""
    if not raises_oom(device):
        return
    moments = torch.empty(sizes["optimizer"], dtype=torch.uint8, device=device)
    worst_case_step()
    torch.empty(sizes["gradients"], dtype=torch.uint8, device=device)  # in the optimizer's step
    on_gpu = device.type == "cuda"  # others may use it, too
    peak = torch.cuda.max_memory_reserved(device) if on_gpu else free - available(device)
    print(
        f"peak memory in the dry run: {peak / GIB:.1f} GiB of {free / GIB:.1f}, "
        f"{sum(sizes.values()) / GIB:.1f} estimated",
        flush=True,
    )
    del moments
    torch.cuda.empty_cache()  # the run begins with a fresh allocator


def retry_with_half(
    passes: Callable[[int], Any], tokens: int, model: nn.Module, cfg: Any, exact: bool = True
) -> Any:
    """`passes(tokens)` adds up a gradient in micro-batches of so many tokens. If a GPU runs out of
    memory, repeats all of it with half the size, if that gives the same gradient (`exact`). Raises
    ValueError if that is not enough, or with several ranks: the others are in the same pass and
    cannot start again."""
    retry = exact and distributed.world_size() == 1
    sizes = [tokens, max(1, tokens // 2)] if retry else [tokens]
    for size in sizes:
        try:
            return passes(size)
        except torch.OutOfMemoryError as error:
            reason = distributed.first_line(error)
        # Outside the handler, which would keep the frames of the passes and their tensors alive.
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        if size != sizes[-1]:
            print(
                f"out of memory with micro-batches of {size} tokens: retrying with half the size "
                f"(lower {memory_flags(cfg)} if this happens again)",
                flush=True,
            )
    tried = " or ".join(map(str, sizes))
    raise ValueError(
        f"not enough memory for micro-batches of {tried} tokens; lower {memory_flags(cfg)} "
        f"({reason})"
    )
