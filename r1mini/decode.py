"""The model again, for one new token of every row: the sampler's inner loop.

Same parameters, same result as model.py (tests/test_attention.py), but on plain tensors: projections of one input are one product,
a residual is added within the product that makes it. With few rows of a small model, what modules and operators cost by
themselves is most of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1mini.attention import Attend
from r1mini.model import RMSNorm, Transformer, rope_tables


@torch.inference_mode(False)
@torch.no_grad()
def joined(parts: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of all parts, one below another. The parts' own parameters become views of them, so that nothing is
    kept twice, and what an optimizer does to the parts is done to the whole. A state dict is as before; who saves one of the
    parts with torch.save saves all."""
    weight, bias = ([getattr(part, name) for part in parts] for name in ("weight", "bias"))
    return stacked(weight), None if bias[0] is None else stacked(bias)


def stacked(parameters: Sequence[nn.Parameter]) -> Tensor:
    first, offset = parameters[0].data, parameters[0].storage_offset()
    for parameter in parameters:
        if parameter.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() or parameter.storage_offset() != offset:
            break
        offset += parameter.numel()
    else:  # they stand so in memory already
        return first.as_strided((sum(map(len, parameters)), *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, whole.split([len(parameter) for parameter in parameters])):
        parameter.data = view
    return whole


@dataclass(frozen=True)
class Block:
    """A layer's parameters."""

    qkv: Tensor  # [(H + 2K) * C, D]
    qkv_bias: Tensor | None
    o: Tensor
    gate_up: Tensor  # [2 * intermediate, D]
    down: Tensor
    norms: tuple[Tensor, Tensor]
    head_norms: tuple[RMSNorm, RMSNorm] | None


class NextToken:
    """A model as it is when this is made. Under autocast its matrices are rounded once, not again for every token."""

    def __init__(self, model: Transformer):
        self.model, self.config = model, model.config
        device = model.lm_head.weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.lm_head.weight.dtype
        made = lambda *parts: tuple(x if x is None else x.to(dtype) for x in joined(parts))
        self.head = model.lm_head.weight.to(dtype)
        self.least = torch.tensor(math.sqrt(self.config.hidden_size * self.config.rms_norm_eps), device=device)
        self.blocks = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            qkv, qkv_bias = made(attention.q_proj, attention.k_proj, attention.v_proj)
            self.blocks.append(Block(
                qkv, qkv_bias, made(attention.o_proj)[0], made(mlp.gate_proj, mlp.up_proj)[0], made(mlp.down_proj)[0],
                (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
                (attention.q_norm, attention.k_norm) if self.config.qk_norm else None))

    def logits(self, token_B: Tensor, position_B: Tensor, attend: Attend) -> Tensor:
        """[B, V] of the tokens that follow."""
        config, dtype = self.config, self.head.dtype
        H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        x_BD = F.embedding(token_B, self.model.model.embed_tokens.weight)
        cos, sin = (table_BC[:, None].to(x_BD.dtype).expand(-1, H + 2 * K, -1).clone() for table_BC in rope_tables(
            position_B, self.model.rope_bits.view(torch.float32), self.model.rope_factor))
        sin[..., : C // 2].neg_()
        cos[:, H + K :].fill_(1), sin[:, H + K :].zero_()  # values are not turned
        for index, block in enumerate(self.blocks):
            qkv = F.linear(self.norm(x_BD, block.norms[0]).to(dtype), block.qkv, block.qkv_bias).view(len(x_BD), -1, C)
            if block.head_norms:
                q, k, v = qkv.split((H, K, K), 1)
                qkv = torch.cat((block.head_norms[0](q), block.head_norms[1](k), v), 1)
            qkv = torch.addcmul(qkv * cos, qkv.roll(C // 2, -1), sin)
            y_BHC = attend(index, *qkv.split((H, K, K), 1))
            x_BD = plus(x_BD, y_BHC.flatten(1), block.o)
            gate, up = F.linear(self.norm(x_BD, block.norms[1]).to(dtype), block.gate_up).chunk(2, -1)
            x_BD = plus(x_BD, F.silu(gate) * up, block.down)
        return F.linear(self.norm(x_BD, self.model.model.norm.weight).to(dtype), self.head)

    def norm(self, x_BD: Tensor, weight_D: Tensor) -> Tensor:
        size = math.sqrt(x_BD.shape[-1])
        # sqrt(mean of squares + eps) is hypot(length, sqrt(D eps)) / sqrt(D): dtype as many operators
        length_B1 = torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True, dtype=torch.float32)
        return ((x_BD / torch.hypot(length_B1, self.least)) * size).to(x_BD.dtype) * weight_D


def plus(x_BD: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x + the projection of y."""
    if x_BD.dtype == weight.dtype:
        return torch.addmm(x_BD, y.to(weight.dtype), weight.t())
    return x_BD + F.linear(y.to(weight.dtype), weight)
