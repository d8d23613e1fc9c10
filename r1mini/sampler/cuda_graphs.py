"""Runs the sampler's decoding steps: directly, or as CUDA graphs.

A step launches some thirty kernels a layer. Most are so small that the CPU needs longer to launch
one than the GPU to run it. A CUDA graph launches them all at once. It holds the addresses and
shapes of the tensors that the step reads and writes, so a step writes its state in place, shapes
are rounded up, and a tensor that moves makes all graphs invalid.

Graphs live as long as their sampler. R1MINI_GRAPHS=0 in the environment turns them off. If a
capture or a replay is refused, the process goes on without graphs, to the same tokens. Left out:
graphs kept from one call of `sample` to the next, and graphs for prefill, whose shapes always vary.
"""

import os
import sys
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from functools import cache

import torch
from torch import Tensor

from r1mini.infra import distributed

Tensors = tuple[Tensor, ...]
Step = Callable[[], Tensors]
Captured = tuple[Callable[[], None], Tensors]  # replay, and what it writes to
refused: set[torch.device] = set()  # devices on which a graph failed


def next_bucket(n: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, … that is at least n.

    >>> [next_bucket(n) for n in (1, 2, 3, 5, 7, 9, 13, 33, 49)]
    [1, 2, 3, 6, 8, 12, 16, 48, 64]
    """
    power = 1 << (n - 1).bit_length()
    smaller = power * 3 // 4
    return smaller if n <= smaller else power


def round_up(length: int, multiple: int = 16) -> int:
    return -(-length // multiple) * multiple


def graphs_enabled(device: torch.device) -> bool:
    """Not with deterministic kernels: some of them may synchronize with the host."""
    allowed = os.environ.get("R1MINI_GRAPHS") != "0" and device not in refused
    return device.type == "cuda" and allowed and not torch.are_deterministic_algorithms_enabled()


class EagerRunner:
    """Runs each step directly, with shapes that are no larger than needed."""

    shrink_below = 0.8  # drop idle slots when less than this share of the slots is in use
    idle_prompt = 0  # an idle slot computes an extra row of this prompt
    prompt_multiple = 1  # the cached length of prompts is a multiple of this

    def rounded_length(self, length: int) -> int:
        """The cache length that a step reads when rows have at most `length` tokens."""
        return round_up(length)

    def rounded(self, needed: int, current: int = 0) -> int:
        """The size of a dimension that needs so many entries and has `current` ones."""
        return needed

    def run(self, step: Step, name: Hashable, reads: Sequence[Tensor]) -> Tensors:
        return step()


class GraphRunner(EagerRunner):
    """Replays each step as a CUDA graph. Rounds shapes up, so that few graphs serve all steps."""

    shrink_below = 0.5
    idle_prompt = -1
    prompt_multiple = 8  # torch's attention wants rows of a bias aligned to 16 bytes

    def __init__(self, device: torch.device):
        self.device = device
        self.layout = []  # address and shape of each tensor read
        self.graphs: dict[Hashable, Captured | None] = {}

    def rounded_length(self, length: int) -> int:
        return next_bucket(max(length, 64))

    def rounded(self, needed: int, current: int = 0) -> int:
        return current if needed <= current <= 3 * needed else next_bucket(needed)

    def run(self, step: Step, name: Hashable, reads: Sequence[Tensor]) -> Tensors:
        """The result of `step()`: run directly the first time, to warm up; replayed afterwards.

        Steps of one name differ only in the contents of the tensors that they read.
        """
        if self.device in refused:
            return step()
        layout = [(x.data_ptr(), x.shape) for x in reads]
        if layout != self.layout:
            self.graphs.clear()
            self.layout, self.pool = layout, self.new_pool()  # an emptied pool cannot be reused
        if name not in self.graphs:
            self.graphs[name] = None
            return self.warm_up(step)
        try:
            replay, outputs = self.graphs[name] = self.graphs[name] or self.capture(step)
            replay()
            return tuple(x.clone() for x in outputs)  # the next replay overwrites them
        except RuntimeError as error:  # also out of memory
            reason = distributed.first_line(error)
        # Outside the handler, which would keep the tensors of the failed capture alive.
        self.refuse(reason)
        return step()  # a failed capture has computed nothing

    def refuse(self, reason: str) -> None:
        """No more graphs in this process."""
        refused.add(self.device)
        self.graphs.clear()
        print(
            f"CUDA graphs are off: a decoding step could not be captured or replayed ({reason}); "
            "sampling goes on without them",
            file=sys.stderr,
        )

    def new_pool(self):
        return torch.cuda.graph_pool_handle()

    def warm_up(self, step: Step) -> Tensors:
        side, main = capture_stream(self.device), torch.cuda.current_stream(self.device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            outputs = step()
        main.wait_stream(side)
        return outputs

    def capture(self, step: Step) -> Captured:
        """Records the step, without computing anything yet."""
        graph, stream = torch.cuda.CUDAGraph(), capture_stream(self.device)
        main = torch.cuda.current_stream(self.device)
        try:
            # thread_local: other threads, of rewards or of NCCL, may use CUDA during the capture.
            with torch.cuda.graph(graph, self.pool, stream, capture_error_mode="thread_local"):
                outputs = step()
        except RuntimeError:
            # torch leaves the stream current, and memory allocated for the pool, after an error.
            torch.cuda.set_stream(main)
            with suppress(RuntimeError):
                torch._C._cuda_endAllocateToPool(stream.device_index, self.pool)
            raise
        return graph.replay, outputs


@cache
def capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all samplers: cuBLAS keeps a workspace for each stream that it has used."""
    return torch.cuda.Stream(device)
