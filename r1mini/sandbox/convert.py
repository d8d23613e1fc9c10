"""Converts the tests of public code datasets into tests of the sandbox [R1 §2.2.2].

Executes nothing. Asserts are read from the syntax tree, and only where one means exactly one call
with one expected value; others are dropped and counted, because an almost correct test teaches the
wrong thing. Values compare as by Python's `==`, as in the datasets' own judges; but a returned
tuple also equals a list.
Left out: problems with several correct outputs, which the datasets do not mark.
"""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import takewhile
from typing import Any

from r1mini.sandbox import prepare
from r1mini.sandbox.child import canonical

Tests = tuple[list[dict], Counter]  # a row's tests, and the number dropped for each reason


class Dropped(ValueError):
    """A test or a row that cannot be judged exactly; the message is the reason to count."""


def collect(convert: Callable[..., dict], candidates: Iterable[tuple]) -> Tests:
    """`convert(*candidate)` of each candidate whose result the sandbox accepts.

    Also drops tests without output, and a second result for one call: each test runs in a process
    of its own.
    """
    tests, dropped, results = [], Counter(), {}
    for candidate in candidates:
        try:
            test = convert(*candidate)
            *request, expected = prepare(test, "test")
            if "stdin" in test and not expected.strip():
                raise Dropped("no expected output")
            if results.setdefault(tuple(request), expected) != expected:
                raise Dropped("a second result for a call that is already tested")
            tests.append(test)
        except Dropped as reason:
            dropped[str(reason)] += 1
        except (ValueError, RecursionError):  # NaN, long integers, deep values, lone surrogates
            dropped["a value that is not JSON, or that the sandbox does not accept"] += 1
    return tests, dropped


def literal(node: ast.expr, allow_tuples: bool) -> object:
    """The JSON value of a literal, without evaluating it; tuples become lists if allowed."""
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)):
            if type(value) in (int, float):
                return -value
        case ast.Tuple() if not allow_tuples:  # a list hashes, adds and compares differently
            raise Dropped("a tuple as argument")
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [literal(item, allow_tuples) for item in items]
        case ast.Dict(keys=keys, values=values):
            if all(isinstance(key, ast.Constant) and type(key.value) is str for key in keys):
                return {k.value: literal(v, allow_tuples) for k, v in zip(keys, values)}
    raise Dropped("not a JSON literal")  # sets, bytes, keys that are no strings, sums, names, calls


def assert_to_test(condition: ast.expr, name: str, call: str) -> dict:
    """The test that `assert condition` makes of the function `name`, which programs call `call`.

    It is == in either order, or `is` with None, True or False. `not f(x)` makes none: 0, "" and
    None pass it too.

    >>> condition = ast.parse("f([1, -2]) == (3, 'a')", mode="eval").body
    >>> assert_to_test(condition, "f", "solve")
    {'call': 'solve', 'args': [[1, -2]], 'equals': [3, 'a']}
    """
    match condition:
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            comparison = "equals"
        case ast.Compare(
            left=left,
            ops=[ast.Is()],
            comparators=[ast.Constant(value=None | True | False) as right],
        ):
            comparison = "expect"
        case _:  # f(x), not f(x), f(x) != y, abs(f(x) - y) < 1e-6
            raise Dropped("not a comparison by == with a value")
    if not isinstance(left, ast.Call):
        left, right = right, left
    match left:
        case ast.Call(func=ast.Name(id=called), args=args, keywords=[]) if called == name:
            arguments = [literal(arg, False) for arg in args]
            return {"call": call, "args": arguments, comparison: literal(right, True)}
    # round(f(x), 2), sorted(f(x)), f(x)[0], f(n=1)
    raise Dropped("not a plain call of the function")


def parse_python(source: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "\d" in other people's code
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise Dropped("not Python") from None


def from_asserts(source: str, call: str, function: str | None = None) -> Tests:
    """The tests of `call` in assert code.

    Reads the top level, or the body of `function`, whose first parameter stands for `call`.
    """
    tree = parse_python(source)
    body, name = tree.body, call
    if function:
        body, name = function_body(tree, call, function)
    # Any other statement may rebind the name or return: nothing after it is certain.
    certain = takewhile(lambda node: isinstance(node, ast.Assert) or is_import(node, name), body)
    asserts = [(node.test, name, call) for node in certain if isinstance(node, ast.Assert)]
    tests, dropped = collect(assert_to_test, asserts)
    total = sum(isinstance(node, ast.Assert) for node in ast.walk(tree))
    return tests, dropped + Counter({"inside or after other statements": total - len(asserts)})


def function_body(tree: ast.Module, call: str, function: str) -> tuple[list[ast.stmt], str]:
    """The statements and the first parameter of a plain function, whose name nothing rebinds."""
    definitions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == function and node.args.args
    ]
    assigned = {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if not definitions or {call, function} & assigned:
        return [], ""
    last = definitions[-1]
    yields = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(last))
    if yields or last.decorator_list:
        return [], ""
    return last.body, last.args.args[0].arg


def is_import(node: ast.stmt, name: str = "") -> bool:
    """Is a statement an import that does not bind `name`?"""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return False
    bound = {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    return not {name, "*"} & bound


def typed_column(row: dict, name: str, kind: type, default: object = None) -> Any:
    """A column of type `kind`, or its JSON text; `default` for null, "" and a missing column.

    ValueError for another type.
    """
    value = default if row.get(name) in (None, "") else row[name]
    if kind is not str and isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise ValueError(f"column {name!r}: not valid JSON: {value[:40]!r}") from None
        except (ValueError, RecursionError):  # APPS has integers with more digits than Python reads
            raise Dropped("a value that Python's JSON does not accept") from None
    if not isinstance(value, kind):
        raise ValueError(f"column {name!r}: must be {kind.__name__}, not {value!r:.40}")
    return value


def name_function(prompt: str, name: str, code: str) -> str:
    """The prompt with the function's name. Dropped if `code` has it only in a class: the sandbox
    calls no methods."""
    name = re.escape(name)
    defined = rf"^(def {name}\b|{name} *=)"
    if re.search(rf"^[ \t]+def {name}\b", code, re.M) and not re.search(defined, code, re.M):
        raise Dropped("a method of a class")
    if re.search(rf"\b{name}\b", prompt):
        return prompt
    return f"{prompt}\n\nThe function is called {name}."


def input_output_test(name: str | None, inputs: object, expected: object) -> dict:
    """The test of a call of `name`, or without a name of text (in APPS also lists of lines)."""
    if not name:
        stdin, stdout = (x if isinstance(x, list) else [x] for x in (inputs, expected))
        if not all(isinstance(line, str) for line in stdin + stdout):
            raise Dropped("input or output that is not text")
        return {"stdin": "\n".join(stdin), "stdout": "\n".join(stdout)}
    if not isinstance(inputs, list) or re.search(r'"-?\d+": ', json.dumps([inputs, expected])):
        raise Dropped("arguments that are not a list, or keys that were numbers before JSON")
    return {"call": name, "args": inputs, "equals": expected}


def humaneval_tests(row: dict) -> Tests:
    test, call = typed_column(row, "test", str), typed_column(row, "entry_point", str)
    tests, dropped = from_asserts(test, call, "check")
    setup = prompt_setup(row["prompt"], call)
    return [{**test, "setup": setup} if setup else test for test in tests], dropped


def prompt_setup(prompt: str, name: str) -> str:
    """What stands before the function `name` in a prompt, if that is Python: imports and helpers,
    which programs may leave out.

    >>> prompt_setup("import math\\n\\ndef f(x):\\n    'The root of x.'\\n", "f")
    'import math\\n\\n'
    """
    match = re.match(rf"((?:.*\n)*?)(?:@.*\n)*(?:async )?def {re.escape(name)}\b", prompt)
    setup = match[1].lstrip() if match else ""
    with suppress(Dropped):
        parse_python(setup)
        return setup
    return ""


def mbpp_asserts(row: dict) -> list[str]:
    asserts = [
        *typed_column(row, "test_list", list),
        *typed_column(row, "challenge_test_list", list, []),
    ]
    if not asserts or not all(isinstance(source, str) for source in asserts):
        raise ValueError("column 'test_list': must be a list of assert statements")
    return asserts


def mbpp_tests(row: dict) -> Tests:
    """The prompt shows the first assert. A row needs another, or a program could just repeat it."""
    asserts = mbpp_asserts(row)
    setup = [
        *typed_column(row, "test_imports", list, []),
        typed_column(row, "test_setup_code", str, ""),
    ]
    if not all(is_import(node) for node in parse_python("\n".join(map(str, setup))).body):
        raise Dropped("set-up code")
    code = parse_python(typed_column(row, "code", str))
    defined = {node.name for node in code.body if isinstance(node, ast.FunctionDef)}
    calls = [
        node.id
        for node in ast.walk(parse_python(asserts[0]))
        if isinstance(node, ast.Name) and node.id in defined
    ]
    if not calls:
        raise Dropped("no call to a function of the reference solution")
    tests, dropped = from_asserts("\n".join(asserts), calls[0])
    shown, _ = from_asserts(asserts[0], calls[0])
    if tests and all(test in shown for test in tests):
        return [], dropped + Counter({"shown in the prompt, and no other test": len(tests)})
    return tests, dropped


def apps_tests(row: dict) -> Tests:
    """APPS' own judge accepts the output of a call (`fn_name`) as the value, or as a list around
    it.

    Here it is a list around it if each of several outputs is a list of one.
    """
    data = typed_column(row, "input_output", dict, {})
    inputs = typed_column(data, "inputs", list, [])
    outputs = typed_column(data, "outputs", list, [])
    name = typed_column(data, "fn_name", str, "")
    if not inputs or len(inputs) != len(outputs):
        raise Dropped("no tests, or inputs without outputs")
    if name and all(isinstance(output, list) and len(output) == 1 for output in outputs):
        if len(outputs) == 1:
            raise Dropped("one output that may be a list or in a list")
        outputs = [output[0] for output in outputs]
    return collect(input_output_test, [(name, *pair) for pair in zip(inputs, outputs)])


def open_r1_test(default: str | None, case: dict) -> dict:
    """One of `test_cases`. A call's arguments are a list and its output a value, or both JSON
    text."""
    name, inputs, expected = case.get("fn_name") or default, case.get("input"), case.get("output")
    if case.get("type") not in (None, "function_call" if name else "stdin_stdout"):
        raise Dropped("a type other than stdin_stdout, or than function_call with fn_name")
    if name and isinstance(expected, str):
        if not isinstance(inputs, str):  # what print shows: 3 or "3"
            raise Dropped("printed text in place of a value")
        expected = json.loads(expected)
    return input_output_test(name, typed_column(case, "input", list) if name else inputs, expected)


def open_r1_tests(info: dict) -> Tests:
    """The tests of a `verification_info`, as in github.com/PrimeIntellect-ai/genesys."""
    language = typed_column(info, "language", str, "python")
    cases = typed_column(info, "test_cases", list, [])
    if language.lower() not in ("python", "python3"):
        raise Dropped(f"language {language}")
    if not cases or not all(isinstance(case, dict) for case in cases):
        raise Dropped("no tests")
    return collect(open_r1_test, [(info.get("fn_name"), case) for case in cases])


def open_r1_row_tests(row: dict) -> Tests:
    return open_r1_tests(typed_column(row, "verification_info", dict))


def drop_constant(tests: list[dict], dropped: Counter) -> Tests:
    """Drops all tests of a row if they expect the same value: a constant would pass them."""
    expected = {
        canonical(value, exact=False)
        for test in tests
        for name, value in test.items()
        if name in ("equals", "expect", "stdout")
    }
    if len(expected) != 1:
        return tests, dropped
    return [], dropped + Counter({"all expect the same, so a constant passes": len(tests)})


def summary(counts: Counter) -> str:
    """The counts in one line."""
    kept = [f"{counts[f'{what} kept']} of {counts[what]} {what} kept" for what in ("rows", "tests")]
    reasons = [f"{reason} ({n})" for reason, n in counts.most_common() if ": " in reason]
    return "; dropped ".join([", ".join(kept), *reasons])
