"""The data types of r1mini. Read this first.

    Problem -> sample -> Rollout -> score -> rewards_NG -> advantages -> adv_NG -> collate -> Batch
            -> log-probabilities -> loss -> optimizer step

Shape suffixes of tensors: N problems per step, G completions per group, B rows of the batch at hand
(a micro-batch, a minibatch, the sampler's slots), T sequence length, V vocabulary, D hidden size, L
layers, H query heads, K key/value heads, C head dimension; M packed tokens (no padding, a shared
prompt once), Q targets. Column t of every `_BT` tensor describes token t. Records are frozen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # problems and rewards need no torch
    import torch
    from torch import Tensor


def think_prefix(prompt: str) -> str:
    """The `<think>` and whitespace at the end of a prompt; "" if there is none."""
    return re.search(r"(<think>\s*)?\Z", prompt)[0]


@dataclass(frozen=True)
class Problem:
    """A prompt and what its checker needs. Rewordings of the same problem have the same `key`."""

    task: str
    key: str
    language: str  # "en" or "zh": of the prompt, and the language that the thinking should be in
    prompt: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Mapping[str, str]] = ()  # the chat that the prompt was rendered from

    def prompt_and_completion(self, rollout: Rollout) -> tuple[str, str]:
        """Prompt and completion as displayed: a `<think>` at the prompt's end belongs to the
        completion."""
        prefix = think_prefix(self.prompt)
        return self.prompt.removesuffix(prefix), prefix + rollout.text


@dataclass(frozen=True)
class Rollout:
    """One sampled completion of one prompt."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]  # with the end token, if it was sampled
    logprobs: tuple[float, ...]  # of completion_ids, under the distribution they were drawn from
    text: str  # the completion without its end token
    finished: bool  # an end token was sampled; otherwise truncated at the length limit


@dataclass(frozen=True)
class Group:
    """A problem with its G completions, the rewards of each by name, and their weighted sums."""

    problem: Problem
    rollouts: Sequence[Rollout]  # G
    scores: Sequence[Mapping[str, float | None]]  # G; None: the reward does not apply
    rewards: tuple[float, ...]  # G

    @property
    def has_zero_variance(self) -> bool:
        """All rewards are equal: no learning signal."""
        return len(set(self.rewards)) == 1


@dataclass(frozen=True)
class Batch:
    """A micro-batch of rows: what one forward and backward pass learns from. Its tensors are padded
    on the right; the model runs on it packed, without padding, and with a prompt that adjacent
    rows share only once. Two completions, `a b c` and `d`, of the prompt `p q`:

        tokens_BT      p q a b c      flat_of_token_BT   0 1 2 3 4     (index in packed M)
                       p q d . .                         0 1 5 . .
        target_BT      . . 1 1 1      packed, M = 6      p q a b c d
                       . . 1 . .      token_of_flat_M    0 1 2 3 4 7   (in tokens_BT.flatten())
        target_Q       2 3 4 7        lengths            2, 3, 1       (segments: p q | a b c | d)
        (tokens_BT.flatten())         parent             -1, 0, 0      (d continues segment 0 too)
    """

    tokens_BT: Tensor
    target_BT: Tensor  # bool: completion tokens; computed from lengths, never from token ids
    token_of_flat_M: Tensor
    flat_of_token_BT: Tensor
    target_Q: Tensor  # kept beside the mask: `nonzero` on a GPU would force a sync
    lengths: tuple[int, ...]
    parent: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        names = ("tokens_BT", "target_BT", "token_of_flat_M", "flat_of_token_BT", "target_Q")
        tensors = [getattr(self, name) for name in names]
        if device.type == "cuda":
            tensors = [x.pin_memory() for x in tensors]  # or the host would wait
        moved = [x.to(device, non_blocking=True) for x in tensors]
        return replace(self, **dict(zip(names, moved)))
