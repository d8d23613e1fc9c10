"""How good a description is, and a simulated annotator who prefers one of two.

For evaluation, for preference pairs and for tests. Training never sees the utility: the reward
model learns from the annotator's preferences alone, which are noisy and like longer answers.
"""

import math
from collections import Counter
from collections.abc import Iterator
from functools import cache
from random import Random

from r1mini.records import Problem
from r1mini.tasks import elements

ENOUGH = 4  # useful facts of a perfect answer
BAD_LINE = 0.5  # what a useless line costs, in useful facts
NOISE = 0.15  # difference of utility that makes a preference 73 % sure
LENGTH_BIAS = 0.1  # what a line more adds, as a logit


@cache
def true_sentences() -> dict[str, tuple[str, str, str]]:
    """{sentence: (symbol, property, language)} of all that is true."""
    sentences = {}
    for element in elements.FACTS:
        for language in elements.FACT:
            for kind in elements.PROPERTIES:
                for sentence in elements.sentences(element, kind, language):
                    sentences[sentence.strip()] = (element["symbol"], kind, language)
    return sentences


def line_kinds(problem: Problem, answer: str) -> Iterator[str]:
    """What each line of an answer is: useful, known, repeated, foreign, off topic or false."""
    seen = set()
    for line in filter(None, map(str.strip, answer.split("\n"))):
        symbol, kind, language = true_sentences().get(line, ("", "", ""))
        if not symbol:
            yield "false"  # or no sentence at all
        elif symbol != problem.columns["symbol"]:
            yield "off topic"
        elif language != problem.language:
            yield "foreign"
        elif kind == problem.columns["known"]:
            yield "known"
        elif kind in seen:
            yield "repeated"
        else:
            seen.add(kind)
            yield "useful"


def utility(problem: Problem, answer: str | None) -> float:
    """From 0 to 1. `answer`: the text between the tags, None without a well-formed end.

    Four useful facts are enough; each other line costs half of one.
    """
    kinds = Counter(line_kinds(problem, answer or ""))
    useful = kinds["useful"]
    return max(0.0, min(ENOUGH, useful) - BAD_LINE * (kinds.total() - useful)) / ENOUGH


def preference(problem: Problem, first: str | None, second: str | None) -> float:
    """The probability that the annotator prefers the first answer."""
    better = utility(problem, first) - utility(problem, second)
    longer = sum(1 for _ in line_kinds(problem, first or "")) - sum(
        1 for _ in line_kinds(problem, second or "")
    )
    return 1 / (1 + math.exp(-better / NOISE - LENGTH_BIAS * longer))


def prefers_first(problem: Problem, first: str | None, second: str | None, rng: Random) -> bool:
    """One judgement."""
    return rng.random() < preference(problem, first, second)
