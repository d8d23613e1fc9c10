"""Group-relative policy optimisation and its relatives: pure functions of tensors. [R1 §2.2.1] [DeepSeekMath §4.1]

    A_i = (r_i - mean(r)) / std(r) over the G outputs of one question                                  [R1 Eq. 3]
    J   = E[ min(ratio A, clip(ratio, 1-e, 1+e) A) - beta KL ],  ratio = pi / pi_old        [R1 Eq. 1, for a token:
                                                                                             DeepSeekMath Eq. 3]
    KL  = pi_ref/pi - log(pi_ref/pi) - 1                                                               [R1 Eq. 2]

Every relative is one of four choices, a keyword each: what a reward is compared with (`group_advantages`), how tokens
are weighed (`token_weights`), how far the policy may move (`policy_loss`), how the distance to the reference is
estimated (`kl_to_reference`). Weights are computed once over all rows of an update, so summing the losses of any
micro-batches gives the loss, and the gradient, of the whole. No critic, no reward model.

R1's Eq. 1 is written on whole outputs; the form with a ratio per token and 1/|o_i| is DeepSeekMath's, and is the one
here. Letters: N questions, G outputs each, B = N*G rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # DEVIATES: added to the standard deviation, as TRL does; R1 Eq. 3 has none
LARGEST = 20.0  # log-ratios are clamped to this before exp
FLOOR = -1e3  # log-probabilities are not taken for less: the difference of two infinities is not a number
BASELINES, SCALES = ("group", "leave-one-out", "none"), ("group", "batch", "none")
WEIGHTS = ("sequence", "token", "constant", "microbatch")
OBJECTIVES, RATIOS = ("clip", "cispo", "sapo", "reinforce"), ("token", "sequence")
ESTIMATES = ("k1", "k2", "k3", "k3-weighted")
CORRECTIONS = ("none", "token-truncate", "token-mask", "sequence-truncate", "sequence-mask")


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"--{flag}: {value!r} is not one of {', '.join(known)}")


# -- advantages ---------------------------------------------------------------------------------------------------------


def flat_groups(rewards_NG: Tensor) -> Tensor:
    """[N], true where all outputs of a group have the same reward: nothing to learn from. Rewards are compared, not
    floats divided by a tiny deviation."""
    return (rewards_NG == rewards_NG[:, :1]).all(-1)


def group_advantages(rewards_NG: Tensor, *, baseline: str = "group", scale: str = "group") -> Tensor:
    """[R1 Eq. 3] Rewards against a baseline, in units of a sample standard deviation.

    baseline  "group": the group's mean; "leave-one-out": the mean of the others of the group [RLOO]; "none".
    scale     "group": the group's deviation; "batch": that of all rewards of the step [Lite PPO]; "none" [Dr. GRPO].

    Flat groups have advantages of exactly zero wherever there is a baseline.

    >>> group_advantages(torch.tensor([[1.0, 0.0], [0.3, 0.3]]))
    tensor([[ 0.7070, -0.7070],
            [ 0.0000,  0.0000]])
    """
    one_of("baseline", baseline, BASELINES)
    one_of("scale", scale, SCALES)
    if baseline == "none" and scale != "none":
        raise ValueError(f"--baseline none --scale {scale}: equal rewards have no deviation to divide by; use --scale none")
    adv_NG, G = rewards_NG, rewards_NG.shape[1]
    if baseline != "none":
        adv_NG = rewards_NG - rewards_NG.mean(-1, keepdim=True)
    if baseline == "leave-one-out":
        adv_NG = adv_NG * (G / (G - 1))  # r_i - mean of the others = (r_i - mean of all) G / (G-1)
    if scale == "group":
        adv_NG = adv_NG / (rewards_NG.std(-1, keepdim=True) + EPSILON)
    elif scale == "batch":
        adv_NG = adv_NG / (rewards_NG.std() + EPSILON)
    return adv_NG if baseline == "none" else adv_NG.masked_fill(flat_groups(rewards_NG)[:, None], 0.0)


# -- weights ------------------------------------------------------------------------------------------------------------


def token_weights(mask_BT: Tensor, per: str, *, longest: int = 0, part_B: Tensor | None = None) -> Tensor:
    """[B, T] the weight of each token in the loss, from the rows of a whole update; 0 outside the mask.

    "sequence"    1/B of the row, shared by its tokens [DeepSeekMath Eq. 3]
    "token"       every token of the update alike [DAPO §3.3]
    "constant"    1 / (B * `longest`), so that length changes nothing [Dr. GRPO]
    "microbatch"  every token of its micro-batch alike, micro-batches alike (TRL's bnpo, for comparison: the gradient
                  depends on the cut); `part_B` numbers each row's micro-batch from 0

    >>> mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    >>> token_weights(mask, "sequence")[:, 0].tolist()
    [0.5, 0.1666666716337204]
    >>> token_weights(mask, "token")[:, 0].tolist()
    [0.25, 0.25]
    """
    one_of("loss-per", per, WEIGHTS)
    mask_BT = mask_BT.float()
    length_B = mask_BT.sum(-1)
    if per == "sequence":
        return mask_BT / (len(mask_BT) * length_B.clamp(min=1))[:, None]
    if per == "token":
        return mask_BT / length_B.sum().clamp(min=1)
    if per == "constant":
        if longest < 1:
            raise ValueError(f"--loss-per constant divides by the longest completion, not by {longest}")
        return mask_BT / (len(mask_BT) * longest)
    if part_B is None:
        raise ValueError("--loss-per microbatch needs to know each row's micro-batch")
    parts = int(part_B.max()) + 1
    tokens_P = torch.zeros(parts, device=mask_BT.device).index_add(0, part_B, length_B)
    return mask_BT / (parts * tokens_P.clamp(min=1)[part_B])[:, None]


# -- distance to the reference ------------------------------------------------------------------------------------------


def log_ratio(logp_BT: Tensor, other_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log(pi / other), 0 outside the mask whatever is there, clamped so that its exp is finite."""
    difference_BT = logp_BT.clamp(min=FLOOR) - other_BT.clamp(min=FLOOR)
    return difference_BT.masked_fill(~mask_BT, 0.0).clamp(-LARGEST, LARGEST)


def kl_to_reference(logp_BT: Tensor, ref_logp_BT: Tensor, estimate: str = "k3", ratio_BT: Tensor | None = None) -> Tensor:
    """An estimate of KL(pi || pi_ref) for each token (Schulman 2020, "Approximating KL divergence"). k3 is R1's:
    unbiased and never negative [R1 Eq. 2]; "k3-weighted" is k3 times `ratio_BT`, pi / pi_old, unbiased in later updates of a
    step too. k1 and k2 are there to compare: as a loss, k1's gradient is the same whatever the reference is."""
    one_of("kl", estimate, ESTIMATES)
    log_ref_BT = (ref_logp_BT.clamp(min=FLOOR) - logp_BT.clamp(min=FLOOR)).clamp(-LARGEST, LARGEST)
    if estimate == "k1":
        return -log_ref_BT
    if estimate == "k2":
        return 0.5 * log_ref_BT**2
    k3_BT = log_ref_BT.exp() - log_ref_BT - 1
    if estimate == "k3":
        return k3_BT
    if ratio_BT is None:
        raise ValueError("--kl k3-weighted needs the ratio to weigh by")
    return k3_BT * ratio_BT


# -- the loss -----------------------------------------------------------------------------------------------------------


def policy_loss(logp_BT: Tensor, old_logp_BT: Tensor, adv_B: Tensor, weight_BT: Tensor, *, objective: str = "clip",
                ratio: str = "token", clip_low: float = 0.2, clip_high: float = 0.2, delta: float = torch.inf,
                soft_up: float = 1.0, soft_down: float = 1.05, factor_BT: Tensor | None = None,
                ref_logp_BT: Tensor | None = None, beta: float = 0.0, kl: str = "k3"
                ) -> tuple[Tensor, dict[str, Tensor]]:
    """[R1 Eq. 1] The negated objective, summed with the weights; and what to log of it, summed over the tokens.

    objective  "clip": min(ratio A, clip(ratio, 1-clip_low, 1+clip_high) A), the pessimistic bound for either sign of A
               (PPO Eq. 7); clip_high may exceed clip_low [DAPO §3.1]; `delta` bounds the ratio where A < 0
               [INTELLECT-2].
               "cispo": the ratio, cut at 1+clip_high, weighs the REINFORCE gradient: no token is dropped [CISPO].
               "sapo": a sigmoid gate of temperature `soft_up` (A > 0) or `soft_down` instead of the clip [SAPO].
               "reinforce": the gradient at ratio 1; right if there is one update per rollout.
    ratio      of each "token", or of the "sequence": the geometric mean over its tokens [GSPO].
    factor_BT  multiplies the policy term but not the KL term: importance correction, tokens or rows left out.

    Tokens of weight 0 (prompts, padding) contribute nothing, whatever they hold. `old_logp_BT` are the log-probabilities
    of the policy that the update starts from.
    """
    one_of("objective", objective, OBJECTIVES)
    one_of("ratio", ratio, RATIOS)
    mask_BT, adv_B1 = weight_BT != 0, adv_B[:, None]
    logp_BT = logp_BT.masked_fill(~mask_BT, 0.0).clamp(min=FLOOR)
    log_ratio_BT = log_ratio(logp_BT, old_logp_BT, mask_BT)
    if ratio == "sequence":
        mean_B1 = log_ratio_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        log_ratio_BT = mean_B1.expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    if objective == "clip":
        clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
        objective_BT = torch.minimum(ratio_BT.clamp(max=delta) * adv_B1, clipped_BT * adv_B1)
    elif objective == "cispo":
        objective_BT = ratio_BT.clamp(max=1 + clip_high).detach() * adv_B1 * logp_BT
    elif objective == "sapo":
        gate_B1 = torch.where(adv_B1 > 0, soft_up, soft_down)
        objective_BT = torch.sigmoid(gate_B1 * (ratio_BT - 1)) * 4 / gate_B1 * adv_B1
    else:
        objective_BT = (logp_BT - logp_BT.detach()).exp() * adv_B1
    metrics = {"approx_kl": mask_BT * (ratio_BT - 1 - log_ratio_BT)}  # k3 of the distance gone since the step began
    if objective == "clip":
        metrics["clip_ratio/low_mean"] = mask_BT * ((ratio_BT < 1 - clip_low) & (adv_B1 < 0))
    if objective in ("clip", "cispo"):
        metrics["clip_ratio/high_mean"] = mask_BT * ((ratio_BT > 1 + clip_high) & (adv_B1 > 0))
    if factor_BT is not None:
        objective_BT = objective_BT * factor_BT
    if ref_logp_BT is not None:
        kl_BT = kl_to_reference(logp_BT, ref_logp_BT.masked_fill(~mask_BT, 0.0), kl, ratio_BT)
        metrics["kl"] = mask_BT * kl_BT
        objective_BT = objective_BT - beta * kl_BT
    return -(weight_BT * objective_BT).sum(), {name: value.sum().detach() for name, value in metrics.items()}


# -- factors of the policy term -----------------------------------------------------------------------------------------


def sampler_correction(logp_BT: Tensor, sampler_logp_BT: Tensor, mask_BT: Tensor, how: str, cap: float = 3.0) -> Tensor:
    """[B, T] pi / pi_sampler, for completions drawn by another engine or in another precision than the learner's, per
    token or of the whole sequence: truncated at `cap` (TIS, Yao et al. 2025), or 0 where it is over `cap` (masked)."""
    one_of("correction", how, CORRECTIONS)
    log_ratio_BT = log_ratio(logp_BT, sampler_logp_BT, mask_BT)
    if how.startswith("sequence"):
        log_ratio_BT = log_ratio_BT.sum(-1, keepdim=True).clamp(-LARGEST, LARGEST).expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    if how == "none":
        return torch.ones_like(ratio_BT)
    return ratio_BT.clamp(max=cap) if how.endswith("truncate") else ratio_BT.masked_fill(ratio_BT > cap, 0.0)


def top_entropy(entropy_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """[B, T] the tokens whose entropy is in the highest `share` of the update's (Wang et al. 2025, "Beyond the 80/20
    rule": forking tokens carry the gradient)."""
    if share == 1:
        return mask_BT
    threshold = torch.quantile(entropy_BT[mask_BT].float(), 1 - share)
    return mask_BT & (entropy_BT >= threshold)


def on_policy_rows(logp_BT: Tensor, sampler_logp_BT: Tensor, adv_B: Tensor, mask_BT: Tensor, limit: float) -> Tensor:
    """[B, 1] false where a bad output has become unlikely: A < 0 and the mean of log(pi_sampler / pi) over `limit`
    (DeepSeek-V3.2's off-policy sequence mask)."""
    drift_B = -log_ratio(logp_BT, sampler_logp_BT, mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1)
    return ((adv_B >= 0) | (drift_B.detach() <= limit))[:, None]
