"""Decoder-only transformer and its KV cache: Llama, Qwen2 and Qwen3, told apart by their config alone.

RMSNorm, rotary positions, grouped-query attention, SwiGLU. Parameters carry Hugging Face's names, so a checkpoint is
loaded by name and saved as it stands. Left out: mixture of experts, sliding windows, rotary scaling that depends on
the length of the text.

Letters: B rows, T tokens, S cache slots, V vocabulary, D hidden size, L layers, H query heads, K key/value heads,
C head size.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """The fields of Hugging Face's config.json that decide the computation, under their names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None  # rope_type linear, llama3 or yarn, and its numbers
    tie_word_embeddings: bool = True
    attention_bias: bool = False  # Qwen2: biases on q, k, v
    qk_norm: bool = False  # Qwen3: RMSNorm on each query and key head
    initializer_range: float = 0.02


class KVCache:
    """Keys and values of the tokens seen so far, preallocated and written in place.

    `key_LBKSC` and `value_LBKSC` have S slots a row; `length_B` counts the slots of each row that hold a token. Rows
    have lengths of their own: slot s of row b is visible to a token at position p if and only if s <= p.
    """

    def __init__(self, config: ModelConfig, rows: int, slots: int, device=None, dtype=None):
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, slots, config.head_dim)
        self.key_LBKSC = torch.zeros(shape, device=device, dtype=dtype)
        self.value_LBKSC = torch.zeros(shape, device=device, dtype=dtype)
        self.length_B = torch.zeros(rows, dtype=torch.long, device=device)

    def write(self, layer: int, position_BT: Tensor, key_BKTC: Tensor, value_BKTC: Tensor) -> None:
        row_B1 = torch.arange(position_BT.shape[0], device=position_BT.device)[:, None]
        # Advanced indices around a slice put [B, T] first: the assigned values are [B, T, K, C].
        self.key_LBKSC[layer][row_B1, :, position_BT] = key_BKTC.transpose(1, 2).to(self.key_LBKSC.dtype)
        self.value_LBKSC[layer][row_B1, :, position_BT] = value_BKTC.transpose(1, 2).to(self.value_LBKSC.dtype)

    def select(self, rows: Tensor, slots: int | None = None) -> KVCache:
        """A cache of the given rows, widened to `slots` slots. Rows may repeat: a prompt's cache is shared out to its
        group so."""
        chosen = copy.copy(self)
        chosen.length_B = self.length_B[rows]
        more = (slots or self.key_LBKSC.shape[3]) - self.key_LBKSC.shape[3]
        chosen.key_LBKSC, chosen.value_LBKSC = self.key_LBKSC[:, rows], self.value_LBKSC[:, rows]
        if more > 0:  # padding by nothing would copy once more
            chosen.key_LBKSC = F.pad(chosen.key_LBKSC, (0, 0, 0, more))
            chosen.value_LBKSC = F.pad(chosen.value_LBKSC, (0, 0, 0, more))
        return chosen


def rope_frequency(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians a position of each plane [C/2] (RoFormer §3.2), and the factor on their cosines and sines.

    `rope_scaling` stretches them to a longer context: all alike (linear), those that turn seldom (llama3: Llama 3.1), or
    those and attention's temperature (yarn: YaRN §3, 2309.00071). Numbers as in transformers' modeling_rope_utils.
    """
    C, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    # To the bit as in transformers: at position 100,000 the last one decides. Never on meta, where a model begins.
    frequency = 1.0 / theta ** (torch.arange(0, C, 2, device="cpu").float() / C)
    if not scaling:
        return frequency, 1.0
    kind, factor, context = (scaling.get(key) for key in ("rope_type", "factor", "original_max_position_embeddings"))
    if kind == "linear":
        return frequency / factor, 1.0
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = context * frequency / (2 * math.pi)  # over the context that the model was pre-trained with
        kept, attention = ((turns - low) / (high - low)).clamp(0, 1), 1.0
    else:
        first, last = (C * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))  # the plane of so many turns
                       for turns in (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1))
        if scaling.get("truncate", True):
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, C - 1)
        kept = 1 - ((torch.arange(C // 2, device="cpu") - first) / ((last - first) or 0.001)).clamp(0, 1)
        attention, one, all_dim = (scaling.get(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
        if attention is None:
            grown = 0.1 * math.log(max(factor, 1))
            attention = (one * grown + 1) / (all_dim * grown + 1) if one and all_dim else grown + 1
            attention *= scaling.get("attn_factor") or 1  # YaRN's own code, vLLM and R1-0528-Qwen3-8B; not transformers
    return kept * frequency + (1 - kept) * (frequency / factor), float(attention)


def rope_tables(position: Tensor, frequency: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[*position.shape, C]` of rotary embeddings, in Hugging Face's half-split layout."""
    angle = position[..., None].float() * frequency
    return torch.cat([angle.cos()] * 2, -1) * factor, torch.cat([angle.sin()] * 2, -1) * factor


def rotate(x_BHTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x_BHTC.shape[-1] // 2
    turned = torch.cat((-x_BHTC[..., half:], x_BHTC[..., :half]), -1)
    return x_BHTC * cos + turned * sin


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D, H, K, C = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.heads, self.kv_heads, self.head_dim = H, K, C
        self.q_proj = nn.Linear(D, H * C, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * C, D, bias=False)
        self.q_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, cos: Tensor, sin: Tensor, layer: int, cache: KVCache | None,
                position_BT: Tensor | None, visible_BTS: Tensor | None, documents: Sequence[int] = ()) -> Tensor:
        B, T, _ = x_BTD.shape
        q_BHTC = self.q_norm(self.q_proj(x_BTD).view(B, T, self.heads, self.head_dim)).transpose(1, 2)
        k_BKTC = self.k_norm(self.k_proj(x_BTD).view(B, T, self.kv_heads, self.head_dim)).transpose(1, 2)
        v_BKTC = self.v_proj(x_BTD).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        q_BHTC, k_BKTC = rotate(q_BHTC, cos, sin), rotate(k_BKTC, cos, sin)
        if documents:  # each sees itself alone
            parts = zip(*(x.split(list(documents), dim=2) for x in (q_BHTC, k_BKTC, v_BKTC)))
            y_BHTC = torch.cat([F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads) for q, k, v in parts], dim=2)
        elif cache is None:
            y_BHTC = F.scaled_dot_product_attention(q_BHTC, k_BKTC, v_BKTC, is_causal=True,
                                                    enable_gqa=self.heads != self.kv_heads)
        else:
            cache.write(layer, position_BT, k_BKTC, v_BKTC)
            S = visible_BTS.shape[-1]
            key, value = cache.key_LBKSC[layer, :, :, :S], cache.value_LBKSC[layer, :, :, :S]
            # The H/K query heads of one key head stand side by side as queries of it: no key is ever repeated.
            group = self.heads // self.kv_heads
            q = q_BHTC.reshape(B, self.kv_heads, group * T, self.head_dim)
            visible = visible_BTS[:, None] if T == 1 else visible_BTS[:, None].repeat(1, 1, group, 1)
            y_BHTC = F.scaled_dot_product_attention(q, key, value, attn_mask=visible).reshape(q_BHTC.shape)
        return self.o_proj(y_BHTC.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor, *attention_args) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), *attention_args)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """`model(tokens_BT) -> logits_BTV`; with a cache, the tokens continue each row of it.

    `hidden` stops before the vocabulary: the learner and the sampler project only the positions they need.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        frequency, self.rope_factor = rope_frequency(config)
        # Its bits, as integers: `model.to(bfloat16)` would round floats, and far positions would turn wrongly.
        self.register_buffer("rope_bits", frequency.view(torch.int32), persistent=False)
        self.source: dict[str, Any] = {}  # the config.json it was loaded from, with what only others read

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Normal(0, initializer_range); the two projections that write to the residual stream are scaled by
        1/sqrt(2L) (GPT-2 §2.3)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                std = self.config.initializer_range
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std /= (2 * self.config.num_hidden_layers) ** 0.5
                parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=generator))

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None, reach: int | None = None,
               documents: Sequence[int] = ()) -> Tensor:
        """Last hidden states [B, T, D]. `reach` bounds the cache slots that are read (no row may be longer). `documents` are
        the lengths of what is packed into each row, without a cache: positions restart, and nothing sees another's tokens."""
        B, T = tokens_BT.shape
        if cache is None:
            position_BT = visible_BTS = None
            positions = [torch.arange(n, device=tokens_BT.device) for n in documents or [T]]
            position = torch.cat(positions)
        else:
            position_BT = cache.length_B[:, None] + torch.arange(T, device=tokens_BT.device)
            slots = torch.arange(reach or cache.key_LBKSC.shape[3], device=tokens_BT.device)
            visible_BTS = slots <= position_BT[..., None]
            position = position_BT[:, None]  # [B, 1, T]: alike for all heads
        cos, sin = rope_tables(position, self.rope_bits.view(torch.float32), self.rope_factor)
        x_BTD = self.model.embed_tokens(tokens_BT)
        cos, sin = cos.to(x_BTD.dtype), sin.to(x_BTD.dtype)
        for index, layer in enumerate(self.model.layers):
            x_BTD = layer(x_BTD, cos, sin, index, cache, position_BT, visible_BTS, documents)
        return self.model.norm(x_BTD)

    def forward(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        return self.lm_head(self.hidden(tokens_BT, cache))
