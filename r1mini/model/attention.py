"""Attention over packed sequences, for training and prefill. (sampler/kv_cache.py: for decoding.)

The layers pass the queries, keys and values of M tokens and get one output per token. Small bf16
matmuls are slower than fp32 on a CPU, so there attention always runs in fp32.

Letters: records.py; M packed tokens; here B are the rows of one padded batch.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_LENGTH_RATIO = 0.7  # shortest to longest row of a padded batch

# (layer, q_MHC, k_MKC, v_MKC) -> y_MHC
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class PackedAttention:
    """Causal attention over segments of tokens that are packed one after another.

    Segment i continues segment `parent[i]`, an earlier one without a parent (-1: none), and attends
    to it: a prompt is the parent of its completions, so everything but attention runs on it once.
    Attention runs on full rows (parent + segment) in padded batches of similar length, with
    a causal kernel (`is_causal`). `keep_kv`: store each layer's keys and values in `kept_kv`.
    """

    def __init__(
        self, lengths: Sequence[int], parent: Sequence[int] = (), keep_kv: bool = False, device=None
    ):
        self.lengths = list(lengths)
        self.kept_kv = [] if keep_kv else None  # (k_MKC, v_MKC) of each layer
        parent = list(parent) or [-1] * len(lengths)
        batches, output_of_token = padded_batches(self.lengths, parent)
        on_cuda = device is not None and device.type == "cuda"  # pinned, or the host would wait
        index = [x.pin_memory() if on_cuda else x for x in (*batches, output_of_token)]
        *self.batches_BT, self.output_of_token_M = (x.to(device, non_blocking=True) for x in index)

    def __call__(self, layer: int, q_MHC: Tensor, k_MKC: Tensor, v_MKC: Tensor) -> Tensor:
        if self.kept_kv is not None:
            self.kept_kv.append((k_MKC, v_MKC))
        device, dtype = q_MHC.device.type, q_MHC.dtype
        on_cuda_autocast = device == "cuda" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=on_cuda_autocast):
            if device == "cpu":
                q_MHC, k_MKC, v_MKC = q_MHC.float(), k_MKC.float(), v_MKC.float()
            outputs = []
            for index_BT in self.batches_BT:
                q_BHTC = gather_rows(q_MHC, index_BT)
                k_BKTC = gather_rows(k_MKC, index_BT)
                v_BKTC = gather_rows(v_MKC, index_BT)
                y_BHTC = causal_attention(q_BHTC, k_BKTC, v_BKTC)
                outputs.append(y_BHTC.transpose(1, 2).flatten(0, 1))
            return torch.cat(outputs).index_select(0, self.output_of_token_M).to(dtype)


def gather_rows(x_MHC: Tensor, index_BT: Tensor) -> Tensor:
    """[B, H, T, C]. Avoids indexing: its backward is nondeterministic for repeated tokens."""
    x = x_MHC.index_select(0, index_BT.flatten())
    return x.view(*index_BT.shape, *x_MHC.shape[1:]).transpose(1, 2)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, H, T, C] from q [B, H, T, C], k and v [B, K, T, C]."""
    if q.is_cuda and q.dtype == torch.float32 and not torch.is_autocast_enabled("cuda"):
        # No fused fp32 kernel supports grouped heads; the fallback materialises [B, H, T, T].
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)


def padded_batches(lengths: Sequence[int], parent: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """(batches [B, T] of token indices, each a full row padded with its last token;
    of each of the M tokens, the index of its output among all batches' outputs).

    >>> batches, output_of_token = padded_batches([2, 1, 3], [-1, 0, -1])
    >>> [batch_BT.tolist() for batch_BT in batches], output_of_token.tolist()
    ([[[0, 1, 2], [3, 4, 5]]], [0, 1, 2, 3, 4, 5])
    """
    ends = list(accumulate(lengths))
    segments = [list(range(end - length, end)) for length, end in zip(lengths, ends)]
    parents = set(parent)
    rows = []
    for i, p in enumerate(parent):
        row = segments[p] + segments[i] if p >= 0 else segments[i]
        if row and i not in parents:
            rows.append(row)
    rows.sort(key=len, reverse=True)

    batches = []
    for row in rows:
        if not batches or len(row) < MIN_LENGTH_RATIO * len(batches[-1][0]):
            batches.append([])
        batches[-1].append(row)

    # A shared prompt has equal outputs in all of its rows; the last row's are read.
    output_of_token = torch.zeros(sum(lengths), dtype=torch.long)
    padded, offset = [], 0
    for batch in batches:
        T = len(batch[0])
        for row in batch:
            output_of_token[row] = torch.arange(offset, offset + len(row))
            offset += T
        padded.append(torch.tensor([row + row[-1:] * (T - len(row)) for row in batch]))
    return padded, output_of_token
