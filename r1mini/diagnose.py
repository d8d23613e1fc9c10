"""What a step of RL looked like: its metrics under TRL's names, a first look at the rewards, and the likely cause in one
sentence when the reward is flat or training goes wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean as mean
from statistics import stdev
from typing import Any

from r1mini import rewards
from r1mini.distributed import replicated
from r1mini.records import Group, Problem, Rollout

NEEDED = ("step", "num_tokens", "entropy", "frac_reward_zero_std", "completions/clipped_ratio",
          "completions/unparsed_ratio")  # of a run's earlier steps, to go on

# R1's words of reflection (Nature, Supplementary), and what stands for them in Chinese. A bare 错 is a verdict, as "no".
REFLECTION = {
    "en": ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check"),
    "zh": ("等等", "等一下", "错误", "然而", "但是", "重试", "验证", "不对", "评估", "检查"),
}

# Between sampler and learner, by bf16: the largest honest difference of a token's log-probability, and the mean from which on
# there is no use in going on. Measured with the embedded model: up to 7e-4 and 8e-7, in bf16 0.1 and 2.4e-4. (Larger models in
# bf16 were not measured; they have more layers to round in.)
GAP, BROKEN = {False: 1e-2, True: 1.0}, {False: 1e-2, True: 0.1}


def reflection(thinking: str, language: str) -> float:
    """Reflective words per word of the thinking; 0 without words."""
    found = rewards.words(thinking)
    known = REFLECTION.get(language, ())
    hits = sum(any(k in word for k in known) if language == "zh" else word.lower() in known for word in found)
    return hits / len(found) if found else 0.0


def entropy(rollouts: Sequence[Rollout]) -> float:
    """Nats per token of the distribution that the rollouts were drawn from: the mean of -log p over the drawn tokens."""
    return -sum(sum(r.logprobs) for r in rollouts) / sum(len(r.logprobs) for r in rollouts)


def sampling_metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """What the completions of a step say, before anything is learned from them: of every group that was drawn, also of
    those that others have replaced."""
    pairs = [(group, r, s, total) for group in groups for r, s, total in zip(group.rollouts, group.scores, group.rewards)]
    lengths = [len(r.completion_ids) for _, r, _, _ in pairs]
    texts = [group.problem.split(r)[1] for group, r, _, _ in pairs]
    answers = [rewards.answer_of(group.problem, text) for (group, *_), text in zip(pairs, texts)]
    row = {
        "reward": mean([total for *_, total in pairs]),
        "reward_std": mean([deviation(group.rewards) for group in groups]),
        "frac_reward_zero_std": mean([group.flat for group in groups]),
        "groups_drawn": len(groups),
        "completions/mean_length": mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": mean([not r.finished for _, r, _, _ in pairs]),
        "completions/unparsed_ratio": mean([r.finished and answer is None for (_, r, _, _), answer in zip(pairs, answers)]),
        "completions/wrong_ratio": mean([answer is not None and s["accuracy"] == 0
                                         for (_, _, s, _), answer in zip(pairs, answers)]),
        "completions/reflection": mean([reflection(rewards.thinking(text), group.problem.language)
                                        for (group, *_), text in zip(pairs, texts)]),
        "entropy": entropy([r for _, r, _, _ in pairs]),
    }
    for name in groups[0].scores[0]:
        values = [s[name] for _, _, s, _ in pairs if s[name] is not None]
        if values:
            row[f"rewards/{name}/mean"] = mean(values)
            row[f"rewards/{name}/std"] = deviation(values)
    return row


def learning_metrics(learned: Sequence[Mapping[str, float]], rate: float, seconds: float, sampling: float,
                     updating: float) -> dict[str, float]:
    """What the updates of a step did: means over the minibatches that had something to learn, none if there were none.
    Shares and distances are per token of the completions that taught something. A step ahead, its rollouts took their
    seconds beside the updates before: both together may be more than those of the step."""
    row = {}
    if skipped := sum(not math.isfinite(m.get("grad_norm", 0.0)) for m in learned):
        row["updates_skipped"] = skipped
    if learned := [m for m in learned if math.isfinite(m.get("grad_norm", math.nan))]:
        row |= {name: mean([m[name] for m in learned]) for name in learned[0] if name not in ("tokens", "gap", "gap_mean")}
        # Before the first update of a step both sides have the same weights: this gap should be rounding alone. (With --ahead
        # it is what a step of updates has changed, but for the first.)
        row["sampling/sampling_logp_difference/max"] = learned[0]["gap"]
        row["sampling/sampling_logp_difference/mean"] = learned[0]["gap_mean"]
    return row | {"learning_rate": rate, "step_time": seconds, "time/sample": sampling, "time/update": updating}


def rounded(policy: Any) -> list[Any]:
    """The weights as bf16 compute sees them."""
    return [p.detach().bfloat16() for p in policy.parameters()]


def moved(before: Sequence[Any], after: Sequence[Any]) -> float:
    """Share of the numbers that differ."""
    return sum(int(replicated((b != a).sum())) for b, a in zip(before, after)) / sum(b.numel() for b in before)


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def first_look(group: Group, weighting: Mapping[str, float]) -> str:
    """One sampled completion with each reward and its reason, for the first step of a run."""
    prompt, text = group.problem.split(group.rollouts[0])
    lines = [f"--- first look: {group.problem.task}, completion 1 of {len(group.rollouts)}",
             prompt.rstrip("\n"), text.rstrip("\n")]
    for name, score in group.scores[0].items():
        shown = "does not apply" if score is None else f"{score:.2f}" + reason(group.problem, text, name)
        lines.append(f"--- {name} (weight {weighting.get(name, 0):g}): {shown}")
    return "\n".join([*lines, f"--- reward {group.rewards[0]:.2f}; of the group: "
                      + " ".join(f"{r:.2f}" for r in group.rewards)])


def reason(problem: Problem, text: str, name: str) -> str:
    why = {"accuracy": rewards.why_wrong, "format": rewards.why_unformatted, "language": rewards.why_mixed}.get(name)
    found = why(problem, text) if why else None
    return f" ({found})" if found else ""


def apart(row: Mapping[str, Any], cfg: Any) -> str | None:
    """What to say of a step whose sampler and learner disagree though their weights are the same. ValueError where they differ
    in the mean, and nothing corrects it: what is learned would not be of what was sampled."""
    largest, average = (row.get(f"sampling/sampling_logp_difference/{name}", 0.0) for name in ("max", "mean"))
    bf16, bare = bool(cfg.bf16), cfg.correction == "none"
    if largest <= GAP[bf16] and average <= BROKEN[bf16]:
        return None
    tried = ["--no-bf16"] * bf16 + ["--correction token-truncate"] * bare
    told = (f"sampler and learner differ by {largest:.2g} nats on a token before any update, {average:.2g} in the mean, though "
            "their weights are the same" + (f": try {' or '.join(tried)}" if tried else ""))
    if bare and not average <= BROKEN[bf16]:
        raise ValueError(f"step {row['step']}: {told}")
    return told


def causes(rows: Sequence[Mapping[str, Any]], cfg: Any, weighting: Mapping[str, float], context: int) -> Iterator[str]:
    """What the last steps' metrics point to, each in one sentence with the flag to change. `rows` are the metrics of
    the run so far, `cfg` is train_grpo's configuration, `context` the model's longest text."""
    row, recent = rows[-1], rows[-3:]
    steady = lambda test: len(recent) == 3 and all(map(test, recent))
    share = lambda name: f"{row[name]:.0%}"
    counts = lambda name: weighting.get(name, 0) > 0

    if not cfg.learning_rate:
        yield "the learning rate is 0: nothing is learned; raise --learning-rate"

    cut = share("completions/clipped_ratio")
    if steady(lambda r: r["completions/clipped_ratio"] > 0.5):
        if cfg.max_new_tokens < context:
            yield (f"{cut} of completions were cut at {cfg.max_new_tokens} tokens, so no answer of theirs was seen: raise "
                   "--max-new-tokens")
        else:
            yield (f"{cut} of completions were cut at the model's context of {context} tokens, so no answer of theirs was "
                   "seen: reward short ones (--overlong-cache), or choose another --model")
    elif steady(lambda r: r["completions/unparsed_ratio"] > 0.9):
        yield (f"{share('completions/unparsed_ratio')} of completions ended without "
               + (r"an answer (one <answer>…</answer>, a \boxed{…}, or a program), so nothing can be rewarded: ask for it "
                  "(--instruction), or start from a model that has learned it (train_sft.py)" if cfg.data else
                  "one <answer>…</answer>, so nothing can be rewarded: start from a model that has seen the format "
                  "(train_sft.py --data cold-start)"))
    elif counts("format") and steady(lambda r: r["rewards/format/mean"] < 0.05):
        yield (f"the format is kept in {share('rewards/format/mean')} of completions: the first look says why not; start "
               "from a model that has seen it (train_sft.py --data cold-start)")

    if cfg.baseline != "none" and steady(lambda r: r["frac_reward_zero_std"] > 0.8):
        flat, right = f"in {share('frac_reward_zero_std')} of groups all rewards are equal", row.get("rewards/accuracy/mean", 0.5)
        refill = "" if cfg.resample else " (--resample 3 replaces such groups)"
        if counts("accuracy") and right < 0.1:
            yield (f"{flat} and almost no answer is right: the problems are too hard; raise --completions, choose easier "
                   f"{'ones' if cfg.data else '--tasks'}, or train_sft.py first{refill}")
        elif counts("accuracy") and right > 0.9:
            yield (f"{flat} and almost every answer is right: the problems are too easy; choose harder "
                   f"{'ones' if cfg.data else '--tasks'}{refill}")
        else:
            yield f"{flat}, so little is learned: raise --completions{refill}"

    if rows[0]["entropy"] > 0 and steady(lambda r: r["entropy"] < 0.1 * rows[0]["entropy"]):
        yield (f"entropy fell from {rows[0]['entropy']:.2f} to {row['entropy']:.2f}: the policy samples one answer only; "
               "lower --learning-rate or set --entropy-bonus 0.003")
    if row.get("kl", 0.0) > 1.0:
        yield (f"the KL to the reference is {row['kl']:.2f} nats per token: the policy runs away from it; lower "
               "--learning-rate or raise --beta")
    if steady(lambda r: r.get("approx_kl", 0.0) > 0.1):
        yield (f"the updates of one step move the policy by {row['approx_kl']:.2f} nats per token: lower --learning-rate or "
               "--minibatches")
    if cfg.learning_rate and steady(lambda r: r.get("weights/moved_in_bf16", 1.0) < 1e-3):
        yield (f"a step moves {row['weights/moved_in_bf16']:.2%} of the weights as bf16 sees them, the rest is lost in "
               "rounding until it adds up: raise --learning-rate, or compute in --no-bf16")
