"""Which tokens see which: attention over packed rows, and over a cache.

The layers hand over queries, keys and values of M tokens, and get as many outputs. On a CPU small products in bfloat16 are
slower than in fp32, so attention is always in fp32 there, whatever the matrices are in.

Letters as in model.py; S cache slots, R query heads to a key head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from r1mini.graphs import bucket

LIKE = 0.7  # rows at least this share of the longest are padded to it, for attention alone

# (layer, q_MHC, k_MKC, v_MKC) -> y_MHC
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Packed:
    """Stretches of tokens one after another, each of which sees its own past. Stretch i goes on from stretch `after[i]`, an
    earlier one that goes on from none: so a prompt is computed once for all its completions. `after[i] < 0`: from none.

    Attention is by whole rows, a prompt and what goes on from it, in padded batches of like lengths: each token sees all up to
    itself, and no mask is ever made. With `keep`, keys and values of every layer are in `kept` afterwards, for a cache.
    """

    def __init__(self, lengths: Sequence[int], after: Sequence[int] = (), keep: bool = False, device=None):
        self.lengths = list(lengths)
        self.kept: list[tuple[Tensor, Tensor]] | None = [] if keep else None
        self.rows_NT, self.place_M = whole_rows(self.lengths, list(after) or [-1] * len(lengths), device)

    def __call__(self, layer: int, q_MHC: Tensor, k_MKC: Tensor, v_MKC: Tensor) -> Tensor:
        if self.kept is not None:
            self.kept.append((k_MKC, v_MKC))
        device, dtype, found = q_MHC.device.type, q_MHC.dtype, []
        with torch.autocast(device, enabled=device == "cuda" and torch.is_autocast_enabled(device)):
            if device == "cpu":
                q_MHC, k_MKC, v_MKC = q_MHC.float(), k_MKC.float(), v_MKC.float()
            for row_NT in self.rows_NT:
                # Not by indexing: where tokens repeat, its backward pass adds in any order.
                q, k, v = (x.index_select(0, row_NT.flatten()).view(*row_NT.shape, *x.shape[1:]).transpose(1, 2)
                           for x in (q_MHC, k_MKC, v_MKC))
                if q.is_cuda and q.dtype == torch.float32 and not torch.is_autocast_enabled(device):
                    # No kernel for fp32 knows groups of heads, and what does it without one keeps [N, H, T, T].
                    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
                found.append(y.transpose(1, 2).flatten(0, 1))
            return torch.cat(found).index_select(0, self.place_M).to(dtype)


def whole_rows(lengths: Sequence[int], after: Sequence[int], device=None) -> tuple[list[Tensor], Tensor]:
    """The tokens of each row, in batches [N, T] of like lengths; and of each token, where its output is among all the batches'.

    >>> rows, place = whole_rows([2, 1, 3], [-1, 0, -1])
    >>> [row_NT.tolist() for row_NT in rows], place.tolist()
    ([[[0, 1, 2], [3, 4, 5]]], [0, 1, 2, 3, 4, 5])
    """
    start = [0, *accumulate(lengths)]
    tokens = [list(range(start[i], start[i + 1])) for i in range(len(lengths))]
    leads = set(after)
    rows = [(tokens[first] if first >= 0 else []) + tokens[i] for i, first in enumerate(after) if i not in leads]
    batches: list[list[list[int]]] = []
    for row in sorted(filter(None, rows), key=len, reverse=True):
        if not batches or len(row) < LIKE * len(batches[-1][0]):
            batches.append([])
        batches[-1].append(row)
    place, offset = torch.zeros(start[-1], dtype=torch.long), 0
    for batch in batches:
        for row in batch:
            place[row] = torch.arange(offset, offset + len(row))
            offset += len(batch[0])
    padded = [torch.tensor([row + row[-1:] * (len(batch[0]) - len(row)) for row in batch]) for batch in batches]
    return [row_NT.to(device, non_blocking=True) for row_NT in padded], place.to(device, non_blocking=True)


class KVCache:
    """Keys and values of N prompts, and of what B rows go on with, preallocated and written in place.

    A prompt stands here once and is read once for all rows that share it [Hydragen §3.2]: `prompt_key` and `prompt_value` are
    [L, N*K, P, C]. `key` and `value` are [L, B*K, S, C]: slot s of a row holds its token s after the prompt. What stands behind
    a row's last token is overwritten before it is ever visible.

    With `static`, what the prompts take is rounded up, so that they seldom need another shape; in the same shape, everything
    stays where it stands.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, rows: int, slots: int, device=None, dtype=None,
                 static: bool = False):
        self.kv_heads, self.static = kv_heads, static
        self.key, self.value = (torch.zeros(layers, rows * kv_heads, slots, head_dim, device=device, dtype=dtype) for _ in "kv")
        self.prompt_key, self.prompt_value = self.key[:, :0, :0], self.value[:, :0, :0]
        self.lengths: list[int] = []  # of the prompts
        self.seats = 0  # for rows of one prompt
        self.member = self.seat_BK = self.prompt_visible = self.key[:0]

    @property
    def slots(self) -> int:
        return self.key.shape[2]

    def tensors(self) -> tuple[Tensor, ...]:
        return self.key, self.value, self.prompt_key, self.prompt_value, self.member, self.seat_BK, self.prompt_visible

    def room(self, have: int, need: int) -> int:
        """For so many prompts, or tokens, or rows of a prompt."""
        if not self.static:
            return need
        return have if need <= have <= 3 * need else bucket(need)

    def share(self, stay: Sequence[int], kept: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int]) -> None:
        """Of the prompts that are here, those numbered `stay` stay; those of a packed pass, of these lengths, join them."""
        K, old = self.kv_heads, self.by_head(stay)
        self.lengths = [self.lengths[n] for n in stay] + list(lengths)
        L, NK, P, C = self.prompt_key.shape
        shape = L, self.room(NK // K, len(self.lengths)) * K, self.room(P, max(1, *self.lengths)), C
        pools = []
        for pool, stretches in zip((self.prompt_key, self.prompt_value), zip(*kept) if kept else ((), ())):
            stays = pool[:, old, : shape[2]]
            made = pool.zero_() if pool.shape == shape else pool.new_zeros(shape)
            made[:, : len(old), : stays.shape[2]] = stays
            start = 0
            for n, length in enumerate(lengths, len(stay)):
                for layer, x_MKC in enumerate(stretches):
                    made[layer, n * K : (n + 1) * K, :length] = x_MKC[start : start + length].transpose(0, 1)
                start += length
            pools.append(made)
        self.prompt_key, self.prompt_value = pools

    def seat(self, prompt_B: Sequence[int]) -> None:
        """Says of each row which prompt it goes on from; -1: what it does is for nobody, and it needs no seat."""
        K = self.kv_heads
        places: list[list[int]] = [[] for _ in range(self.prompt_key.shape[1] // K)]
        seat_B = []
        for b, n in enumerate(prompt_B):
            seat_B.append(len(places[n]) if n >= 0 else 0)
            if n >= 0:
                places[n].append(b)
        self.seats = G = self.room(self.seats, max(map(len, places)))
        member = [(its + [0] * (G - len(its)))[g] * K + k for its in places for k in range(K) for g in range(G)]
        seat_BK = [(max(n, 0) * K + k) * G + g for n, g in zip(prompt_B, seat_B) for k in range(K)]
        length_BK = torch.tensor([self.lengths[max(n, 0)] for n in prompt_B], device=self.key.device).repeat_interleave(K)
        visible = torch.arange(self.prompt_key.shape[2], device=self.key.device) < length_BK[:, None]
        # Row and head, for prompt, head and seat; too many are harmless. Then the way back, and what is a prompt's: [B*K, P].
        self.member, self.seat_BK, self.prompt_visible = map(
            written, (self.member, self.seat_BK, self.prompt_visible),
            (torch.tensor(member, device=self.key.device), torch.tensor(seat_BK, device=self.key.device), visible))

    def by_head(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor([row * self.kv_heads + k for row in rows for k in range(self.kv_heads)], dtype=torch.long,
                            device=self.key.device)

    def keep(self, rows: Sequence[int]) -> None:
        index = self.by_head(rows)
        self.key, self.value = self.key[:, index], self.value[:, index]

    def grow(self, slots: int) -> None:
        self.key = F.pad(self.key, (0, 0, 0, slots - self.slots))
        self.value = F.pad(self.value, (0, 0, 0, slots - self.value.shape[2]))

    def step(self, count_B: Tensor, reach: int) -> Attend:
        """Attention of one new token of each row, its token number `count_B` after the prompt. No row has more than `reach`.

        The R query heads of one key head stand side by side as queries of it: no key is ever repeated.
        """
        _, BK, S, C = self.key.shape
        count_BK = count_B.repeat_interleave(self.kv_heads)
        slot_BK = torch.arange(BK, device=count_B.device) * S + count_BK  # of each new key, in a layer's flat cache
        _, N, P, _ = self.prompt_key.shape
        own_visible = torch.arange(reach, device=count_B.device) <= count_BK[:, None]
        visible = torch.cat((self.prompt_visible, own_visible), 1)[:, None]
        bias = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -torch.inf)  # [B*K, 1, P + reach]

        def attend(layer: int, q_BHC: Tensor, k_BKC: Tensor, v_BKC: Tensor) -> Tensor:
            for pool, x_BKC in ((self.key, k_BKC), (self.value, v_BKC)):
                pool[layer].view(-1, C).index_copy_(0, slot_BK, x_BKC.reshape(BK, C).to(pool.dtype))
            key, value = self.key[layer, :, :reach], self.value[layer, :, :reach]
            q = q_BHC.reshape(BK, -1, C).to(key.dtype)  # [B*K, R, C]
            shared = q.view(BK, -1).index_select(0, self.member).view(N, -1, C)  # [N*K, G*R, C]
            prompt = torch.bmm(shared, self.prompt_key[layer].transpose(1, 2))
            prompt = prompt.view(len(self.member), -1).index_select(0, self.seat_BK).view(BK, -1, P)
            scores = torch.cat((prompt, torch.bmm(q, key.transpose(1, 2))), -1)  # [B*K, R, P + reach]
            weight = torch.add(bias, scores, alpha=C**-0.5).softmax(-1).to(key.dtype)
            shared = weight[..., :P].reshape(BK, -1).index_select(0, self.member).view(N, -1, P)
            y = torch.bmm(shared, self.prompt_value[layer])
            y = y.view(len(self.member), -1).index_select(0, self.seat_BK).view(BK, -1, C)
            return torch.baddbmm(y, weight[..., P:], value).view(len(q_BHC), -1, C)

        return attend


def written(old: Tensor, new: Tensor) -> Tensor:
    """The new numbers, where the old ones stand if they are as many."""
    return old.copy_(new) if old.shape == new.shape else new
