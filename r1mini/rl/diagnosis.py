"""Advice for an RL run: a first look at the rewards, and the likely cause in one sentence when the
reward is flat or training goes wrong."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, pstdev, pvariance
from typing import Any

from r1mini import tasks
from r1mini.records import Group, Problem
from r1mini.rewards import rules
from r1mini.rewards.completion import extract_thinking, is_general, wants_program, words
from r1mini.rewards.runner import Term
from r1mini.rl.config import GRPOConfig

# Largest difference of a token's log-probability between sampler and learner that rounding
# explains, and the mean difference at which a run is stopped, without and with bf16. Measured with
# the embedded model: up to 7e-4 and 8e-7, in bf16 0.1 and 2.4e-4. (Larger models were not measured
# in bf16; they have more layers to round in.)
MAX_GAP = {False: 1e-2, True: 1.0}
MAX_MEAN_GAP = {False: 1e-2, True: 0.1}
Row = Mapping[str, Any]  # the metrics of a step
Rows = Sequence[Row]


def first_look(group: Group, weights: Mapping[str, float]) -> str:
    """One completion of the first step, with each of its rewards and the reason."""
    prompt, text = group.problem.prompt_and_completion(group.rollouts[0])
    lines = [
        f"--- first look: {group.problem.task}, completion 1 of {len(group.rollouts)}",
        prompt.rstrip("\n"),
        text.rstrip("\n"),
        f"--- {answer_place(group.problem)}",
    ]
    for name, score in group.scores[0].items():
        value = "does not apply"
        if score is not None:
            value = f"{score:.2f}{reason(group.problem, text, name)}"
        lines.append(f"--- {name} (weight {weights.get(name, 0):g}): {value}")
    all_rewards = " ".join(f"{reward:.2f}" for reward in group.rewards)
    lines.append(f"--- reward {group.rewards[0]:.2f}; of the group: {all_rewards}")
    return "\n".join(lines)


def score_spreads(groups: Sequence[Group], terms: Sequence[Term]) -> Iterator[str]:
    """The spread of each reward that is not built in: a reward model's scores have no zero and no
    unit, and only differences among the answers to a prompt become advantages."""
    for name, weight, start in [term[:3] for term in terms if term.file or term.folder]:
        by_prompt = [[scores[name] for scores in group.scores] for group in groups]
        known = [[x for x in values if x is not None] for values in by_prompt]
        known = [values for values in known if values]
        if not known:
            continue
        every = [x for values in known for x in values]
        within = math.sqrt(fmean(pvariance(values) for values in known))
        since = f" from {start:.0%} of the run on" if start else ""
        yield (
            f"--- {name}: {fmean(every):.2f} ± {pstdev(every):.2f} over the {len(every)} "
            f"completions of this step that it applies to, ± {within:.2f} within a group; its "
            f"weight is {weight:g}{since}"
        )


def answer_place(problem: Problem) -> str:
    """Where `extract_answer` looks for the answer of a completion."""
    if is_general(problem):
        return "a general prompt: no rule says what is right"
    place = r"<answer>…</answer>, or else the last \boxed{…} or line 'Answer: …' or '#### 5'"
    if problem.task in tasks.TASKS:
        place = "<answer>…</answer>"
    elif wants_program(problem):
        place = "the last block of Python after the thinking"
    return f"the answer is looked for in {place}"


def reason(problem: Problem, text: str, name: str) -> str:
    reasons = {
        "accuracy": rules.answer_error,
        "format": rules.format_error,
        "language": language_error,
    }
    explanation = reasons[name](problem, text) if name in reasons else None
    return f" ({explanation})" if explanation else ""


def language_error(problem: Problem, text: str) -> str | None:
    """How many words of the thinking are in the wrong language; None if none are."""
    share = rules.thinking_consistency(problem, text)
    if share is None or share == 1:
        return None
    count = len(words(extract_thinking(text)))
    if not count:
        return "no words in the thinking"
    return f"{round((1 - share) * count)} of {count} words are not in {problem.language!r}"


def check_sampler_gap(row: Row, cfg: GRPOConfig) -> str | None:
    """A warning if sampler and learner disagree before the first update of a step, when their
    weights are the same. Raises ValueError if they differ on average and nothing corrects it: the
    policy would learn from completions that it did not sample."""
    largest = row.get("sampling/sampling_logp_difference/max", 0.0)
    mean = row.get("sampling/sampling_logp_difference/mean", 0.0)
    if largest <= MAX_GAP[cfg.bf16] and mean <= MAX_MEAN_GAP[cfg.bf16]:
        return None
    uncorrected = cfg.correction == "none"
    flags = ["--no-bf16"] * cfg.bf16 + ["--correction token-truncate"] * uncorrected
    advice = f": try {' or '.join(flags)}" if flags else ""
    message = (
        f"sampler and learner differ by up to {largest:.2g} nats per token before any update, "
        f"{mean:.2g} on average, although their weights are the same{advice}"
    )
    if uncorrected and not mean <= MAX_MEAN_GAP[cfg.bf16]:
        raise ValueError(f"step {row['step']}: {message}")
    return message


def diagnose(
    rows: Rows, cfg: GRPOConfig, weights: Mapping[str, float], context: int
) -> Iterator[str]:
    """What the last steps' metrics suggest, each in one sentence with the flag to change. `rows`:
    the metrics of the run so far; `weights`: the rewards' weights; `context`: the model's context
    length."""
    rate = cfg.lora_learning_rate or cfg.learning_rate
    rate_flag = "--lora-learning-rate" if cfg.lora_learning_rate else "--learning-rate"
    if not rate:
        yield "the learning rate is 0: nothing is learned; raise --learning-rate"
    if collapse := describe_collapse(rows, weights):
        yield f"{collapse}: the updates are too large; start again with a lower {rate_flag}"
        return  # cut completions and equal rewards follow from it
    yield from diagnose_completions(rows, cfg, weights, context)
    yield from diagnose_groups(rows, cfg, weights)
    yield from diagnose_weights(rows, cfg, weights)
    row, first = rows[-1], rows[0]["entropy"]
    if first > 0 and persists(rows, "entropy", below=0.1 * first):
        yield (
            f"entropy fell from {first:.2f} to {row['entropy']:.2f}: the policy samples only one "
            f"answer; lower {rate_flag} or set --entropy-bonus 0.003"
        )
    if row.get("kl", 0.0) > 1.0:
        yield (
            f"the KL to the reference is {row['kl']:.2f} nats per token: the policy drifts too far "
            f"away; lower {rate_flag} or raise --beta"
        )
    if persists(rows, "approx_kl", above=0.1):
        yield (
            f"the updates of one step move the policy by {row['approx_kl']:.2f} nats per token: "
            f"lower {rate_flag} or --minibatches"
        )
    if rate and persists(rows, "weights/moved_in_bf16", below=1e-3):
        yield (
            f"a step changes {row['weights/moved_in_bf16']:.2%} of the weights in bf16; the rest "
            f"is lost in rounding until it adds up: raise {rate_flag}, or use --no-bf16"
        )


def describe_collapse(rows: Rows, weights: Mapping[str, float]) -> str:
    """What a policy looks like that updates have torn apart; "" if it has not. More entropy alone
    may be exploration, and a lower reward chance."""
    first = rows[0]["entropy"]
    name = "rewards/accuracy/mean" if weights.get("accuracy", 0) > 0 else "reward"
    best = max((x for row in rows if isinstance(x := row.get(name), float)), default=0.0)
    low = best - abs(best) / 4  # of a reward model, rewards may be negative
    if not persists(rows, "entropy", above=3 * first) or not persists(rows, name, below=low):
        return ""
    return (
        f"entropy rose from {first:.2f} to {rows[-1]['entropy']:.2f}, and "
        f"{'accuracy' if 'accuracy' in name else name} fell from {best:.2f} to {rows[-1][name]:.2f}"
    )


def diagnose_weights(rows: Rows, cfg: GRPOConfig, weights: Mapping[str, float]) -> Iterator[str]:
    """While right answers are rare, a reward that differs in more completions is learned first."""
    if not weights.get("accuracy", 0) > 0 or not persists(rows, "rewards/accuracy/mean", below=0.1):
        return
    row = rows[-1]
    right = row["rewards/accuracy/mean"]
    spreads = {name: x * row.get(f"rewards/{name}/std", 0.0) for name, x in weights.items()}
    accuracy = spreads.pop("accuracy")
    largest = max(spreads, key=spreads.__getitem__, default=None)
    if largest is None:
        return
    advice = []
    if spreads[largest] > 2 * accuracy:
        advice.append(f"lower its weight of {weights[largest]:g} in --reward")
    # The deviation of a group without a right answer scales up whatever is left in it.
    if cfg.scale == "group" and (1 - right) ** cfg.completions > 0.5 and spreads[largest]:
        advice.append("set --scale batch, which keeps the weights of rewards")
    if advice:
        yield (
            f"{right:.0%} of answers are right, so {largest} decides the advantages and is learned "
            f"first: {' and '.join(advice)}, or choose easier problems or a model that is right "
            "more often"
        )


def persists(rows: Rows, name: str, above: float = -math.inf, below: float = math.inf) -> bool:
    """Whether the last three steps all have this metric, between the limits."""
    return len(rows) >= 3 and all(above < row.get(name, math.nan) < below for row in rows[-3:])


def diagnose_completions(
    rows: Rows, cfg: GRPOConfig, weights: Mapping[str, float], context: int
) -> Iterator[str]:
    row = rows[-1]
    if persists(rows, "completions/clipped_ratio", above=0.5):
        cut = f"{row['completions/clipped_ratio']:.0%} of completions were truncated at"
        if cfg.max_new_tokens < context:
            yield f"{cut} {cfg.max_new_tokens} tokens, before an answer: raise --max-new-tokens"
        else:
            yield (
                f"{cut} the model's context of {context} tokens, before an answer: reward short "
                "completions (--overlong-cache), or choose another --model"
            )
    elif persists(rows, "completions/unparsed_ratio", above=0.9):
        unparsed = f"{row['completions/unparsed_ratio']:.0%} of completions ended without"
        if cfg.data:
            yield (
                f"{unparsed} an answer (one <answer>…</answer>, a \\boxed{{…}}, or a program), so "
                "nothing can be rewarded: ask for it (--instruction), or start from a model that "
                "has learned it (train_sft.py)"
            )
        else:
            yield (
                f"{unparsed} one <answer>…</answer>, so nothing can be rewarded: start from a "
                "model that has seen the format (train_sft.py --data cold-start)"
            )
    elif weights.get("format", 0) > 0 and persists(rows, "rewards/format/mean", below=0.05):
        yield (
            f"only {row['rewards/format/mean']:.0%} of completions follow the format: see "
            "the first look; start from one that has seen it (train_sft.py --data cold-start)"
        )


def diagnose_groups(rows: Rows, cfg: GRPOConfig, weights: Mapping[str, float]) -> Iterator[str]:
    row = rows[-1]
    if cfg.baseline == "none" or not persists(rows, "frac_reward_zero_std", above=0.8):
        return
    equal = f"in {row['frac_reward_zero_std']:.0%} of groups all rewards are equal"
    refill = "" if cfg.resample else " (--resample 3 replaces such groups)"
    problems = "problems" if cfg.data else "--tasks"
    accuracy = row.get("rewards/accuracy/mean", 0.5) if weights.get("accuracy", 0) > 0 else 0.5
    if accuracy < 0.1:
        yield (
            f"{equal} and almost no answer is right: the problems are too hard; raise "
            f"--completions, choose easier {problems}, or train_sft.py first{refill}"
        )
    elif accuracy > 0.9:
        yield (
            f"{equal} and almost every answer is right: the problems are too easy; choose harder "
            f"{problems}{refill}"
        )
    else:
        yield f"{equal}, so little is learned: raise --completions{refill}"
