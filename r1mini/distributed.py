"""One run on several devices: data-parallel ranks, started by torchrun.

A step is what it is on one rank: the ranks share out its problems and its micro-batches, and add up. Parameters, gradients
and AdamW's moments are sharded by FSDP2 (`fully_shard`; ZeRO-3). Small things (token ids, log-probabilities, rewards) are
gathered as objects, so every rank knows the whole step and takes the same decisions. On one rank every function here
hands back what it was given.

[docs/distributed.md](docs/distributed.md) says how to run it, what is sharded, and what it would take. Left out: tensor,
pipeline and expert parallelism; ranks that leave or join a run; torch.compile.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import MethodType
from typing import Any, TextIO, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from r1mini import batch, interrupt
from r1mini.model import Transformer

PATIENCE = timedelta(hours=2)  # a rank's completions may be much longer than another's; torchrun notices a dead one at once
Item = TypeVar("Item")


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if ranks() > 1 else 0


def first() -> bool:
    """Whether this rank is the one that prints and writes."""
    return rank() == 0


# -- the run ------------------------------------------------------------------------------------------------------------


def together(main: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`main(cfg)` on as many ranks as torchrun has started; without torchrun, `main` as it is. An error on one rank stops
    all of them, and one rank alone tells of it."""

    @functools.wraps(main)
    def on_ranks(cfg: Any) -> Any:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return main(cfg)
        try:
            store, number, count = next(dist.rendezvous("env://"))
            # Objects travel by gloo, from memory to memory; NCCL begins with the first tensor on a GPU.
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", store=store, rank=number,
                                    world_size=count, timeout=PATIENCE)
        except (dist.DistError, RuntimeError) as error:
            raise ValueError(f"the ranks do not find each other ({brief(error)})") from None
        try:
            agree("the command line", dataclasses.asdict(cfg))
            if cfg.compile:
                raise ValueError(f"--compile: not on {count} ranks")
            if cfg.optimizer_on != "device":
                raise ValueError(f"--optimizer-on {cfg.optimizer_on}: not on {count} ranks, which share the moments")
            if not first():
                sys.stdout, cfg = open(os.devnull, "w", encoding="utf-8"), dataclasses.replace(cfg, progress=False)
            result = main(cfg)
            gather([])
        except BaseException as error:
            if not speaks(store):
                sys.exit(interrupt.EXIT if isinstance(error, KeyboardInterrupt) else 2)
            if isinstance(error, RuntimeError) and re.search("Connection (closed|reset)|Broken pipe|Socket", str(error)):
                raise ValueError(f"another rank is gone ({brief(error)})") from None
            raise
        dist.destroy_process_group()
        atexit.register(leave)
        return result

    return on_ranks


def leave() -> None:
    """Ends the process at once: a thread of torch's store may still run, and would end it by abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def brief(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def speaks(store: dist.Store) -> bool:
    """Whether this rank is the first of all to fail. The others see what it did to them: a connection that was closed."""
    try:
        return store.add("failed", 1) == 1
    except dist.DistError:  # it went with the rank that failed
        return False


def device(name: str) -> str:
    """`--device` of this rank: each has a GPU of its own."""
    if ranks() == 1 or name == "cpu":
        return name
    if name != "cuda":
        raise ValueError(f"--device {name}: each of the {ranks()} ranks has its own; use auto, cuda or cpu")
    return f"cuda:{os.environ.get('LOCAL_RANK', rank())}"


def agree(what: str, value: Any) -> None:
    """Refuse what is not the same on every rank."""
    for other, theirs in enumerate(gather([repr(value)])):
        if theirs != repr(value):
            raise ValueError(f"{what} of rank {rank()} is not that of rank {other}")


def alike(read: Callable[..., Item]) -> Callable[..., Item]:
    """Called on every rank; refused where not all find the same, as in a folder that nodes do not share."""

    @functools.wraps(read)
    def checked(*args: Any, **kwargs: Any) -> Item:
        found = read(*args, **kwargs)
        agree(f"what {args[0]} holds", found)
        return found

    return checked


def on_first(write: Callable[..., None]) -> Callable[..., None]:
    """Called on every rank, done by the first; the others wait until it is done."""

    @functools.wraps(write)
    def written(*args: Any, **kwargs: Any) -> None:
        if first():
            write(*args, **kwargs)
        gather([])

    return written


class Log(io.TextIOWrapper):
    """A text file that names itself where it cannot be written."""

    def flush(self) -> None:
        with self.named():
            super().flush()

    def close(self) -> None:
        with self.named():
            super().close()

    @contextmanager
    def named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"{self.name}: cannot be written ({error.strerror})") from None


def log(path: os.PathLike) -> TextIO:
    """A log to append to, which only the first rank's lines reach."""
    return Log(open(path if first() else os.devnull, "ab"), encoding="utf-8")


# -- shares and sums ----------------------------------------------------------------------------------------------------


def part(count: int) -> slice:
    """This rank's of `count` things in order."""
    return slice(count * rank() // ranks(), count * (rank() + 1) // ranks())


def gather(mine: Sequence[Item]) -> list[Item]:
    """The lists of all ranks, one after another, on every rank."""
    if ranks() == 1:
        return list(mine)
    found: list[Any] = [None] * ranks()
    dist.all_gather_object(found, mine)
    return [item for theirs in found for item in theirs]


def share(parts: Sequence[Item]) -> list[tuple[Item, float]]:
    """This rank's of a step's micro-batches, each with the factor 1 of its loss. FSDP's collectives need as many passes on
    every rank: who has one less repeats the first, with the factor 0.

    >>> share(["short", "long"])
    [('short', 1.0), ('long', 1.0)]
    """
    mine = parts[rank() :: ranks()]
    return [(one, 1.0) for one in mine] + [(parts[0], 0.0)] * (-(-len(parts) // ranks()) - len(mine))


def rows(chosen: Sequence[Item]) -> tuple[Sequence[Item], float]:
    """This rank's rows of a batch, and the factor of their loss."""
    [mine] = share([chosen[r :: ranks()] for r in range(min(ranks(), len(chosen)))])
    return mine


def total(x: Tensor) -> Tensor:
    """The sum over ranks."""
    if ranks() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def summed(sums: Mapping[str, float], largest: Iterable[str] = ()) -> dict[str, float]:
    """Each number summed over ranks; of those named in `largest`, the largest."""
    every = gather([sums])
    return {name: (max if name in largest else sum)(one[name] for one in every) for name in sums}


# -- the model ----------------------------------------------------------------------------------------------------------


def shard(model: Transformer) -> Transformer:
    """Shards each layer's parameters, and the rest's, over the ranks, in place. Gradients become sums over ranks: the loss
    is divided by what the whole batch has."""
    if ranks() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(model.lm_head.weight.device.type, (ranks(),))
    for module in [*model.model.layers, model]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)  # a sum with a factor, NCCL alone has
    # The learner's pass is not `forward`: embeddings, layers and head are gathered around all of it.
    for call in (batch.token_logprobs, batch.token_logprobs_and_entropy):
        setattr(model, call.__name__, MethodType(call, model))
        register_fsdp_forward_method(model, call.__name__)
    return model


def through(call: Callable[..., Any], model: Transformer, *args: Any) -> Any:
    """`call(model, *args)`, also of a sharded model, for the learner's passes. Every rank has to call it as often."""
    return getattr(model, call.__name__)(*args) if ranks() > 1 else call(model, *args)


def is_sharded(x: Any) -> bool:
    return hasattr(x, "full_tensor")


def whole(model: Transformer) -> Transformer:
    """A copy with whole parameters on this rank, to sample from and to save: ranks may decode different numbers of tokens.
    Called by all ranks."""
    if ranks() == 1:
        return model
    with torch.device("meta"):
        copy = Transformer(model.config)
    copy.load_state_dict({name: p.detach().full_tensor() for name, p in model.named_parameters()}, strict=False, assign=True)
    if model.config.tie_word_embeddings:
        copy.lm_head.weight = copy.model.embed_tokens.weight
    copy.source = model.source
    return copy.to(copy.lm_head.weight.device).requires_grad_(False)


def full(state: Any) -> Any:
    """An optimizer's state with whole tensors, on the first rank; on the others, None in their place. Called by all
    ranks."""
    if isinstance(state, dict):
        return {key: full(value) for key, value in state.items()}
    if isinstance(state, list):
        return [full(value) for value in state]
    if not is_sharded(state):
        return state
    tensor = state.full_tensor()
    return tensor.cpu() if first() else None


def restore(into: nn.Module | torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`load_state_dict` of a state with whole tensors, of which each rank takes its shards."""
    if isinstance(into, nn.Module):
        now = into.state_dict()
        state = {name: shard_as(now.get(name), value) for name, value in state.items()}
    else:
        parameters = [p for group in into.param_groups for p in group["params"]]
        state = {**state, "state": {i: {name: shard_as(parameters[i], value) for name, value in values.items()}
                                    for i, values in state["state"].items()}}
    into.load_state_dict(state)


def shard_as(like: Any, value: Any) -> Any:
    if not is_sharded(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def replicated(x: Tensor) -> Tensor:
    """The same tensor, whole on every rank. Called by all ranks."""
    if not is_sharded(x):
        return x
    from torch.distributed.tensor import Replicate

    return x.redistribute(placements=[Replicate()])
