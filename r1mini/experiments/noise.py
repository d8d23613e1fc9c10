"""Rewards that say less than they seem to, for `--reward r1mini/experiments/noise.py:flipped_10`.

Whether a verdict is wrong depends on prompt and completion alone: a run can be repeated and
resumed, and equal completions of a group get the same verdict.
"""

import hashlib
from collections.abc import Callable, Sequence

from r1mini import rewards


def chance(prompt: str, completion: str) -> float:
    """A number in [0, 1), as if drawn at random."""
    digest = hashlib.sha256(f"{prompt}\n{completion}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def flipped(share: float) -> Callable[..., list[float]]:
    """The accuracy, of which this share is flipped: right becomes wrong, and wrong right."""

    def reward(prompts: Sequence[str], completions: Sequence[str], **columns) -> list[float]:
        values = rewards.accuracy(prompts, completions, **columns)
        chances = map(chance, prompts, completions)
        return [1 - value if x < share else value for value, x in zip(values, chances)]

    return reward


flipped_10, flipped_30 = flipped(0.1), flipped(0.3)
coin = flipped(0.5)  # the accuracy has no influence: a reward drawn at random


def one(completions: Sequence[str], **columns) -> list[float]:
    """The same for all completions."""
    return [1.0] * len(completions)
