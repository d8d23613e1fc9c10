"""Fused single-token forward pass for decoding: the sampler's inner loop.

The parameters and the result are those of model/transformer.py (tests/sampler/test_kv_cache.py).
Projections of one input are one matrix product, and a residual is added inside the product. In a
small model with few rows, the overhead of modules and operators is most of a step's time.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1mini.model.attention import Attend
from r1mini.model.rope import rope_tables
from r1mini.model.transformer import Layer, Transformer


@torch.inference_mode(False)
@torch.no_grad()
def fuse_linears(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of the linears, concatenated along their outputs.

    The linears' own parameters become views of them: no memory is used twice, and the optimizer's
    updates reach both. State dicts stay as they are; torch.save of one linear saves them all.
    """
    weight = fuse_parameters([linear.weight for linear in linears])
    if linears[0].bias is None:
        return weight, None
    return weight, fuse_parameters([linear.bias for linear in linears])


def fuse_parameters(parameters: Sequence[nn.Parameter]) -> Tensor:
    first, lengths = parameters[0].data, list(map(len, parameters))
    if all(map(follows, parameters[1:], parameters)):
        return first.as_strided((sum(lengths), *first.shape[1:]), first.stride())
    fused = torch.cat([parameter.data for parameter in parameters])
    for parameter, view in zip(parameters, fused.split(lengths)):
        parameter.data = view
    return fused


def follows(x: Tensor, previous: Tensor) -> bool:
    """Whether x begins where the previous tensor ends, in the same storage."""
    same_storage = x.untyped_storage().data_ptr() == previous.untyped_storage().data_ptr()
    return same_storage and x.storage_offset() == previous.storage_offset() + previous.numel()


class FusedLayer:
    """The parameters of one layer, its matrices in `dtype`."""

    def __init__(self, layer: Layer, dtype: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        qkv, bias = fuse_linears((attention.q_proj, attention.k_proj, attention.v_proj))
        self.qkv = qkv.to(dtype)  # [(H + 2K) * C, D]
        self.qkv_bias = None if bias is None else bias.to(dtype)
        self.output = attention.o_proj.weight.to(dtype)  # [D, H * C]
        gate_up, _ = fuse_linears((mlp.gate_proj, mlp.up_proj))
        self.gate_up = gate_up.to(dtype)  # [2 * intermediate, D]
        self.down = mlp.down_proj.weight.to(dtype)
        self.attention_norm = layer.input_layernorm.weight
        self.mlp_norm = layer.post_attention_layernorm.weight
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm


class FusedDecoder:
    """The model's weights at the time of construction. Under autocast they are cast once, here,
    and not again for every token."""

    def __init__(self, model: Transformer):
        self.model, self.config = model, model.config
        device = model.device
        autocast = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else model.lm_head.weight.dtype
        self.head = model.lm_head.weight.to(dtype)
        epsilon = self.config.hidden_size * self.config.rms_norm_eps
        self.norm_floor = torch.tensor(math.sqrt(epsilon), device=device)
        self.layers = [FusedLayer(layer, dtype) for layer in model.model.layers]

    def logits(self, token_B: Tensor, position_B: Tensor, attend: Attend) -> Tensor:
        """[B, V] of the tokens that follow."""
        config, dtype = self.config, self.head.dtype
        H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        x_BD = F.embedding(token_B, self.model.model.embed_tokens.weight)
        cos, sin = self.rope(position_B, x_BD.dtype)
        for index, layer in enumerate(self.layers):
            normed_BD = self.norm(x_BD, layer.attention_norm).to(dtype)
            qkv = F.linear(normed_BD, layer.qkv, layer.qkv_bias).view(len(x_BD), -1, C)
            if config.qk_norm:
                q, k, v = qkv.split((H, K, K), 1)
                qkv = torch.cat((layer.q_norm(q), layer.k_norm(k), v), 1)
            qkv = torch.addcmul(qkv * cos, qkv.roll(C // 2, -1), sin)
            y_BHC = attend(index, *qkv.split((H, K, K), 1))
            x_BD = residual_linear(x_BD, y_BHC.flatten(1), layer.output)
            normed_BD = self.norm(x_BD, layer.mlp_norm).to(dtype)
            gate, up = F.linear(normed_BD, layer.gate_up).chunk(2, -1)
            x_BD = residual_linear(x_BD, F.silu(gate) * up, layer.down)
        return F.linear(self.norm(x_BD, self.model.model.norm.weight).to(dtype), self.head)

    def rope(self, position_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B, H + 2K, C] for the fused q, k, v; the identity for v."""
        H, K = self.config.num_attention_heads, self.config.num_key_value_heads
        frequency = self.model.rope_bits.view(torch.float32)
        tables = rope_tables(position_B, frequency, self.model.rope_factor)
        cos, sin = (x_BC[:, None].to(dtype).repeat(1, H + 2 * K, 1) for x_BC in tables)
        sin[..., : self.config.head_dim // 2].neg_()  # `roll` swaps the halves, without a sign
        cos[:, H + K :].fill_(1)
        sin[:, H + K :].zero_()
        return cos, sin

    def norm(self, x_BD: Tensor, weight_D: Tensor) -> Tensor:
        # sqrt(mean(x²) + eps) = hypot(|x|, sqrt(D eps)) / sqrt(D): needs the fewest operators.
        size = math.sqrt(x_BD.shape[-1])
        length_B1 = torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True, dtype=torch.float32)
        normed_BD = (x_BD / torch.hypot(length_B1, self.norm_floor)) * size
        return normed_BD.to(x_BD.dtype) * weight_D


def residual_linear(x_BD: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """x + the projection of y."""
    y = y.to(weight.dtype)
    if x_BD.dtype == weight.dtype:
        return torch.addmm(x_BD, y, weight.t())
    return x_BD + F.linear(y, weight)
