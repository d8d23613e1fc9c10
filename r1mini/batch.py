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


def collate(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Batch:
    """Right-padded (prompt, completion) rows; the completions are the targets.

    >>> batch = collate([([5, 6], [7, 8, 9]), ([5], [7])])
    >>> batch.tokens_BT.tolist()
    [[5, 6, 7, 8, 9], [5, 7, 0, 0, 0]]
    >>> batch.target_BT.int().tolist()
    [[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]]
    """
    T = max(len(prompt) + len(completion) for prompt, completion in rows)
    tokens_BT = torch.zeros(len(rows), T, dtype=torch.long)
    target_BT = torch.zeros(len(rows), T, dtype=torch.bool)
    for b, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        tokens_BT[b, :end] = torch.tensor([*prompt, *completion])
        target_BT[b, len(prompt) : end] = True
    target_BT[:, 0] = False  # nothing precedes the first token
    return Batch(tokens_BT, target_BT)


def token_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0, entropy_gradient: bool = False
                   ) -> tuple[Tensor, Tensor]:
    """(logp_BT, entropy_BT) in nats, fp32, of the target tokens; zero elsewhere. The entropy has a gradient on request.

    Only the hidden states that predict a target reach the vocabulary.
    """
    hidden_BTD = model.hidden(batch.tokens_BT)
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
