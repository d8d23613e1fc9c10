"""Group-relative policy optimisation and its variants: pure functions of tensors.
[R1 §2.2.1] [DeepSeekMath §4.1]

    A_i = (r_i - mean(r)) / std(r) over the G outputs of one question                 [R1 Eq. 3]
    J   = E[ min(ratio A, clip(ratio, 1-e, 1+e) A) - beta KL ],
          ratio = pi / pi_old                       [R1 Eq. 1, per token: DeepSeekMath Eq. 3]
    KL  = pi_ref/pi - log(pi_ref/pi) - 1                                              [R1 Eq. 2]

Variants differ in baseline and scale (`group_advantages`), token weights (`token_weights`), ratio
and objective (`policy_loss`), and the estimate of the KL (`kl_to_reference`). Token weights are
computed once over a whole minibatch, so the losses of its micro-batches add up to its loss.

R1's Eq. 1 is written for whole outputs; here the ratio is per token, as in DeepSeekMath. Its mean
over each output is `loss_per="sequence"`. No critic, no reward model.
"""

import torch
from torch import Tensor

EPSILON = 1e-4  # DEVIATES: added to the standard deviation, as in TRL; R1 Eq. 3 has none
MAX_LOG_RATIO = 20.0  # log-ratios are clamped to this before exp
MIN_LOGP = -1e3  # log-probabilities are clamped to this: -inf minus -inf is NaN
BASELINES = ("group", "leave-one-out", "none")
SCALES = ("group", "batch", "none")
LOSS_PER = ("sequence", "token", "constant", "microbatch")
OBJECTIVES = ("clip", "cispo", "sapo", "reinforce")
RATIOS = ("token", "sequence")
KL_ESTIMATES = ("k1", "k2", "k3", "k3-weighted")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r}: must be one of {', '.join(choices)}")


def zero_variance_groups(rewards_NG: Tensor) -> Tensor:
    """[N], true where all completions of a group have the same reward: nothing to learn from.
    Compares rewards, instead of dividing by a tiny standard deviation."""
    return (rewards_NG == rewards_NG[:, :1]).all(-1)


def group_advantages(
    rewards_NG: Tensor, *, baseline: str = "group", scale: str = "group"
) -> Tensor:
    """[R1 Eq. 3] Rewards minus a baseline, divided by a sample standard deviation.

    baseline  "group": the group's mean; "leave-one-out": the mean of the group's other completions
              [RLOO]; "none".
    scale     "group": per group; "batch": over all rewards of the step [Lite PPO];
              "none" [Dr. GRPO].

    With a baseline, zero-variance groups have advantages of exactly zero.

    >>> group_advantages(torch.tensor([[1.0, 0.0], [0.3, 0.3]]))
    tensor([[ 0.7070, -0.7070],
            [ 0.0000,  0.0000]])
    """
    check_choice("baseline", baseline, BASELINES)
    check_choice("scale", scale, SCALES)
    if baseline == "none":
        if scale != "none":
            raise ValueError(
                f"baseline 'none', scale {scale!r}: equal rewards have no deviation to divide by"
            )
        return rewards_NG
    G = rewards_NG.shape[1]
    adv_NG = rewards_NG - rewards_NG.mean(-1, keepdim=True)
    if baseline == "leave-one-out":
        adv_NG = adv_NG * (G / (G - 1))  # r_i - mean of the others = (r_i - mean of all) G / (G-1)
    if scale == "group":
        adv_NG = adv_NG / (rewards_NG.std(-1, keepdim=True) + EPSILON)
    elif scale == "batch":
        adv_NG = adv_NG / (rewards_NG.std() + EPSILON)
    return adv_NG.masked_fill(zero_variance_groups(rewards_NG)[:, None], 0.0)


def token_weights(
    mask_BT: Tensor, loss_per: str, *, max_length: int = 0, micro_batch_B: Tensor | None = None
) -> Tensor:
    """[B, T] the weight of each token in the loss, over a whole minibatch; 0 outside the mask.

    "sequence"    1/B for each row, shared equally by its tokens [DeepSeekMath Eq. 3]
    "token"       equal for all tokens of the minibatch [DAPO §3.3]
    "constant"    1 / (B * `max_length`), independent of length [Dr. GRPO]
    "microbatch"  each micro-batch weighs the same, shared equally by its tokens (TRL's bnpo: the
                  gradient depends on the split); `micro_batch_B`: each row's micro-batch index

    >>> mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    >>> token_weights(mask, "sequence")[:, 0].tolist()
    [0.5, 0.1666666716337204]
    >>> token_weights(mask, "token")[:, 0].tolist()
    [0.25, 0.25]
    """
    check_choice("loss_per", loss_per, LOSS_PER)
    mask_BT = mask_BT.float()
    length_B = mask_BT.sum(-1)
    if loss_per == "sequence":
        return mask_BT / (len(mask_BT) * length_B.clamp(min=1))[:, None]
    if loss_per == "token":
        return mask_BT / length_B.sum().clamp(min=1)
    if loss_per == "constant":
        if max_length < 1:
            raise ValueError(f"loss_per 'constant': needs max_length >= 1, not {max_length}")
        return mask_BT / (len(mask_BT) * max_length)
    assert loss_per == "microbatch"
    if micro_batch_B is None:
        raise ValueError("loss_per 'microbatch': needs the micro-batch of each row")
    count = int(micro_batch_B.max()) + 1
    tokens = torch.zeros(count, device=mask_BT.device).index_add(0, micro_batch_B, length_B)
    return mask_BT / (count * tokens.clamp(min=1)[micro_batch_B])[:, None]


def log_ratio(logp_BT: Tensor, other_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """log(pi / other), clamped so that its exp is finite; 0 where masked, even if NaN."""
    difference_BT = logp_BT.clamp(min=MIN_LOGP) - other_BT.clamp(min=MIN_LOGP)
    return difference_BT.masked_fill(~mask_BT, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def kl_to_reference(
    logp_BT: Tensor, ref_logp_BT: Tensor, estimate: str = "k3", ratio_BT: Tensor | None = None
) -> Tensor:
    """[B, T] an estimate of KL(pi || pi_ref) (Schulman 2020, "Approximating KL divergence").

    k3 is R1's: unbiased and never negative [R1 Eq. 2]. "k3-weighted" is k3 times `ratio_BT`, pi /
    pi_old: it stays unbiased once the policy has moved. The gradient of k1 does not depend on the
    reference.
    """
    check_choice("kl", estimate, KL_ESTIMATES)
    log_ref_BT = ref_logp_BT.clamp(min=MIN_LOGP) - logp_BT.clamp(min=MIN_LOGP)
    log_ref_BT = log_ref_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimate == "k1":
        return -log_ref_BT
    if estimate == "k2":
        return 0.5 * log_ref_BT**2
    k3_BT = log_ref_BT.exp() - log_ref_BT - 1
    if estimate == "k3":
        return k3_BT
    assert estimate == "k3-weighted"
    if ratio_BT is None:
        raise ValueError("kl 'k3-weighted': needs ratio_BT")
    return k3_BT * ratio_BT


def policy_loss(
    logp_BT: Tensor,
    old_logp_BT: Tensor,  # log pi_old: the sampler's, or recomputed (make_samples)
    adv_B: Tensor,
    weight_BT: Tensor,
    *,
    objective: str = "clip",
    ratio: str = "token",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float = torch.inf,
    soft_up: float = 1.0,
    soft_down: float = 1.05,
    policy_weight_BT: Tensor | None = None,
    ref_logp_BT: Tensor | None = None,
    beta: float = 0.0,
    kl: str = "k3",
) -> tuple[Tensor, dict[str, Tensor]]:
    """[R1 Eq. 1] (the negated objective, a weighted sum over tokens; its metrics, plain sums).

    objective  "clip": min(ratio A, clip(ratio, 1-clip_low, 1+clip_high) A) (PPO Eq. 7); clip_high
               may exceed clip_low [DAPO §3.1]; `delta` bounds the ratio where A < 0 [INTELLECT-2].
               "cispo": the ratio, capped at 1+clip_high, weights the REINFORCE gradient, so that
               no token is dropped [CISPO]. "sapo": a sigmoid gate of temperature `soft_up` (A > 0)
               or `soft_down` replaces the clip [SAPO]. "reinforce": the plain policy gradient.
    ratio      of each "token", or of the "sequence": the geometric mean over its tokens [GSPO].
    `policy_weight_BT` multiplies the policy term only. Tokens of weight 0 contribute nothing.
    """
    check_choice("objective", objective, OBJECTIVES)
    check_choice("ratio", ratio, RATIOS)
    mask_BT, adv_B1 = weight_BT != 0, adv_B[:, None]
    logp_BT = logp_BT.masked_fill(~mask_BT, 0.0).clamp(min=MIN_LOGP)
    log_ratio_BT = log_ratio(logp_BT, old_logp_BT, mask_BT)
    if ratio == "sequence":
        mean_B1 = log_ratio_BT.sum(-1, keepdim=True) / mask_BT.sum(-1, keepdim=True).clamp(min=1)
        log_ratio_BT = mean_B1.expand_as(log_ratio_BT)
    ratio_BT = log_ratio_BT.exp()
    metrics = {"approx_kl": mask_BT * (ratio_BT - 1 - log_ratio_BT)}  # k3 of KL(pi_old || pi)
    if objective == "clip":
        clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
        objective_BT = torch.minimum(ratio_BT.clamp(max=delta) * adv_B1, clipped_BT * adv_B1)
        metrics["clip_ratio/low_mean"] = mask_BT * ((ratio_BT < 1 - clip_low) & (adv_B1 < 0))
    elif objective == "cispo":
        objective_BT = ratio_BT.clamp(max=1 + clip_high).detach() * adv_B1 * logp_BT
    elif objective == "sapo":
        gate_B1 = torch.where(adv_B1 > 0, soft_up, soft_down)
        objective_BT = torch.sigmoid(gate_B1 * (ratio_BT - 1)) * 4 / gate_B1 * adv_B1
    else:
        assert objective == "reinforce"
        objective_BT = (logp_BT - logp_BT.detach()).exp() * adv_B1
    if objective in ("clip", "cispo"):
        metrics["clip_ratio/high_mean"] = mask_BT * ((ratio_BT > 1 + clip_high) & (adv_B1 > 0))
    if policy_weight_BT is not None:
        objective_BT = objective_BT * policy_weight_BT
    if ref_logp_BT is not None:
        kl_BT = kl_to_reference(logp_BT, ref_logp_BT.masked_fill(~mask_BT, 0.0), kl, ratio_BT)
        metrics["kl"] = mask_BT * kl_BT
        objective_BT = objective_BT - beta * kl_BT
    loss = -(weight_BT * objective_BT).sum()
    return loss, {name: value.sum().detach() for name, value in metrics.items()}
