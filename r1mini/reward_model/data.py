"""Encoded preference pairs: those to train on and those held out, batches, micro-batches."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from random import Random
from typing import Any, NamedTuple

from r1mini.data.preferences import Tokens
from r1mini.training.micro_batches import pack_greedily


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
    order = rng.sample(list(by_prompt), len(by_prompt))
    parts = [part for prompt in order for part in equal_parts(by_prompt[prompt], size)]
    return join_greedily(parts, [len(part) for part in parts], size)


def equal_parts(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """As few parts of at most `size` pairs as can be, of equal size."""
    count = -(-len(pairs) // size)
    cuts = [len(pairs) * i // count for i in range(count + 1)]
    return [list(pairs[i:j]) for i, j in pairwise(cuts)]


def micro_batches(pairs: Sequence[Pair], token_budget: int) -> list[list[Pair]]:
    """Pairs in this order, cut between prompts so that their answers, each counted once, stay
    within the budget. A prompt over the budget is cut between its pairs; a pair over it stands
    alone."""
    prompts = [list(group) for _, group in groupby(pairs, key=lambda pair: pair.prompt)]
    batches = join_greedily(prompts, [answer_tokens(group) for group in prompts], token_budget)
    return [part for batch in batches for part in cut(batch, token_budget)]


def join_greedily(
    parts: Sequence[list[Pair]], sizes: Sequence[int], budget: int
) -> list[list[Pair]]:
    """Parts in this order, joined while their sizes are within the budget."""
    batches = pack_greedily(sizes, range(len(parts)), budget)
    return [[pair for i in batch for pair in parts[i]] for batch in batches]


def cut(pairs: Sequence[Pair], token_budget: int) -> list[list[Pair]]:
    """Pairs in this order, cut where their answers exceed the budget."""
    parts, answers, free = [], set(), 0
    for pair in pairs:
        new = {pair.chosen, pair.rejected} - answers
        if not parts or count_tokens(new) > free:
            parts.append([])
            new, answers, free = {pair.chosen, pair.rejected}, set(), token_budget
        parts[-1].append(pair)
        answers |= new
        free -= count_tokens(new)
    return parts


def answer_tokens(pairs: Sequence[Pair]) -> int:
    """The tokens of the answers, each counted once, with their prompts."""
    return count_tokens({row for pair in pairs for row in (pair.chosen, pair.rejected)})


def count_tokens(rows: Iterable[Tokens]) -> int:
    return sum(len(segment) for row in rows for segment in row)
