"""Rotary position embeddings [RoFormer §3.2] and their scaling to longer contexts.

Numbers as in transformers' modeling_rope_utils. Left out: scaling that depends on the length of
the text.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from r1mini.model.config import ModelConfig


def rope_frequency(config: ModelConfig) -> tuple[Tensor, float]:
    """Radians per position of each plane [C/2], and the factor on their cosines and sines."""
    C, theta, scaling = config.head_dim, config.rope_theta, config.rope_scaling
    # Exactly as in transformers: at position 100,000 the last bit matters. On the CPU even when
    # the model is created on meta.
    frequency = 1.0 / theta ** (torch.arange(0, C, 2, device="cpu").float() / C)
    if not scaling:
        return frequency, 1.0
    factor = scaling["factor"]
    if scaling["rope_type"] == "linear":
        return frequency / factor, 1.0
    if scaling["rope_type"] == "llama3":
        unscaled, attention = llama3_unscaled_share(frequency, scaling), 1.0
    else:
        unscaled = yarn_unscaled_share(C, theta, scaling)
        attention = yarn_attention_factor(scaling)
    scaled_frequency = unscaled * frequency + (1 - unscaled) * (frequency / factor)
    return scaled_frequency, float(attention)


def llama3_unscaled_share(frequency: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1: 1 for planes that turn often within the pre-training context, 0 for slow ones."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequency / (2 * math.pi)
    return ((turns - low) / (high - low)).clamp(0, 1)


def yarn_unscaled_share(C: int, theta: float, scaling: Mapping[str, Any]) -> Tensor:
    """[YaRN §3.2]: 1 for the first planes, which turn often, 0 for the last, a ramp between."""
    context = scaling["original_max_position_embeddings"]

    def plane_that_turns(times):
        return C * math.log(context / (times * 2 * math.pi)) / (2 * math.log(theta))

    first = plane_that_turns(scaling.get("beta_fast") or 32)
    last = plane_that_turns(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, C - 1)
    plane = torch.arange(C // 2, device="cpu")
    return 1 - ((plane - first) / ((last - first) or 0.001)).clamp(0, 1)


def yarn_attention_factor(scaling: Mapping[str, Any]) -> float:
    """The temperature of attention [YaRN §3.4], as a factor on queries and keys."""
    if scaling.get("attention_factor") is not None:
        return scaling["attention_factor"]
    log_factor = 0.1 * math.log(max(scaling["factor"], 1))
    mscale, mscale_all_dim = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        attention = (mscale * log_factor + 1) / (mscale_all_dim * log_factor + 1)
    else:
        attention = log_factor + 1
    # As in YaRN's own code, vLLM and R1-0528-Qwen3-8B; transformers ignores it.
    return attention * (scaling.get("attn_factor") or 1)


def rope_tables(position: Tensor, frequency: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[*position.shape, C]`, in Hugging Face's half-split layout."""
    angle = position[..., None].float() * frequency
    return torch.cat([angle.cos()] * 2, -1) * factor, torch.cat([angle.sin()] * 2, -1) * factor


def rotate(x_MHC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[M, H, C]. `cos` and `sin` [M, 1, C] are the same for all heads."""
    half = x_MHC.shape[-1] // 2
    rotated = torch.cat((-x_MHC[..., half:], x_MHC[..., :half]), -1)
    return x_MHC * cos + rotated * sin
