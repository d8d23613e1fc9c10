"""Splits row indices into micro-batches by a token budget. A row over the budget stands alone."""

from collections.abc import Iterable, Mapping, Sequence
from random import Random


def by_length(lengths: Sequence[int], indices: Iterable[int], token_budget: int) -> list[list[int]]:
    """These rows sorted by length, at most `token_budget` tokens with padding.

    >>> by_length([3, 9, 4, 8], range(4), token_budget=18)
    [[0, 2], [3, 1]]
    """
    batches = []
    for index in sorted(indices, key=lambda i: lengths[i]):
        if not batches or (len(batches[-1]) + 1) * lengths[index] > token_budget:
            batches.append([])
        batches[-1].append(index)
    return batches


def by_prompt(rows: Sequence[Sequence[Sequence[int]]], token_budget: int) -> list[list[int]]:
    """Rows of one prompt side by side, at most `token_budget` tokens; a prompt counts once.

    >>> by_prompt([([1, 2], [3]), ([4], [5]), ([1, 2], [6]), ([1, 2], [7])], token_budget=4)
    [[0, 2], [3], [1]]
    """
    indices_of = {}
    for index, (prompt, *_) in enumerate(rows):
        indices_of.setdefault(tuple(prompt), []).append(index)
    batches, free = [], 0
    for prompt, indices in indices_of.items():
        shared = len(prompt)  # to be added; nothing once it is in the batch
        for index in indices:
            completion = sum(map(len, rows[index][1:]))
            if not batches or shared + completion > free:
                batches.append([])
                free, shared = token_budget, len(prompt)
            batches[-1].append(index)
            free -= shared + completion
            shared = 0
    return batches


def length_bucketed(
    lengths: Sequence[int], token_budget: int, seed: str, window: int = 4096
) -> list[list[int]]:
    """`by_length` in random order: shuffles rows, sorts them within windows, shuffles batches."""
    rng = Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), window):
        batches += by_length(lengths, order[start : start + window], token_budget)
    rng.shuffle(batches)
    return batches


def packed_batches(lengths: Sequence[int], token_budget: int, seed: str) -> list[list[int]]:
    """Rows in random order, at most `token_budget` tokens without padding."""
    order = Random(seed).sample(range(len(lengths)), len(lengths))
    return pack_greedily(lengths, order, token_budget)


def pack_greedily(
    lengths: Sequence[int] | Mapping[int, int], indices: Iterable[int], token_budget: int
) -> list[list[int]]:
    """Rows in this order, at most `token_budget` tokens.

    >>> pack_greedily([3, 9, 4, 8], range(4), token_budget=12)
    [[0, 1], [2, 3]]
    """
    batches = []
    free = 0
    for index in indices:
        if not batches or lengths[index] > free:
            batches.append([])
            free = token_budget
        batches[-1].append(index)
        free -= lengths[index]
    return batches
