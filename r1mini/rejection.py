"""Rejection sampling [R1 §2.3.3]: several completions per problem; the correct and readable ones become SFT rows, a few of
each problem, with where they come from; rows without reasoning are added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from r1mini import filters, rewards, tasks
from r1mini.data import cold_start_row
from r1mini.evaluate import draw
from r1mini.journal import Journal
from r1mini.model import Transformer
from r1mini.records import Problem, Rollout
from r1mini.rollout import Sampling
from r1mini.tasks.trace import Style
from r1mini.tokenizer import Tokenizer

REWARDS = ("accuracy", "code", "format")


def unclear(problem: Problem, text: str, scores: Mapping[str, float | None]) -> bool:
    r"""Is the format not kept? The answer of a file's problem may also stand in a `\boxed{…}` or a code block, behind one
    think block or none."""
    if problem.task in tasks.TASKS or "answer>" in text:
        return not scores["format"]
    return rewards.TAG.findall(text) not in ([], ["<think>", "</think>"])


def verdict(problem: Problem, text: str, finished: bool, scores: Mapping[str, float | None], thinking_tokens: int,
            limit: int) -> str:
    """Why a completion is not kept, or "kept"."""
    if not finished:
        return "cut off"
    if 1.0 not in (scores["accuracy"], scores["code"]):
        return "wrong"
    if unclear(problem, text, scores):
        return "format"
    found = (name for name, removes in filters.FILTERS.items() if removes(problem, text))
    return next(found, "long" if thinking_tokens > limit else "kept")


def judged(tokens: Tokenizer, problem: Problem, rollouts: Sequence[Rollout], scores: Sequence[Mapping[str, float | None]], *,
           keep: int, max_thinking: int, seed: int, model: str) -> dict[str, Any]:
    """{"verdicts": their counts, "rows": at most `keep` different ones}. The `<think>` that a prompt opens is part of the
    completion; what a template made the prompt of is kept as messages."""
    verdicts, good = Counter(), {}
    for number, (rollout, given) in enumerate(zip(rollouts, scores)):
        text = problem.split(rollout)[1]
        thinking = rewards.thinking(text)
        why = verdict(problem, text, rollout.finished, given, len(tokens.encode(thinking)), max_thinking)
        verdicts[why] += 1
        if why == "kept":
            good.setdefault(text, (number, given))
    rows = []
    for text in Random(f"{seed} {problem.key}").sample(list(good), min(keep, len(good))):
        number, given = good[text]
        said = {"prompt": problem.split(rollouts[0])[0], "completion": text}
        if problem.messages:
            said = {"prompt": list(problem.messages), "completion": [{"role": "assistant", "content": text}]}
        rows.append({**said, "task": problem.task, "problem": problem.key, "model": model, "seed": seed, "sample": number,
                     "rewards": {name: value for name, value in given.items() if value is not None}})
    return {"verdicts": verdicts, "rows": rows}


def reject(model: Transformer, tokens: Tokenizer, sets: Mapping[str, Sequence[Problem]], samples: int, how: Sampling, seed: int,
           journal: Journal, *, keep: int, max_thinking: int, name: str, max_rows: int = 256, progress: bool = False
           ) -> tuple[list[dict], Counter]:
    """(rows, how many completions had which verdict). What the journal has is not sampled again."""
    for problem, rollouts, scores in draw(model, tokens, sets, samples, how, seed, done=len(journal.parts), names=REWARDS,
                                          max_rows=max_rows, progress="sampling" if progress else None):
        journal.add(judged(tokens, problem, rollouts, scores, keep=keep, max_thinking=max_thinking, seed=seed, model=name))
    verdicts = sum((Counter(part["verdicts"]) for part in journal.parts), Counter())
    return [row for part in journal.parts for row in part["rows"]], verdicts


def plain_rows(names: Sequence[str], count: int, seed: int) -> list[dict]:
    """Rows of the tasks that are answered at once.

    DEVIATES: R1's non-reasoning rows come from DeepSeek-V3; here from the task's own writer.
    """
    return [{**cold_start_row(names[index % len(names)], f"plain {seed}", index, Style()), "task": names[index % len(names)]}
            for index in range(count if names else 0)]
