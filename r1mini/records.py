"""What flows through r1mini. Read this first.

    Problem -> sample -> Rollout -> score -> rewards_NG -> advantages -> adv_NG -> collate -> Batch -> loss -> step

Dimension letters, used as suffixes of tensors throughout: N problems a step, G completions a group, B = N*G rows,
T tokens, V vocabulary, D hidden size, L layers, H query heads, K key/value heads, C head size, S cache slots.
A tensor without a suffix is a scalar. Column t of every `_BT` tensor describes token t.

Records are frozen: nothing is changed on the way, and no field changes its meaning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # problems and rewards need no torch
    from torch import Tensor


def opened(prompt: str) -> str:
    """The `<think>` that a prompt ends with, and the line end after it; "" if it does not."""
    return re.search(r"(<think>\s*)?\Z", prompt)[0]


@dataclass(frozen=True)
class Problem:
    """A prompt with all that its checker needs. Equal `key` means the same problem, however it is put."""

    task: str
    key: str
    language: str  # "en" or "zh": the language of the prompt, and the one its thinking should be in
    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, str]] = ()  # that a template made the prompt of

    def split(self, rollout: Rollout) -> tuple[str, str]:
        """Prompt and completion as a reader has them: the `<think>` that the prompt ends with belongs to the completion."""
        begun = opened(self.prompt)
        return self.prompt.removesuffix(begun), begun + rollout.text


@dataclass(frozen=True)
class Rollout:
    """One sampled completion of one prompt."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]  # with the end token, if it was sampled
    logprobs: tuple[float, ...]  # of completion_ids, under the distribution they were drawn from
    text: str  # the completion without its end token
    finished: bool  # an end token was sampled; otherwise the length limit cut it


@dataclass(frozen=True)
class Batch:
    """Rows of tokens. What is said of tokens is right-padded, [B, T]; what the model computes is M tokens in a line, without
    padding, and with what rows have in common only once."""

    tokens_BT: Tensor
    target_BT: Tensor  # bool: whose log-probabilities are trained on; from lengths, never from token identity
    source_M: Tensor  # of each token in the line, its number in tokens_BT.flatten()
    place_BT: Tensor  # of each token, where in the line it is computed
    target_Q: Tensor  # of each target, its number in tokens_BT.flatten(): by a mask, a GPU would have to tell how many there are
    lengths: tuple[int, ...]  # of the stretches of the line
    after: tuple[int, ...]  # the stretch that each goes on from, or -1

    def to(self, device) -> Batch:
        names = "tokens_BT", "target_BT", "source_M", "place_BT", "target_Q"
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})


@dataclass(frozen=True)
class Group:
    """A problem with its completions, every reward of each by its name, and their sums: what is learned from."""

    problem: Problem
    rollouts: Sequence[Rollout]
    scores: Sequence[Mapping[str, float | None]]
    rewards: tuple[float, ...]

    @property
    def flat(self) -> bool:
        """All rewards are equal: there is nothing to learn."""
        return len(set(self.rewards)) == 1
