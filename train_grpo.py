"""The GRPO training loop: R1-Zero, reasoning RL, RL for all scenarios.
[R1 §2.2] [R1 §2.3.2] [R1 §2.3.4]

Each step samples G completions of N problems, scores them with rules (general ones with a reward
model), normalises the rewards within each group, and updates the policy. All randomness is seeded
by (seed, step, attempt, row), so an interrupted run resumes bit-identically.
"""

from dataclasses import asdict
from functools import partial

import torch

from r1mini.config import run_script
from r1mini.data.files import fingerprint
from r1mini.infra import distributed
from r1mini.infra.device import pick_device
from r1mini.model.lora import frozen_copy
from r1mini.reward_model.scoring import load_reward_models, reward_models_fingerprint
from r1mini.rl.config import PRESETS, GRPOConfig, fraction_done, resolve
from r1mini.rl.grpo import group_advantages
from r1mini.rl.learner import update_policy
from r1mini.rl.metrics import LOGS, StepLog
from r1mini.rl.rollouts import collect_groups
from r1mini.rl.setup import (
    build_rewards,
    fit_micro_batches,
    load_problems,
    memory_needed,
    worst_case_step,
)
from r1mini.training import memory, optim
from r1mini.training.run_state import Run
from r1mini.training.setup import load_policy, peak_rate, prepare

Config = GRPOConfig  # as in every script


def main(cfg: GRPOConfig) -> dict:
    """Train a policy. Returns the summary of the run."""
    # Set up: flags, folder, memory, models, optimizers. The algorithm begins at `with run`.
    cfg = resolve(cfg)
    rewards = build_rewards(cfg)
    inputs = fingerprint(cfg.data) | reward_models_fingerprint(cfg.reward)
    run = Run(cfg.out, asdict(cfg) | inputs, LOGS)
    if run.has_finished():
        return run.record()
    device = pick_device(cfg.device, cfg.threads, cfg.deterministic, cfg.tf32)
    free = memory.available(device)
    needed = partial(memory_needed, cfg, device)
    policy, tokenizer, template = load_policy(cfg, run, device, needed)
    cfg = fit_micro_batches(cfg, device, policy.config, free)
    load_reward_models(rewards, device, cfg.bf16, cfg.learner_tokens)
    data = load_problems(cfg, template, policy, tokenizer)
    reference = None
    if cfg.beta:
        reference = distributed.shard(frozen_copy(policy))
    policy, optimizers = prepare(policy, cfg, cfg.rest_lr)
    peak, non_finite = peak_rate(cfg, policy), optim.NonFiniteSteps()
    worst_case = partial(worst_case_step, cfg, policy, reference, tokenizer, data)
    memory.dry_run(worst_case, memory_needed(cfg, device, policy.config), free, device)
    run.start(policy, tokenizer, optimizers, {"reference": reference} if reference else {})
    log = StepLog(run, cfg, rewards.weights, policy, tokenizer)
    spent = run.values.get("spent", 0)  # completions sampled so far

    with run:
        for step in run.steps(cfg.steps):
            # 1. Sample G completions of each of N problems; 2. score them.
            active = rewards.at(fraction_done(cfg, step - 1, spent))
            groups, drawn = collect_groups(cfg, policy, tokenizer, data, active, step, spent)
            rewards_NG = torch.tensor([group.rewards for group in groups])
            log.sampled(step, groups)

            # 3. Advantages: each completion against its group. [R1 Eq. 3]
            adv_NG = group_advantages(rewards_NG, baseline=cfg.baseline, scale=cfg.scale)

            run.begin_update()  # from here on, a signal waits for the end of the step
            # 4. Only with --beta: every `reference_every` steps, reset the reference to the policy.
            due = step and cfg.reference_every and step % cfg.reference_every == 0
            if reference is not None and due:
                optim.lerp_(reference, policy, cfg.reference_mix)

            # 5. Update the policy, one minibatch after another. [R1 Eq. 1]
            run.values["spent"] = spent = spent + len(drawn) * cfg.completions
            fraction = fraction_done(cfg, step, spent)
            rate = optim.learning_rate_at(fraction, peak, cfg.warmup, cfg.final_lr)
            stats = update_policy(
                cfg, policy, reference, optimizers, groups, adv_NG, step, rate, non_finite
            )
            log.updated(step, groups, drawn, adv_NG, stats, rate, fraction)
            if fraction == 1:  # the last step; with --sample-budget, perhaps before --steps
                break
    summary = run.finish(steps=len(log.rows))
    print(f"{run.out}: {run.seconds:.0f} s; next: python sample.py --model {run.out}")
    return summary


if __name__ == "__main__":
    run_script(distributed.distributed_main(main), Config, PRESETS, __doc__)
