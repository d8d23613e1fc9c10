"""Rule-based rewards [R1 §2.2.2]: accuracy, format, and language consistency [R1 §2.3.2]. No neural reward model.

A completion is `<think>…</think><answer>…</answer>`. Nothing of it is ever executed: answers go to the task's checker.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from r1mini import tasks
from r1mini.records import Problem

TAG = re.compile(r"</?(?:think|answer)>")
NOTATION = ("return", "ln")  # what traces write in either language


@dataclass(frozen=True)
class Parsed:
    thinking: str | None  # None: no think block
    answer: str


def parse(text: str) -> Parsed | None:
    """The blocks of a completion that keeps the format strictly, or None: at most one think block, exactly one answer
    block after it, only white space between, nothing before, nothing but white space after, no tag inside.

    >>> parse("<think>5+8=13</think><answer>5+8</answer>")
    Parsed(thinking='5+8=13', answer='5+8')
    >>> parse("<think>5+8=13</think><answer>5+8</answer> and more") is None
    True
    """
    match TAG.findall(text):
        case ["<think>", "</think>", "<answer>", "</answer>"]:
            before, thinking, between, answer, after = TAG.split(text)
        case ["<answer>", "</answer>"]:
            (before, answer, after), thinking, between = TAG.split(text), None, ""
        case _:
            return None
    return None if (before + between + after).strip() else Parsed(thinking, answer)


def extract(text: str) -> str | None:
    """The answer of a completion with exactly one answer block after its thinking, however untidy the rest."""
    tags = TAG.findall(text)
    if tags.count("<answer>") != 1 or tags.count("</answer>") != 1:
        return None
    answer, closed, after = text.partition("<answer>")[2].partition("</answer>")
    return answer.strip() if closed and not TAG.search(answer + after) else None


def thinking(text: str) -> str:
    """What stands in the think block, closed or not; "" without one."""
    return text.partition("<think>")[2].partition("</think>")[0]


def why_wrong(problem: Problem, text: str) -> str | None:
    """What is wrong with the answer, or None if it is right by the task's checker."""
    answer = extract(text)
    if answer is not None:
        return tasks.mistake(problem, answer)
    for tag in ("<answer>", "</answer>"):
        if tag not in text:
            return f"no {tag}"
    return "not one answer block after the thinking"


def why_unformatted(problem: Problem, text: str) -> str | None:
    """What is wrong with the format, or None: it is kept and its answer is not empty. Reasoning tasks need a think block
    that is not empty; elsewhere an answer alone will do."""
    parsed = parse(text)
    if parsed is None:
        missing = [tag for tag in ("<think>", "</think>", "<answer>", "</answer>") if tag not in text]
        return f"no {missing[0]}" if missing else "tags out of order or repeated, or text outside them"
    if not parsed.answer.strip():
        return "empty answer"
    if parsed.thinking is None:
        return "no <think>" if tasks.TASKS[problem.task].reasoning else None
    return None if parsed.thinking.strip() else "empty thinking"


def accuracy(problem: Problem, text: str) -> float:
    """1 if the answer is right by the task's checker, else 0."""
    return float(why_wrong(problem, text) is None)


def format(problem: Problem, text: str) -> float:
    """1 if the completion keeps the format and its answer is not empty, else 0."""
    return float(why_unformatted(problem, text) is None)


def soft_overlong(length: int, longest: int, cache: int) -> float:
    """[DAPO Eq. 13] 0 up to `cache` tokens before the limit, from there down to -1 at it; 0 with no cache.

    >>> [soft_overlong(length, 100, 20) for length in (80, 90, 100)]
    [0.0, -0.5, -1.0]
    """
    return max(-1.0, min(0.0, (longest - cache - length) / cache)) if cache else 0.0


def words(text: str) -> list[str]:
    """The words of a text: runs of Han characters, and Latin words. Formulas, variables and names of functions are
    notation: single letters, two letters with a capital, anything beside a digit or with a capital inside.

    >>> words("try 2 H2O + NaCl, f(a) 对 then Fe 算了")
    ['try', '对', 'then', '算了']
    """
    found = re.findall(r"[\u4e00-\u9fff]+|(?<![A-Za-z0-9_])(?:[A-Za-z][a-z]{2,}|[a-z]{2})(?![A-Za-z0-9_])", text)
    return [word for word in found if word not in NOTATION]


def consistency(thinking: str, language: str) -> float:
    """[R1 §2.3.2] Num(words in the target language) / Num(words).

    DEVIATES: thinking without a single word scores 0, or silence would be the easiest consistency.
    """
    found = words(thinking)
    chinese = sum(word[0] >= "\u4e00" for word in found)
    target = chinese if language == "zh" else len(found) - chinese
    return target / len(found) if found else 0.0


def language(problem: Problem, text: str) -> float | None:
    """Language consistency of the thinking; None (does not apply) for tasks without reasoning, 0 without a think
    block."""
    if not tasks.TASKS[problem.task].reasoning:
        return None
    return consistency(thinking(text), problem.language)


def why_mixed(problem: Problem, text: str) -> str | None:
    """What keeps the thinking from being in the problem's language alone, or None."""
    share = language(problem, text)
    if share is None or share == 1:
        return None
    found = len(words(thinking(text)))
    return f"{round((1 - share) * found)} of {found} words are not {problem.language}" if found else "no word in the thinking"


REWARDS = {"accuracy": accuracy, "format": format, "language": language}


def weights(text: str) -> dict[str, float]:
    """`--reward`: names with optional weights.

    >>> weights("accuracy,format:0.1")
    {'accuracy': 1.0, 'format': 0.1}
    """
    found = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition(":")
        if name not in REWARDS:
            raise ValueError(f"--reward {text}: {name!r} is not one of {', '.join(REWARDS)}")
        if name in found:
            raise ValueError(f"--reward {text}: {name!r} is there twice")
        try:
            found[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"--reward {text}: {weight!r} is not a number") from None
        if not math.isfinite(found[name]):
            raise ValueError(f"--reward {text}: {weight!r} is not a finite number")
    return found


def score(problem: Problem, text: str) -> dict[str, float | None]:
    """Every reward of one completion, unweighted."""
    return {name: reward(problem, text) for name, reward in REWARDS.items()}


def total(scores: Mapping[str, float | None], weighting: Mapping[str, float]) -> float:
    """The weighted sum, as the paper adds its rewards [R1 §2.3.2]; what does not apply adds nothing. Rounded, so that equal
    rewards are equal numbers."""
    return round(sum(weight * scores[name] for name, weight in weighting.items() if scores[name] is not None), 6)
