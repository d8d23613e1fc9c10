"""Countdown: reach a target from three (or four) small numbers, each used exactly once, with + - * /.

The maths domain. The search visits first steps in random order and, within each, the second steps in a fixed one; it
never repeats a try, and keeps to results of 0 to 60.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from random import Random

from r1mini.records import Problem
from r1mini.tasks.trace import Try

LIMIT = 60  # results of a search stay within 0..LIMIT
PROMPT = {"en": "Make {target} from {numbers}.\n", "zh": "用 {numbers} 得 {target}。\n"}


def steps(a: int, b: int) -> list[tuple[str, int]]:
    """Every result of joining two numbers, the larger one first, once each: (text, result)."""
    a, b = max(a, b), min(a, b)
    found = [(f"{a}+{b}", a + b), (f"{a}-{b}", a - b), (f"{a}*{b}", a * b)]
    if b and a % b == 0:
        found.append((f"{a}/{b}", a // b))
    first = {value: text for text, value in reversed(found)}  # 2*2 after 2+2 would be the same try again
    return [(text, value) for text, value in found if value <= LIMIT and first[value] == text]


def search(numbers: tuple[int, ...], rng: Random) -> Iterator[tuple[list[str], str, int]]:
    """(steps written out, expression, result) of every way to join all numbers, depth first, first steps in random order."""

    def descend(terms: tuple[tuple[str, int], ...], written: list[str]):
        if len(terms) == 1:
            yield written, terms[0][0], terms[0][1]
            return
        moves = {}
        for i in range(len(terms)):
            for j in range(i):
                for text, value in steps(terms[i][1], terms[j][1]):
                    moves.setdefault(text, (i, j, value))  # equal numbers give the same step once
        ordered = list(moves.items())
        for text, (i, j, value) in ordered if written else rng.sample(ordered, len(ordered)):
            (left, a), (right, b) = terms[i], terms[j]
            if a < b:
                left, right = right, left
            operator = text.removeprefix(str(max(a, b)))[0]
            expression = operator.join(e if e.isdigit() else f"({e})" for e in (left, right))
            rest = tuple(term for index, term in enumerate(terms) if index not in (i, j))
            yield from descend(rest + ((expression, value),), [*written, f"{text}={value}"])

    yield from descend(tuple((str(n), n) for n in numbers), [])


@lru_cache(maxsize=None)
def reachable(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The targets of 10 to 50 that `numbers` (sorted) can make."""
    return tuple(sorted({value for _, _, value in search(numbers, Random(0)) if 10 <= value <= 50}))


def make(count: int):
    def generate(rng: Random, language: str) -> Problem | None:
        numbers = [rng.randint(1, 9) for _ in range(count)]
        targets = reachable(tuple(sorted(numbers)))
        if not targets:
            return None
        target = rng.choice(targets)
        return Problem(
            task="countdown" if count == 3 else f"countdown{count}",
            key=f"{sorted(numbers)} {target}",
            language=language,
            prompt=PROMPT[language].format(target=target, numbers=", ".join(map(str, numbers))),
            columns={"numbers": numbers, "target": target},
        )

    return generate


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    target = problem.columns["target"]
    for written, expression, value in search(tuple(problem.columns["numbers"]), rng):
        yield Try(f"{' '.join(written)} ?{target}", value == target, expression)


def mistake(problem: Problem, answer: str) -> str | None:
    used: list[int] = []
    value, target, numbers = evaluate(answer, used), problem.columns["target"], problem.columns["numbers"]
    if value is None:
        return "not an expression of + - * /"
    if Counter(used) != Counter(numbers):
        return f"uses {', '.join(map(str, used))}, not {', '.join(map(str, numbers))}"
    return None if value == target else f"{value} ≠ {target}"


def evaluate(text: str, used: list[int]) -> Fraction | None:
    """Exact value of an expression of + - * / and brackets over numbers of at most two ASCII digits, or None.

    Never `eval`: the text is at most 100 characters of a fixed alphabet, parsed by `ast`, and only the four operators
    and plain numbers are walked. The numbers met are appended to `used`.
    """
    if not text.strip() or len(text) > 100 or set(text) - set("0123456789+-*/() "):
        return None

    def walk(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Expression):
            return walk(node.body)
        if isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value <= 99:
            used.append(node.value)
            return Fraction(node.value)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        raise ValueError("not an expression of + - * /")

    try:
        return walk(ast.parse(text.strip(), mode="eval"))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}
