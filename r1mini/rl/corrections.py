"""Factors of the policy term of the loss, all off by default: importance weights for another
sampler, and masks for tokens or rows."""

import torch
from torch import Tensor

from r1mini.rl.grpo import MAX_LOG_RATIO, check_choice, log_ratio

CORRECTIONS = ("none", "token-truncate", "token-mask", "sequence-truncate", "sequence-mask")


def sampler_correction(
    logp_BT: Tensor, sampler_logp_BT: Tensor, mask_BT: Tensor, correction: str, cap: float = 3.0
) -> Tensor:
    """[B, T] pi / pi_sampler, for completions sampled by another engine or in another precision
    than the learner's. "token-…" or "sequence-…" (of the whole sequence); "…-truncate": truncated
    at `cap` (TIS, Yao et al. 2025); "…-mask": 0 where it is over `cap`."""
    check_choice("correction", correction, CORRECTIONS)
    log_ratio_BT = log_ratio(logp_BT, sampler_logp_BT, mask_BT)
    if correction == "none":
        return torch.ones_like(log_ratio_BT)
    if correction.startswith("sequence"):
        log_ratio_B1 = log_ratio_BT.sum(-1, keepdim=True).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        log_ratio_BT = log_ratio_B1.expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    if correction.endswith("truncate"):
        return ratio_BT.clamp(max=cap)
    return ratio_BT.masked_fill(ratio_BT > cap, 0.0)


def top_entropy(entropy_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """[B, T] true for the tokens whose entropy is in the highest `share` of the update's (Wang et
    al. 2025, "Beyond the 80/20 rule": forking tokens carry the gradient)."""
    if share == 1:
        return mask_BT
    threshold = torch.quantile(entropy_BT[mask_BT].float(), 1 - share)
    return mask_BT & (entropy_BT >= threshold)


def on_policy_rows(
    logp_BT: Tensor, sampler_logp_BT: Tensor, adv_B: Tensor, mask_BT: Tensor, limit: float
) -> Tensor:
    """[B, 1] false for a negative-advantage completion that has drifted off-policy: A < 0, and the
    mean of log(pi_sampler / pi) is over `limit` (DeepSeek-V3.2's off-policy sequence mask)."""
    log_ratio_BT = log_ratio(logp_BT, sampler_logp_BT, mask_BT)
    drift_B = -log_ratio_BT.sum(-1) / mask_BT.sum(-1).clamp(min=1)
    return ((adv_B >= 0) | (drift_B.detach() <= limit))[:, None]
