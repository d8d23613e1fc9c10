"""Encoded preference pairs: those to train on and those held out, batches, micro-batches."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
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
    together, so that they share answers, unless they are more than `size`."""
    by_prompt = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    batches = []
    for prompt in rng.sample(list(by_prompt), len(by_prompt)):
        for part in equal_parts(by_prompt[prompt], size):
            if not batches or len(batches[-1]) + len(part) > size:
                batches.append([])
            batches[-1] += part
    return batches


def equal_parts(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """As few parts of at most `size` pairs as can be, of equal size."""
    count = -(-len(pairs) // size)
    cuts = [len(pairs) * i // count for i in range(count + 1)]
    return [list(pairs[i:j]) for i, j in pairwise(cuts)]


def micro_batches(pairs: Sequence[Pair], token_budget: int) -> list[list[Pair]]:
    """Pairs in this order, cut between prompts so that their answers, each counted once, stay
    within the budget. A prompt over the budget is cut between its pairs; a pair over it stands
    alone."""
    parts, free = [], 0
    for _, group in groupby(pairs, key=lambda pair: pair.prompt):
        same_prompt = list(group)
        tokens = sum(map(row_tokens, {row for pair in same_prompt for row in pair[1:3]}))
        if parts and tokens <= free:
            parts[-1] += same_prompt
        else:
            parts += cut_prompt(same_prompt, token_budget)
            free = token_budget
        free -= tokens
    return parts


def cut_prompt(pairs: Sequence[Pair], token_budget: int) -> list[list[Pair]]:
    """The pairs of one prompt, in this order, cut where their answers exceed the budget."""
    parts, answers, free = [], set(), 0
    for pair in pairs:
        new = {pair.chosen, pair.rejected} - answers
        if not parts or sum(map(row_tokens, new)) > free:
            parts.append([])
            new, answers, free = {pair.chosen, pair.rejected}, set(), token_budget
        parts[-1].append(pair)
        answers |= new
        free -= sum(map(row_tokens, new))
    return parts


def row_tokens(row: Tokens) -> int:
    return sum(map(len, row))
