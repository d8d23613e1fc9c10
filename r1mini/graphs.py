"""CUDA graphs: a step of the sampler as one launch.

A step is some forty kernels a layer, most of them so small that a processor takes longer to launch one than a GPU to run it. A
graph is the list of them, with the addresses that they read and write. So it may stand in for the step as long as all that
the step reads stands where it stood, in the same shape: what reads on from one step to the next is written in place, and
where something has moved, all graphs are dropped and made again.

They last as long as a sampler, and the weights that it reads as long: no graph outlives what it points to. Where a driver
refuses them, `R1MINI_GRAPHS=0` in the environment samples without. Left out: graphs kept from one call of `sample` to the next,
and prefill, whose shapes are never the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Sequence
from functools import cache

import torch
from torch import Tensor

Step = Callable[[], tuple[Tensor, ...]]


def bucket(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, …: less than half as much again.

    >>> [bucket(n) for n in (1, 2, 3, 5, 7, 9, 13, 33, 49)]
    [1, 2, 3, 6, 8, 12, 16, 48, 64]
    """
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if n <= power * 3 // 4 else power


def wanted(device: torch.device) -> bool:
    """Not with deterministic kernels, of which some may wait for the host."""
    allowed = os.environ.get("R1MINI_GRAPHS") != "0" and not torch.are_deterministic_algorithms_enabled()
    return device.type == "cuda" and allowed


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: matrix products keep a workspace for each stream that they ever ran on."""
    return torch.cuda.Stream(device)


class Graphs:
    """Steps by their names. What differs between steps of one name is in the tensors they read, which `read` lists."""

    def __init__(self, device: torch.device):
        self.device = device
        self.where: list[tuple[int, torch.Size]] = []
        self.recorded: dict[Hashable, tuple[Step, tuple[Tensor, ...]] | None] = {}

    def run(self, step: Step, name: Hashable, read: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`step()`: the first time as it is, which makes ready what kernels need to be recorded; then by graph."""
        where = [(x.data_ptr(), x.shape) for x in read]
        if where != self.where:
            self.recorded.clear()
            self.where, self.pool = where, self.new_pool()  # an emptied pool cannot be filled again
        if name not in self.recorded:
            self.recorded[name] = None
            return self.first(step)
        replay, made = self.recorded[name] = self.recorded[name] or self.record(step)
        replay()
        return tuple(x.clone() for x in made)  # the next replay writes over them

    def new_pool(self):
        return torch.cuda.graph_pool_handle()

    def first(self, step: Step) -> tuple[Tensor, ...]:
        side, main = side_stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            made = step()
        main.wait_stream(side)
        return made

    def record(self, step: Step) -> tuple[Step, tuple[Tensor, ...]]:
        """What replays the step, and what every replay writes to. Nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, of rewards or of NCCL, may go on with what they do.
        with torch.cuda.graph(graph, pool=self.pool, stream=side_stream(self.device), capture_error_mode="thread_local"):
            made = step()
        return graph.replay, made
