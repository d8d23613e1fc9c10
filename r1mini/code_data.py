"""Readers for public data of verifiable code [R1 §2.2.2]: their tests become what `sandbox.judge` takes.

Nothing is executed. Assert code is read from the syntax tree, and only where it means the same as one call with one
expected value; the rest is dropped and counted, for a test that is nearly right teaches the wrong thing. What `judge`
forgives or not holds here too: a returned tuple counts as a list, and 1.0 fails where the assert says 1. Left out:
problems with several right outputs, which data does not mark; whether reference solutions pass, which `judge` can tell.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path

from r1mini.data import Bad, entries
from r1mini.sandbox import prepare, text_lines
from r1mini.sandbox_child import OUTPUT_CAP, canonical


class Dropped(Exception):
    """A test or a row that cannot be judged exactly; the message is the reason that is counted."""


def collect(make: Callable[..., dict], candidates: Iterable[tuple]) -> tuple[list[dict], Counter]:
    """(Tests, why others were dropped): `make(*candidate)` of each, where the sandbox takes it and some output is due, and
    none asks for another result of the same call: tests run in processes of their own."""
    tests, dropped, results = [], Counter(), {}
    for candidate in candidates:
        try:
            test = make(*candidate)
            *given, expected = prepare("", test, "test")
            given = tuple(given)
            if len(expected) > OUTPUT_CAP or ("stdin" in test and not text_lines(expected)):
                raise Dropped("no output expected, or more than the sandbox takes")
            if results.setdefault(given, expected) != expected:
                raise Dropped("another result of a call that is tested already")
            tests.append(test)
        except Dropped as reason:
            dropped[str(reason)] += 1
        except (ValueError, RecursionError):  # NaN, integers too long, values too deep, half characters
            dropped["a value that is not JSON, or that the sandbox does not take"] += 1
    return tests, dropped


def literal(node: ast.expr, tuples: bool) -> object:
    """The JSON value that an expression spells out; a tuple as a list, where `tuples` allows it. Never evaluates."""
    match node:
        case ast.Constant(value=value) if value is None or type(value) in (bool, int, float, str):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if type(value) in (int, float):
            return -value
        case ast.Tuple() if not tuples:  # JSON would pass a list, which hashes, adds and compares differently
            raise Dropped("a tuple as argument")
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [literal(item, tuples) for item in items]
        case ast.Dict(keys=keys, values=values):
            if all(isinstance(key, ast.Constant) and type(key.value) is str for key in keys):
                return {key.value: literal(value, tuples) for key, value in zip(keys, values)}
    raise Dropped("not a literal of JSON's types")  # sets, bytes, other keys than strings; sums, names, calls


def exact(condition: ast.expr, name: str, call: str) -> dict:
    """The test that `assert condition` makes of the function `name`, which programs define as `call`. Exact are ==, either
    way round, and `is` with None, True or False; `not f(x)` is not, as 0, "" and None pass it too.
    >>> exact(ast.parse("f([1, -2]) == (3, 'a')", mode="eval").body, "f", "solve")
    {'call': 'solve', 'args': [[1, -2]], 'expect': [3, 'a']}
    """
    match condition:
        case (ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]) |
              ast.Compare(left=left, ops=[ast.Is()], comparators=[ast.Constant(value=None | True | False) as right])):
            left, right = (left, right) if isinstance(left, ast.Call) else (right, left)
        case _:  # f(x), not f(x), f(x) != y, abs(f(x) - y) < 1e-6
            raise Dropped("not a comparison by == with a value")
    match left:
        case ast.Call(func=ast.Name(id=found), args=args, keywords=[]) if found == name:
            return {"call": call, "args": [literal(arg, False) for arg in args], "expect": literal(right, True)}
    raise Dropped("not a plain call of the function")  # round(f(x), 2), sorted(f(x)), f(x)[0], f(n=1)


def parse(source: str) -> ast.Module:
    """The syntax tree of Python code; Dropped for anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in other people's code
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise Dropped("not Python") from None


def from_asserts(source: str, call: str, function: str | None = None) -> tuple[list[dict], Counter]:
    """The tests of `call` in assert code: at its top level, or in `function`, whose first parameter stands for `call`."""
    tree = parse(source)
    body, name, every = tree.body, call, sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
    if function:
        found = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == function and node.args.args]
        plain = found and not found[-1].decorator_list and not any(
            isinstance(node, (ast.Yield, ast.YieldFrom)) for node in ast.walk(found[-1])) and not {call, function} & {
            node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        body, name = (found[-1].body, found[-1].args.args[0].arg) if plain else ([], "")
    # Any other statement may rebind the name or end the function, so that nothing after it is sure.
    straight = takewhile(lambda node: isinstance(node, ast.Assert) or imports(node, name), body)
    asserts = [(node.test, name, call) for node in straight if isinstance(node, ast.Assert)]
    tests, dropped = collect(exact, asserts)
    return tests, +(dropped + Counter({"inside or after other statements": every - len(asserts)}))


def imports(node: ast.stmt, name: str = "") -> bool:
    """Is a statement an import that does not bind `name`?"""
    return isinstance(node, (ast.Import, ast.ImportFrom)) and not {name, "*"} & {a.asname or a.name.partition(".")[0] for a in node.names}


def column(row: dict, name: str, kind: type, default: object = None) -> object:
    """A column of one type, or that as JSON text; `default` for null, "" and a missing one. ValueError for another type."""
    value = default if row.get(name) in (None, "") else row[name]
    if kind is not str and isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"column {name!r}: not valid JSON ({error})") from None
        except (ValueError, RecursionError):  # APPS has integers of more digits than Python reads
            raise Dropped("a value that Python's JSON does not take") from None
    if not isinstance(value, kind):
        raise ValueError(f"column {name!r}: {kind.__name__} expected, not {value!r:.40}")
    return value


def asking(prompt: str, name: str, code: str) -> str:
    """The prompt, with the function's name. Dropped if `code` has it only in a class: the sandbox calls no methods."""
    name = re.escape(name)
    if re.search(rf"^[ \t]+def {name}\b", code, re.M) and not re.search(rf"^(def {name}\b|{name} *=)", code, re.M):
        raise Dropped("a method of a class")
    return prompt if re.search(rf"\b{name}\b", prompt) else f"{prompt}\n\nThe function is called {name}."


def pair(name: str | None, given: object, expected: object) -> dict:
    """The test of an input and an output: of the function `name`, or of text (in APPS also lists of lines)."""
    if not name:
        stdin, stdout = (side if isinstance(side, list) else [side] for side in (given, expected))
        if not all(isinstance(line, str) for line in stdin + stdout):
            raise Dropped("input or output that is not text")
        return {"stdin": "\n".join(stdin), "stdout": "\n".join(stdout)}
    if not isinstance(given, list) or re.search(r'"-?\d+": ', json.dumps([given, expected])):
        raise Dropped("arguments that are not a list, or keys that were numbers before JSON")
    return {"call": name, "args": given, "expect": expected}


def humaneval(row: dict) -> tuple[dict, tuple[list[dict], Counter]]:
    """HumanEval (arXiv 2107.03374, github.com/openai/human-eval): the canonical solution goes on where the prompt ends."""
    prompt, solution = column(row, "prompt", str), column(row, "canonical_solution", str)
    tests = from_asserts(column(row, "test", str), column(row, "entry_point", str), "check")
    return {"prompt": prompt, "solution": prompt + solution, "id": row.get("task_id")}, tests


def mbpp(row: dict) -> tuple[dict, tuple[list[dict], Counter]]:
    """MBPP (arXiv 2108.07732, github.com/google-research/google-research/tree/master/mbpp), also sanitized (`prompt`). The
    text names no function, so the first assert is shown; a row needs another, or a program could just repeat the answer."""
    text, code = column(row, "text" if "text" in row else "prompt", str), column(row, "code", str)
    asserts = [*column(row, "test_list", list), *column(row, "challenge_test_list", list, [])]
    setup = [*column(row, "test_imports", list, []), column(row, "test_setup_code", str, "")]
    if not asserts or not all(isinstance(source, str) for source in asserts + setup):
        raise ValueError("column 'test_list': a list of assert statements expected")
    if not all(map(imports, parse("\n".join(setup)).body)):
        raise Dropped("set-up code")
    defined = {node.name for node in parse(code).body if isinstance(node, ast.FunctionDef)}
    names = [node.id for node in ast.walk(parse(asserts[0])) if isinstance(node, ast.Name) and node.id in defined]
    if not names:
        raise Dropped("no call of a function of the reference")
    tests, dropped = from_asserts("\n".join(asserts), names[0])
    if tests and all(test in from_asserts(asserts[0], names[0])[0] for test in tests):
        tests, dropped = [], dropped + Counter({"shown in the prompt, with no other": len(tests)})
    return {"prompt": f"{text}\n\nExample:\n{asserts[0]}", "solution": code, "id": row.get("task_id")}, (tests, dropped)


def apps(row: dict) -> tuple[dict, tuple[list[dict], Counter]]:
    """APPS (arXiv 2105.09938, github.com/hendrycks/apps), and TACO. Its own judge takes the output of a call (`fn_name`)
    for the value or for a list around it; here it is a list around it where all of several outputs are lists of one."""
    prompt = f"{column(row, 'question', str)}\n\n{column(row, 'starter_code', str, '')}".strip()
    data, solution = column(row, "input_output", dict, {}), [*map(str, column(row, "solutions", list, [])), None][0]
    inputs, outputs, name = column(data, "inputs", list, []), column(data, "outputs", list, []), data.get("fn_name")
    if not inputs or len(inputs) != len(outputs):
        raise Dropped("no tests, or inputs without outputs")
    if name:
        prompt = asking(prompt, column(data, "fn_name", str), row.get("starter_code") or solution or "")
        if all(isinstance(output, list) and len(output) == 1 for output in outputs):
            if len(outputs) == 1:
                raise Dropped("one output that may be a list or in a list")
            outputs = [value for value, in outputs]
    fields = {"prompt": prompt, "solution": solution, "id": row.get("problem_id")}
    if "time_limit" in row:  # TACO's: "2.0 seconds", or none
        seconds = re.match(r"\d+(\.\d+)?", str(row["time_limit"]))
        fields["time_limit"] = float(seconds[0]) if seconds else 2.0
    return fields, collect(pair, [(name, *both) for both in zip(inputs, outputs)])


def open_r1_case(default: str | None, case: dict) -> dict:
    """The test of one of `test_cases`. A call's arguments are a list and its output a value, or both are JSON text."""
    name, kind, given, expected = case.get("fn_name") or default, case.get("type"), case.get("input"), case.get("output")
    if kind not in (None, "function_call" if name else "stdin_stdout"):
        raise Dropped("a type other than stdin_stdout, or than function_call with fn_name")
    if name and isinstance(expected, str):
        if not isinstance(given, str):  # what print shows: 3 or "3"
            raise Dropped("printed text in place of a value")
        expected = json.loads(expected)
    return pair(name, column(case, "input", list) if name else given, expected)


def open_r1_tests(info: dict) -> tuple[list[dict], Counter]:
    """The tests of a `verification_info`."""
    language, cases = column(info, "language", str, "python"), column(info, "test_cases", list, [])
    if language.lower() not in ("python", "python3"):
        raise Dropped(f"language {language}")
    if not cases or not all(isinstance(case, dict) for case in cases):
        raise Dropped("no tests")
    return collect(open_r1_case, [(info.get("fn_name"), case) for case in cases])


def open_r1(row: dict) -> tuple[dict, tuple[list[dict], Counter]]:
    """open-r1 (huggingface.co/datasets/open-r1/verifiable-coding-problems-python); github.com/PrimeIntellect-ai/genesys."""
    tests = open_r1_tests(column(row, "verification_info", dict))
    prompt = column(row, next((name for name in ("prompt", "problem", "problem_statement") if row.get(name)), "prompt"), str)
    solution = re.sub(r"(?s).*?```(?:python)?[ \t]*\n(.*?)```.*", r"\1", column(row, "gold_standard_solution", str, ""))
    for call in sorted({test["call"] for test in tests[0] if "call" in test}):
        prompt = asking(prompt, call, solution)
    return {"prompt": prompt, "solution": solution or None, "id": row.get("problem_id")}, tests


FORMATS = {"verification_info": open_r1, "entry_point": humaneval, "test_list": mbpp, "input_output": apps}  # by a column


def read_code(path: str | Path, bad: Bad = Bad()) -> tuple[list[dict], Counter]:
    """(Rows, counts) of a file. A row is what it was with "prompt", "tests", "solution" (or None), "id", "dropped" (tests that
    it lost) and its "place"; `summary` puts the counts into words. What is malformed goes to `bad`, with line and column."""
    rows, counts, reader = [], Counter(), None
    for where, row in entries(Path(path), bad):
        try:
            reader = reader or next((FORMATS[name] for name in FORMATS if isinstance(row, dict) and name in row), None)
            if reader is None or not isinstance(row, dict):
                raise ValueError(f"none of the columns {', '.join(FORMATS)} in {row!r:.80}")
            counts["rows"] += 1
            fields, (tests, dropped) = reader(row)
            if len({canonical(test.get("expect", test.get("stdout"))) for test in tests}) == 1:
                dropped["all expect the same, which a constant gives too"], tests = len(tests), []
            counts.update({"tests": len(tests) + dropped.total(), "tests kept": len(tests)})
            counts.update({f"test: {reason}": count for reason, count in dropped.items()})
            if not tests:
                raise Dropped("no test left")
            counts["rows kept"] += 1
            rows.append({**row, **fields, "tests": tests, "dropped": dropped.total(), "place": where})
        except ValueError as error:
            bad(f"{where}: {error}")
        except Dropped as reason:
            counts[f"row: {reason}"] += 1
    if not counts["rows"]:
        raise ValueError(f"{path}: no rows")
    return rows, counts


def summary(counts: Counter) -> str:
    """The counts in one line."""
    kept = ", ".join(f"{counts[f'{what} kept']} of {counts[what]} {what} kept" for what in ("rows", "tests"))
    return "; dropped ".join([kept, *(f"{reason} ({count})" for reason, count in counts.most_common() if ": " in reason)])
