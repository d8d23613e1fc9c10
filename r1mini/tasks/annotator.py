"""How good a description is, and a simulated annotator who prefers one of two.

For evaluation, for preference pairs and for tests. Training never sees the utility: the reward
model learns from the annotator's preferences alone, which are noisy, and biased to longer answers
and to the one that is read first.
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
FIRST_BIAS = 0.3  # what it adds to be read first: hence both orders


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
    return utility_of(Counter(line_kinds(problem, answer or "")))


def utility_of(kinds: Counter[str]) -> float:
    """The utility of an answer with these kinds of lines."""
    useful = kinds["useful"]
    return max(0.0, min(ENOUGH, useful) - BAD_LINE * (kinds.total() - useful)) / ENOUGH


def appeal(problem: Problem, answer: str | None) -> float:
    """What an answer looks like to the annotator, as a logit: its utility, and its length."""
    kinds = Counter(line_kinds(problem, answer or ""))
    return utility_of(kinds) / NOISE + LENGTH_BIAS * kinds.total()


def preference(first: float, second: float) -> float:
    """The probability that the annotator, who reads them in this order, prefers the first of two
    answers with these appeals.

    >>> round(preference(1.0, 1.0), 2)
    0.57
    """
    return 1 / (1 + math.exp(second - first - FIRST_BIAS))


def prefers_first(first: float, second: float, rng: Random) -> bool:
    """One judgement."""
    return rng.random() < preference(first, second)
