"""Encoded preference pairs: those to train on and those held out, batches, micro-batches."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple

from r1mini.data.preferences import Tokens


class Pair(NamedTuple):
    prompt: str  # the same for all pairs of a prompt
    chosen: Tokens
    rejected: Tokens
    columns: Mapping[str, Any]


def split(pairs: Sequence[Pair], share: float, file: str) -> tuple[list[Pair], list[Pair]]:
    """(pairs to train on, pairs of held-out prompts). The hash of a prompt decides."""
    parts = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(pair.prompt.encode("utf-8", "backslashreplace")).digest()
        parts[int.from_bytes(digest[:4], "big") < share * 2**32].append(pair)
    for part, name in zip(parts, ("left to train on", "held out")):
        if not part:
            prompts = len({pair.prompt for pair in pairs})
            raise ValueError(
                f"--held-out {share:g}: no pair of {file} is {name}, of {len(pairs)} pairs of "
                f"{prompts} prompts"
            )
    return parts


def make_batches(pairs: Sequence[Pair], size: int, rng: Random) -> list[list[Pair]]:
    """Batches of at most `size` pairs. Prompts are in random order; the pairs of a prompt stay
    together, so that they share answers."""
    by_prompt = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    order = rng.sample(list(by_prompt), len(by_prompt))
    ordered = [pair for prompt in order for pair in by_prompt[prompt]]
    count = -(-len(ordered) // size)
    cuts = [len(ordered) * i // count for i in range(count + 1)]  # batches of equal size
    return [ordered[i:j] for i, j in pairwise(cuts)]


def micro_batches(pairs: Sequence[Pair], token_budget: int) -> list[list[Pair]]:
    """Pairs in this order, cut where their answers, each counted once, exceed the budget. A pair
    over the budget stands alone."""
    parts, answers, tokens = [], set(), 0
    for pair in pairs:
        new = {pair.chosen, pair.rejected} - answers
        size = sum(len(segment) for row in new for segment in row)
        if not parts or tokens + size > token_budget:
            parts.append([])
            answers, tokens = set(), 0
            size = sum(map(len, pair.chosen + pair.rejected))
        parts[-1].append(pair)
        answers |= {pair.chosen, pair.rejected}
        tokens += size
    return parts
