"""Thinking as a search that can be checked: one try a line, the goal repeated beside the result.

    5+8=13 13-6=7 ?7 yes

A task yields its tries in some order; `write` turns them into a text, with the imperfections of a `Style`: it may give
up early, slip, or mix languages. Reinforcement learning can only strengthen what a trace lets the model verify.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

# What a trace is written in besides notation. Two languages, told apart by script as R1's Chinese and English are.
WORDS = {
    "en": {True: "yes", False: "no", "stop": "stop", "answer": "answer"},
    "zh": {True: "对", False: "错", "stop": "算了", "answer": "答案"},
}
OTHER = {"en": "zh", "zh": "en"}
LANGUAGES = tuple(WORDS)
LONGEST = 48  # tries of one trace: a whole search of three numbers, the beginning of one of four


@dataclass(frozen=True)
class Try:
    """One line of thinking without its verdict, whether it meets the goal, and the answer it would give."""

    text: str
    success: bool
    answer: str


@dataclass(frozen=True)
class Style:
    """How imperfect a trace is; every field is a probability."""

    give_up: float = 0.0  # after a failed try, on a task whose search is of ordinary length
    slip: float = 0.0  # of a false verdict, per try
    mix: float = 0.0  # of a word in the other language, per word
    broken: float = 0.0  # of a damaged format, per completion


def write(tries: Iterable[Try], language: str, style: Style, rng: Random, give_up: float) -> tuple[str, str, bool]:
    """The thinking, the answer it arrives at, and whether that is right. `give_up` is the task's own probability to stop
    after a failed try."""

    def word(kind) -> str:
        return WORDS[OTHER[language] if rng.random() < style.mix else language][kind]

    lines, answer, right = [], "", False
    for count, attempt in enumerate(tries, 1):
        verdict = attempt.success != (rng.random() < style.slip)
        lines.append(f"{attempt.text} {word(verdict)}\n")
        answer, right = attempt.answer, attempt.success
        if verdict:
            break
        if count == LONGEST or rng.random() < give_up:
            lines.append(f"{word('stop')}\n")
            break
    return "".join(lines), answer, right
