"""Group-relative policy optimisation: pure functions of tensors. [R1 §2.2.1] [DeepSeekMath §4.1]

    A_i = (r_i - mean(r)) / std(r) over the G outputs of one question                                  [R1 Eq. 3]
    J   = E[ min(ratio A, clip(ratio, 1-e, 1+e) A) - beta KL ],  ratio = pi / pi_old        [R1 Eq. 1, for a token:
                                                                                             DeepSeekMath Eq. 3]
    KL  = pi_ref/pi - log(pi_ref/pi) - 1                                                               [R1 Eq. 2]

R1's Eq. 1 is written on whole outputs; the form with a ratio per token and 1/|o_i| is DeepSeekMath's, and is the one
here. `old` are the log-probabilities the sampler drew with. No critic, no reward model. The papers' normalisers differ
only in a weight per token, computed once over all rows of an update: summing the losses of any micro-batches gives the
loss, and the gradient, of the whole.

Letters: N questions, G outputs each, B = N*G rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-4  # DEVIATES: added to the standard deviation, as TRL does; R1 Eq. 3 has none


def flat_groups(rewards_NG: Tensor) -> Tensor:
    """[N], true where all outputs of a group have the same reward: nothing to learn from. Rewards are compared, not
    floats divided by a tiny deviation."""
    return (rewards_NG == rewards_NG[:, :1]).all(-1)


def group_advantages(rewards_NG: Tensor) -> Tensor:
    """[R1 Eq. 3] Rewards against their group's mean, in units of its sample standard deviation; zero in flat groups.

    >>> group_advantages(torch.tensor([[1.0, 0.0], [0.3, 0.3]]))
    tensor([[ 0.7070, -0.7070],
            [ 0.0000,  0.0000]])
    """
    centred_NG = rewards_NG - rewards_NG.mean(-1, keepdim=True)
    scaled_NG = centred_NG / (rewards_NG.std(-1, keepdim=True) + EPSILON)
    return scaled_NG.masked_fill(flat_groups(rewards_NG)[:, None], 0.0)


def token_weights(length_B: Tensor, per: str) -> Tensor:
    """[B] the weight of each token of a row with `length_B` tokens; over all rows of an update the weights sum to 1.

    "sequence": 1/B of the row, shared by its tokens [DeepSeekMath Eq. 3]. "token": every token alike [DAPO §3.3].

    >>> token_weights(torch.tensor([1, 3]), "sequence").tolist()
    [0.5, 0.1666666716337204]
    >>> token_weights(torch.tensor([1, 3]), "token").tolist()
    [0.25, 0.25]
    """
    if per == "sequence":
        return 1.0 / (length_B * len(length_B))
    if per == "token":
        return torch.full(length_B.shape, 1.0 / float(length_B.sum()), device=length_B.device)
    raise ValueError(f"--loss-per: sequence or token, not {per!r}")


def kl_to_reference(logp_BT: Tensor, ref_logp_BT: Tensor) -> Tensor:
    """[R1 Eq. 2] The k3 estimate of KL(pi || pi_ref) for each token: unbiased, never negative."""
    log_ratio_BT = (ref_logp_BT - logp_BT).clamp(-20, 20)
    return log_ratio_BT.exp() - log_ratio_BT - 1


def policy_loss(logp_BT: Tensor, old_logp_BT: Tensor, adv_B: Tensor, weight_BT: Tensor, *, clip_low: float = 0.2,
                clip_high: float = 0.2, ref_logp_BT: Tensor | None = None, beta: float = 0.0
                ) -> tuple[Tensor, dict[str, Tensor]]:
    """[R1 Eq. 1] The negated objective, and what to log of it, both summed with the weights.

    Tokens of weight 0 (prompts, padding) contribute nothing. `old_logp_BT` are the log-probabilities the tokens were
    sampled with. The minimum is the pessimistic bound for either sign of the advantage (PPO Eq. 7); `clip_high` may
    exceed `clip_low` [DAPO §3.1].
    """
    ratio_BT = (logp_BT - old_logp_BT).masked_fill(weight_BT == 0, 0.0).clamp(-20, 20).exp()
    clipped_BT = ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    objective_BT = torch.minimum(ratio_BT * adv_B[:, None], clipped_BT * adv_B[:, None])
    metrics = {
        "clip_ratio/low_mean": (weight_BT * ((ratio_BT < 1 - clip_low) & (adv_B[:, None] < 0))).sum().detach(),
        "clip_ratio/high_mean": (weight_BT * ((ratio_BT > 1 + clip_high) & (adv_B[:, None] > 0))).sum().detach(),
    }
    if ref_logp_BT is not None:
        kl_BT = kl_to_reference(logp_BT, ref_logp_BT).masked_fill(weight_BT == 0, 0.0)
        objective_BT = objective_BT - beta * kl_BT
        metrics["kl"] = (weight_BT * kl_BT).sum().detach()
    return -(weight_BT * objective_BT).sum(), metrics
