"""What a completion's text tells beside its rewards: why one of them is not 1, and whether the
thinking corrects itself. Nothing that a model wrote is run."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from r1mini import tasks
from r1mini.records import Problem, think_prefix
from r1mini.rewards import rules
from r1mini.rewards.completion import extract_answer, extract_thinking
from r1mini.rl import diagnosis
from r1mini.rl.config import GRPOConfig
from r1mini.rl.rollouts import problems_of_step
from r1mini.tasks import repair
from r1mini.tasks.trace import LANGUAGES, WORDS

VERDICTS = {verdict: {words[verdict] for words in WORDS.values()} for verdict in (True, False)}
VERDICT = re.compile(rf"(?<!\S)({'|'.join(VERDICTS[True] | VERDICTS[False])})[ \t]*$", re.M)
# In text without verdicts: those of R1's words of reflection that take something back.
CORRECTION = re.compile(r"\b(?:wait|mistake|error|wrong|retry)\b|等等|等一下|错误|重试|不对", re.I)


def part_reasons(problem: Problem, row: Mapping[str, Any]) -> dict[str, str]:
    """Why a reward of a line of rollouts.jsonl is not 1, in the words of the run's first look."""
    text, reasons = row["completion"], {}
    for name, score in row["rewards"].items():
        if score is None or score == 1:
            continue
        if name == "accuracy":
            reasons[name] = answer_error(problem, text)
        elif name == "format":
            reasons[name] = rules.format_error(problem, text)
        elif name == "language":
            reasons[name] = language_error(problem, text, score)
    return {name: reason for name, reason in reasons.items() if reason}


def answer_error(problem: Problem, text: str) -> str | None:
    """`rules.answer_error` of an answer that is known to be wrong, without running a program; in
    fewer words if the log does not say what would be right."""
    answer = extract_answer(problem, text)
    if answer is None:
        return rules.answer_error(problem, text)
    if not problem.columns:
        return f"{answer[:60]!r} is not right"
    if tasks.TASKS[problem.task].runs_code:
        return repair.find_error(problem, answer, passes=lambda *_: False)
    return tasks.find_error(problem, answer)


def language_error(problem: Problem, text: str, score: float) -> str | None:
    """`diagnosis.language_error`; of a data file's row, in the language that gives this score."""
    for language in (problem.language,) if problem.language else LANGUAGES:
        problem = Problem(problem.task, "", language, problem.prompt)
        if rules.thinking_consistency(problem, text) == score:
            return diagnosis.language_error(problem, text)
    return None


def problem_of_group(cfg: GRPOConfig, row: Mapping[str, Any]) -> Problem:
    """The problem of a line of rollouts.jsonl: drawn again from the tasks. If it comes from a data
    file, or from tasks that have changed since, only what the log has."""
    known = not cfg.data and row["task"] in tasks.TASKS and set(cfg.tasks) <= tasks.TASKS.keys()
    for attempt in range(cfg.resample + 1) if known and row["problem"] < cfg.problems else ():
        problem = tasks_of_step(cfg, row["step"], attempt)[row["problem"]]
        if problem.prompt.removesuffix(think_prefix(problem.prompt)) == row["prompt"]:
            return problem
    return Problem(row["task"], "", "", row["prompt"])


@lru_cache(maxsize=256)
def tasks_of_step(cfg: GRPOConfig, step: int, attempt: int) -> list[Problem]:
    return problems_of_step(cfg, (), step, attempt)


def corrects_itself(text: str) -> bool:
    """Whether the thinking has a try that it calls wrong before one that it calls right; if it has
    no such verdicts, whether it has a word that takes something back.

    >>> corrects_itself("<think>5+8=13 ?7 no\\n13-6=7 ?7 yes\\n</think>")
    True
    >>> corrects_itself("<think>13-6=7 ?7 yes\\n</think>")
    False
    >>> corrects_itself("<think>It is 8. Wait, 13-6 is 7.</think>")
    True
    """
    thinking = extract_thinking(text)
    verdicts = [word in VERDICTS[True] for word in VERDICT.findall(thinking)]
    if not verdicts:
        return CORRECTION.search(thinking) is not None
    return False in verdicts and any(verdicts[verdicts.index(False) :])
