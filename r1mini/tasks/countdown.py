"""Countdown: reach a target from three or four small numbers, each used once, with + - * /.

The maths domain. The search of three numbers visits first steps in random order, and second steps
in a fixed order; that of four, which has thousands of tries, draws each step at random. It never
repeats a try, and keeps results between 0 and 60.
"""

import ast
import operator
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from random import Random

from r1mini.records import Problem
from r1mini.tasks.trace import Try

LIMIT = 60  # the largest result in a search
MAX_LENGTH = 200  # of an answer, in characters
SIGNS = str.maketrans("×·⋅∙∗＊÷∕⁄／−–－＋＝（）。，；：✓✔✅", "******////---+=().,;:   ")
REWRITES = {
    r"\$|\\(?:[][(),;:! ]|(?:left|right|[bB]ig+[lr]?|quad|displaystyle)(?![A-Za-z]))": " ",
    r"^\s*(?i:(?:the |final )*(?:answer|equation|expression|result|solution)|答案|[a-z])"
    r"\s*[:=]": "",
    r"^\s*=": "",
    r"\\(?:times|cdot|ast)(?![A-Za-z])|(?<=[\d)\s])[xX](?=[\d(\s])": "*",
    r"\\div(?![A-Za-z])": "/",
    r"[.,;](?=[\s}*`]*$)": "",
    r"(^|=)\s*(\*\*|`+|\")(?:(?<=```)\w+\n)?(.*?)\2\s*(?=$|=)": r"\1\3",
    r"\\[cdt]?frac\s*(?:{([^{}]*)}|(\d))\s*(?:{([^{}]*)}|(\d))": r"((\1\2)/(\3\4))",
    r"(^|=)\s*\\(?:boxed|fbox)\s*{([^{}]*)}\s*(?=$|=)": r"\1\2",
}
PROMPT = {"en": "Make {target} from {numbers}.\n", "zh": "用 {numbers} 得 {target}。\n"}


def operations(a: int, b: int) -> list[tuple[str, int]]:
    return [(f"{a}+{b}", a + b), (f"{a}-{b}", a - b), (f"{a}*{b}", a * b)]


def steps(a: int, b: int) -> list[tuple[str, int]]:
    """Every distinct result of combining two numbers, the larger one first: (text, result)."""
    a, b = max(a, b), min(a, b)
    results = operations(a, b)
    if b and a % b == 0:
        results.append((f"{a}/{b}", a // b))
    first = {value: text for text, value in reversed(results)}  # 2*2 would repeat 2+2
    return [(text, value) for text, value in results if value <= LIMIT and first[value] == text]


Terms = tuple[tuple[str, int], ...]  # the expressions that are left to combine, and their values


def moves(terms: Terms) -> dict[str, tuple[int, Terms]]:
    """Every way to combine two terms: {text: (result, the terms after it)}."""
    after = {}
    for i in range(len(terms)):
        for j in range(i):
            for text, value in steps(terms[i][1], terms[j][1]):
                if text not in after:  # equal numbers give equal steps
                    after[text] = (value, combine(terms, i, j, text, value))
    return after


def combine(terms: Terms, i: int, j: int, text: str, value: int) -> Terms:
    (left, a), (right, b) = terms[i], terms[j]
    if a < b:
        left, right = right, left
    sign = text.removeprefix(str(max(a, b)))[0]
    expression = sign.join(e if e.isdigit() else f"({e})" for e in (left, right))
    rest = tuple(term for index, term in enumerate(terms) if index not in (i, j))
    return (*rest, (expression, value))


def search(numbers: Sequence[int], rng: Random) -> Iterator[tuple[list[str], str, int]]:
    """(steps as text, expression, result) of every way to combine all numbers, depth first."""

    def descend(terms: Terms, written: list[str]):
        if len(terms) == 1:
            yield written, *terms[0]
            return
        ordered = list(moves(terms).items())
        if not written:
            ordered = rng.sample(ordered, len(ordered))
        for text, (value, rest) in ordered:
            yield from descend(rest, [*written, f"{text}={value}"])

    yield from descend(tuple((str(n), n) for n in numbers), [])


def random_walk(numbers: Sequence[int], rng: Random) -> tuple[list[str], str, int]:
    """(steps as text, expression, result) of one random way to combine all numbers."""
    terms, written = tuple((str(n), n) for n in numbers), []
    while len(terms) > 1:
        text, (value, terms) = rng.choice(list(moves(terms).items()))
        written.append(f"{text}={value}")
    return written, *terms[0]


@cache
def reachable(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The targets from 10 to 50 that `numbers` (sorted) can reach."""
    results = {value for _, _, value in search(numbers, Random(0))}
    return tuple(sorted(value for value in results if 10 <= value <= 50))


def generate(rng: Random, language: str) -> Problem | None:
    numbers = [rng.randint(1, 9) for _ in range(3)]
    targets = reachable(tuple(sorted(numbers)))
    if not targets:
        return None
    return make_problem("countdown", numbers, rng.choice(targets), language)


def generate_hard(rng: Random, language: str) -> Problem | None:
    """The target is the result of a random walk, so a target with more solutions is more likely."""
    numbers = [rng.randint(1, 9) for _ in range(4)]
    *_, target = random_walk(numbers, rng)
    return make_problem("countdown-hard", numbers, target, language) if target >= 10 else None


def make_problem(task: str, numbers: list[int], target: int, language: str) -> Problem:
    return Problem(
        task,
        f"{sorted(numbers)} {target}",
        language,
        PROMPT[language].format(target=target, numbers=", ".join(map(str, numbers))),
        {"numbers": numbers, "target": target},
    )


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    target = problem.columns["target"]
    for written, expression, value in search(problem.columns["numbers"], rng):
        yield Try(f"{' '.join(written)} ?{target}", value == target, expression)


def tries_hard(problem: Problem, rng: Random) -> Iterator[Try]:
    """Endless: there are too many ways to list them all."""
    numbers, target, seen = problem.columns["numbers"], problem.columns["target"], set()
    while True:
        written, expression, value = random_walk(numbers, rng)
        text = " ".join(written)
        if text not in seen:
            seen.add(text)
            yield Try(f"{text} ?{target}", value == target, expression)


def find_error(problem: Problem, answer: str) -> str | None:
    target, numbers = problem.columns["target"], [str(n) for n in problem.columns["numbers"]]
    sides = re.split("=+", plain(answer)) if len(answer) <= MAX_LENGTH else [""]
    values = list(map(evaluate, sides))
    if None in values:
        return "not an expression of + - * /"
    used = [re.findall("[0-9.]+", side) for side in sides]
    if sorted(numbers) not in map(sorted, used):
        return f"uses {', '.join(used[0])}, not {', '.join(numbers)}"
    return next((f"{value} ≠ {target}" for value in values if value != target), None)


def plain(answer: str) -> str:
    r"""The answer in Python's notation: signs and fractions of TeX and of Unicode, without boxes,
    dollars, spacing, marks of bold text or code, and a final point.

    >>> plain(r"$\boxed{\frac{6}{3} \times 2} = 4$.").strip()
    '((6)/(3)) * 2= 4'
    """
    text, before = answer.translate(SIGNS), None
    while text != before:
        before = text
        for pattern, replacement in REWRITES.items():
            text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return text


def evaluate(text: str) -> Fraction | None:
    """The exact value of an expression of + - * / and brackets, or None.

    Never `eval`: the text has a few hundred characters of a fixed alphabet, `ast` parses it, and
    only the four operators and plain numbers are evaluated.
    """
    text = " ".join(text.split())
    if set(text) - set("0123456789.+-*/()[] "):
        return None

    def walk(node: ast.AST) -> Fraction:
        match node:
            case ast.Constant():
                return Fraction(ast.get_source_segment(text, node))
            case ast.BinOp(left, op, right):
                return OPERATORS[type(op)](walk(left), walk(right))
            case ast.List([inner]):
                return walk(inner)
        raise ValueError

    try:
        return walk(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return None


OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
