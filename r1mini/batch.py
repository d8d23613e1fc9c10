"""Rows of tokens to tensors, and the log-probabilities of tokens.

The only place that shifts tokens against logits: column t of every `_BT` tensor describes token t, so its
log-probability comes from the logits at column t-1, and column 0 has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from r1mini.model import Transformer
from r1mini.records import Batch


def collate(rows: Sequence[Sequence[Sequence[int]]], pack: bool = False) -> Batch:
    """Right-padded rows, or all of them packed into one. A row is stretches of tokens, given and learned by turns, as
    (prompt, completion); the learned are the targets.

    >>> batch = collate([([5, 6], [7, 8, 9]), ([5], [7])])
    >>> batch.tokens_BT.tolist()
    [[5, 6, 7, 8, 9], [5, 7, 0, 0, 0]]
    >>> batch.target_BT.int().tolist()
    [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    """
    lengths = [sum(map(len, row)) for row in rows]
    shape = (1, sum(lengths)) if pack else (len(rows), max(lengths))
    tokens_BT, target_BT = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    start = 0  # of the row, in its line
    for b, row in enumerate(rows):
        line = 0 if pack else b
        end = start
        for number, ids in enumerate(row):
            tokens_BT[line, end : end + len(ids)] = torch.tensor(ids)
            target_BT[line, end : end + len(ids)] = number % 2 == 1
            end += len(ids)
        target_BT[line, start] = False  # nothing precedes the first token
        start = end if pack else 0
    return Batch(tokens_BT, target_BT, tuple(lengths) if pack else ())


def token_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0, entropy_gradient: bool = False
                   ) -> tuple[Tensor, Tensor]:
    """(logp_BT, entropy_BT) in nats, fp32, of the target tokens; zero elsewhere. The entropy has a gradient on request.

    Only the hidden states that predict a target reach the vocabulary.
    """
    hidden_BTD = model.hidden(batch.tokens_BT, documents=batch.documents)
    predicts_BT = batch.target_BT[:, 1:]  # column t-1 predicts token t
    logits_MV = model.lm_head(hidden_BTD[:, :-1][predicts_BT]).float() / temperature
    logp_MV = logits_MV.log_softmax(-1)
    chosen_M = logp_MV.gather(-1, batch.tokens_BT[:, 1:][predicts_BT][:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy_M = -(logp_MV.exp() * logp_MV).sum(-1)
    empty_BT = torch.zeros(batch.tokens_BT.shape, device=chosen_M.device)
    return (empty_BT.masked_scatter(batch.target_BT, chosen_M),
            empty_BT.masked_scatter(batch.target_BT, entropy_M))


def by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices cut into micro-batches of like lengths, of at most `token_budget` padded tokens each (or one row).

    >>> by_length([3, 9, 4, 8], token_budget=18)
    [[0, 2], [3, 1]]
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if not groups or (len(groups[-1]) + 1) * lengths[index] > token_budget:
            groups.append([])
        groups[-1].append(index)
    return groups


def shuffled(lengths: Sequence[int], token_budget: int, seed: str, window: int = 4096) -> list[list[int]]:
    """Micro-batches of like lengths in random order: rows are shuffled, sorted within windows, batches shuffled."""
    rng = Random(seed)
    order = list(range(len(lengths)))
    rng.shuffle(order)
    batches = []
    for start in range(0, len(order), window):
        part = order[start : start + window]
        batches += [[part[i] for i in group] for group in by_length([lengths[i] for i in part], token_budget)]
    rng.shuffle(batches)
    return batches


def packed(lengths: Sequence[int], token_budget: int, seed: str) -> list[list[int]]:
    """Rows in random order, as many at a time as fit the budget (or one)."""
    groups: list[list[int]] = []
    room = 0
    for index in Random(seed).sample(range(len(lengths)), len(lengths)):
        if lengths[index] > room or not groups:
            groups.append([])
            room = token_budget
        groups[-1].append(index)
        room -= lengths[index]
    return groups
