"""Code debugging: a Python function with one planted bug, and two calls with the results they should have; the answer is
the mended line.

    1 def f(v):
    2  s=0
    3  for x in v:
    4   s=s*x
    5  return s+2
    Fix f: 3,1 ?6 & 2,5 ?9

Arithmetic, loops, conditions, lists and strings; the bug is a wrong operator, comparison, constant, function or name, or
operands in the wrong order. The search goes through the mends in a fixed order, from any of them on and round, and writes
out what each one computes. The reward puts the answer's line in place and runs the function on these and on hidden calls,
in the sandbox.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Iterator
from functools import lru_cache
from random import Random

from r1mini import sandbox
from r1mini.records import Problem
from r1mini.tasks.trace import Try

Program = tuple[str, ...]  # lines, indented by one space a level
Value = "int | str | tuple[int, ...]"

# Braces hold alternatives, # is a digit. In front, how often one is drawn: those with more to learn make more problems.
TEMPLATES = """\
18 def f(a,b):/ c=a{+ - *}{b #}/ return c{+ - *}{a b #}
15 def f(v):/ s={0 1}/ for x in v:/  s=s{+ *}x/ return s{+ - *}#
5 def f(v,b):/ s={0 1}/ for x in v:/  if x{< >}{b #}:/   s+={x b}/ return s
9 def f(w,b):/ c={max min sum}(w)/ return c{+ - *}{b #}
9 def f(s,t):/ c={s t}{+s +t *2 *3}/ return {c+s c+t s+c t+c c*2 c*3}""".splitlines()
TEXT = "def f(s,t):"
NAMES = {  # that may be mistaken for each other, and where
    "def f(a,b):": ("ab", r"(?<=c[-+*])[ab]$"), "def f(v,b):": ("xb", r"(?<==)[xb]$"), TEXT: ("st", r"(?<=[=+ ])[st]\b")}
ARGUMENTS = {
    "a": lambda rng: rng.randint(1, 9),
    "b": lambda rng: rng.randint(1, 9),
    "v": lambda rng: tuple(rng.randint(1, 9) for _ in range(rng.choice((2, 2, 3)))),
    "w": lambda rng: tuple(rng.randint(1, 9) for _ in range(3)),
    "s": lambda rng: rng.choice("ABC"),
    "t": lambda rng: rng.choice("DEG"),
}
PROMPT = {"en": "Fix f:{calls}\n", "zh": "改 f:{calls}\n"}
LIMIT = 60  # a search goes on with numbers of 0..60
MENDS = 8  # of a program at most, so that searches have one length
CALLS, SHOWN, HIDDEN = 20, 2, 8
LONGEST = 60  # characters of an answer
SECONDS = 0.5  # CPU time of all calls of an answer

# -- programs and their mends ------------------------------------------------------------------------------------------


def draw(rng: Random) -> Program:
    weights, programs = zip(*(template.split(" ", 1) for template in TEMPLATES))
    [template] = rng.choices(programs, list(map(int, weights)))
    chosen = re.sub(r"{(.*?)}", lambda hole: rng.choice(hole[1].split()), template)
    return tuple(re.sub("#", lambda _: str(rng.randint(2, 9)), chosen).split("/"))


@lru_cache(maxsize=None)
def mends(program: Program) -> tuple[Program, ...]:
    """Every program that could be the right one: another in one sign, constant, function or name, or in the order of two
    operands."""
    names, places = NAMES.get(program[0], ("", "$^"))
    tokens, ordered = rf"max|min|sum|(?<==)[01]|[-+*](?!=)|[<>]|{places}", "-"
    if program[0] == TEXT:  # of strings, + has an order
        tokens, ordered = rf"{places}|(?<=\*)[23]", "+"
    kinds = ("+-*", "<>", "01", "23" * (program[0] == TEXT), names, ("max", "min", "sum"))
    found = []
    for number, line in enumerate(program[1:], 1):
        changed = [line[: token.start()] + other + line[token.end() :]
                   for token in re.finditer(tokens, line) for kind in kinds if token[0] in kind
                   for other in kind if other != token[0]]
        operands = re.search(rf"(\w)([{ordered}])(\w)$", line)
        if operands and operands[1] != operands[3]:
            changed.append(line[: operands.start()] + operands[3] + operands[2] + operands[1])
        found += [(*program[:number], other, *program[number + 1 :]) for other in changed]
    return tuple(found)


def canonical(program: Program) -> Program:
    """The operands of + and * of numbers in order: `a+b` and `b+a` are one program."""
    if program[0] == TEXT:
        return program
    return tuple(re.sub(r"(\w)([+*])(\w)$", lambda m: min(m[1], m[3]) + m[2] + max(m[1], m[3]), line) for line in program)


def mirrored(program: Program) -> Program:
    """With `a` and `b` swapped, if they are arguments of one kind."""
    if program[0] != "def f(a,b):":
        return program
    return (program[0], *(line.translate(str.maketrans("ab", "ba")) for line in program[1:]))


# -- what a program computes, written out ------------------------------------------------------------------------------


class Left(Exception):
    """A value that no search goes on with."""


SIGNS = {ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
         ast.Lt: ("<", operator.lt), ast.Gt: (">", operator.gt)}
FUNCTIONS = {"max": max, "min": min, "sum": sum}


@lru_cache(maxsize=None)
def parsed(program: Program) -> ast.FunctionDef:
    return ast.parse("\n".join(program)).body[0]


class Run:
    """A walk through a program of this file. `steps` are its operations with their values, as in `3*2=6`, up to the
    first value that is out of bounds; then `result` is None."""

    def __init__(self, program: Program, call: tuple[Value, ...]):
        function = parsed(program)
        self.names = dict(zip((argument.arg for argument in function.args.args), call))
        self.steps: list[str] = []
        try:
            self.result: Value | None = self.block(function.body)
        except Left:
            self.result = None

    def block(self, body: list[ast.stmt]) -> Value | None:
        for node in body:
            result = None
            match node:
                case ast.Return(value=value):
                    result = self.value(value)
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    self.names[name] = self.value(value)
                case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                    self.names[name] = self.operation(op, self.names[name], self.value(value))
                case ast.For(target=ast.Name(id=name), iter=values, body=inner):
                    for self.names[name] in self.value(values):
                        self.block(inner)
                case ast.If(test=ast.Compare(left=left, ops=[op], comparators=[right]), body=inner):
                    (sign, compare), left, right = SIGNS[type(op)], self.value(left), self.value(right)
                    self.steps.append(f"{left}{sign}{right} {'T' if compare(left, right) else 'F'}")
                    if compare(left, right):
                        result = self.block(inner)
            if result is not None:
                return result
        return None

    def value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.names[name]
            case ast.BinOp(left=left, op=op, right=right):
                return self.operation(op, self.value(left), self.value(right))
            case ast.Call(func=ast.Name(id=name), args=[argument]):
                result = FUNCTIONS[name](self.value(argument))
                self.steps.append(f"{name} {result}")
                return result
        raise AssertionError(ast.dump(node))

    def operation(self, op: ast.operator, left: Value, right: Value) -> Value:
        sign, apply = SIGNS[type(op)]
        result = apply(left, right)
        within = isinstance(result, str) or 0 <= result <= LIMIT
        self.steps.append(f"{left}{sign}{right}" + f"={result}" * within)
        if not within:
            raise Left
        return result


@lru_cache(maxsize=None)
def calls(arguments: str) -> list[tuple[Value, ...]]:
    rng = Random(arguments)
    return list(dict.fromkeys(tuple(ARGUMENTS[name](rng) for name in arguments.split(",")) for _ in range(CALLS)))


@lru_cache(maxsize=None)
def outcomes(program: Program) -> dict[tuple[Value, ...], Value]:
    """The results of the calls that stay within the bounds."""
    found = {call: Run(program, call).result for call in calls(program[0][6:-2])}
    return {call: result for call, result in found.items() if result is not None}


# -- the task ----------------------------------------------------------------------------------------------------------


def generate(rng: Random, language: str) -> Problem | None:
    right = draw(rng)
    wrong = rng.choice(mends(right))
    candidates = mends(wrong)
    if right not in candidates or len(candidates) > MENDS:
        return None
    wanted, got = outcomes(right), outcomes(wrong)
    failing = [call for call in wanted if call in got and wanted[call] != got[call]]
    if len(failing) < 2 * SHOWN or len(wanted) < HIDDEN:
        return None
    failing.sort(key=lambda call: len(Run(right, call).steps))  # who reports a bug shows short calls
    shown = rng.sample(failing[: max(2 * SHOWN, len(failing) // 2)], SHOWN)
    for candidate in candidates:
        agrees = [call for call in wanted if outcomes(candidate).get(call) == wanted[call]]
        if set(shown) <= set(agrees) and len(agrees) < len(wanted):
            return None  # the calls that are shown leave more than one mend open
    hidden = rng.sample(list(wanted), HIDDEN)
    text = "".join(f"{number} {line}\n" for number, line in enumerate(wrong, 1))
    text += PROMPT[language].format(calls=" &".join(f"{written(call)} ?{wanted[call]}" for call in shown))
    pairs = [tuple(map(canonical, pair)) for pair in ((wrong, right), (mirrored(wrong), mirrored(right)))]
    return Problem("repair", " ".join(map("/".join, min(pairs))), language, text, {
        "program": wrong, "shown": [(call, wanted[call]) for call in shown],
        "hidden": [(call, wanted[call]) for call in hidden]})


def written(call: tuple[Value, ...]) -> str:
    """The arguments of a call as in the prompt: `3,1 5` for [3, 1] and 5."""
    return "".join(" " + (",".join(map(str, value)) if isinstance(value, tuple) else str(value)) for value in call)


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    program = problem.columns["program"]
    candidates = mends(program)
    first = rng.randrange(len(candidates))
    for candidate in candidates[first:] + candidates[:first]:  # who goes round in order tries nothing twice
        number = next(n for n, line in enumerate(candidate) if line != program[n])
        answer = f"{number + 1} {candidate[number].strip()}"
        text, good = answer, True
        for call, want in problem.columns["shown"]:
            run = Run(candidate, call)
            # The sign between the calls stands in the trace only where the next one begins: it says which to look up.
            text += " &" * (call != problem.columns["shown"][0][0]) + " ".join([written(call), *run.steps, f"?{want}"])
            good = run.result == want
            if not good:
                break
        yield Try(text, good, answer)


def mistake(problem: Problem, answer: str) -> str | None:
    program = problem.columns["program"]
    parts = re.fullmatch(r"([1-9]) +(\S[^\r\n]*)", answer.strip()) if len(answer) <= LONGEST else None
    if parts is None or not 1 < int(parts[1]) <= len(program):
        return f"not the number of a line, 2 to {len(program)}, and a line"
    number = int(parts[1]) - 1
    indentation = program[number][: -len(program[number].lstrip())]
    mended = (*program[:number], indentation + parts[2], *program[number + 1 :])
    cases = [*problem.columns["shown"], *problem.columns["hidden"]]
    return None if passes("\n".join(mended), json.dumps(cases)) else "the function still fails one of its calls"


@lru_cache(maxsize=10_000)
def passes(code: str, cases: str) -> bool:
    """Does `f` give what is wanted in every case, [[arguments, wanted], …]? All calls are one test: one process."""
    given, wanted = map(list, zip(*json.loads(cases)))
    every = "\n\ndef every(calls):\n return [f(*call) for call in calls]\n"
    return sandbox.judge(code + every, [{"call": "every", "args": [given], "expect": wanted}], SECONDS)
