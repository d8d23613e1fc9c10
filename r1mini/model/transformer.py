"""Decoder-only transformer: Llama, Qwen2 and Qwen3, selected by the config alone.

RMSNorm, RoPE, grouped-query attention, SwiGLU. Parameters have Hugging Face's names, so
a checkpoint is loaded by name and saved unchanged. The layers compute M tokens of all rows, packed
without padding; only `attend` (attention.py, sampler/kv_cache.py) knows which tokens attend to
which. sampler/decode.py is a second, fused implementation for decoding; a test checks that they
agree. Left out: mixture of experts, sliding windows.

Letters: records.py; M tokens of all rows.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from r1mini.model.attention import Attend, PackedAttention
from r1mini.model.config import ModelConfig
from r1mini.model.rope import rope_frequency, rope_tables, rotate

QKV = tuple[Tensor, Tensor, Tensor]  # [M, H, C], [M, K, C], [M, K, C]


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), self.weight.shape, None, self.eps)
        return normed.to(x.dtype) * self.weight


class SelfAttention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        D, C = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = C
        self.q_proj = nn.Linear(D, H * C, bias=config.attention_bias)
        self.k_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.v_proj = nn.Linear(D, K * C, bias=config.attention_bias)
        self.o_proj = nn.Linear(H * C, D, bias=False)
        self.q_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(C, config.rms_norm_eps) if config.qk_norm else nn.Identity()

    def qkv(self, x_MD: Tensor, cos: Tensor, sin: Tensor) -> QKV:
        q_MHC = self.q_proj(x_MD).unflatten(-1, (-1, self.head_dim))
        k_MKC = self.k_proj(x_MD).unflatten(-1, (-1, self.head_dim))
        v_MKC = self.v_proj(x_MD).unflatten(-1, (-1, self.head_dim))
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
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_MD: Tensor, cos: Tensor, sin: Tensor, index: int, attend: Attend) -> Tensor:
        """[M, D]. `cos` and `sin` [M, 1, C] rotate all heads."""
        y_MHC = attend(index, *self.before_attention(x_MD, cos, sin))
        return self.after_attention(x_MD, y_MHC)

    def before_attention(self, x_MD: Tensor, cos: Tensor, sin: Tensor) -> QKV:
        return self.self_attn.qkv(self.input_layernorm(x_MD), cos, sin)

    def after_attention(self, x_MD: Tensor, y_MHC: Tensor) -> Tensor:
        x_MD = x_MD + self.self_attn.o_proj(y_MHC.flatten(-2))
        return x_MD + self.mlp(self.post_attention_layernorm(x_MD))


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """`model(tokens_BT) -> logits_BTV`. The learner and the sampler call `forward_with_head` and
    `hidden` instead: they need logits at few positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        frequency, self.rope_factor = rope_frequency(config)
        # fp32 as integers: `model.to(bfloat16)` would round the frequencies of long positions.
        self.register_buffer("rope_bits", frequency.view(torch.int32), persistent=False)
        self.gradient_checkpointing = False  # save only layer inputs; recompute the rest
        self.hf_config = {}  # the config.json it was loaded from, unused fields too
        self.adapter_files = {}  # file name -> JSON, if it has adapters (model/lora.py)

    @property
    def head(self) -> nn.Linear:
        return self.lm_head

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(self, tokens_BT: Tensor) -> Tensor:
        B, T = tokens_BT.shape
        position_M = torch.arange(T, device=tokens_BT.device).repeat(B)
        attend = PackedAttention([T] * B, device=tokens_BT.device)
        hidden_MD = self.hidden(tokens_BT.flatten(), position_M, attend)
        return self.head(hidden_MD).view(B, T, -1)

    def hidden(self, tokens_M: Tensor, position_M: Tensor, attend: Attend) -> Tensor:
        """Last hidden states [M, D] of tokens at these positions of their rows."""
        frequency = self.rope_bits.view(torch.float32)
        cos_MC, sin_MC = rope_tables(position_M, frequency, self.rope_factor)
        x_MD = self.model.embed_tokens(tokens_M)
        cos, sin = cos_MC[:, None].to(x_MD.dtype), sin_MC[:, None].to(x_MD.dtype)
        for index, layer in enumerate(self.model.layers):
            if self.gradient_checkpointing and torch.is_grad_enabled():  # [Chen et al. 2016]
                x_MD = checkpoint(layer, x_MD, cos, sin, index, attend, use_reentrant=False)
            else:
                x_MD = layer(x_MD, cos, sin, index, attend)
        return self.model.norm(x_MD)

    def forward_with_head(
        self,
        tokens_M: Tensor,
        position_M: Tensor,
        attend: Attend,
        head: Callable[[Tensor, Tensor], Any],
    ) -> Any:
        """`head(hidden_MD, weight_VD)`, with the last hidden states and the weight of the head.
        FSDP gathers the parameters around this call (infra/distributed.py)."""
        return head(self.hidden(tokens_M, position_M, attend), self.head.weight)

    def compile_layers(self, backend: str | Callable = "inductor") -> None:
        """torch.compile for the parts of a layer before and after attention. The only dynamic
        dimension is the number of tokens, so all layers and batches share one compiled program."""
        for layer in self.model.layers:
            for name in ("before_attention", "after_attention"):
                part = torch.compile(getattr(layer, name), dynamic=True, backend=backend)
                setattr(layer, name, part)
