"""Code debugging: a Python function with one bug, and two calls with the results they should have.

The answer is the corrected line.

    1 def f(v):
    2  s=0
    3  for x in v:
    4   s=s*x
    5  return s+2
    Fix f: 3,1 ?6 & 2,5 ?9

Arithmetic, loops, conditions, lists and strings. The bug is a wrong operator, comparison, constant,
function or name, or swapped operands. The search tries the possible fixes in a fixed order,
starting at a random one, and writes out what each computes. The reward replaces the answer's line
and runs the function on these calls and on hidden ones, in the sandbox.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from random import Random

from r1mini import sandbox
from r1mini.records import Problem
from r1mini.tasks.trace import Try

Program = tuple[str, ...]  # lines, indented by one space per level
Value = int | str | tuple[int, ...]
Call = tuple[Value, ...]  # the arguments
Cases = tuple[tuple[Call, Value], ...]  # calls with the results they should have

# A weight, then a program; braces hold alternatives, # is a digit. Programs with more to learn have
# larger weights.
TEMPLATES = """\
18 def f(a,b):/ c=a{+ - *}{b #}/ return c{+ - *}{a b #}
15 def f(v):/ s={0 1}/ for x in v:/  s=s{+ *}x/ return s{+ - *}#
5 def f(v,b):/ s={0 1}/ for x in v:/  if x{< >}{b #}:/   s+={x b}/ return s
9 def f(w,b):/ c={max min sum}(w)/ return c{+ - *}{b #}
9 def f(s,t):/ c={s t}{+s +t *2 *3}/ return {c+s c+t s+c t+c c*2 c*3}""".splitlines()
HARD_TEMPLATES = """\
10 def f(a,b):/ c=a{+ - *}{b #}/ d=c{+ - *}{b #}/ return d{+ -}{a c #}
10 def f(v,b):/ s={0 1}/ for x in v:/  s=s{+ *}x/  s=s{+ -}{b #}/ return s{+ - *}#
10 def f(v,b):/ s={0 1}/ for x in v:/  if x{< >}{b #}:/   s+={x b}/ return s{+ - *}#
10 def f(w,b):/ c={max min sum}(w)/ d={max min}(w)/ return c{+ - *}{d b}""".splitlines()
LONG_TEMPLATES = """\
10 def f(v,b):/ s={0 1}/ for x in v:/  s=s{+ *}x/  if s{< >}#:/   s=s{+ -}{b #}/ return s{+ - *}#
10 def f(w,b):/ c={max min sum}(w)/ d={max min sum}(w)/ e=c{+ -}d/ return e{+ - *}{b #}
10 def f(a,b):/ c=a{+ - *}{b #}/ d=c{+ - *}{b #}/ e=d{+ -}{a b #}/ return e{+ - *}#
10 def f(v,b):/ s={0 1}/ for x in v:/  if x{< >}{b #}:/   s+={x b}/  s=s{+ *}#/ return s{+ -}{b #}
""".splitlines()
STRINGS = "def f(s,t):"
NAMES = {  # first line: (the names that a bug may confuse, where)
    "def f(a,b):": ("ab", r"(?<=[cde][-+*])[ab]$"),
    "def f(v,b):": ("xb", r"(?<==)[xb]$"),
    STRINGS: ("st", r"(?<=[=+ ])[st]\b"),
}


def digit(rng: Random) -> int:
    return rng.randint(1, 9)


ARGUMENTS = {
    "a": digit,
    "b": digit,
    "v": lambda rng: tuple(digit(rng) for _ in range(rng.choice((2, 2, 3)))),
    "w": lambda rng: tuple(digit(rng) for _ in range(3)),
    "s": lambda rng: rng.choice("ABC"),
    "t": lambda rng: rng.choice("DEG"),
}
PROMPT = {"en": "Fix f:{calls}\n", "zh": "改 f:{calls}\n"}
LIMIT = 60  # the largest number in a search
MAX_FIXES, MAX_FIXES_HARD, MAX_FIXES_LONG = 8, 12, 16  # so that searches have similar lengths
CALLS, SHOWN, HIDDEN = 20, 2, 8
MAX_ANSWER = 60  # characters
TIME_LIMIT = 0.5  # seconds of CPU time for all calls of an answer

# -- programs and their possible fixes -------------------------------------------------------------


def random_program(templates: Sequence[str], rng: Random) -> Program:
    weights, programs = zip(*(template.split(" ", 1) for template in templates))
    [template] = rng.choices(programs, map(int, weights))
    text = re.sub(r"{(.*?)}", lambda hole: rng.choice(hole[1].split()), template)
    return tuple(re.sub("#", lambda _: str(rng.randint(2, 9)), text).split("/"))


@cache
def fixes(program: Program) -> tuple[Program, ...]:
    """Every program with one other sign, constant, function or name, or with swapped operands."""
    names, places = NAMES.get(program[0], ("", "$^"))
    tokens, ordered = rf"max|min|sum|(?<==)[01]|[-+*](?!=)|[<>]|{places}", "-"
    if program[0] == STRINGS:  # where the order matters for +
        tokens, ordered = rf"{places}|(?<=\*)[23]", "+"
    kinds = ("+-*", "<>", "01", "23", names, ("max", "min", "sum"))
    programs = []
    for number, line in enumerate(program):
        lines = []
        for token in re.finditer(tokens, line):
            for kind in kinds:
                for other in kind:
                    if token[0] in kind and other != token[0]:
                        lines.append(line[: token.start()] + other + line[token.end() :])
        operands = re.search(rf"(\w)([{ordered}])(\w)$", line)
        if operands and operands[1] != operands[3]:
            lines.append(line[: operands.start()] + operands[3] + operands[2] + operands[1])
        programs += [(*program[:number], other, *program[number + 1 :]) for other in lines]
    return tuple(programs)


def canonical(program: Program) -> Program:
    """Sorts the operands of + and * of numbers: `a+b` and `b+a` are the same program."""
    if program[0] == STRINGS:
        return program
    pattern = r"(\w)([+*])(\w)$"
    sort = lambda match: match[2].join(sorted(match.group(1, 3)))
    return tuple(re.sub(pattern, sort, line) for line in program)


def mirrored(program: Program) -> Program:
    """Swaps `a` and `b`, if both are arguments of one kind."""
    if program[0] != "def f(a,b):":
        return program
    return (program[0], *(line.translate(str.maketrans("ab", "ba")) for line in program[1:]))


# -- what a program computes -----------------------------------------------------------------------


SIGNS = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Lt: ("<", operator.lt),
    ast.Gt: (">", operator.gt),
}
FUNCTIONS = {"max": max, "min": min, "sum": sum}


@cache
def parse(program: Program) -> ast.FunctionDef:
    return ast.parse("\n".join(program)).body[0]


def run(program: Program, call: Call) -> tuple[Value | None, list[str]]:
    """Interprets one of this file's programs: (its result, its operations like `3*2=6`).

    It ends at the first value that is out of bounds; the result is then None.
    """
    function = parse(program)
    names = dict(zip((argument.arg for argument in function.args.args), call))
    steps = []

    def evaluate(node: ast.AST) -> Value | None:
        """The value of an expression or of a return statement; runs any other statement."""
        match node:
            case ast.Name(name):
                return names[name]
            case ast.Constant(value):
                return value
            case ast.BinOp(left, op, right):
                return operation(op, evaluate(left), evaluate(right))
            case ast.Call(callee, [argument]):
                result = FUNCTIONS[callee.id](evaluate(argument))
                steps.append(f"{callee.id} {result}")
                return result
            case ast.Assign([target], value):
                names[target.id] = evaluate(value)
            case ast.AugAssign(target, op, value):
                names[target.id] = operation(op, names[target.id], evaluate(value))
            case ast.For(target, items, body):
                for names[target.id] in evaluate(items):
                    for statement in body:
                        evaluate(statement)
            case ast.If(ast.Compare(left, [comparison], [right]), [body]):
                sign, compare = SIGNS[type(comparison)]
                left, right = evaluate(left), evaluate(right)
                holds = compare(left, right)
                steps.append(f"{left}{sign}{right} {'FT'[holds]}")
                if holds:
                    evaluate(body)
            case ast.Return(value):
                return evaluate(value)

    def operation(op: ast.operator, left: Value, right: Value) -> Value:
        sign, apply = SIGNS[type(op)]
        result = apply(left, right)
        within = isinstance(result, str) or 0 <= result <= LIMIT
        steps.append(f"{left}{sign}{right}" + f"={result}" * within)
        if not within:
            raise OverflowError
        return result

    try:
        *_, result = map(evaluate, function.body)  # the last line returns
    except OverflowError:
        result = None
    return result, steps


@cache
def calls(arguments: str) -> list[Call]:
    """Distinct argument tuples for functions with these arguments."""
    rng = Random(arguments)
    drawn = [tuple(ARGUMENTS[name](rng) for name in arguments.split(",")) for _ in range(CALLS)]
    return list(dict.fromkeys(drawn))


@cache
def results(program: Program) -> dict[Call, Value]:
    """The results of the calls that stay within the bounds."""
    by_call = {call: run(program, call)[0] for call in calls(program[0][6:-2])}
    return {call: result for call, result in by_call.items() if result is not None}


# -- the task --------------------------------------------------------------------------------------


def generate(rng: Random, language: str) -> Problem | None:
    return generate_from("repair", TEMPLATES, MAX_FIXES, rng, language)


def generate_hard(rng: Random, language: str) -> Problem | None:
    return generate_from("repair-hard", HARD_TEMPLATES, MAX_FIXES_HARD, rng, language)


def generate_long(rng: Random, language: str) -> Problem | None:
    return generate_from("repair-long", LONG_TEMPLATES, MAX_FIXES_LONG, rng, language)


def generate_from(
    task: str, templates: Sequence[str], max_fixes: int, rng: Random, language: str
) -> Problem | None:
    right = random_program(templates, rng)
    wrong = rng.choice(fixes(right))
    candidates = fixes(wrong)
    if right not in candidates or len(candidates) > max_fixes:
        return None
    expected, actual = results(right), results(wrong)
    failing = [call for call in expected if call in actual and expected[call] != actual[call]]
    if len(failing) < 2 * SHOWN or len(expected) < HIDDEN:
        return None
    failing.sort(key=lambda call: len(run(right, call)[1]))  # bug reports show short calls
    shown = rng.sample(failing[: max(2 * SHOWN, len(failing) // 2)], SHOWN)
    for candidate in candidates:
        agrees = [call for call in expected if results(candidate).get(call) == expected[call]]
        if set(shown) <= set(agrees) and len(agrees) < len(expected):
            return None  # a wrong fix also explains the calls that are shown
    hidden = rng.sample(list(expected), HIDDEN)
    listing = "".join(f"{number} {line}\n" for number, line in enumerate(wrong, 1))
    examples = " &".join(f"{format_call(call)} ?{expected[call]}" for call in shown)
    return Problem(
        task,
        bug_key(wrong, right),
        language,
        listing + PROMPT[language].format(calls=examples),
        {
            "program": wrong,
            "shown": [(call, expected[call]) for call in shown],
            "hidden": [(call, expected[call]) for call in hidden],
        },
    )


def bug_key(wrong: Program, right: Program) -> str:
    """The same for a bug, its mirror image, and other orders of operands."""
    plain = (canonical(wrong), canonical(right))
    mirror = (canonical(mirrored(wrong)), canonical(mirrored(right)))
    return " ".join("/".join(program) for program in min(plain, mirror))


def format_call(call: Call) -> str:
    """The arguments of a call as the prompt shows them: ` 3,1 5` for [3, 1] and 5."""
    lists = (value if isinstance(value, tuple) else (value,) for value in call)
    return "".join(" " + ",".join(map(str, values)) for values in lists)


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    program, shown = problem.columns["program"], problem.columns["shown"]
    candidates = fixes(program)
    start = rng.randrange(len(candidates))
    for candidate in candidates[start:] + candidates[:start]:  # in order, so that none repeats
        number = next(n for n, line in enumerate(candidate) if line != program[n])
        text = answer = f"{number + 1} {candidate[number].strip()}"
        for call, want in shown:
            result, steps = run(candidate, call)
            # The & stands only where the next call begins: it shows which call to look up.
            if call != shown[0][0]:
                text += " &"
            text += " ".join([format_call(call), *steps, f"?{want}"])
            if result != want:
                break
        yield Try(text, result == want, answer)


@lru_cache(maxsize=10_000)
def in_sandbox(code: str, cases: Cases) -> bool:
    """Does `f` return the expected value in every case, ((arguments, value), …)?

    One test makes all calls, so that one process is enough.
    """
    arguments, expected = map(list, zip(*cases))
    every = "\n\ndef every(calls):\n return [f(*call) for call in calls]\n"
    test = {"call": "every", "args": [arguments], "expect": expected}
    return sandbox.judge(code + every, [test], TIME_LIMIT)


def find_error(
    problem: Problem, answer: str, passes: Callable[[str, Cases], bool] = in_sandbox
) -> str | None:
    program = problem.columns["program"]
    parts = re.fullmatch(r"([2-9]) +(\S[^\r\n]*)", answer.strip())
    if len(answer) > MAX_ANSWER or not parts or int(parts[1]) > len(program):
        return f"must be a line number, 2 to {len(program)}, and a line"
    index = int(parts[1]) - 1
    indentation = re.match(" *", program[index])[0]
    fixed = (*program[:index], indentation + parts[2], *program[index + 1 :])
    if passes("\n".join(fixed), (*problem.columns["shown"], *problem.columns["hidden"])):
        return None
    return "the function still fails one of its calls"
