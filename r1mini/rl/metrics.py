"""Metrics of an RL step, under TRL's names, and the logs of a run."""

import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.infra import files
from r1mini.infra.distributed import replicate
from r1mini.infra.terminal import curve_levels, curve_lines, fit_line, shorten
from r1mini.model.lora import own_parameters
from r1mini.model.transformer import Transformer
from r1mini.records import Group
from r1mini.rewards.completion import extract_answer, extract_thinking, words
from r1mini.rewards.runner import parse_spec
from r1mini.rl import diagnosis
from r1mini.rl.config import GRPOConfig, fraction_done
from r1mini.rl.token_log import token_rows
from r1mini.training.run_state import Run

LOGS = ("metrics.jsonl", "rollouts.jsonl", "tokens.jsonl")
ACCURACY = "rewards/accuracy/mean"
# A resumed run needs these of its earlier steps.
NEEDED = (
    "step",
    "reward",
    "completions/mean_length",
    "num_tokens",
    "entropy",
    "frac_reward_zero_std",
    "completions/clipped_ratio",
    "completions/unparsed_ratio",
)
# R1's words of reflection (Nature, Supplementary), and their Chinese counterparts. A bare 错 is a
# verdict, as "no".
REFLECTION = {
    "en": "wait mistake however but retry error verify wrong evaluate check".split(),
    "zh": "等等 等一下 错误 然而 但是 重试 验证 不对 评估 检查".split(),
}


def reflection(thinking: str, language: str) -> float:
    """Reflective words per word of the thinking; 0 without words."""
    spoken, reflective = words(thinking), REFLECTION.get(language, ())
    if language == "zh":
        hits = [any(part in word for part in reflective) for word in spoken]
    else:
        hits = [word.lower() in reflective for word in spoken]
    return fmean(hits) if spoken else 0.0


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def sampling_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """Metrics of all completions of a step, including groups that were replaced."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scores = [score for group in groups for score in group.scores]
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    unparsed, wrong, reflective = [], [], []
    for group in groups:
        for rollout, score in zip(group.rollouts, group.scores):
            _, text = group.problem.prompt_and_completion(rollout)
            answer = extract_answer(group.problem, text)
            unparsed.append(rollout.finished and answer is None)
            wrong.append(answer is not None and score["accuracy"] == 0)
            reflective.append(reflection(extract_thinking(text), group.problem.language))
    row = {
        "reward": fmean([reward for group in groups for reward in group.rewards]),
        "reward_std": fmean([deviation(group.rewards) for group in groups]),
        "frac_reward_zero_std": fmean([group.has_zero_variance for group in groups]),
        "groups_drawn": len(groups),
        "completions/mean_length": fmean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": fmean([not rollout.finished for rollout in rollouts]),
        "completions/unparsed_ratio": fmean(unparsed),
        "completions/wrong_ratio": fmean(wrong),
        "completions/reflection": fmean(reflective),
        # Nats per token of the sampling distribution, estimated from the tokens that were drawn.
        "entropy": -sum(sum(rollout.logprobs) for rollout in rollouts) / sum(lengths),
    }
    for name in scores[0]:
        if values := [score[name] for score in scores if score[name] is not None]:
            row[f"rewards/{name}/mean"] = fmean(values)
            row[f"rewards/{name}/std"] = deviation(values)
    return row


def learning_metrics(updates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the minibatches that updated the policy; empty if none did. Fractions and
    distances are per token of the completions in the loss."""
    tried = [stats for stats in updates if "grad_norm" in stats]
    done = [stats for stats in tried if math.isfinite(stats["grad_norm"])]
    row = {}
    if skipped := len(tried) - len(done):
        row["updates_skipped"] = skipped
    if done:
        names = [name for name in done[0] if name not in ("tokens", "gap", "gap_mean")]
        row |= {name: fmean([stats[name] for stats in done]) for name in names}
        # Before the first update, sampler and learner have the same weights: rounding alone.
        row["sampling/sampling_logp_difference/max"] = done[0]["gap"]
        row["sampling/sampling_logp_difference/mean"] = done[0]["gap_mean"]
    return row


def bf16_weights(policy: Transformer) -> list[Tensor]:
    """The trained weights as bf16 compute sees them."""
    return [parameter.detach().bfloat16() for parameter in own_parameters(policy).values()]


def changed_fraction(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    same = [replicate((old == new).sum()) for old, new in zip(before, after)]  # torch 2.11: no !=
    total = sum(old.numel() for old in before)
    return (total - int(torch.stack(same).sum())) / total


def rollout_rows(step: int, groups: Sequence[Group], adv_NG: Tensor) -> Iterator[dict[str, Any]]:
    """The lines of rollouts.jsonl: every completion with its rewards and its advantage."""
    for n, group in enumerate(groups):
        for g, (rollout, scores) in enumerate(zip(group.rollouts, group.scores)):
            prompt, completion = group.problem.prompt_and_completion(rollout)
            yield {
                "step": step,
                "problem": n,
                "sample": g,
                "task": group.problem.task,
                "prompt": prompt,
                "completion": completion,
                "tokens": len(rollout.completion_ids),
                "finished": rollout.finished,
                "rewards": scores,
                "reward": round(group.rewards[g], 6),
                "advantage": round(float(adv_NG[n, g]), 6),
            }


class StepLog:
    """Writes the logs of a run, and prints a line and a diagnosis for each step."""

    def __init__(
        self,
        run: Run,
        cfg: GRPOConfig,
        weights: Mapping[str, float],
        policy: Transformer,
        tokenizer: Tokenizer,
    ):
        self.run, self.cfg, self.reward_weights = run, cfg, weights
        self.policy, self.tokenizer = policy, tokenizer
        self.context = policy.config.max_position_embeddings
        self.rows = files.read_metrics(run.out / "metrics.jsonl", *NEEDED)
        done = fraction_done(cfg, run.step - 1, run.values.get("spent", 0))
        run.show_progress(done, f"{run.step}/{cfg.steps}")

    def sampled(self, step: int, groups: Sequence[Group]) -> None:
        self.run.lap("sample")
        self.weights_before = bf16_weights(self.policy) if self.cfg.bf16 else None
        if step == 0:
            print(diagnosis.first_look(groups[0], self.reward_weights), flush=True)
            for line in diagnosis.score_spreads(groups, parse_spec(self.cfg.reward)):
                print(line, flush=True)
            if self.cfg.max_new_tokens > self.context:
                print(
                    f"--- --max-new-tokens {self.cfg.max_new_tokens}: the model's context of "
                    f"{self.context} tokens is the limit"
                )

    def updated(
        self,
        step: int,
        groups: Sequence[Group],
        drawn: Sequence[Group],
        adv_NG: Tensor,
        updates: Sequence[Mapping[str, float]],
        learning_rate: float,
        fraction: float,
    ) -> None:
        """Log a step: the groups it learned from, all groups sampled for them, and its updates."""
        self.run.lap("update")
        tokens = self.rows[-1]["num_tokens"] if self.rows else 0
        for rollout in [rollout for group in drawn for rollout in group.rollouts]:
            tokens += len(rollout.prompt_ids) + len(rollout.completion_ids)
        row = {
            "step": step,
            **sampling_metrics(drawn),
            **learning_metrics(updates),
            "learning_rate": learning_rate,
            **self.run.times(),
            "num_tokens": tokens,
            "seconds": round(self.run.seconds, 3),
        }
        if self.weights_before and "loss" in row:
            now = bf16_weights(self.policy)
            row["weights/moved_in_bf16"] = changed_fraction(self.weights_before, now)
        self.rows.append(row)
        self.run.write("metrics.jsonl", row)
        self.run.write("rollouts.jsonl", *rollout_rows(step, groups, adv_NG))
        rows = token_rows(self.cfg, self.policy, self.tokenizer, groups, step)
        self.run.write("tokens.jsonl", *rows)
        self.run.show_progress(fraction, f"{step + 1}/{self.cfg.steps}")
        self.print_step(row, groups)
        if step % 5 == 4 or fraction == 1:
            for advice in diagnosis.diagnose(
                self.rows, self.cfg, self.reward_weights, self.context
            ):
                print(f"{self.run.name}: {advice}", flush=True)
        if fraction == 1:
            self.print_curves()

    def print_step(self, row: Mapping[str, Any], groups: Sequence[Group]) -> None:
        name, step = self.run.name, row["step"]
        print(step_line(name, self.cfg.steps, row), flush=True)
        if "grad_norm" not in row and not row.get("updates_skipped"):
            if all(group.has_zero_variance for group in groups):
                reason = "the rewards within every group are equal"
            else:
                reason = "only truncated completions differ in reward, and they are masked"
            print(f"{name}: step {step} makes no update: {reason}", flush=True)
        if warning := diagnosis.check_sampler_gap(row, self.cfg):
            print(f"{name}: {warning}", flush=True)
        if self.cfg.show and step and step % 10 == 0:  # the first step is shown by first_look
            for group in groups[: self.cfg.show]:
                text = f"{group.problem.prompt}{group.rollouts[0].text}"
                print(f"--- {text}\n--- reward {group.rewards[0]:.2f}", flush=True)

    def print_curves(self) -> None:
        """The course of the run, at its end. Line by line: other stages may print between them."""
        for line in curve_lines(self.run.name, curves(self.rows), curve_levels(sys.stdout)):
            print(line, flush=True)


def step_line(name: str, steps: int, row: Mapping[str, Any]) -> str:
    """The metrics of a step in one line of at most 100 columns. From the most important to the
    least: accuracy (if it applies to no problem, the reward), the length in tokens, the share of
    groups with equal rewards, the share of completions that were cut, the other rewards, and the
    time in seconds. What does not fit is left out."""
    parts = [] if ACCURACY in row else [(0, f"reward {row['reward']:.2f}")]
    for key in row:
        if match := re.fullmatch("rewards/(.*)/mean", key):
            parts.append((4 * (key != ACCURACY), f"{match[1]} {row[key]:.2f}"))
    parts += [
        (1, f"length {row['completions/mean_length']:.0f}"),
        (3, f"cut {row['completions/clipped_ratio']:.0%}"),
        (2, f"equal groups {row['frac_reward_zero_std']:.0%}"),
    ]
    if "grad_norm" not in row:
        parts.append((2, "no update"))
    seconds = row["step_time"]
    parts.append((5, f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"))
    return fit_line(f"{shorten(name)} {row['step'] + 1}/{steps}:", parts)


def curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], str]]:
    """Accuracy (if it applies to no problem, the reward) and length, each with its format."""
    accuracy = [row[ACCURACY] for row in rows if ACCURACY in row]
    title = "accuracy" if accuracy else "reward"
    lengths = [row["completions/mean_length"] for row in rows]
    return {title: (accuracy or [row["reward"] for row in rows], ".2f"), "length": (lengths, ".0f")}
