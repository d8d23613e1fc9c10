"""Where a step's rollouts come from: in turn with the updates, or a step ahead of them.

Ahead (asynchronous, one step off-policy): while the learner makes the updates of step t, step t+1 is sampled and scored from a
snapshot of the weights that those updates start from. A thread overlaps only time: which weights sample which step is fixed, so
a seed gives the same bits as ever, and a run goes on from its snapshot. What is learned is a step old; who learns from it weighs
it by learner over sampler (`grpo.sampler_correction`).

The learner has the thread of its own. Sampling stays in the main thread, where rewards of a file may use signals, and where
Ctrl-C arrives. Left out: rollouts that are older, or half done when the weights change; several ranks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any, TypeVar

import torch

from r1mini.model import Transformer
from r1mini.records import Group

Drawn = tuple[Sequence[Group], Sequence[Group]]  # the groups to learn from, all that were drawn for them
Draw = Callable[[Transformer, int, int], Drawn]  # of a model, for a step, when so many completions are spent
Item = TypeVar("Item")


def timed(call: Callable[..., Item], *args: Any) -> tuple[Item, float]:
    """(result, seconds)"""
    begun = time.perf_counter()
    return call(*args), time.perf_counter() - begun


class InTurn:
    """Sampled from the policy when a step begins."""

    def __init__(self, draw: Draw, policy: Transformer):
        self.draw, self.policy = draw, policy

    def take(self, step: int, spent: int) -> tuple[Drawn, float]:
        """A step's rollouts, and the seconds that they took."""
        return timed(self.draw, self.policy, step, spent)

    def beside(self, updates: Iterator[Item], step: int | None, spent: int) -> tuple[list[Item], float]:
        """All updates, and the seconds that they took. `step` is the next one, None after the last."""
        return timed(list, updates)


class Ahead(InTurn):
    """Sampled from `snapshot` beside the updates of the step before. The snapshot's weights are its own: the sampler makes the
    parameters of one layer views of one tensor (decode.py)."""

    def __init__(self, draw: Draw, policy: Transformer, snapshot: Transformer):
        super().__init__(draw, policy)
        self.snapshot, self.drawn = snapshot, None
        device = snapshot.lm_head.weight.device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # in one stream they would take turns

    def take(self, step: int, spent: int) -> tuple[Drawn, float]:
        if self.drawn is None:  # the first, also of a run that goes on
            self.sample(step, spent)
        return self.drawn

    def sample(self, step: int, spent: int) -> None:
        with torch.cuda.stream(self.stream):
            self.drawn = timed(self.draw, self.snapshot, step, spent)

    def beside(self, updates: Iterator[Item], step: int | None, spent: int) -> tuple[list[Item], float]:
        """As in turn, while step `step` is sampled. An error of either ends both: the updates after the one at work, the
        sampling when it is done."""
        if step is None:
            return super().beside(updates, step, spent)
        self.renew()
        stop = threading.Event()
        # A thread's first products would have torch's choice of threads.
        with ThreadPoolExecutor(1, "learner", torch.set_num_threads, (torch.get_num_threads(),)) as learner:
            try:
                learning = learner.submit(timed, list, takewhile(lambda _: not stop.is_set(), updates))
                self.sample(step, spent)
                return learning.result()
            finally:
                stop.set()

    @torch.no_grad()
    def renew(self) -> None:
        for mine, theirs in zip(self.snapshot.parameters(), self.policy.parameters(), strict=True):
            mine.copy_(theirs)
        if self.stream:
            torch.cuda.synchronize(self.stream.device)
