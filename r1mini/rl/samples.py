"""The learner's data: one sample per completion, and the tensors of a minibatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from r1mini.infra import distributed
from r1mini.infra.device import autocast
from r1mini.model.transformer import Transformer
from r1mini.records import Group, Rollout
from r1mini.rl import corrections, grpo
from r1mini.rl.config import GRPOConfig
from r1mini.training.logprobs import collate, targets, token_logprobs_and_entropy
from r1mini.training.micro_batches import by_prompt


@dataclass(frozen=True)
class Sample:
    """A completion to learn from. The lists hold one value per token of the completion."""

    rollout: Rollout
    advantage: float
    old_logps: Sequence[float]  # log pi_old: the sampler's, or recomputed before the updates
    entropies: Sequence[float]

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.rollout.prompt_ids, self.rollout.completion_ids


def make_samples(
    cfg: GRPOConfig, policy: Transformer, groups: Sequence[Group], adv_NG: Tensor
) -> list[Sample]:
    """The step's completions with log pi_old: the sampler's log-probabilities, but recomputed if
    importance correction is on, or entropies are needed."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    old = [(rollout.logprobs, [0.0] * len(rollout.logprobs)) for rollout in rollouts]
    if cfg.correction != "none" or cfg.top_entropy < 1:
        rows = [(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts]
        old = logprobs_and_entropies(cfg, policy, rows)
    return [
        Sample(rollout, advantage, *values)
        for rollout, advantage, values in zip(rollouts, adv_NG.flatten().tolist(), old)
    ]


def logprobs_and_entropies(
    cfg: GRPOConfig, policy: Transformer, rows: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[list[float], list[float]]]:
    """(log-probability, entropy) of each completion token of (prompt, completion) rows, by the
    policy as it is now. Each rank computes its micro-batches; all ranks get all rows."""
    order, values_Q = [], []  # indices of the rows; (log-probability, entropy) of each token
    for chosen, _ in distributed.assign_micro_batches(by_prompt(rows, cfg.learner_tokens)):
        batch = collate([rows[b] for b in chosen]).to(policy.device)
        with torch.no_grad(), autocast(policy.device, cfg.bf16):
            values = token_logprobs_and_entropy(policy, batch, cfg.temperature)
        order += chosen
        values_Q.append(torch.stack([x.flatten()[batch.target_Q] for x in values]))
    logp_Q, entropy_Q = torch.cat(values_Q, 1).cpu()  # a GPU is waited for once
    lengths = [len(rows[b][1]) for b in order]
    computed = [
        (b, (logp.tolist(), entropy.tolist()))
        for b, logp, entropy in zip(order, logp_Q.split(lengths), entropy_Q.split(lengths))
    ]
    by_row = dict(distributed.all_gather(computed))
    return [by_row[b] for b in range(len(rows))]


def minibatches(cfg: GRPOConfig, groups: int, seed: str) -> list[list[int]]:
    """The indices of a step's samples, in random minibatches of completions or of whole groups.

    >>> cfg = GRPOConfig(completions=2, minibatches=2, minibatch_of="problems")
    >>> minibatches(cfg, 3, "seed")
    [[0, 1, 2, 3], [4, 5]]
    """
    size = cfg.completions if cfg.minibatch_of == "problems" else 1
    count = groups * cfg.completions // size
    order = Random(seed).sample(range(count), count)
    units = [order[k :: cfg.minibatches] for k in range(cfg.minibatches)]
    return [[unit * size + i for unit in part for i in range(size)] for part in units]


@dataclass(frozen=True)
class LossInputs:
    """What the loss needs besides the policy: a row for each sample of a minibatch. All fp32 except
    the mask."""

    adv_B: Tensor
    mask_BT: Tensor  # bool: completion tokens, except in rows that --overlong masks
    weight_BT: Tensor  # of each token in the loss
    entropy_weight_BT: Tensor  # in the entropy bonus
    correction_BT: Tensor  # importance weights, for a metric: policy_weight_BT has them
    policy_weight_BT: Tensor  # factors of the policy term
    old_logp_BT: Tensor
    sampler_logp_BT: Tensor

    def select(self, rows: Sequence[int], T: int, device: torch.device) -> LossInputs:
        """These rows, cut to T columns, on the device."""
        tensors = [x[rows] for x in vars(self).values()]
        tensors = [x if x.ndim == 1 else x[:, :T] for x in tensors]
        if device.type == "cuda":
            tensors = [x.pin_memory() for x in tensors]  # or the host would wait
        return LossInputs(*(x.to(device, non_blocking=True) for x in tensors))


class PassResult(NamedTuple):
    """Of a micro-batch, besides its gradient. Nothing of it has been read from the device."""

    metrics: Mapping[str, Tensor]  # sums over tokens, but for `gap`, a maximum
    tokens: int  # learned
    rows: Sequence[int]  # indices of its samples in the minibatch
    finite_B: Tensor  # whether the log-probabilities of each row are finite


def loss_inputs(
    cfg: GRPOConfig,
    policy: Transformer,
    samples: Sequence[Sample],
    kept_B: Tensor,
    micro_batches: Sequence[list[int]],
) -> LossInputs:
    """The loss inputs of a whole minibatch, on the CPU."""
    target_BT = targets([sample.ids for sample in samples])

    def by_token(rows: Sequence[Sequence[float]]) -> Tensor:
        values = torch.tensor([value for row in rows for value in row])
        return torch.zeros(target_BT.shape).masked_scatter(target_BT, values)

    sampler_BT = by_token([sample.rollout.logprobs for sample in samples])
    old_BT = by_token([sample.old_logps for sample in samples])
    entropy_BT = by_token([sample.entropies for sample in samples])
    mask_BT = target_BT & kept_B[:, None]
    micro_batch_B = torch.zeros(len(samples), dtype=torch.long)
    for number, chosen in enumerate(micro_batches):
        micro_batch_B[chosen] = number
    # A row that is left out stays in the denominator, so that the others are not upweighted. (Not
    # with "microbatch", like TRL's bnpo.)
    weight_BT = grpo.token_weights(
        mask_BT if cfg.loss_per == "microbatch" else target_BT,
        cfg.loss_per,
        max_length=policy.config.max_completion(cfg.max_new_tokens),
        micro_batch_B=micro_batch_B,
    )
    bonus_BT = cfg.entropy_bonus * grpo.token_weights(target_BT, "token")
    correction_BT = corrections.sampler_correction(
        old_BT, sampler_BT, mask_BT, cfg.correction, cap=cfg.correction_cap
    )
    return LossInputs(
        adv_B=torch.tensor([sample.advantage for sample in samples]),
        mask_BT=mask_BT,
        weight_BT=weight_BT,
        entropy_weight_BT=bonus_BT,
        correction_BT=correction_BT,
        policy_weight_BT=corrections.top_entropy(entropy_BT, mask_BT, cfg.top_entropy)
        * correction_BT,
        old_logp_BT=old_BT,
        sampler_logp_BT=sampler_BT,
    )
