"""The KV cache for sampling: one copy of each prompt, shared by all its completions.

Letters as in records.py, and: P prompts, of at most T tokens; S is the cache's capacity, in tokens
a row; R are the query heads of one key head.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from r1mini.infra.device import to_device
from r1mini.model.attention import Attend
from r1mini.model.config import ModelConfig

INITIAL_CAPACITY = 128  # new tokens a row; doubled whenever a row needs more


def cache_bytes(config: ModelConfig, rows: int, new_tokens: int, bytes_per_number: int) -> int:
    """Peak bytes of a cache whose rows all reach `new_tokens`; growing copies half of it."""
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    tokens = new_tokens if new_tokens <= INITIAL_CAPACITY else new_tokens * 3 // 2
    return rows * numbers * bytes_per_number * tokens


class KVCache:
    """Keys and values of P prompts and of B rows' new tokens, preallocated and written in place.

        prompt_key [L, P, K, T, C]           key [L, B, K, S, C]
        prompt 0 | p p p p p p p |   <---    row 0 | t t t t     |
                                     <---    row 1 | t t         |
        prompt 1 | p p p p       |   <---    row 2 | t t t       |

    A prompt is stored once and read once for all rows that continue it [Hydragen §3.2]. Position t
    of a row is its token t after the prompt. Entries after a row's last token are stale, and
    overwritten before they become visible.

    `rounded(needed, current)` chooses the sizes P, T, and the number of rows per prompt. While the
    sizes stay the same, so do the addresses of all tensors, as CUDA graphs require.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device=None,
        dtype=None,
        rounded: Callable[[int, int], int] = lambda needed, current: needed,
        multiple: int = 1,
    ):
        self.kv_heads, self.rounded = config.num_key_value_heads, rounded
        self.multiple = multiple  # of T
        shape = config.num_hidden_layers, rows, self.kv_heads, capacity, config.head_dim
        self.key = torch.zeros(shape, device=device, dtype=dtype)
        self.value = torch.zeros_like(self.key)
        self.prompt_key = self.prompt_value = self.key[:, :0, :, :0]
        self.lengths = []  # of the prompts
        self.rows_per_prompt = 0
        # Indices between two orders of the queries: rows as they lie in `key` [B*K], and rows
        # sorted by prompt, each prompt padded to G = rows_per_prompt of them [P*K*G].
        self.prompt_order = self.by_row_BK = self.key[:0]
        self.prompt_visible = self.key[:0]  # [B*K, T] bool
        self.length_P = self.key[:0]  # as `lengths`, and zeros

    @property
    def capacity(self) -> int:
        return self.key.shape[3]

    def pools(self) -> tuple[Tensor, ...]:
        """One [layer] of each is what a layer reads."""
        return self.key, self.value, self.prompt_key, self.prompt_value

    def tensors(self) -> tuple[Tensor, ...]:
        orders = self.prompt_order, self.by_row_BK
        return *self.pools(), *orders, self.prompt_visible, self.length_P

    def add_prompts(
        self, keep: list[int], kv: Sequence[tuple[Tensor, Tensor]], lengths: list[int]
    ) -> None:
        """Keeps the prompts with the numbers `keep`, in this order, and appends new ones.

        `kv` holds (key, value) [M, K, C] of each layer, from a packed pass over the new prompts.
        """
        self.lengths = [self.lengths[p] for p in keep] + lengths
        L, P, K, T, C = self.prompt_key.shape
        P, blocks = self.rounded(len(self.lengths), P), -(-max(1, *self.lengths) // self.multiple)
        T = self.multiple * self.rounded(blocks, T // self.multiple)
        place_M = [(p, t) for p, length in enumerate(lengths, len(keep)) for t in range(length)]
        indices = [torch.tensor(x, dtype=torch.long) for x in (keep, *zip(*place_M))]
        keep, *prompt_and_position_M = to_device(indices, self.key.device)

        def repacked(pool, new):
            """The kept prompts, then the new ones, padded to P and T; in place if possible."""
            old = pool.index_select(1, keep)[:, :, :, :T]
            in_place = pool.shape == (L, P, K, T, C)
            pool = pool.zero_() if in_place else pool.new_zeros(L, P, K, T, C)
            pool[:, : len(keep), :, : old.shape[3]] = old
            for pool_PKTC, x_MKC in zip(pool, new):
                pool_PKTC.transpose(1, 2)[tuple(prompt_and_position_M)] = x_MKC.to(pool.dtype)
            return pool

        keys, values = zip(*kv) if kv else ((), ())
        self.prompt_key = repacked(self.prompt_key, keys)
        self.prompt_value = repacked(self.prompt_value, values)

    def assign_prompts(self, prompt_B: Sequence[int]) -> None:
        """Sets the prompt that each row continues. -1: an idle row, whose output is unused."""
        K, device = self.kv_heads, self.key.device
        rows_of_prompt = [[] for _ in range(self.prompt_key.shape[1])]
        g_B = [0] * len(prompt_B)  # the number of each row among those of its prompt
        for row, prompt in enumerate(prompt_B):
            if prompt >= 0:
                g_B[row] = len(rows_of_prompt[prompt])
                rows_of_prompt[prompt].append(row)
        prompt_B = [max(prompt, 0) for prompt in prompt_B]

        self.rows_per_prompt = G = self.rounded(max(map(len, rows_of_prompt)), self.rows_per_prompt)
        row_PG = torch.tensor([rows + [0] * (G - len(rows)) for rows in rows_of_prompt])
        prompt_order = row_PG[:, None] * K + torch.arange(K)[:, None]  # [P, K, G]
        prompt_BK = torch.tensor(prompt_B)[:, None] * K + torch.arange(K)
        by_row_BK = prompt_BK * G + torch.tensor(g_B)[:, None]
        length_B = torch.tensor([self.lengths[prompt] for prompt in prompt_B])
        length_P = torch.zeros(len(rows_of_prompt), dtype=torch.long)
        length_P[: len(self.lengths)] = torch.tensor(self.lengths)
        prompt_order, by_row_BK, length_B, length_P = to_device(
            [prompt_order.flatten(), by_row_BK.flatten(), length_B, length_P], device
        )
        position_T = torch.arange(self.prompt_key.shape[3], device=device)
        visible = position_T < length_B.repeat_interleave(K)[:, None]

        self.prompt_order = copy_or_replace(self.prompt_order, prompt_order)
        self.by_row_BK = copy_or_replace(self.by_row_BK, by_row_BK)
        self.prompt_visible = copy_or_replace(self.prompt_visible, visible)
        self.length_P = copy_or_replace(self.length_P, length_P)

    def select_rows(self, rows: Tensor) -> None:
        self.key, self.value = self.key[:, rows], self.value[:, rows]

    def grow(self, capacity: int) -> None:
        padding = 0, 0, 0, capacity - self.capacity
        self.key = F.pad(self.key, padding)
        self.value = F.pad(self.value, padding)

    def attention(self, count_B: Tensor, length: int) -> Attend:
        """Attention of one new token of each row: token number `count_B` after its prompt.

        Reads the first `length` positions of each row, so `count_B` must be below `length`. The R
        query heads of a key head are R queries to it, so no key is ever repeated.
        """
        _, B, K, S, C = self.key.shape
        T, device = self.prompt_key.shape[3], count_B.device
        count_BK = count_B.repeat_interleave(K)
        # Where the new tokens go in a layer's flattened cache:
        target_BK = torch.arange(B * K, device=device) * S + count_BK
        own_visible = torch.arange(length, device=device) <= count_BK[:, None]  # [B*K, length]
        visible = torch.cat((self.prompt_visible, own_visible), 1)[:, None]
        bias = torch.zeros(visible.shape, device=device).masked_fill(~visible, -torch.inf)

        def attend(layer, q_BHC, k_BKC, v_BKC):
            for cache, x_BKC in ((self.key, k_BKC), (self.value, v_BKC)):
                new = x_BKC.reshape(B * K, C).to(cache.dtype)
                cache[layer].view(-1, C).index_copy_(0, target_BK, new)
            key = self.key[layer, :, :, :length].flatten(0, 1)  # [B*K, length, C]
            value = self.value[layer, :, :, :length].flatten(0, 1)
            prompt_key = self.prompt_key[layer].flatten(0, 1)  # [P*K, T, C]
            prompt_value = self.prompt_value[layer].flatten(0, 1)
            q = q_BHC.reshape(B * K, -1, C).to(key.dtype)  # [B*K, R, C]
            prompt_scores = self.to_rows(torch.bmm(self.to_prompts(q), prompt_key.transpose(1, 2)))
            own_scores = torch.bmm(q, key.transpose(1, 2))
            scores = torch.cat((prompt_scores, own_scores), -1)  # [B*K, R, T + length]
            weight = torch.add(bias, scores, alpha=C**-0.5).softmax(-1).to(key.dtype)
            prompt_weight, own_weight = weight[..., :T], weight[..., T:]
            y = self.to_rows(torch.bmm(self.to_prompts(prompt_weight), prompt_value))
            return torch.baddbmm(y, own_weight, value).view(B, -1, C)

        return attend

    def to_prompts(self, x: Tensor) -> Tensor:
        """[B*K, R, X] -> [P*K, G*R, X]"""
        sorted_x = x.reshape(len(x), -1).index_select(0, self.prompt_order)
        return sorted_x.view(-1, self.rows_per_prompt * x.shape[1], x.shape[2])

    def to_rows(self, x: Tensor) -> Tensor:
        """[P*K, G*R, X] -> [B*K, R, X]"""
        rows = x.view(len(self.prompt_order), -1).index_select(0, self.by_row_BK)
        return rows.view(len(rows), -1, x.shape[-1])


def copy_or_replace(old: Tensor, new: Tensor) -> Tensor:
    """The new contents: copied into the old tensor, so that its address stays, if shapes match."""
    return old.copy_(new) if old.shape == new.shape else new
