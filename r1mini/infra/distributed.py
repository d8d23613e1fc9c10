"""One run on several devices: data-parallel ranks, started by torchrun.

A step computes the same as on one rank: the ranks divide its problems and micro-batches and add up
the results. Parameters, gradients and optimizer state are sharded by FSDP2 (`fully_shard`; ZeRO-3).
Small things (token ids, log-probabilities, rewards) are gathered as objects, so every rank knows
the whole step and makes the same decisions. On one rank every function returns its input.

docs/distributed.md says how to run it, what is sharded, and how much memory it needs. Left out:
tensor, pipeline and expert parallelism; ranks that leave or join a run; torch.compile.
"""

import atexit
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from r1mini.infra import signals
from r1mini.model import lora
from r1mini.model.transformer import Transformer

# A rank may sample far longer than another. torchrun notices a dead rank at once.
TIMEOUT = timedelta(hours=2)
Item = TypeVar("Item")


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


def is_main_rank() -> bool:
    """Whether this rank prints and writes."""
    return rank() == 0


# -- the run ---------------------------------------------------------------------------------------


def distributed_main(main: Callable) -> Callable:
    """`main(cfg)` on every rank that torchrun started; without torchrun, just `main`. An error on
    one rank stops all of them, and only that rank reports it."""

    @functools.wraps(main)
    def on_ranks(cfg):
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return main(cfg)
        store = init_process_group()
        try:
            require_same("the command line", dataclasses.asdict(cfg))
            refuse_unsupported(cfg)
            if not is_main_rank():
                sys.stdout = open(os.devnull, "w", encoding="utf-8")
                cfg = dataclasses.replace(cfg, progress=False)
            result = main(cfg)
            all_gather([])  # wait for the others
        except BaseException as error:
            if not is_first_to_fail(store):
                sys.exit(signals.EXIT_CODE if isinstance(error, KeyboardInterrupt) else 2)
            lost = re.search("Connection (closed|reset)|Broken pipe|Socket", str(error))
            if isinstance(error, RuntimeError) and lost:
                raise ValueError(f"lost another rank ({first_line(error)})") from None
            raise
        dist.destroy_process_group()
        atexit.register(exit_at_once)
        return result

    return on_ranks


def init_process_group() -> dist.Store:
    try:
        store, number, count = next(dist.rendezvous("env://"))
        # Objects travel by gloo, in CPU memory; NCCL starts with the first tensor on a GPU.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=store, rank=number, world_size=count, timeout=TIMEOUT
        )
    except (dist.DistError, RuntimeError) as error:
        raise ValueError(f"rendezvous of the ranks failed ({first_line(error)})") from None
    return store


def refuse_unsupported(cfg: Any) -> None:
    if cfg.compile:
        raise ValueError(f"--compile: not supported on {world_size()} ranks")
    if cfg.optimizer_on != "device":
        raise ValueError(
            f"--optimizer-on {cfg.optimizer_on}: not supported on {world_size()} ranks, "
            "which shard the optimizer state"
        )


def exit_at_once() -> None:
    """Ends the process without cleaning up: a thread of torch's store may still run, and would
    abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def is_first_to_fail(store: dist.Store) -> bool:
    """Whether this rank failed first. The others then fail too, because their connection closes."""
    try:
        return store.add("failed", 1) == 1
    except dist.DistError:  # the store ended with the rank that failed
        return False


def require_same(what: str, value: Any) -> None:
    """Raises ValueError unless all ranks pass the same value."""
    for other, other_value in enumerate(all_gather([repr(value)])):
        if other_value != repr(value):
            raise ValueError(f"{what} differs between rank {rank()} and rank {other}")


def main_rank_only(write: Callable) -> Callable:
    """Decorator: every rank calls `write`, only the main rank runs it, the others wait for it."""

    @functools.wraps(write)
    def on_main_rank(*args, **kwargs):
        if is_main_rank():
            write(*args, **kwargs)
        all_gather([])

    return on_main_rank


# -- dividing work and adding up -------------------------------------------------------------------


def rank_slice(count: int) -> slice:
    """This rank's part of `count` items in order."""
    ranks = world_size()
    return slice(count * rank() // ranks, count * (rank() + 1) // ranks)


def all_gather(items: Sequence[Item]) -> list[Item]:
    """The lists of all ranks, concatenated, on every rank."""
    if world_size() == 1:
        return list(items)
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, items)
    return [item for of_rank in gathered for item in of_rank]


def assign_micro_batches(micro_batches: Sequence[Item]) -> list[tuple[Item, float]]:
    """This rank's micro-batches of a step, each with the weight 1.0 of its loss. FSDP's collectives
    need the same number of passes on every rank, so a rank with one fewer repeats the first
    micro-batch with the weight 0.0.

    >>> assign_micro_batches(["short", "long"])
    [('short', 1.0), ('long', 1.0)]
    """
    own = [(micro_batch, 1.0) for micro_batch in micro_batches[rank() :: world_size()]]
    passes = -(-len(micro_batches) // world_size())
    return own + [(micro_batches[0], 0.0)] * (passes - len(own))


def rank_rows(rows: Sequence[Item]) -> tuple[Sequence[Item], float]:
    """This rank's rows of a batch, and the weight of their loss (see `assign_micro_batches`)."""
    ranks = world_size()
    [own] = assign_micro_batches([rows[r::ranks] for r in range(min(ranks, len(rows)))])
    return own


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over ranks."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def reduce_metrics(metrics: Mapping[str, float], maxima: Iterable[str]) -> dict[str, float]:
    """The sum over ranks of each metric; the maximum of those in `maxima`."""
    of_ranks, reduced = all_gather([metrics]), {}
    for name in metrics:
        combine = max if name in maxima else sum
        reduced[name] = combine(of_rank[name] for of_rank in of_ranks)
    return reduced


# -- the model -------------------------------------------------------------------------------------


def shard(model: Transformer) -> Transformer:
    """Shards the parameters of each layer, and the rest, over the ranks, in place. Gradients become
    sums over ranks, not means: the loss is divided by the token count of the whole batch."""
    if world_size() == 1:
        return model
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = dist.init_device_mesh(model.device.type, (world_size(),))
    for module in [*model.model.layers, model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # only NCCL has a sum with a factor
    # The learner calls `forward_with_head` instead of `forward`. FSDP attaches hooks to its
    # outputs, which therefore must not be views.
    register_fsdp_forward_method(model, "forward_with_head")
    return model


def is_sharded(x: Any) -> bool:
    return hasattr(x, "full_tensor")


def gather_model(model: Transformer) -> Transformer:
    """A copy with unsharded parameters on this rank, to sample from and to save: ranks may decode
    different numbers of tokens. Called by all ranks."""
    if world_size() == 1:
        return model
    copy = lora.empty_copy(model)
    weights = {name: p.detach().full_tensor() for name, p in model.named_parameters()}
    copy.load_state_dict(weights, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        copy.lm_head.weight = copy.model.embed_tokens.weight
    return copy.to(copy.device).requires_grad_(False)


def gather_tensor(x: Any) -> Any:
    """A moment of an optimizer, unsharded on the main rank and None on the others. Called by all
    ranks."""
    if not is_sharded(x):
        return x
    tensor = x.full_tensor()
    return tensor.cpu() if is_main_rank() else None


def shard_like(like: Any, value: Any) -> Any:
    """This rank's shard of an unsharded tensor, if `like` is sharded."""
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    value = value.to(like.device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def own_shard(x: Tensor, like: Tensor) -> Tensor:
    """The part of a tensor, the same on every rank, that belongs to this rank's shard of `like`."""
    return x.redistribute(placements=like.placements) if is_sharded(x) else x


def replicate(x: Tensor) -> Tensor:
    """The same tensor, unsharded on every rank. Called by all ranks."""
    if not is_sharded(x):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(placements=[Replicate()])
