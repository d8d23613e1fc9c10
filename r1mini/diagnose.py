"""What a step of RL looked like: its metrics under TRL's names, a first look at the rewards, and the likely cause in one
sentence when the reward is flat or training goes wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1mini import rewards
from r1mini.records import Group, Problem

# R1's words of reflection (Nature, Supplementary), and what stands for them in Chinese. A bare 错 is a verdict, as "no".
REFLECTION = {
    "en": ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check"),
    "zh": ("等等", "等一下", "错误", "然而", "但是", "重试", "验证", "不对", "评估", "检查"),
}

GAP = {False: 1e-2, True: 1.0}  # largest honest difference of a token's log-probability, by bf16


def reflection(thinking: str, language: str) -> float:
    """Reflective words per word of the thinking; 0 without words."""
    found = rewards.words(thinking)
    known = REFLECTION[language]
    hits = sum(any(k in word for k in known) if language == "zh" else word.lower() in known for word in found)
    return hits / len(found) if found else 0.0


def sampling_metrics(groups: Sequence[Group], drawn: int) -> dict[str, Any]:
    """What the completions of a step say, before anything is learned from them."""
    pairs = [(group, r, s, total) for group in groups for r, s, total in zip(group.rollouts, group.scores, group.rewards)]
    lengths = [len(r.completion_ids) for _, r, _, _ in pairs]
    totals = [total for *_, total in pairs]
    row = {
        "reward": mean(totals),
        "reward_std": mean([deviation(group.rewards) for group in groups]),
        "frac_reward_zero_std": mean([group.flat for group in groups]),
        "groups_drawn": drawn,
        "completions/mean_length": mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": mean([not r.finished for _, r, _, _ in pairs]),
        "completions/unparsed_ratio": mean([r.finished and rewards.extract(r.text) is None for _, r, _, _ in pairs]),
        "completions/wrong_ratio": mean([rewards.extract(r.text) is not None and not s["accuracy"]
                                         for _, r, s, _ in pairs]),
        "completions/reflection": mean([reflection(rewards.thinking(r.text), group.problem.language)
                                        for group, r, _, _ in pairs]),
        "num_tokens": sum(lengths),
    }
    for name in rewards.REWARDS:
        values = [s[name] for _, _, s, _ in pairs if s[name] is not None]
        if values:
            row[f"rewards/{name}/mean"] = mean(values)
            row[f"rewards/{name}/std"] = deviation(values)
    return row


def learning_metrics(learned: Sequence[Mapping[str, float]], rate: float, clock: Sequence[float]) -> dict[str, float]:
    """What the updates of a step did: means over its minibatches."""
    row = {name: mean([m.get(name, 0.0) for m in learned])
           for name in ("loss", "clip_ratio/low_mean", "clip_ratio/high_mean", "kl", "grad_norm")}
    if not any("kl" in m for m in learned):
        del row["kl"]
    if trained := sum(m["tokens"] for m in learned):  # of the rows that taught something, those with an advantage
        row["entropy"] = sum(m["entropy"] for m in learned) / trained
        # Before the first update of a step both sides have the same weights: this gap should be rounding alone.
        row["sampling/sampling_logp_difference/max"] = learned[0]["gap"]
    return row | {"learning_rate": rate, "step_time": clock[-1] - clock[0], "time/sample": clock[1] - clock[0],
                  "time/update": clock[2] - clock[1]}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    middle = mean(values)
    return (sum((v - middle) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5


def first_look(group: Group, weighting: Mapping[str, float]) -> str:
    """One sampled completion with each reward and its reason, for the first step of a run."""
    text = group.rollouts[0].text
    lines = [f"--- first look: {group.problem.task}, completion 1 of {len(group.rollouts)}",
             group.problem.prompt.rstrip("\n"), text.rstrip("\n")]
    for name, weight in weighting.items():
        score = group.scores[0][name]
        shown = "does not apply" if score is None else f"{score:.2f}"
        lines.append(f"--- {name} (weight {weight:g}): {shown}{reason(group.problem, text, name)}")
    return "\n".join([*lines, f"--- reward {group.rewards[0]:.2f}; of the group: "
                      + " ".join(f"{r:.2f}" for r in group.rewards)])


def reason(problem: Problem, text: str, name: str) -> str:
    why = {"accuracy": rewards.why_wrong, "format": rewards.why_unformatted}.get(name)
    found = why(problem, text) if why else None
    return f" ({found})" if found else ""


def causes(rows: Sequence[Mapping[str, Any]], cfg: Any) -> Iterator[str]:
    """What the last steps' metrics point to, each in one sentence with the flag to change. `rows` are the metrics of
    the run so far, `cfg` is train_grpo's configuration."""
    row, recent = rows[-1], rows[-5:]
    steady = lambda test: len(recent) >= 3 and all(test(r) for r in recent[-3:])
    if row["completions/clipped_ratio"] > 0.5:
        yield (f"{row['completions/clipped_ratio']:.0%} of completions were cut at {cfg.max_new_tokens} tokens, so no "
               "answer was seen: raise --max-new-tokens")
    elif steady(lambda r: r["completions/unparsed_ratio"] > 0.9):
        yield (f"{row['completions/unparsed_ratio']:.0%} of completions ended without one <answer>…</answer>, so "
               "nothing can be rewarded: start from a model that has seen the format (train_sft.py --data cold-start)")
    elif steady(lambda r: r["frac_reward_zero_std"] > 0.8):
        if row["rewards/accuracy/mean"] < 0.1:
            yield (f"in {row['frac_reward_zero_std']:.0%} of groups all rewards are equal and almost no answer is right: "
                   "the problems are too hard; raise --completions, choose easier --tasks, or train_sft.py first")
        elif row["rewards/accuracy/mean"] > 0.9:
            yield (f"in {row['frac_reward_zero_std']:.0%} of groups all rewards are equal and almost every answer is "
                   "right: the problems are too easy; choose harder --tasks, or --resample 3 to replace such groups")
        else:
            yield (f"in {row['frac_reward_zero_std']:.0%} of groups all rewards are equal, so little is learned: "
                   "--resample 3 replaces such groups, --completions makes them rarer")
    first = next((r["entropy"] for r in rows if "entropy" in r), None)
    if first and steady(lambda r: r.get("entropy", first) < 0.1 * first):
        yield (f"entropy fell from {first:.2f} to {row.get('entropy', 0):.2f}: the policy samples one answer only; lower "
               "--learning-rate, raise --clip-high, or set --entropy-bonus 0.003")
    if row.get("kl", 0.0) > 1.0:
        yield (f"the KL to the reference is {row['kl']:.2f} nats per token: the policy runs away from it; lower "
               "--learning-rate or raise --beta")
    if row.get("sampling/sampling_logp_difference/max", 0.0) > GAP[bool(cfg.bf16)]:
        yield (f"sampler and learner differ by {row['sampling/sampling_logp_difference/max']:.2g} nats on a token before "
               "any update: the same weights should give the same; try --no-bf16 or --correction token-truncate")
    if not cfg.learning_rate:
        yield "the learning rate is 0: nothing is learned; raise --learning-rate"
