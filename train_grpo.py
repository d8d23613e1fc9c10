"""GRPO, as the paper's algorithm: R1-Zero, reasoning RL, RL for all scenarios. [R1 §2.2] [R1 §2.3.2] [R1 §2.3.4]

Each step samples G completions of N problems, scores them by rules, compares each with its group, and steps the
policy. Everything random is a function of (seed, step, row), so an interrupted run goes on to the same bits.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from r1mini import checkpoint, grpo, optim, rewards, tasks
from r1mini.batch import by_length, collate, token_logprobs
from r1mini.config import autocast, option, require, run
from r1mini.config import device as pick_device
from r1mini.model import Transformer
from r1mini.records import Batch, Problem, Rollout
from r1mini.rollout import Sampling, sample


@dataclass(frozen=True)
class Config:
    out: str = option("runs/grpo", "folder for the trained model, metrics and rollouts")
    model: str = option("base", "model folder or embedded model to start from")
    tasks: tuple[str, ...] = option(tasks.REASONING, "tasks, taken in turn; a name given twice is taken twice as often")
    # DEVIATES: R1 adds its rewards unweighted; here format counts half, being met most of the time, and language twice.
    reward: str = option("accuracy,format:0.5,language:2", "rewards with their weights, summed")
    steps: int = option(60, "sampling steps")
    problems: int = option(32, "problems per step (N); R1: 32")
    completions: int = option(8, "completions per problem (G); R1: 16")
    minibatches: int = option(8, "optimizer steps per sampling step; R1: 16")
    max_new_tokens: int = option(400, "length limit of a completion")
    temperature: float = option(1.0, "of sampling and of learning alike; R1: 1, and 0.7 for all scenarios")
    # DEVIATES: the loss is averaged per token and the upper clip is wider, as in DAPO; the KL term is off.
    loss_per: str = option("token", "sequence (DeepSeekMath Eq. 3) or token (DAPO)")
    clip_low: float = option(0.2, "lower clip of the ratio")
    clip_high: float = option(0.28, "upper clip of the ratio; R1: 10")
    beta: float = option(0.0, "KL coefficient; R1: 0.001. 0 needs no reference model")
    reference_every: int = option(400, "steps after which the policy becomes the reference (0: never)")
    # DEVIATES: Muon, where R1 uses AdamW.
    optimizer: str = option("muon", "muon (matrices; AdamW for the rest) or adamw")
    learning_rate: float = option(4e-4, "peak learning rate; R1, by AdamW at 671B: 3e-6")
    rest_lr: float = option(1.0, "under muon, the rate of embeddings, head and norms (AdamW) as a share")
    warmup: float = option(0.05, "share of the run to warm up over")
    final_lr: float = option(0.1, "last learning rate as a share of the peak; R1: 1 (constant)")
    weight_decay: float = option(0.0, "decoupled weight decay")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    learner_tokens: int = option(4096, "padded tokens per micro-batch; changes memory, never the gradient")
    sampler_rows: int = option(256, "completions sampled side by side; changes memory, never a completion")
    seed: int = option(0, "seed of problems and sampling")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)")
    progress: bool = option(True, "show progress bars")
    bf16: bool = option(False, "compute in bfloat16 over fp32 weights, sampler and learner alike")
    compile: bool = option(False, "torch.compile the learner (CPU: needs a C++ compiler)")
    save_every: int = option(20, "steps between saved states; an interrupted run goes on from the last")
    show: int = option(1, "completions printed every 10 steps")


def problems_of_step(cfg: Config, step: int) -> list[Problem]:
    """A function of (seed, step): no problem is replayed or skipped by a resume."""
    return [tasks.problem(cfg.tasks[index % len(cfg.tasks)], cfg.seed, index, "train")
            for index in range(step * cfg.problems, (step + 1) * cfg.problems)]


def main(cfg: Config) -> dict:
    out, weighting = Path(cfg.out), rewards.weights(cfg.reward)
    check(cfg)
    how = Sampling(cfg.max_new_tokens, cfg.temperature)
    if checkpoint.has_finished(out, asdict(cfg)):
        print(f"{out}: this run has finished already; nothing to do")
        return checkpoint.read_json(out / "run.json")
    device = pick_device(cfg.device, cfg.threads)
    policy, tokens = checkpoint.load(cfg.model, device)
    reference = copy.deepcopy(policy).requires_grad_(False) if cfg.beta else None
    forward = torch.compile(token_logprobs, dynamic=True) if cfg.compile else token_logprobs
    steppers = optim.optimizers(policy, cfg.optimizer, cfg.learning_rate, cfg.weight_decay, cfg.rest_lr)
    checkpoint.start_run(out, asdict(cfg))
    first, seconds = resume(out, policy, reference, steppers)
    started = time.perf_counter() - seconds

    with open(out / "metrics.jsonl", "a", encoding="utf-8") as metrics_log, \
         open(out / "rollouts.jsonl", "a", encoding="utf-8") as rollouts_log:
        for step in range(first, cfg.steps):
            clock = [time.perf_counter()]
            # 1. Sample a group of completions of each problem from the policy.
            problems = problems_of_step(cfg, step)
            with autocast(device, cfg.bf16):
                rollouts = sample(policy, tokens, [p.prompt for p in problems], cfg.completions, how, seed=cfg.seed,
                                  step=step, max_rows=cfg.sampler_rows,
                                  progress=f"step {step} sampling" if cfg.progress else None)
            clock.append(time.perf_counter())

            # 2. Score them by rules.
            scores = [[rewards.score(p, r.text) for r in group] for p, group in zip(problems, rollouts)]
            rewards_NG = torch.tensor([[rewards.total(s, weighting) for s in group] for group in scores])

            # 3. Advantages: each completion against its group. [R1 Eq. 3]
            adv_NG = grpo.group_advantages(rewards_NG)
            clock.append(time.perf_counter())

            # 4. Replace the reference every so many steps (R1: 400). [R1 §2.2.1]
            if reference is not None and cfg.reference_every and step and step % cfg.reference_every == 0:
                reference.load_state_dict(policy.state_dict())

            # 5. Update the policy, one minibatch of rollouts after another. [R1 Eq. 1]
            rate = optim.learning_rate_at((step + 1) / cfg.steps, cfg.learning_rate, cfg.warmup, cfg.final_lr)
            flat = [r for group in rollouts for r in group]
            order = Random(f"{cfg.seed} {step}").sample(range(len(flat)), len(flat))
            learned = []
            for k in range(cfg.minibatches):
                chosen = order[k :: cfg.minibatches]
                learned.append(update(cfg, policy, reference, forward, steppers, rate,
                                      [flat[i] for i in chosen], adv_NG.flatten()[chosen], device))
            clock.append(time.perf_counter())

            row = step_metrics(step, rollouts, scores, rewards_NG, learned, rate, clock, cfg)
            row["seconds"] = round(time.perf_counter() - started, 3)
            metrics_log.write(json.dumps(row) + "\n")
            metrics_log.flush()
            write_rollouts(rollouts_log, step, problems, rollouts, scores, rewards_NG, adv_NG)
            report(cfg, row, problems, rollouts, rewards_NG)
            if cfg.save_every and (step + 1) % cfg.save_every == 0 and step + 1 < cfg.steps:
                checkpoint.save_state(out, {
                    "step": step + 1, "model": policy.state_dict(), "seconds": time.perf_counter() - started,
                    "reference": reference.state_dict() if reference is not None else None,
                    "optimizers": [stepper.state_dict() for stepper in steppers]})

    checkpoint.save(out, policy, tokens)
    summary = {"steps": cfg.steps, "seconds": round(time.perf_counter() - started, 1)}
    checkpoint.finish_run(out, **summary)
    return summary


def update(cfg: Config, policy: Transformer, reference: Transformer | None, forward: Callable,
           steppers: Sequence[torch.optim.Optimizer], rate: float, rollouts: Sequence[Rollout], adv_B: Tensor,
           device: torch.device) -> dict[str, float]:
    """One optimizer step on a minibatch, in micro-batches of at most `learner_tokens`. Weights are computed over the
    whole minibatch first, so the cut does not change the gradient. Rows of advantage 0 cost no pass (with KL off)."""
    length_B = torch.tensor([len(r.completion_ids) for r in rollouts])
    weight_B = grpo.token_weights(length_B, cfg.loss_per)
    live = [b for b in range(len(rollouts)) if cfg.beta or adv_B[b] != 0]
    sums: dict[str, float] = {"loss": 0.0, "entropy": 0.0, "gap": 0.0, "tokens": 0}
    if not live:
        return {**sums, "grad_norm": 0.0}
    for group in by_length([len(rollouts[b].prompt_ids) + int(length_B[b]) for b in live], cfg.learner_tokens):
        part = [live[i] for i in group]
        batch = collate([(rollouts[b].prompt_ids, rollouts[b].completion_ids) for b in part]).to(device)
        old_logp_BT = spread([rollouts[b].logprobs for b in part], batch)
        weight_BT = weight_B[part].to(device)[:, None] * batch.target_BT
        with autocast(device, cfg.bf16):
            logp_BT, entropy_BT = forward(policy, batch, cfg.temperature)
            ref_logp_BT = None
            if reference is not None:
                with torch.no_grad():
                    ref_logp_BT = token_logprobs(reference, batch, cfg.temperature)[0]
        loss, metrics = grpo.policy_loss(
            logp_BT, old_logp_BT, adv_B[part].to(device), weight_BT, clip_low=cfg.clip_low, clip_high=cfg.clip_high,
            ref_logp_BT=ref_logp_BT, beta=cfg.beta)
        loss.backward()
        metrics |= {"loss": loss.detach(), "entropy": entropy_BT.sum(),
                    "tokens": batch.target_BT.sum()}
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        sums["gap"] = max(sums["gap"], float((logp_BT - old_logp_BT).detach().abs().max()))
    return {**sums, "grad_norm": optim.step(steppers, policy.parameters(), rate, cfg.max_grad_norm)}


def spread(rows: Sequence[Sequence[float]], batch: Batch) -> Tensor:
    """Values of the target tokens, row after row, as a `_BT` tensor with zeros elsewhere."""
    values = torch.tensor([value for row in rows for value in row], device=batch.target_BT.device)
    return torch.zeros(batch.target_BT.shape, device=values.device).masked_scatter(batch.target_BT, values)


def check(cfg: Config) -> None:
    require(cfg, steps=cfg.steps >= 1, problems=cfg.problems >= 1, completions=cfg.completions >= 2,
            minibatches=1 <= cfg.minibatches <= cfg.problems * cfg.completions, temperature=cfg.temperature > 0,
            loss_per=cfg.loss_per in ("sequence", "token"), clip_low=0 <= cfg.clip_low <= 1, clip_high=cfg.clip_high >= 0,
            beta=cfg.beta >= 0, reference_every=cfg.reference_every >= 0, learning_rate=cfg.learning_rate >= 0,
            warmup=0 <= cfg.warmup < 1, max_grad_norm=cfg.max_grad_norm > 0, learner_tokens=cfg.learner_tokens >= 1,
            sampler_rows=cfg.sampler_rows >= 1, save_every=cfg.save_every >= 0)
    tasks.require(cfg.tasks)


def resume(out: Path, policy, reference, steppers) -> tuple[int, float]:
    """(first step to run, seconds spent before it); logs are cut back to the saved step."""
    state = checkpoint.load_state(out)
    first = state["step"] if state else 0
    if state:
        policy.load_state_dict(state["model"])
        if reference is not None:
            reference.load_state_dict(state["reference"])
        for stepper, saved in zip(steppers, state["optimizers"]):
            stepper.load_state_dict(saved)
        print(f"{out}: going on from step {first}")
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        checkpoint.keep_lines(out / name, lambda row: row["step"] < first)
    return first, state["seconds"] if state else 0.0


def step_metrics(step: int, rollouts: Sequence[Sequence[Rollout]], scores: Sequence[Sequence[Mapping]],
                 rewards_NG: Tensor, learned: Sequence[Mapping[str, float]], rate: float, clock: Sequence[float],
                 cfg: Config) -> dict[str, float]:
    """One line of metrics.jsonl, under TRL's names."""
    flat = [r for group in rollouts for r in group]
    lengths = torch.tensor([float(len(r.completion_ids)) for r in flat])
    row = {
        "step": step,
        "reward": float(rewards_NG.mean()),
        "reward_std": float(rewards_NG.std(-1).mean()),
        "frac_reward_zero_std": float(grpo.flat_groups(rewards_NG).float().mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": sum(not r.finished for r in flat) / len(flat),
        "num_tokens": int(lengths.sum()),
    }
    for name in rewards.REWARDS:
        values = [s[name] for group in scores for s in group if s[name] is not None]
        if values:
            row[f"rewards/{name}/mean"] = sum(values) / len(values)
            row[f"rewards/{name}/std"] = float(torch.tensor(values).std())
    if trained := sum(m["tokens"] for m in learned):  # of the rows that taught something, those with an advantage
        row["entropy"] = sum(m["entropy"] for m in learned) / trained
        # Before the first update of a step both sides have the same weights: this gap should be rounding alone.
        row["sampling/sampling_logp_difference/max"] = learned[0]["gap"]
    row |= {
        "loss": sum(m["loss"] for m in learned) / len(learned),
        "clip_ratio/low_mean": sum(m.get("clip_ratio/low_mean", 0.0) for m in learned) / len(learned),
        "clip_ratio/high_mean": sum(m.get("clip_ratio/high_mean", 0.0) for m in learned) / len(learned),
        "grad_norm": sum(m["grad_norm"] for m in learned) / len(learned),
        "learning_rate": rate,
        "step_time": clock[-1] - clock[0],
        "time/sample": clock[1] - clock[0],
        "time/reward": clock[2] - clock[1],
        "time/update": clock[3] - clock[2],
    }
    if cfg.beta:
        row["kl"] = sum(m.get("kl", 0.0) for m in learned) / len(learned)
    return row


def write_rollouts(log, step, problems, rollouts, scores, rewards_NG, adv_NG) -> None:
    for n, problem in enumerate(problems):
        for g, rollout in enumerate(rollouts[n]):
            log.write(json.dumps({
                "step": step, "problem": n, "sample": g, "task": problem.task, "prompt": problem.prompt,
                "completion": rollout.text, "tokens": len(rollout.completion_ids), "finished": rollout.finished,
                "rewards": scores[n][g], "reward": round(float(rewards_NG[n, g]), 6),
                "advantage": round(float(adv_NG[n, g]), 6)}, ensure_ascii=False) + "\n")
    log.flush()


def report(cfg: Config, row: Mapping[str, float], problems, rollouts, rewards_NG) -> None:
    language = row.get("rewards/language/mean")
    print(f"{Path(cfg.out).name} {row['step'] + 1}/{cfg.steps}: accuracy {row['rewards/accuracy/mean']:.2f} "
          f"format {row['rewards/format/mean']:.2f}" + (f" language {language:.2f}" if language is not None else "")
          + f" length {row['completions/mean_length']:.0f} cut {row['completions/clipped_ratio']:.2f} "
          f"flat {row['frac_reward_zero_std']:.2f} entropy {row.get('entropy', 0.0):.2f} grad {row['grad_norm']:.2f} "
          f"{row['step_time']:.1f} s (sample {row['time/sample']:.1f}, update {row['time/update']:.1f})", flush=True)
    if cfg.show and row["step"] % 10 == 0:
        for n in range(min(cfg.show, len(problems))):
            print(f"--- {problems[n].prompt}{rollouts[n][0].text}\n--- reward {float(rewards_NG[n, 0]):.2f}", flush=True)


if __name__ == "__main__":
    run(main, Config, description=__doc__)
