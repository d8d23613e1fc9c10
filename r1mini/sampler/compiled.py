"""The decoding step for torch.compile: `--compile` on CUDA.

It computes what decode.py and kv_cache.py compute, in 12 calls a layer instead of 32 operators:
norms, the rotation of queries and keys, and the MLP's gate fuse. Attention is two calls of torch's
kernel: to the prompts, whose keys are read once for all rows that continue them, and to the rows'
own tokens. Each also returns the logarithm of its sum of exponentials, which combines the two
exactly [Hydragen §3.1]. All layers share one program, and so do all lengths and numbers of rows: a
second size is compiled as a variable. On a CPU the plain step is faster (docs/speed.md).
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from r1mini.infra import distributed
from r1mini.model.config import ModelConfig
from r1mini.model.rope import rope_tables
from r1mini.model.transformer import Transformer
from r1mini.sampler.decode import FusedDecoder, FusedLayer, Slots, norm
from r1mini.sampler.kv_cache import KVCache
from r1mini.sampler.sampling import SamplingParams, draw

PROGRAMS = 32  # that torch may compile of a function; past this limit it would raise


class StepTensors(NamedTuple):
    """What all layers of a step read. Letters as in kv_cache.py; G rows of a prompt."""

    cos: Tensor  # [B, 1, C]
    sin: Tensor  # [B, 1, C], negative in the first half: `roll` swaps the halves, without a sign
    count_B1: Tensor  # the position of the new keys and values in the cache
    query_row: Tensor  # [B*K + P*K*G] the row of each query: row by row, then prompt by prompt
    query_head: Tensor  # [B*K + P*K*G] its key head
    by_row_BK: Tensor  # the place of each row's queries among those sorted by prompt
    own_bias: Tensor  # [B, K, R, length] 0, or -inf where a query may not attend
    prompt_bias: Tensor  # [P, K, G*R, T]
    is_empty_P: Tensor  # [P, 1, 1] bool: prompts of a single token, which is not in the cache


class CompiledDecoder(FusedDecoder):
    refused = False  # torch.compile failed in this process

    def next_tokens(self, *args) -> tuple[Tensor, Tensor]:
        if not CompiledDecoder.refused:
            try:
                return self.compiled_tokens(*args)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # of torch's compiler: of any kind
                if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                    raise  # it was compiled before: the capture failed
                reason = distributed.first_line(error)
            CompiledDecoder.refused = True  # what has failed has changed nothing that is read again
            print(
                f"--compile: not for the sampler ({reason}); sampling goes on without it",
                file=sys.stderr,
            )
        return super().next_tokens(*args)

    def compiled_tokens(
        self, cache: KVCache, slots: Slots, length: int, params: SamplingParams
    ) -> tuple[Tensor, Tensor]:
        first, one_layer, last = map(compiled, (first_tensors, layer_step, last_tokens))
        model, config, floor = self.model, self.config, self.norm_floor
        with torch.autocast(slots.token_B.device.type, enabled=False):
            x_BD, step = first(model, config, cache, slots, length)
            for index, layer in enumerate(self.layers):
                kv = (pool[index] for pool in cache.pools())
                x_BD = one_layer(config, floor, layer, x_BD, *kv, step)
            return last(x_BD, model.model.norm.weight, floor, self.head, slots.uniform_B, params)


@cache  # one program for all samplers
def compiled(function: Callable) -> Callable:
    torch._dynamo.config.recompile_limit = max(PROGRAMS, torch._dynamo.config.recompile_limit)
    return torch.compile(function, fullgraph=True)


def first_tensors(
    model: Transformer, config: ModelConfig, cache: KVCache, slots: Slots, length: int
) -> tuple[Tensor, StepTensors]:
    """The embeddings of the last tokens, and what all layers read."""
    token_B, position_B, count_B, _ = slots
    x_BD = model.model.embed_tokens(token_B)
    _, B, K, _, C = cache.key.shape
    T, R = cache.prompt_key.shape[3], config.num_attention_heads // K
    G, dtype, device = cache.rows_per_prompt, cache.key.dtype, x_BD.device
    frequency = model.rope_bits.view(torch.float32)
    tables = rope_tables(position_B, frequency, model.rope_factor)
    cos, sin = (table[:, None].to(x_BD.dtype) for table in tables)
    sign = 1 - 2 * (torch.arange(C, device=device) < C // 2).to(sin.dtype)
    rows_BK = torch.arange(B * K, device=device)
    query = torch.cat((rows_BK, cache.prompt_order))
    own_visible = torch.arange(length, device=device) <= count_B[:, None]  # [B, length]
    # An empty prompt shows its padding, so that its result is finite; its share is zero.
    shown_P1 = cache.length_P.clamp(min=1)[:, None]
    prompt_visible = torch.arange(T, device=device) < shown_P1  # [P, T]
    return x_BD, StepTensors(
        cos,
        sin * sign,
        count_B[:, None],
        query // K,
        query % K,
        cache.by_row_BK,
        bias(own_visible, K, R, dtype),
        bias(prompt_visible, K, G * R, dtype),
        (cache.length_P == 0)[:, None, None],
    )


def bias(visible: Tensor, K: int, queries: int, dtype: torch.dtype) -> Tensor:
    """[_, K, queries, X] of visible [_, X]."""
    zeros = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    masked = zeros.masked_fill(~visible, -torch.inf)[:, None, None]
    return masked.expand(-1, K, queries, -1)


def layer_step(
    config: ModelConfig,
    floor: Tensor,
    layer: FusedLayer,
    x_BD: Tensor,
    key: Tensor,  # [B, K, S, C] of this layer
    value: Tensor,
    prompt_key: Tensor,  # [P, K, T, C]
    prompt_value: Tensor,
    step: StepTensors,
) -> Tensor:
    """[B, D] for the next layer."""
    H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    B, P, R, dtype = len(x_BD), len(prompt_key), H // K, key.dtype
    qkv = layer.qkv(norm(x_BD, layer.attention_norm, floor, layer.qkv.weight.dtype))
    q, k, v = qkv.view(B, H + 2 * K, C).split((H, K, K), 1)
    if config.qk_norm:
        q, k = layer.q_norm(q), layer.k_norm(k)
    # On the pools themselves, not on views of them, which torch 2.11 would copy as a whole.
    row_B1 = torch.arange(B, device=x_BD.device)[:, None]
    head_K = torch.arange(K, device=x_BD.device)
    for pool, new in ((key, rotated(k, step)), (value, v)):
        pool.index_put_((row_B1, head_K, step.count_B1), new.to(dtype))
    q = rotated(q, step).view(B, K, R, C)[step.query_row, step.query_head].to(dtype)
    own_q, prompt_q = q[: B * K].view(B, K, R, C), q[B * K :].view(P, K, -1, C)
    length = step.own_bias.shape[-1]
    own_keys, own_values = key[:, :, :length], value[:, :, :length]
    own_y, own_lse = attention(own_q, own_keys, own_values, step.own_bias)
    prompt_y, lse = attention(prompt_q, prompt_key, prompt_value, step.prompt_bias)
    prompt_lse = lse.masked_fill(step.is_empty_P, -torch.inf).reshape(-1, R)[step.by_row_BK]
    share = torch.sigmoid(prompt_lse - own_lse.reshape(-1, R))[..., None]  # of the prompt
    prompt_y = prompt_y.reshape(-1, R, C)[step.by_row_BK]
    y = (1 - share) * own_y.reshape(-1, R, C) + share * prompt_y
    x_BD = layer.output.add_to(x_BD, y.to(dtype).view(B, H * C))
    gate, up = layer.gate_up(norm(x_BD, layer.mlp_norm, floor, qkv.dtype)).chunk(2, -1)
    return layer.down.add_to(x_BD, F.silu(gate) * up)


def last_tokens(
    x_BD: Tensor,
    norm_weight: Tensor,
    floor: Tensor,
    head: Tensor,
    uniform_B: Tensor,
    params: SamplingParams,
) -> tuple[Tensor, Tensor]:
    return draw(F.linear(norm(x_BD, norm_weight, floor, head.dtype), head), uniform_B, params)


def rotated(x_BHC: Tensor, step: StepTensors) -> Tensor:
    return x_BHC * step.cos + x_BHC.roll(x_BHC.shape[-1] // 2, -1) * step.sin


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """(y [_, K, Q, C], logarithm of the sum of exponentials [_, K, Q]). By torch's own operators,
    because its public function returns no logarithm."""
    if q.is_cuda:
        y, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, bias, True)
        return y, lse[..., : q.shape[2]]  # padded to a multiple of 32 queries
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
