"""Token sequences to tensors, and log pi(o_t | q, o_<t) of their target tokens.

The only place that aligns logits with the tokens they predict: column t of every `_BT` tensor
describes token t, so its log-probability comes from the logits at column t-1, and column 0 has
none. The model never sees padding, and full logits are never materialised. Adjacent rows with the
same prompt share its computation, except in attention.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor

from r1mini.model.attention import PackedAttention
from r1mini.model.transformer import Transformer
from r1mini.records import Batch
from r1mini.training.chunked_logprobs import ChunkedLogprobs


def collate(rows: Sequence[Sequence[Sequence[int]]]) -> Batch:
    """A row alternates context and target segments, as in (prompt, completion). Adjacent rows
    with the same first segment share it.

    >>> batch = collate([([5, 6], [7, 8, 9]), ([5, 6], [7])])
    >>> batch.tokens_BT.tolist()
    [[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]]
    >>> batch.target_BT.int().tolist()
    [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]]
    >>> batch.lengths, batch.parent
    ((2, 3, 1), (-1, 0, 0))
    >>> batch.flat_of_token_BT.tolist()
    [[0, 1, 2, 3, 4], [0, 1, 5, 0, 0]]
    """
    target_BT = targets(rows)
    B, T = target_BT.shape
    tokens_BT = torch.zeros(B, T, dtype=torch.long)
    flat_of_token_BT = torch.zeros_like(tokens_BT)
    token_of_flat, lengths, parent = [], [], []

    def add_segment(row_indices, begin, end, parent_segment):
        """Tokens `begin` to `end` of these rows, which are the same in all of them."""
        start = sum(lengths)
        flat_of_token_BT[row_indices, begin:end] = torch.arange(start, start + end - begin)
        token_of_flat.append(row_indices[0] * T + torch.arange(begin, end))
        lengths.append(end - begin)
        parent.append(parent_segment)

    for prompt, group in groupby(range(B), key=lambda b: tuple(rows[b][0])):
        neighbours = list(group)
        shared, prompt_segment = 0, -1
        if prompt and len(neighbours) > 1:
            shared, prompt_segment = len(prompt), len(lengths)
            add_segment(neighbours, 0, shared, -1)
        for b in neighbours:
            ids = [token for segment in rows[b] for token in segment]
            tokens_BT[b, : len(ids)] = torch.tensor(ids)
            if shared < len(ids):
                add_segment([b], shared, len(ids), prompt_segment)
    return Batch(
        tokens_BT,
        target_BT,
        torch.cat(token_of_flat),
        flat_of_token_BT,
        target_BT.flatten().nonzero()[:, 0],
        tuple(lengths),
        tuple(parent),
    )


def targets(rows: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """[B, T] bool: the tokens of the target segments, as in `collate`; never a row's first token,
    which has no context."""
    ends_B = [list(accumulate(map(len, row))) for row in rows]
    T = max((ends[-1] for ends in ends_B), default=0)
    if not T:
        raise ValueError(f"{len(rows)} empty rows: nothing to train on")
    target_BT = torch.zeros(len(rows), T, dtype=torch.bool)
    for target_T, ends in zip(target_BT, ends_B):
        for begin, end in zip(ends[::2], ends[1::2]):
            target_T[max(begin, 1) : end] = True
    return target_BT


def on_targets(values_Q: Tensor, batch: Batch) -> Tensor:
    """One value for each target token, row after row, as [B, T] with zeros elsewhere."""
    zeros = torch.zeros(batch.tokens_BT.numel(), device=values_Q.device)
    return zeros.index_copy(0, batch.target_Q, values_Q).view(batch.tokens_BT.shape)


def token_logprobs(model: Transformer, batch: Batch, temperature: float = 1.0) -> Tensor:
    """[B, T] log pi(o_t | q, o_<t) in nats, fp32, of the target tokens; zero elsewhere."""
    return token_logprobs_and_entropy(model, batch, temperature, with_entropy=False)[0]


def token_logprobs_and_entropy(
    model: Transformer, batch: Batch, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """(logp_BT, entropy_BT): also the entropy of each target token's distribution."""
    tokens = batch.tokens_BT.flatten()
    token_of_flat_M, T = batch.token_of_flat_M, batch.tokens_BT.shape[1]
    attend = PackedAttention(batch.lengths, batch.parent, device=tokens.device)

    # A callback: FSDP gathers `lm_head` only inside the model's forward methods.
    def head(hidden_MD, weight_VD):
        flat_Q = batch.flat_of_token_BT.flatten()[batch.target_Q - 1]  # column t-1 predicts t
        hidden_QD, target_ids_Q = hidden_MD.index_select(0, flat_Q), tokens[batch.target_Q]
        return ChunkedLogprobs.apply(hidden_QD, weight_VD, target_ids_Q, temperature, with_entropy)

    logp_Q, entropy_Q = model.forward_with_head(
        tokens[token_of_flat_M], token_of_flat_M % T, attend, head
    )
    return on_targets(logp_Q, batch), on_targets(entropy_Q, batch) if with_entropy else None
