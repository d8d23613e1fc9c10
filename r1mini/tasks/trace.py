"""Thinking as a search that can be checked: one try per line, with the goal next to the result.

    5+8=13 13-6=7 ?7 yes

A task yields its tries in some order. `write` turns them into a text, with the imperfections of a
`Style`: it may give up early, give a false verdict, or mix languages. Reinforcement learning can
only strengthen what the model can verify from the trace.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random

# The words in a trace's notation. The two languages differ by script, like R1's Chinese and
# English.
WORDS = {
    "en": {True: "yes", False: "no", "stop": "stop", "answer": "answer"},
    "zh": {True: "对", False: "错", "stop": "算了", "answer": "答案"},
}
OTHER = {"en": "zh", "zh": "en"}
LANGUAGES = tuple(WORDS)
MAX_TRIES = 48  # of one trace: a whole search of three numbers


@dataclass(frozen=True)
class Try:
    """A line of thinking without its verdict, its success, and the answer that it leads to."""

    text: str
    success: bool
    answer: str


@dataclass(frozen=True)
class Style:
    """The imperfections of a trace. Every field is a probability."""

    give_up: float = 0.0  # after a failed try, on a task whose search is of ordinary length
    slip: float = 0.0  # of a false verdict, per try
    mix: float = 0.0  # of a word in the other language, per word
    broken: float = 0.0  # of a damaged format, per completion


def write(
    tries: Iterable[Try],
    language: str,
    style: Style,
    rng: Random,
    give_up: float,
    max_tries: int = MAX_TRIES,
) -> tuple[str, str, bool]:
    """(thinking, answer, whether the answer is right) of a search in this style.

    `give_up`: the probability of stopping after a failed try.
    """

    def word(kind) -> str:
        return WORDS[OTHER[language] if rng.random() < style.mix else language][kind]

    lines, answer, is_right = [], "", False
    for count, attempt in enumerate(tries, 1):
        verdict = attempt.success != (rng.random() < style.slip)
        lines.append(f"{attempt.text} {word(verdict)}\n")
        answer, is_right = attempt.answer, attempt.success
        if verdict:
            break
        if count == max_tries or rng.random() < give_up:
            lines.append(f"{word('stop')}\n")
            break
    return "".join(lines), answer, is_right
