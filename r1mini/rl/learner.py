"""The policy updates of one sampling step. [R1 Eq. 1]

    samples -> minibatches (one optimizer step each) -> micro-batches (one backward pass each)

Micro-batches change memory and speed, never the gradient (except with `--loss-per microbatch`): the
weight of every token in the loss is computed over its whole minibatch first.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r1mini.infra import distributed
from r1mini.infra.device import autocast
from r1mini.model.transformer import Transformer
from r1mini.records import Batch, Group
from r1mini.rl import corrections, grpo
from r1mini.rl.config import GRPOConfig
from r1mini.rl.samples import LossInputs, PassResult, Sample, loss_inputs, make_samples, minibatches
from r1mini.training import memory, optim
from r1mini.training.logprobs import collate, token_logprobs, token_logprobs_and_entropy
from r1mini.training.micro_batches import by_prompt

Reference = Transformer | None
Optimizers = Sequence[torch.optim.Optimizer]
Stats = dict[str, Any]
LOSS_OPTIONS = ("objective", "ratio", "clip_low", "clip_high", "soft_up", "soft_down", "beta", "kl")


def update_policy(
    cfg: GRPOConfig,
    policy: Transformer,
    reference: Reference,
    optimizers: Optimizers,
    groups: Sequence[Group],
    adv_NG: Tensor,
    step: int,
    learning_rate: float,
    non_finite: optim.NonFiniteSteps,
) -> list[Stats]:
    """One optimizer step for each minibatch. Returns the metrics of each."""
    samples, all_stats = make_samples(cfg, policy, groups, adv_NG), []
    for chosen in minibatches(cfg, len(groups), f"{cfg.seed} {step}"):
        minibatch = [samples[i] for i in chosen]
        stats = update_minibatch(cfg, policy, reference, optimizers, minibatch, learning_rate)
        if "grad_norm" in stats:
            bad = [chosen[b] for b in stats.get("bad", range(len(chosen)))]
            names = ["problem {} sample {}".format(*divmod(i, cfg.completions)) for i in bad]
            step_name = f"{Path(cfg.out).name}: step {step}"
            non_finite.check(stats["grad_norm"], step_name, names)
        all_stats.append(stats)
    return all_stats


def update_minibatch(
    cfg: GRPOConfig,
    policy: Transformer,
    reference: Reference,
    optimizers: Optimizers,
    samples: Sequence[Sample],
    learning_rate: float,
) -> Stats:
    """One optimizer step; skipped if no row is left to learn from, or if loss or gradient is not
    finite."""
    # Called with the tokens per micro-batch; again with half of them if a GPU runs out of memory.
    accumulate = partial(accumulate_gradient, cfg, policy, reference, samples)
    exact = cfg.loss_per != "microbatch"
    results = memory.retry_with_half(accumulate, cfg.learner_tokens, policy, cfg, exact=exact)
    if not results:
        return {"loss": 0.0, "gap": 0.0, "tokens": 0}
    norm = optim.clip_gradient(policy.parameters(), cfg.max_grad_norm)
    stats = add_up(results, norm)
    optim.update(optimizers, learning_rate, stats["grad_norm"])
    return stats


def accumulate_gradient(
    cfg: GRPOConfig,
    policy: Transformer,
    reference: Reference,
    samples: Sequence[Sample],
    token_budget: int,
) -> list[PassResult]:
    """Accumulate the gradient of a minibatch over micro-batches of at most `token_budget` tokens.
    Returns what `add_up` needs of each. Rows of zero advantage are skipped, but count in the
    denominators of the weights."""
    kept = [sample.rollout.finished or cfg.overlong == "keep" for sample in samples]
    all_rows = cfg.beta or cfg.entropy_bonus or cfg.loss_per == "microbatch"
    active = [b for b, s in enumerate(samples) if kept[b] and (all_rows or s.advantage != 0)]
    if not active:
        return []
    parts = by_prompt([samples[b].ids for b in active], token_budget)
    micro_batches = [[active[i] for i in part] for part in parts]  # indices of samples
    inputs = loss_inputs(cfg, policy, samples, torch.tensor(kept), micro_batches)

    results = []
    for chosen, rank_weight in distributed.assign_micro_batches(micro_batches):
        batch = collate([samples[b].ids for b in chosen]).to(policy.device)
        selected = inputs.select(chosen, batch.tokens_BT.shape[1], policy.device)
        loss, metrics, finite_B = micro_batch_loss(cfg, policy, reference, batch, selected)
        (rank_weight * loss).backward()  # 0 for a dummy one, to keep FSDP in sync
        metrics = {name: rank_weight * value for name, value in metrics.items()}
        results.append(PassResult(metrics, rank_weight * len(batch.target_Q), chosen, finite_B))
    return results


def micro_batch_loss(
    cfg: GRPOConfig, policy: Transformer, reference: Reference, batch: Batch, inputs: LossInputs
) -> tuple[Tensor, Stats, Tensor]:
    """(loss, metrics summed over tokens, whether each row's log-probabilities are finite [B])."""
    ref_logp_BT = None
    with autocast(policy.device, cfg.bf16):
        if cfg.entropy_bonus:
            logp_BT, entropy_BT = token_logprobs_and_entropy(policy, batch, cfg.temperature)
        else:
            logp_BT = token_logprobs(policy, batch, cfg.temperature)
        if reference is not None:
            with torch.no_grad():
                ref_logp_BT = token_logprobs(reference, batch, cfg.temperature)
    limit = cfg.off_policy_limit or math.inf
    on_policy_B1 = corrections.on_policy_rows(
        logp_BT, inputs.sampler_logp_BT, inputs.adv_B, inputs.mask_BT, limit
    )
    loss, metrics = grpo.policy_loss(
        logp_BT,
        inputs.old_logp_BT,
        inputs.adv_B,
        inputs.weight_BT,
        policy_weight_BT=inputs.policy_weight_BT * on_policy_B1,
        ref_logp_BT=ref_logp_BT,
        delta=cfg.delta or math.inf,
        **{name: getattr(cfg, name) for name in LOSS_OPTIONS},
    )
    if cfg.correction != "none":
        ratio_BT = inputs.correction_BT * inputs.mask_BT
        metrics["sampling/importance_sampling_ratio/mean"] = ratio_BT.sum()
    if cfg.entropy_bonus:
        loss = loss - (inputs.entropy_weight_BT * entropy_BT).sum()
    logp_BT = logp_BT.detach()
    gap_BT = (logp_BT - inputs.sampler_logp_BT).abs()  # learner against sampler
    metrics["loss"] = loss.detach()
    metrics |= {"gap_mean": gap_BT.sum(), "gap": gap_BT.max()}
    return loss, metrics, logp_BT.isfinite().all(-1)


def add_up(results: Sequence[PassResult], norm: Tensor) -> Stats:
    """The metrics of a minibatch and its gradient's norm; if a loss is not finite, that is NaN, and
    `bad` has the rows responsible. Here alone an update waits for a GPU, to read all at once."""
    names = list(results[0].metrics)
    sums_PK = torch.stack([torch.stack(list(result.metrics.values())) for result in results])
    total_K, largest_K = sums_PK.sum(0), sums_PK.amax(0)
    *totals, norm = torch.cat([total_K, largest_K, norm[None]]).tolist()
    stats: Stats = dict(zip(names, totals)) | {"tokens": sum(result.tokens for result in results)}
    stats["gap"] = dict(zip(names, totals[len(names) :]))["gap"]
    stats["loss"] += optim.nan_if_not_finite(stats["gap"])  # a clamp can hide such a value
    stats = distributed.reduce_metrics(stats, maxima=["gap"])
    for name in stats.keys() - {"loss", "tokens", "gap"}:  # sums until here
        stats[name] /= stats["tokens"]
    stats["grad_norm"] = norm + optim.nan_if_not_finite(stats["loss"])
    if not math.isfinite(stats["loss"]):
        finite = [zip(result.rows, result.finite_B.tolist()) for result in results]
        bad = [row for rows in finite for row, is_finite in rows if not is_finite]
        if bad := distributed.all_gather(bad):
            stats["bad"] = sorted(set(bad))
    return stats
