"""Decoder-only transformer: Llama, Qwen2 and Qwen3, told apart by their config alone.

RMSNorm, rotary positions, grouped-query attention, SwiGLU. Parameters carry Hugging Face's names, so a checkpoint is
loaded by name and saved as it stands. Left out: mixture of experts, sliding windows, rotary scaling that depends on
the length of the text.

The layers know nothing of rows: they see M tokens, of all rows one after another and without padding. Which tokens see
which is for `attend` alone (attention.py): its kinds are packed rows, for the learner, and a cache, for the sampler.

Letters: B rows, T tokens of a row, M tokens of all rows, V vocabulary, D hidden size, L layers, H query heads, K key/value
heads, C head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from r1mini.attention import Attend, Packed


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


def rotate(x_MHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x_MHC.shape[-1] // 2
    turned = torch.cat((-x_MHC[..., half:], x_MHC[..., :half]), -1)
    return x_MHC * cos + turned * sin


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
        self.head_dim = C
        self.q_proj = nn.Linear(D, H * C, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * C, D, bias=False)
        self.q_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def heads(self, x_MD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [M, H, C], keys and values [M, K, C]."""
        q_MHC, k_MKC, v_MKC = (project(x_MD).unflatten(-1, (-1, self.head_dim))
                               for project in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(self.q_norm(q_MHC), cos, sin), rotate(self.k_norm(k_MKC), cos, sin), v_MKC


class MLP(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_MD)) * self.up_proj(x_MD))


class Layer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_MD: Tensor, cos: Tensor, sin: Tensor, index: int, attend: Attend) -> Tensor:
        return self.after(x_MD, attend(index, *self.before(x_MD, cos, sin)))

    def before(self, x_MD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.self_attn.heads(self.input_layernorm(x_MD), cos, sin)

    def after(self, x_MD: Tensor, y_MHC: Tensor) -> Tensor:
        x_MD = x_MD + self.self_attn.o_proj(y_MHC.flatten(-2))
        return x_MD + self.mlp(self.post_attention_layernorm(x_MD))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """`model(tokens_BT) -> logits_BTV`. `hidden` stops before the vocabulary: the learner and the sampler project only the
    positions they need."""

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
        self.gradient_checkpointing = False  # only what enters a layer is kept for the backward pass (Chen et al. 2016)
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

    def hidden(self, tokens_M: Tensor, position_M: Tensor, attend: Attend) -> Tensor:
        """Last hidden states [M, D] of tokens at the given positions of their rows."""
        cos_MC, sin_MC = rope_tables(position_M, self.rope_bits.view(torch.float32), self.rope_factor)
        x_MD = self.model.embed_tokens(tokens_M)
        cos, sin = cos_MC[:, None].to(x_MD.dtype), sin_MC[:, None].to(x_MD.dtype)  # alike for all heads
        for index, layer in enumerate(self.model.layers):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_MD = checkpoint(layer, x_MD, cos, sin, index, attend, use_reentrant=False)
            else:
                x_MD = layer(x_MD, cos, sin, index, attend)
        return self.model.norm(x_MD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        position_M = torch.arange(T, device=tokens_BT.device).repeat(B)
        return self.lm_head(self.hidden(tokens_BT.flatten(), position_M, Packed([T] * B, device=tokens_BT.device))).view(B, T, -1)

    def compile_layers(self, backend: str | Callable = "inductor") -> None:
        """torch.compile for what lies between attention and attention. It knows only the number of tokens, so neither rows nor
        their lengths compile it anew, and all layers are one program."""
        for layer in self.model.layers:
            layer.before, layer.after = (torch.compile(part, dynamic=True, backend=backend) for part in (layer.before, layer.after))
