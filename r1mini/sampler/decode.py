"""Fused single-token forward pass for decoding: the sampler's inner loop.

The parameters and the result are those of model/transformer.py (tests/sampler/test_kv_cache.py).
Projections of one input are one matrix product, and a residual is added inside the product. In a
small model with few rows, the overhead of modules and operators is most of a step's time. LoRA's
adapters stay beside the frozen weights, as in the learner: merged into bf16 they would be lost.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from r1mini.model.attention import Attend
from r1mini.model.lora import stack_adapters
from r1mini.model.rope import rope_tables
from r1mini.model.transformer import Layer, Transformer
from r1mini.sampler.kv_cache import KVCache
from r1mini.sampler.sampling import SamplingParams, draw


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


class Slots(NamedTuple):
    """What a step reads of each slot of the sampler."""

    token_B: Tensor  # its last token
    position_B: Tensor  # the position of that token
    count_B: Tensor  # its number after the prompt
    uniform_B: Tensor  # the number that draws the next one


class FusedLinear:
    """Linear layers of one input as one product in `dtype`, and their adapters as another two."""

    def __init__(self, linears: Sequence[nn.Linear], dtype: torch.dtype):
        weight, bias = fuse_linears(linears)
        self.weight = weight.to(dtype)  # [out, in]
        self.bias = None if bias is None else bias.to(dtype)
        self.adapters = stack_adapters(linears, dtype)  # A [R, in], B [out, R]

    def __call__(self, x: Tensor) -> Tensor:
        """[B, out] of x [B, in], each layer's outputs after the other's."""
        y = F.linear(x, self.weight, self.bias)
        return y if self.adapters is None else y + self.update(x)

    def update(self, x: Tensor) -> Tensor:
        A, B = self.adapters
        return F.linear(F.linear(x, A), B)

    def add_to(self, x_BD: Tensor, y: Tensor) -> Tensor:
        """x + the projection of y."""
        y = y.to(self.weight.dtype)
        if x_BD.dtype != self.weight.dtype:
            return x_BD + self(y)
        x_BD = torch.addmm(x_BD, y, self.weight.t())
        return x_BD if self.adapters is None else x_BD + self.update(y)


class FusedLayer:
    """The parameters of one layer, its matrices in `dtype`."""

    def __init__(self, layer: Layer, dtype: torch.dtype):
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = FusedLinear((attention.q_proj, attention.k_proj, attention.v_proj), dtype)
        self.output = FusedLinear([attention.o_proj], dtype)
        self.gate_up = FusedLinear((mlp.gate_proj, mlp.up_proj), dtype)
        self.down = FusedLinear([mlp.down_proj], dtype)
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
        self.norm_floor = torch.full((), math.sqrt(epsilon), device=device)
        self.layers = [FusedLayer(layer, dtype) for layer in model.model.layers]

    def next_tokens(
        self, cache: KVCache, slots: Slots, length: int, params: SamplingParams
    ) -> tuple[Tensor, Tensor]:
        """(the next tokens of the slots, their log-probabilities). No slot has `length` tokens."""
        # Autocast would only add casts: the dtypes were chosen at construction.
        with torch.autocast(slots.token_B.device.type, enabled=False):
            attend = cache.attention(slots.count_B, length)
            logits_BV = self.logits(slots.token_B, slots.position_B, attend)
            return draw(logits_BV, slots.uniform_B, params)

    def logits(self, token_B: Tensor, position_B: Tensor, attend: Attend) -> Tensor:
        """[B, V] of the tokens that follow."""
        config, dtype, floor = self.config, self.head.dtype, self.norm_floor
        H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        x_BD = self.model.model.embed_tokens(token_B)
        cos, sin = self.rope(position_B, x_BD.dtype)
        for index, layer in enumerate(self.layers):
            normed_BD = norm(x_BD, layer.attention_norm, floor, dtype)
            qkv = layer.qkv(normed_BD).view(len(x_BD), -1, C)
            if config.qk_norm:
                q, k, v = qkv.split((H, K, K), 1)
                qkv = torch.cat((layer.q_norm(q), layer.k_norm(k), v), 1)
            qkv = torch.addcmul(qkv * cos, qkv.roll(C // 2, -1), sin)
            y_BHC = attend(index, *qkv.split((H, K, K), 1))
            x_BD = layer.output.add_to(x_BD, y_BHC.flatten(1))
            normed_BD = norm(x_BD, layer.mlp_norm, floor, dtype)
            gate, up = layer.gate_up(normed_BD).chunk(2, -1)
            x_BD = layer.down.add_to(x_BD, F.silu(gate) * up)
        return F.linear(norm(x_BD, self.model.model.norm.weight, floor, dtype), self.head)

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


def norm(x_BD: Tensor, weight_D: Tensor, floor: Tensor, dtype: torch.dtype) -> Tensor:
    """RMSNorm. `floor`: sqrt(D eps), so that sqrt(mean(x²) + eps) = hypot(|x|, floor) / sqrt(D),
    which needs the fewest operators."""
    size = math.sqrt(x_BD.shape[-1])
    length_B1 = torch.linalg.vector_norm(x_BD, dim=-1, keepdim=True, dtype=torch.float32)
    normed_BD = (x_BD / torch.hypot(length_B1, floor)) * size
    return (normed_BD.to(x_BD.dtype) * weight_D).to(dtype)
