"""Rows of tokens to tensors, and the log-probabilities of tokens.

The only place that shifts tokens against logits: column t of every `_BT` tensor describes token t, so its
log-probability comes from the logits at column t-1, and column 0 has none.

No padding reaches the model, a prompt that rows share is computed once for all of them, and the logits of all tokens
are never there at the same time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from random import Random

import torch
from torch import Tensor

from r1mini.attention import Packed
from r1mini.model import Transformer
from r1mini.records import Batch

LOGITS = 2**25  # at a time: 128 MiB in fp32, a few times over


def collate(rows: Sequence[Sequence[Sequence[int]]]) -> Batch:
    """A row is stretches of tokens, given and learned by turns, as (prompt, completion); the learned are the targets. Of
    neighbours that begin with the same stretch, it is computed once.

    >>> batch = collate([([5, 6], [7, 8, 9]), ([5, 6], [7])])
    >>> batch.tokens_BT.tolist()
    [[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]]
    >>> batch.target_BT.int().tolist()
    [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]
    >>> batch.lengths, batch.after
    ((2, 3, 1), (-1, 0, 0))
    >>> batch.place_BT.tolist()
    [[0, 1, 2, 3, 4], [0, 1, 5, 0, 0]]
    """
    length_B = [sum(map(len, row)) for row in rows]
    target_BT = targets(rows)
    T = target_BT.shape[1]
    tokens_BT, place_BT = torch.zeros(len(rows), T, dtype=torch.long), torch.zeros(len(rows), T, dtype=torch.long)
    lengths: list[int] = []
    after: list[int] = []
    source: list[Tensor] = []
    for b, row in enumerate(rows):
        tokens_BT[b, : length_B[b]] = torch.tensor([token for ids in row for token in ids], dtype=torch.long)
        shared = len(row[0])
        follows = b > 0 and shared and row[0] == rows[b - 1][0]
        leads = b + 1 < len(rows) and shared and row[0] == rows[b + 1][0]
        cuts = [0, shared, length_B[b]] if follows or leads else [0, length_B[b]]
        for begin, end in zip(cuts, cuts[1:]):
            if follows and begin == 0:
                place_BT[b, :shared] = place_BT[b - 1, :shared]
            elif begin < end:
                start = sum(lengths)
                if begin == 0:
                    first = len(lengths)
                place_BT[b, begin:end] = torch.arange(start, start + end - begin)
                source.append(torch.arange(b * T + begin, b * T + end))
                lengths.append(end - begin)
                after.append(first if begin else -1)
    target_Q = target_BT.flatten().nonzero()[:, 0]
    return Batch(tokens_BT, target_BT, torch.cat(source), place_BT, target_Q, tuple(lengths), tuple(after))


def targets(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """[B, T] bool, the tokens of every second stretch of a row, as in `collate`; never a row's first, which nothing precedes."""
    ends_B = [list(accumulate(map(len, row))) for row in rows]
    if not (T := max((ends[-1] for ends in ends_B), default=0)):
        raise ValueError(f"{len(rows)} rows without a token: there is nothing to learn from")
    target_BT = torch.zeros(len(rows), T, dtype=torch.bool)
    for target_T, ends in zip(target_BT, ends_B):
        for begin, end in zip(ends[::2], ends[1::2]):
            target_T[max(begin, 1) : end] = True
    return target_BT


def token_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """[B, T] in nats, fp32, of the target tokens; zero elsewhere."""
    return on_targets(ChosenLogprobs.apply(*predictions(model, batch), temperature, False)[0], batch)


def token_logprobs_and_entropy(model: Transformer, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(logp_BT, entropy_BT): beside the log-probabilities, the entropy of each target token's distribution."""
    found = ChosenLogprobs.apply(*predictions(model, batch), temperature, True)
    return tuple(on_targets(x_Q, batch) for x_Q in found)


def on_targets(x_Q: Tensor, batch: Batch) -> Tensor:
    """[B, T], zero elsewhere."""
    return torch.zeros(batch.tokens_BT.numel(), device=x_Q.device).index_copy(0, batch.target_Q, x_Q).view(batch.tokens_BT.shape)


def predictions(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states [Q, D] that predict the targets, the head's weight, and the Q targets. No other reaches the vocabulary."""
    tokens = batch.tokens_BT.flatten()
    attend = Packed(batch.lengths, batch.after, device=tokens.device)
    hidden_MD = model.hidden(tokens[batch.source_M], batch.source_M % batch.tokens_BT.shape[1], attend)
    place_Q = batch.place_BT.flatten()[batch.target_Q - 1]  # column t-1 predicts token t
    return hidden_MD.index_select(0, place_Q), model.lm_head.weight, tokens[batch.target_Q]


class ChosenLogprobs(torch.autograd.Function):
    """Log-probability of one token, and on request the entropy of all, from each of Q hidden states: [Q], [Q].

    Logits are made a part at a time, and again for the gradient: [Q, V] at once would be the largest tensor of a training by
    far [Cut Cross-Entropy].
    """

    @staticmethod
    def forward(ctx, hidden_QD: Tensor, weight_VD: Tensor, chosen_Q: Tensor, temperature: float, with_entropy: bool
                ) -> tuple[Tensor, Tensor | None]:
        device = hidden_QD.device.type
        hidden_QD = hidden_QD / temperature
        if torch.is_autocast_enabled(device):
            hidden_QD, weight_VD = (x.to(torch.get_autocast_dtype(device)) for x in (hidden_QD, weight_VD))
        ctx.save_for_backward(hidden_QD, weight_VD, chosen_Q)
        ctx.temperature, ctx.with_entropy = temperature, with_entropy
        logp, entropy = [], []
        for hidden_qD, chosen_q in parts(len(weight_VD), hidden_QD, chosen_Q):
            logits_qV = (hidden_qD @ weight_VD.T).float()
            total_q1 = logits_qV.logsumexp(-1, keepdim=True)
            logp.append((logits_qV.gather(-1, chosen_q[:, None]) - total_q1)[:, 0])
            if with_entropy:
                entropy.append(total_q1[:, 0] - (logits_qV.softmax(-1) * logits_qV).sum(-1))
        return torch.cat(logp), torch.cat(entropy) if with_entropy else None

    @staticmethod
    def backward(ctx, grad_logp_Q: Tensor, grad_entropy_Q: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_QD, weight_VD, chosen_Q = ctx.saved_tensors
        grad_hidden, grad_weight_VD = [], torch.zeros(weight_VD.shape, device=weight_VD.device)
        for hidden_qD, chosen_q, grad_q, grad_entropy_q in parts(
                len(weight_VD), hidden_QD, chosen_Q, grad_logp_Q, grad_entropy_Q if ctx.with_entropy else grad_logp_Q):
            logits_qV = (hidden_qD @ weight_VD.T).float()
            p_qV = logits_qV.softmax(-1)
            if ctx.with_entropy:  # d entropy / d logits = -p (log p + entropy), and log p + entropy = logits - their mean
                inner_qV = logits_qV - (p_qV * logits_qV).sum(-1, keepdim=True)
                grad_qV = p_qV * inner_qV.mul_(grad_entropy_q[:, None]).add_(grad_q[:, None]).neg_()
            else:
                grad_qV = p_qV.mul_(-grad_q[:, None])  # d logp / d logits = onehot - p
            grad_qV = grad_qV.scatter_add_(-1, chosen_q[:, None], grad_q[:, None]).to(hidden_qD.dtype)
            grad_hidden.append(grad_qV @ weight_VD)
            grad_weight_VD += grad_qV.T @ hidden_qD
        return torch.cat(grad_hidden) / ctx.temperature, grad_weight_VD, None, None, None


def parts(vocabulary: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The tensors, cut alike so that the logits of a part stay within LOGITS."""
    return zip(*(x.split(max(1, LOGITS // vocabulary)) for x in tensors))


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


def by_prompt(rows: Sequence[Sequence[Sequence[int]]], token_budget: int) -> list[list[int]]:
    """Indices cut into micro-batches of at most `token_budget` tokens each (or one row), rows of one prompt side by side, a
    prompt counted once.

    >>> by_prompt([([1, 2], [3]), ([4], [5]), ([1, 2], [6]), ([1, 2], [7])], token_budget=4)
    [[0, 2], [3], [1]]
    """
    order = {}
    for prompt, *_ in rows:
        order.setdefault(tuple(prompt), len(order))
    groups: list[list[int]] = []
    room, last = 0, None
    for index in sorted(range(len(rows)), key=lambda i: order[tuple(rows[i][0])]):
        prompt, *rest = rows[index]
        own = sum(map(len, rest))
        if not groups or own + (prompt != last) * len(prompt) > room:
            groups.append([])
            room, last = token_budget, None
        room -= own + (prompt != last) * len(prompt)
        last = prompt
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
    return filled(lengths, Random(seed).sample(range(len(lengths)), len(lengths)), token_budget)


def filled(lengths: Sequence[int], order: Iterable[int], token_budget: int) -> list[list[int]]:
    """Indices in this order, as many at a time as fit the budget (or one).

    >>> filled([3, 9, 4, 8], range(4), token_budget=12)
    [[0, 1], [2, 3]]
    """
    groups: list[list[int]] = []
    room = 0
    for index in order:
        if lengths[index] > room or not groups:
            groups.append([])
            room = token_budget
        groups[-1].append(index)
        room -= lengths[index]
    return groups
