"""Draws tokens: temperature, top-k, top-p, min-p, and inverse-CDF sampling.

Left out: penalties, beam search, logit biases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from r1mini.config import option, validate
from r1mini.training.optim import nan_if_not_finite


@dataclass(frozen=True)
class SamplingParams:
    """RL samples from the model itself: temperature alone, no truncation."""

    max_new_tokens: int = option(256, "most tokens of a completion", bounds="1 <= x")
    temperature: float = option(1.0, "0: greedy", bounds="0 <= x")
    top_k: int = option(0, "0: off", bounds="0 <= x")
    top_p: float = option(1.0, "1: off", bounds="0 < x <= 1")
    min_p: float = option(0.0, "0: off", bounds="0 <= x < 1")

    def __post_init__(self):
        validate(self)


def next_token_probs(logits_BV: Tensor, params: SamplingParams) -> Tensor:
    """Probabilities [B, V], fp32, that the next token is drawn from.

    Order as in Hugging Face: temperature, top-k, top-p (nucleus, Holtzman et al. 2020 §3), min-p
    (Nguyen et al. 2024).
    """
    logits_BV = logits_BV.float()
    if params.temperature == 0:
        best_B1, index_B1 = logits_BV.max(-1, keepdim=True)
        one_B1 = 1.0 + nan_if_not_finite(best_B1)
        return torch.zeros_like(logits_BV).scatter(-1, index_B1, one_B1)
    logits_BV = logits_BV / params.temperature
    if params.top_k and params.top_k < logits_BV.shape[-1]:
        kth_B1 = logits_BV.topk(params.top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kth_B1, -torch.inf)
    if params.top_p < 1:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        p_BV = sorted_BV.softmax(-1)
        outside_BV = p_BV.cumsum(-1) - p_BV >= params.top_p  # keeps the token that crosses top_p
        logits_BV = logits_BV.masked_fill(outside_BV.scatter(-1, order_BV, outside_BV), -torch.inf)
    if params.min_p > 0:
        p_BV = logits_BV.softmax(-1)
        threshold_B1 = params.min_p * p_BV.amax(-1, keepdim=True)
        logits_BV = logits_BV.masked_fill(p_BV < threshold_B1, -torch.inf)
    return logits_BV.softmax(-1)


def draw(logits_BV: Tensor, uniform_B: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """(the next tokens, their log-probabilities) by these uniform numbers."""
    p_BV = next_token_probs(logits_BV, params)
    token_B = inverse_cdf_sample(p_BV, uniform_B)
    return token_B, p_BV.gather(-1, token_B[:, None])[:, 0].log()


def inverse_cdf_sample(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The first token at which the cumulative probability exceeds the uniform number.

    Two levels, a block of the vocabulary and then a token in it: a cumulative sum over the whole
    vocabulary would cost more than the model's last layer.

    >>> p = torch.tensor([[0.25, 0.0, 0.5, 0.25]]).expand(3, 4)
    >>> inverse_cdf_sample(p, torch.tensor([0.1, 0.25, 0.8])).tolist()
    [0, 2, 3]
    """
    B, V = p_BV.shape
    width = math.isqrt(V - 1) + 1
    p_BJW = F.pad(p_BV, (0, -V % width)).view(B, -1, width)  # J blocks of W tokens
    block_p_BJ = p_BJW.sum(-1)
    block_B, rest_B = first_exceeding(block_p_BJ, uniform_B * block_p_BJ.sum(-1))
    p_BW = p_BJW[torch.arange(B, device=p_BV.device), block_B]
    token_B, _ = first_exceeding(p_BW, rest_B)
    return block_B * width + token_B


def first_exceeding(weight_BW: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """The first entry whose cumulative sum exceeds the target, and the target minus the sum before
    it. If rounding leaves no such entry: the last one with a positive weight."""
    sum_BW = weight_BW.cumsum(-1)
    below_total_B = sum_BW[:, -1].nextafter(torch.zeros((), device=sum_BW.device))
    target_B = torch.minimum(target_B, below_total_B)
    index_B = (sum_BW <= target_B[:, None]).sum(-1)
    before_B = (sum_BW - weight_BW).gather(-1, index_B[:, None])[:, 0]
    return index_B, target_B - before_B


def row_uniforms(seed: int, step: int, attempt: int, rows: Sequence[int], count: int) -> Tensor:
    """[B, count] numbers in [0, 1), each a function of (seed, step, attempt, row, token) alone.

    Philox takes a key of 128 bits: 64 of seed, 8 of attempt, 24 of step, 32 of row. Raises
    ValueError if step or attempt does not fit.
    """
    if not (0 <= step < 2**24 and 0 <= attempt < 2**8):
        raise ValueError(f"step {step}, attempt {attempt}: must be below {2**24} and {2**8}")
    stream = attempt << 24 | step
    uniform_BT = np.empty((len(rows), count), dtype=np.float32)
    for row, uniform_T in zip(rows, uniform_BT):
        key = np.array([seed % 2**64, stream << 32 | row], dtype=np.uint64)
        np.random.Generator(np.random.Philox(key=key)).random(dtype=np.float32, out=uniform_T)
    return torch.from_numpy(uniform_BT)
