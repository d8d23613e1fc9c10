"""Code debugging: a function with one planted bug and two failing calls; the answer is the mended line.

    def f(a,b):
     c=a+b
     return c*2
    f(3,1) is 8, not 4

The search goes through the mends in a fixed order, from any of them on and round. The reward puts the answer's line in
place and runs the function on hidden calls, by walking its syntax tree: integers, the three names and + - *, nothing else.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from random import Random

from r1mini.records import Problem
from r1mini.tasks.trace import Try

PROMPT = {
    "en": ("def f(a,b):\n c={first}\n return {second}\n", "f({a},{b}) is {got}, not {want}\n"),
    "zh": ("def f(a,b):\n c={first}\n return {second}\n", "f({a},{b}) 得 {got} 应为 {want}\n"),
}
APPLY = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y}
Expression = tuple[str, str, str]  # left operand, operator, right operand
Program = tuple[Expression, Expression]


def value(expression: Expression, names: dict[str, int]) -> int:
    left, operator, right = (names.get(part, part) for part in expression)
    return APPLY[operator](int(left), int(right))


def run(program: Program, a: int, b: int) -> tuple[int, int]:
    """The values of `c` and of the result."""
    c = value(program[0], {"a": a, "b": b})
    return c, value(program[1], {"a": a, "b": b, "c": c})


@lru_cache(maxsize=None)
def outcomes(program: Program) -> dict[tuple[int, int], int]:
    """The result of every call whose values are small and have no sign."""
    found = {(a, b): run(program, a, b) for a in range(1, 10) for b in range(1, 10)}
    return {call: result for call, (c, result) in found.items() if 0 <= c <= 60 and 0 <= result <= 60}


def mends(program: Program) -> Iterator[tuple[int, Expression]]:
    """Every mend that could be the right one: (line, expression) with another operator or a constant off by one."""
    for line, (left, operator, right) in enumerate(program):
        for other in APPLY:
            if other != operator:
                yield line, (left, other, right)
        if right.isdigit():
            for constant in (int(right) - 1, int(right) + 1):
                if 1 <= constant <= 9:
                    yield line, (left, operator, str(constant))


def replace(program: Program, line: int, expression: Expression) -> Program:
    return (expression, program[1]) if line == 0 else (program[0], expression)


def rename(program: Program) -> Program:
    swap = {"a": "b", "b": "a"}
    return tuple(tuple(swap.get(part, part) for part in expression) for expression in program)


def canonical(program: Program) -> Program:
    """The operands of + and * in order: `a+b` and `b+a` are one program."""
    return tuple((min(x, y), operator, max(x, y)) if operator in "+*" else (x, operator, y)
                 for x, operator, y in program)


def generate(rng: Random, language: str) -> Problem | None:
    x, y = rng.choice([("a", "b"), ("b", "a")])
    right = program = (
        (x, rng.choice("+-*"), rng.choice([y, y, str(rng.randint(2, 9))])),
        ("c", rng.choice("+-*"), rng.choice([x, y, str(rng.randint(2, 9)), str(rng.randint(2, 9))])),
    )
    wrong = replace(program, *rng.choice(list(mends(program))))
    candidates = [wrong, *(replace(wrong, *mend) for mend in mends(wrong))]

    calls = [call for call in outcomes(right) if all(call in outcomes(p) for p in candidates)]
    failing = [call for call in calls if outcomes(right)[call] != outcomes(wrong)[call]]
    if len(failing) < 2 or len(calls) < 8:
        return None
    shown, hidden = rng.sample(failing, 2), rng.sample(calls, 8)

    def agrees(program: Program, on: list[tuple[int, int]]) -> bool:
        return all(outcomes(program)[call] == outcomes(right)[call] for call in on)

    if any(agrees(candidate, shown) and not agrees(candidate, calls) for candidate in candidates):
        return None  # the two calls leave more than one mend open
    head, line = PROMPT[language]
    text = head.format(first="".join(wrong[0]), second="".join(wrong[1]))
    for a, b in shown:
        text += line.format(a=a, b=b, got=run(wrong, a, b)[1], want=run(right, a, b)[1])
    return Problem(
        task="repair",
        key=str(min(tuple(map(canonical, pair)) for pair in ((wrong, right), (rename(wrong), rename(right))))),
        language=language,
        prompt=text,
        columns={"program": wrong,
                 "shown": [(a, b, run(right, a, b)[1]) for a, b in shown],
                 "hidden": [(a, b, run(right, a, b)[1]) for a, b in hidden]},
    )


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    program = problem.columns["program"]
    candidates = list(mends(program))
    first = rng.randrange(len(candidates))
    for line, expression in candidates[first:] + candidates[:first]:  # who goes round in order tries nothing twice
        mended = replace(program, line, expression)
        answer = ("c=" if line == 0 else "return ") + "".join(expression)
        text, good = answer, True
        for a, b, want in problem.columns["shown"]:
            names = {"a": a, "b": b}
            for target, part in zip(("c", ""), mended):
                written = "".join(str(names.get(piece, piece)) for piece in part)
                names[target] = value(part, names)
                text += f" {written}={names[target]}"
            text += f" ?{want}"
            good = names[""] == want
            if not good:
                break
        yield Try(text, good, answer)


def parse_line(text: str) -> tuple[int, ast.expr] | None:
    """(line, syntax tree) of `c=…` or `return …` over a, b, c, numbers and + - *; None for anything else."""
    text = text.strip()
    if len(text) > 60 or not text.isascii():
        return None
    line, body = (0, text[2:]) if text.startswith("c=") else (1, text.removeprefix("return "))
    if line == 1 and body == text:
        return None
    try:
        tree = ast.parse(body.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        allowed = (
            isinstance(node, (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Load))
            or (isinstance(node, ast.Name) and node.id in ("a", "b", "c") and not (line == 0 and node.id == "c"))
            or (isinstance(node, ast.Constant) and type(node.value) is int and 0 <= node.value <= 99)
        )
        if not allowed:
            return None
    return line, tree


def evaluate(node: ast.expr, names: dict[str, int]) -> int:
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.Constant):
        return node.value
    operator = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}[type(node.op)]
    return APPLY[operator](evaluate(node.left, names), evaluate(node.right, names))


def mistake(problem: Problem, answer: str) -> str | None:
    parsed = parse_line(answer)
    if parsed is None:
        return "not a line c=… or return … over a, b, c, numbers and + - *"
    line, tree = parsed
    program = problem.columns["program"]
    for a, b, want in [*problem.columns["shown"], *problem.columns["hidden"]]:
        names = {"a": a, "b": b}
        names["c"] = evaluate(tree, names) if line == 0 else value(program[0], names)
        got = evaluate(tree, names) if line == 1 else value(program[1], names)
        if got != want:
            return f"f({a},{b}) is {got} ≠ {want}"
    return None
