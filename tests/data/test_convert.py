"""Conversion of code datasets, on handwritten rows: what is exact, what is dropped, what is an error."""

import ast
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import example, given
from hypothesis import strategies as st

from r1mini import sandbox
from r1mini.data.files import RowErrors
from r1mini.data.problems import add_tests, read_problems
from r1mini.data.rows import convert_rows
from r1mini.sandbox import child
from r1mini.sandbox.convert import Dropped, assert_to_test, from_asserts, summary

from .samples import with_sandbox, write

HUMANEVAL = {
    "task_id": "HumanEval/900",
    "entry_point": "halve",
    "prompt": 'def halve(numbers):\n    """Half of each even number.\n'
    '    >>> halve([2, 3])\n    [1]\n    """\n',
    "canonical_solution": "    return [n // 2 for n in numbers if n % 2 == 0]\n",
    "test": "\n\nMETADATA = {'author': 'x', 'dataset': 'test'}\n\n\n"
    "def check(candidate):\n    import random\n"
    "    # simple cases\n    assert candidate([2, 3, -4]) == [1, -2]\n    assert "
    "candidate([]) == [], 'empty'\n    for n in range(5):\n        assert candidate([2 * "
    "n]) == [n]\n    assert sum(candidate([2, 4])) == 3\n    assert True, 'edge cases'\n",
}
MBPP = {
    "task_id": 901,
    "text": "Write a function to swap the ends of a list.",
    "code": "def swap(a):\r\n  return [a[-1]] + a[1:-1] + [a[0]]",
    "test_setup_code": "",
    "test_list": [
        "assert swap([1, 2, 3]) == [3, 2, 1]",
        "assert swap(['a', None]) == (None, 'a')",
        "assert set(swap([1, 2])) == {1, 2}",
    ],
    "challenge_test_list": ["assert swap([1.5, True, {'k': 0}]) == [{'k': 0}, True, 1.5]"],
}
SANITIZED = {
    "source_file": "x",
    "task_id": 902,
    "prompt": "Write a function to add one.",
    "code": "def inc(n): return n + 1",
    "test_imports": ["import math"],
    "test_list": [
        "assert inc(1) == 2",
        "assert math.isclose(inc(0.5), 1.5)",
        "assert 0 == inc(-1)",
    ],
}
APPS = {
    "problem_id": 903,
    "question": "Print the sum of the two numbers.",
    "difficulty": "interview",
    "url": "",
    "starter_code": "",
    "solutions": json.dumps(
        [
            "a, b = map(int, input().split())\nprint(a + b)\n",
            "print(sum(map(int, input().split())))",
        ]
    ),
    "input_output": json.dumps({"inputs": ["1 2\n", ["5 -7", ""]], "outputs": ["3\n", ["-2"]]}),
}
APPS_CALL = {
    **APPS,
    "starter_code": "def add(a, b):\n\t",
    "solutions": '["def add(a, b):\\n  return a + b"]',
    "input_output": json.dumps(
        {"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [[3], [[1, 2]]]}
    ),
}
OPEN_R1 = {
    "problem_id": "vcp_904",
    "source": "x",
    "task_type": "verifiable_code",
    "prompt": "Read a line, print it reversed.",
    "gold_standard_solution": "Here it is:\n```python\nprint(input()[::-1])\n```\n",
    "metadata": {},
    "verification_info": {
        "language": "python",
        "test_cases": [
            {"fn_name": None, "input": "abc\n", "output": "cba\n", "type": "stdin_stdout"},
            {"input": "de\n", "output": "ed\n", "type": "stdin_stdout"},
            {"input": "\n", "output": "\n", "type": "stdin_stdout"},
        ],
    },
}
OPEN_R1_CALL = {
    **OPEN_R1,
    "prompt": "Reverse a list.",
    "gold_standard_solution": "def turn(a, n=1):\n    return a[::-1] * n",
    "verification_info": json.dumps(
        {
            "language": "python",
            "fn_name": "turn",
            "test_cases": [
                {"type": "function_call", "input": [[1, "x"]], "output": ["x", 1]},
                {
                    "type": "function_call",
                    "fn_name": "turn",
                    "input": "[[1, 2], 2]",
                    "output": "[2, 1, 2, 1]",
                },
                {"type": "function_call", "input": [["y"]], "output": "['y']"},
                {"type": "stdin_stdout", "input": "1", "output": "1"},
            ],
        }
    ),
}
ROWS = {
    "humaneval": HUMANEVAL,
    "mbpp": MBPP,
    "sanitized": SANITIZED,
    "apps": APPS,
    "apps_call": APPS_CALL,
    "open_r1": OPEN_R1,
    "open_r1_call": OPEN_R1_CALL,
}
WRONG = {  # programs that a policy would try first, and honest mistakes
    "humaneval": [
        "def halve(numbers): return [n * 2 for n in numbers if n % 2 == 0]",
        "def halve(numbers): return []",
        HUMANEVAL["prompt"] + "    return [1]\n",
    ],
    "mbpp": ["def swap(a): return [3, 2, 1]", "def swap(a): return a[::1]"],
    "sanitized": ["def inc(n): return 2", "def inc(n): return n + 1.5"],
    "apps": ["print(3)", "a, b = map(int, input().split())\nprint(a - b)", ""],
    "apps_call": ["def add(a, b): return [a + b]", "def add(a, b): return 3"],
    "open_r1": ["print(input())", "print('cba')\nprint('x')", ""],
    "open_r1_call": ["def turn(a, n=1): return a", "def turn(a, n=1): return ['x', 1]"],
}


def read(tmp_path, *rows):
    return read_file(write(tmp_path, *rows))


def read_file(path):
    """(columns of the kept rows, counts) of a code dataset."""
    errors, kept = RowErrors(), []

    def convert(each):
        kept.append({**add_tests(each, errors.counts).columns, "place": each.place})

    try:
        convert_rows(Path(path), convert, errors, "", "", ())
    except ValueError as error:
        if kept or str(error) != f"{path}: no rows":
            raise
    return kept, errors.counts


@with_sandbox
@pytest.mark.parametrize("name", ROWS)
def test_reference_solution_passes_and_wrong_programs_fail(tmp_path, name):
    (row,), _ = read(tmp_path, ROWS[name])
    assert len(row["tests"]) >= 2
    assert sandbox.judge(row["solution"], row["tests"], 2)
    for program in WRONG[name]:
        assert not sandbox.judge(program, row["tests"], 2), program


TESTS = {
    "humaneval": ([("halve", [[2, 3, -4]], [1, -2]), ("halve", [[]], [])], 3),
    "mbpp": (
        [
            ("swap", [[1, 2, 3]], [3, 2, 1]),
            ("swap", [["a", None]], [None, "a"]),
            ("swap", [[1.5, True, {"k": 0}]], [{"k": 0}, True, 1.5]),
        ],
        1,
    ),
    "sanitized": ([("inc", [1], 2), ("inc", [-1], 0)], 1),
    "apps": ([("1 2\n", "3\n"), ("5 -7\n", "-2")], 0),
    "apps_call": ([("add", [1, 2], 3), ("add", [[1], [2]], [1, 2])], 0),
    "open_r1": ([("abc\n", "cba\n"), ("de\n", "ed\n")], 1),
    "open_r1_call": ([("turn", [[1, "x"]], ["x", 1]), ("turn", [[1, 2], 2], [2, 1, 2, 1])], 2),
}


@pytest.mark.parametrize("name", ROWS)
def test_converted_rows(tmp_path, name):
    (row,), counts = read(tmp_path, ROWS[name])
    tests, dropped = TESTS[name]
    assert [tuple(test.values()) for test in row["tests"]] == tests
    assert (
        row["dropped"] == dropped
        and counts["tests"] == dropped + len(tests) == counts["tests kept"] + dropped
    )
    assert sum(count for key, count in counts.items() if key.startswith("test: ")) == dropped
    assert counts["rows"] == counts["rows kept"] == 1
    assert json.loads(json.dumps(row)) == row
    assert all(
        word in row["prompt"] for word in {test["call"] for test in row["tests"] if "call" in test}
    )


FLOATS = {
    "task_id": 1,
    "text": "Sum n terms from a with step d.",
    "code": "def ap_sum(a, n, d):\n    return (n * (2 * a + (n - 1) * d)) / 2",
    "test_list": [
        "assert ap_sum(1,5,2)==25",
        "assert ap_sum(2,6,4)==72",
        "assert ap_sum(1,4,5)==34",
    ],
    "test_setup_code": "",
    "challenge_test_list": [],
}
NO_IMPORT = {
    "task_id": "HumanEval/x",
    "prompt": 'from typing import List\n\n\ndef total(xs: List[int]) -> int:\n    """ Sum. """\n',
    "entry_point": "total",
    "canonical_solution": "    return sum(xs)\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == 0\n",
    "completion": "```python\ndef total(xs: List[int]) -> int:\n    return sum(xs)\n```",
}


@with_sandbox
def test_values_of_asserts_compare_as_pythons_operator(tmp_path):
    (row,), _ = read(tmp_path, FLOATS)
    assert sandbox.judge(row["solution"], row["tests"], 2)
    assert sandbox.judge(row["solution"].replace("/ 2", "// 2"), row["tests"], 2)
    for wrong in ("/ 2 + 1e-9", "/ 3", "/ 2 if n > 4 else None"):
        assert not sandbox.judge(row["solution"].replace("/ 2", wrong), row["tests"], 2)
    for asserts, right, wrong in [
        (["f(1) == True", "f(2) == False"], "x % 2", "-x"),
        (["f(1) == 0.5", "f(2) == 1"], "x / 2", "x // 2"),
        (["f(4) == [2, 16.0]", "f(9) == [3, 81]"], "(x ** 0.5, x * x)", "(x ** 0.5, str(x * x))"),
        (["f(1) is True", "f(0) is False"], "x == 1", "x"),
    ]:
        asserts = [f"assert {each}" for each in asserts]
        (row,), _ = read(
            tmp_path, {**FLOATS, "code": f"def f(x): return {right}", "test_list": asserts}
        )
        assert sandbox.judge(row["solution"], row["tests"], 2), asserts
        assert not sandbox.judge(f"def f(x): return {wrong}", row["tests"], 2), asserts


@pytest.mark.parametrize("value", ["1", "1.0", "True"])
def test_a_constant_that_equals_every_value_is_no_row(tmp_path, value):
    asserts = ["assert f(1) == 1", f"assert f(2) == {value}", f"assert f(3) is {value == '1'}"]
    row = {**FLOATS, "code": "def f(x): return 1", "test_list": asserts[: 3 if value == "1" else 2]}
    assert not read(tmp_path, row)[0]


def humaneval(setup, body, **columns):
    prompt = f'{setup}def total(xs):\n    """ Sum. """\n'
    return {**NO_IMPORT, "prompt": prompt, "canonical_solution": body, **columns}


@with_sandbox
@pytest.mark.parametrize(
    "row, function, wrong",
    [
        (NO_IMPORT, NO_IMPORT["completion"][10:-3], "def total(xs):\n    return [0, 3][len(List)]"),
        (
            humaneval("import math\n\n\n", "    return math.fsum(xs)\n"),
            "def total(xs):\n    return int(math.fsum(xs))",
            "def total(xs):\n    return int(statistics.fsum(xs))",
        ),
        (
            humaneval("def add(a, b):\n    return a + b\n\n", "    return add(0, sum(xs))\n"),
            "def total(xs):\n    s = 0\n    for x in xs: s = add(s, x)\n    return s",
            "def total(xs):\n    s = 0\n    for x in xs: s = sub(s, x)\n    return s",
        ),
        (
            humaneval('"""Sums."""\nZERO = 0\n@print\n', "    return sum(xs, ZERO)\n"),
            "def total(xs):\n    return sum(xs, ZERO)",
            "def total(xs):\n    return sum(xs, ONE)",
        ),
        (
            humaneval("Write it:\n\n```python\nimport math\n\n", "    return sum(xs)\n"),
            "import math\ndef total(xs):\n    return int(math.fsum(xs))",
            "def total(xs):\n    return int(math.fsum(xs))",
        ),
        (
            humaneval("Please:\n", "    return sum(xs)\n"),
            "def total(xs):\n    return sum(xs)",
            "def totals(xs):\n    return sum(xs)",
        ),
    ],
)
def test_imports_and_helpers_of_a_prompt_stand_before_the_function(tmp_path, row, function, wrong):
    [kept], _ = read(tmp_path, row)
    assert sandbox.judge(function, kept["tests"], 2)
    for program in (wrong, "", "pass", row["prompt"]):
        assert not sandbox.judge(program, kept["tests"], 2), program


def test_prompts_state_the_signature_but_no_hidden_test(tmp_path):
    (row,), _ = read(tmp_path, MBPP)
    assert row["prompt"] == MBPP["text"] + "\n\nExample:\nassert swap([1, 2, 3]) == [3, 2, 1]"
    (row,), _ = read(tmp_path, APPS_CALL)
    assert row["prompt"] == "Print the sum of the two numbers.\n\ndef add(a, b):"
    (row,), _ = read(tmp_path, {**APPS_CALL, "starter_code": None})
    assert row["prompt"].endswith("\n\nThe function is called add.")
    (row,), _ = read(tmp_path, {**OPEN_R1_CALL, "prompt": None, "problem": "Define turn(a)."})
    assert row["prompt"] == "Define turn(a)."


EXACT = {
    "f(1) == 2": ([1], 2),
    "f(1) == 2, 'message'": ([1], 2),
    "(f(1)) == (2)": ([1], 2),
    "2 == f(1)": ([1], 2),
    "f() is None": ([], None),
    "f() is True": ([], True),
    "f() == False": ([], False),
    "f(-1, -0.5) == -2.5": ([-1, -0.5], -2.5),
    "f('a' 'b', None) == ''": (["ab", None], ""),
    "f([[1, [2]], {}]) == {'a': [1, (2, ())]}": ([[[1, [2]], {}]], {"a": [1, [2, []]]}),
    "f(0x10, 1_000, 1e3) == 10000000000000000000000": ([16, 1000, 1000.0], 10**22),
    "f('é\\n') == 'ß'": (["é\n"], "ß"),
}


@pytest.mark.parametrize("text", EXACT)
def test_exact_asserts_become_tests(text):
    args, value = EXACT[text]
    (test,), dropped = from_asserts(f"assert {text}", "f")
    name = "expect" if " is " in text else "equals"
    assert test == {"call": "f", "args": args, name: value} and not dropped
    assert repr(test[name]) == repr(value)  # True is not 1, 1 is not 1.0


INEXACT = {
    "not a comparison by == with a value": [
        "f(1)",
        "not f(1)",
        "True",
        "f(1) != 2",
        "f(1) < 2",
        "abs(f(1) - 0.5) < 1e-6",
        "f(1) is 2",
        "f(1) is not None",
        "f(1) in (1, 2)",
        "f(1) == f(2) == 3",
        "1 == f(1) == 1",
        "f(1) == 1 is True",
        "f(1) == 2 and f(2) == 3",
        "f(1) == 2 or True",
        "(f(1) == 2, 'always true')",
        "all(f(n) == n for n in [1])",
        "math.isclose(f(1), 2.0)",
        "(lambda: f(1) == 2)()",
        "not f(1) == 2",
        "None is f(1)",
    ],
    "not a plain call of the function": [
        "round(f(1), 2) == 0.5",
        "sorted(f(1)) == [1]",
        "set(f(1)) == {1}",
        "f(1)[0] == 1",
        "g(1) == 2",
        "o.f(1) == 2",
        "f(1)(2) == 3",
        "f(n=1) == 2",
        "f(**{}) == 2",
        "len([1]) == 1",
        "1 == 1",
        "f == 1",
        "(x := f(1)) == 2",
        "-f(1) == 2",
        "(f(1) == 2) == True",
        "None is None",
    ],
    "not a JSON literal": [
        "f(x) == 2",
        "f(1) == f(2)",
        "f(1) == {1, 2}",
        "f({1}) == 2",
        "f(b'a') == 2",
        "f(1j) == 2",
        "f(1) == 10 ** 9",
        "f(1 + 1) == 2",
        "f([0] * 3) == 2",
        "f(*[1]) == 2",
        "f(1) == set()",
        "f(...) == 2",
        "f(f'{1}') == 2",
        "f(-True) == 2",
        "f(not 1) == 2",
        "f([n for n in [1]]) == 2",
        "f(1) == __import__('os')",
        "f(1) == [*[1]]",
        "f(lambda: 1) == 2",
        "f({1: 2}) == 3",
        "f(1) == {1: 2}",
        "f(1) == {**{}}",
        "f(1) == {None: 1}",
    ],
    "a tuple as argument": ["f((1, 2)) == 3", "f([(1, 2)]) == 3", "f({'a': ()}) == 3"],
    "a value that is not JSON, or that the sandbox does not accept": [
        "f(1e999) == 1",
        "f(1) == -1e999",
    ],
}


@pytest.mark.parametrize(
    ("reason", "text"), [(reason, text) for reason, texts in INEXACT.items() for text in texts]
)
def test_inexact_asserts_are_dropped_with_a_reason(reason, text):
    assert from_asserts(f"assert {text}", "f") == ([], {reason: 1})


@pytest.mark.parametrize(
    "text",
    [
        "f(1) = 2",
        "f(" + "[" * 999 + "]" * 999 + ") == 1",
        "f(1) == '\0'",
        "f(" + "-" * 99999 + "1) == 1",
        "f(1) ==",
        "f " * 9,
    ],
    ids=range(6),
)
def test_invalid_python_is_dropped(text):
    with pytest.raises(Dropped, match="^not Python$"):
        from_asserts(f"assert {text}", "f")


def test_conflicting_results_of_one_call_are_dropped():
    tests, dropped = from_asserts(
        "assert f(1) == 1\nassert f(1) == 2\nassert f(1) == 1\nassert f(2) == 1", "f"
    )
    assert [(test["args"], test["equals"]) for test in tests] == [([1], 1), ([1], 1), ([2], 1)]
    assert dropped == {"a second result for a call that is already tested": 1}


def test_only_leading_asserts_are_read():
    after = "inside or after other statements"
    for lines in [
        ["candidate = len"],
        ["return"],
        ["if 1: raise ValueError"],
        ["def candidate(n): return n"],
        ["import candidate"],
        ["import math as candidate"],
        ["from math import sqrt as candidate"],
        ["for candidate in [len]: pass"],
        ["(candidate := len)"],
        ["if False:", "    assert candidate(1) == 1"],
        ["try:", "    assert candidate(1) == 1", "except AssertionError: pass"],
        ["def helper():", "    assert candidate(1) == 1"],
    ]:
        source = "def check(candidate):\n    import math\n    assert candidate(0) == 1\n"
        source += "".join(f"    {line}\n" for line in [*lines, "assert candidate(2) == 1"])
        tests, dropped = from_asserts(source, "f", "check")
        assert [test["args"] for test in tests] == [[0]] and set(dropped) == {after}, source
        assert dropped[after] == source.count("assert ") - 1
    assert from_asserts("from x import *\nassert f(1) == 1", "f") == ([], {after: 1})
    assert from_asserts(
        "assert f(1) == 1\ndef check(c):\n    assert c(1) == 1; assert f(1) == 1", "f", "check"
    ) == (
        [{"call": "f", "args": [1], "equals": 1}],
        {"not a plain call of the function": 1, after: 1},
    )
    for source in (
        "@twice\ndef check(candidate):\n    assert candidate(1) == 1",
        "def check(candidate):\n    assert candidate(1) == 1\n    yield",
        "def check(candidate):\n    assert candidate(1) == 1\ncheck = print",
        "def check(candidate):\n    assert candidate(1) == 1\nf = abs",
        "def check(candidate):\n    import candidate.x\n    assert candidate(1) == 1",
    ):
        assert from_asserts(source, "f", "check") == ([], {after: 1})
    assert from_asserts("def test(candidate):\n    assert candidate(1) == 1", "f", "check") == (
        [],
        {after: 1},
    )


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=9,
)


@given(VALUES, VALUES)
def test_json_values_are_read_as_python_literals(arg, value):
    (test,), dropped = from_asserts(f"assert f({arg!r}) == {value!r}", "f")
    assert repr((test["args"], test["equals"])) == repr(([arg], value)) and not dropped


@given(st.text() | st.text(alphabet="assertf()[]{}=:,'\"1-. \n"))
@example("assert f(1) == " + "1" * 9999)
@example("def check(a, *, b): assert a(1) == 1")
@example("async def check(a): pass")
def test_no_source_text_raises_an_error(source):
    for function in (None, "check"):
        try:
            from_asserts(source, "f", function)
        except Dropped as reason:
            assert str(reason) == "not Python"


def test_literals_are_never_evaluated():
    node = ast.parse("f(__import__('os').abort()) == 1", mode="eval").body
    with pytest.raises(Dropped):
        assert_to_test(node, "f", "f")


@pytest.mark.filterwarnings("error")
def test_warnings_of_dataset_code_are_suppressed():
    assert from_asserts(r"assert f('\d') == '\\d'", "f")[0]


def mbpp(**changes):
    return {**MBPP, **changes}


def apps_call(inputs, outputs, **changes):
    return {
        **APPS_CALL,
        "input_output": json.dumps({"fn_name": "add", "inputs": inputs, "outputs": outputs}),
        **changes,
    }


def open_r1(cases, language="python", **changes):
    return {**OPEN_R1, "verification_info": {"language": language, "test_cases": cases}, **changes}


CASE = {"input": "a", "output": "b", "type": "stdin_stdout"}
DROPPED_ROWS = [
    (
        "no test left",
        {**HUMANEVAL, "test": "def check(candidate):\n    assert abs(candidate(1.0)) < 1\n"},
    ),
    (
        "no test left",
        mbpp(test_list=MBPP["test_list"][:1] * 2, challenge_test_list=[]),
    ),  # both are shown
    ("set-up code", mbpp(test_setup_code="root = [1]")),
    ("not Python", mbpp(code="print 'two'")),
    ("no call to a function of the reference solution", mbpp(code="def other(): pass")),
    ("no tests, or inputs without outputs", {**APPS, "input_output": ""}),
    (
        "no tests, or inputs without outputs",
        {**APPS, "input_output": '{"inputs": ["1"], "outputs": []}'},
    ),
    (
        "a value that Python's JSON does not accept",
        {**APPS, "input_output": '{"inputs": [%s]}' % ("9" * 9999)},
    ),
    ("no test left", {**APPS, "input_output": '{"inputs": ["1"], "outputs": [" \\n"]}'}),
    ("one output that may be a list or in a list", apps_call([[1, 2]], [[3]])),
    (
        "a method of a class",
        apps_call(
            [[1, 2]], [3], starter_code="class Solution:\n    def add(self, a, b):\n        "
        ),
    ),
    ("no test left", apps_call([[{"1": 2}, 0]], [3])),
    ("no test left", apps_call(["ab"], [3])),
    ("language cpp", open_r1([CASE], "cpp")),
    ("no tests", open_r1([])),
    ("no tests", {**OPEN_R1, "verification_info": {"ground_truth": "4"}}),
    (
        "no test left",
        open_r1(
            [
                {**CASE, "fn_name": "f"},
                {**CASE, "type": "checker"},
                {**CASE, "output": 3},
                {**CASE, "input": None},
            ]
        ),
    ),
    (
        "no test left",
        open_r1([{"type": "function_call", "fn_name": "f", "input": "1 2", "output": "3"}]),
    ),
    ("no test left", open_r1([{**CASE, "output": "x" * (child.OUTPUT_CAP + 1)}])),
    ("no test left", open_r1([{**CASE, "input": "\ud800"}])),
    ("no test left", open_r1([CASE, {**CASE, "input": "c"}])),
    (
        "no test left",
        {
            **MBPP,
            "test_list": [
                "assert swap([1]) == True",
                "assert swap([2]) is True",
                "assert not swap([3])",
            ],
            "challenge_test_list": [],
        },
    ),
    (
        "a method of a class",
        open_r1(
            [{"type": "function_call", "fn_name": "f", "input": [1], "output": 1}],
            gold_standard_solution="class Solution:\n    def f(self, n): return n",
        ),
    ),
]


@pytest.mark.parametrize(("reason", "row"), DROPPED_ROWS)
def test_rows_without_an_exact_test_are_dropped_and_counted(tmp_path, reason, row):
    rows, counts = read(tmp_path, row)
    assert not rows and counts["rows"] == 1 and not counts["rows kept"] and not counts["tests kept"]
    assert {key: count for key, count in counts.items() if key.startswith("row: ")} == {
        f"row: {reason}": 1
    }


def test_apps_outputs_are_unwrapped_only_if_all_are_lists_of_one(tmp_path):
    (row,), _ = read(tmp_path, apps_call([[1], [2]], [[3], [4, 5]]))
    assert [test["equals"] for test in row["tests"]] == [[3], [4, 5]]
    (row,), _ = read(tmp_path, apps_call([[1], [2]], ["x", None]))
    assert [test["equals"] for test in row["tests"]] == ["x", None]


def test_code_files(tmp_path):
    rows = read(tmp_path, HUMANEVAL, HUMANEVAL)[0]
    (tmp_path / "rows.jsonl").rename(tmp_path / "data.jsonl")
    (tmp_path / "data.json").write_text(json.dumps([HUMANEVAL, HUMANEVAL]))
    (tmp_path / "lines.json").write_text((tmp_path / "data.jsonl").read_text())
    (tmp_path / "data.jsonl.gz").write_bytes(
        gzip.compress(f"{json.dumps(HUMANEVAL)}\n\n{json.dumps(HUMANEVAL)}".encode())
    )
    for name in ("data.json", "lines.json", "data.jsonl.gz"):
        same = read_file(tmp_path / name)[0]
        assert len(rows) == 2 and [{**row, "place": ""} for row in rows] == [
            {**row, "place": ""} for row in same
        ]
        assert all(row["place"].startswith(str(tmp_path / name)) for row in same)


def test_counts_are_printed_in_one_line(tmp_path):
    rows, counts = read(tmp_path, OPEN_R1, open_r1([CASE], "cpp"), OPEN_R1_CALL)
    assert len(rows) == 2
    assert summary(counts) == (
        "2 of 3 rows kept, 4 of 7 tests kept; dropped test: no expected output (1); "
        "dropped row: language cpp (1); dropped test: printed text in place of a value (1); "
        "dropped test: a type other than stdin_stdout, or than function_call with fn_name (1)"
    )
    assert summary(read(tmp_path, APPS)[1]) == "1 of 1 rows kept, 2 of 2 tests kept"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": 1,}', ":2: not valid JSON (column 14: "),
        ("[1]", ":2: a row must be an object with columns, not [1]"),
        ('{"prompt": "x"}', ":2: no text in column 'canonical_solution'"),
        (json.dumps({**HUMANEVAL, "test": ["x"]}), ":2: column 'test': must be str, not ['x']"),
        (json.dumps({**HUMANEVAL, "prompt": None}), ":2: no text in column 'prompt', found None"),
    ],
)
def test_errors_name_file_line_and_column(tmp_path, line, message):
    path = write(tmp_path, HUMANEVAL)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError) as error:
        read_problems(str(path))
    assert str(error.value).startswith(f"{path}{message}") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input": "x", "output": "y"}, "unknown columns: input, output"),
        (mbpp(test_list="assert f(1) == 1"), "column 'test_list': not valid JSON"),
        (mbpp(test_list=[1]), "column 'test_list': must be a list of assert statements"),
        ({**APPS, "input_output": "{'inputs': []}"}, "column 'input_output': not valid JSON"),
        ({**APPS, "input_output": "[]"}, "column 'input_output': must be dict, not []"),
        ({**APPS, "input_output": '{"inputs": 3}'}, "column 'inputs': must be list, not 3"),
        (open_r1("x"), "column 'test_cases': not valid JSON"),
        (open_r1([CASE], prompt=["x"]), "no text in column 'prompt', found ['x']"),
    ],
)
def test_malformed_columns_are_named(tmp_path, row, message):
    with pytest.raises(ValueError, match=":1: ") as error:
        read_problems(str(write(tmp_path, row)))
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for name, data, message in [
        ("a.txt", b"PAR1", ":1: not valid JSON"),
        ("a.jsonl", b"\n", "no rows"),
        ("b.jsonl", b"\xff", "not UTF-8"),
        ("c.jsonl", b'{"n": %s}' % (b"9" * 9999), ":1: not valid JSON"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
        ("b.jsonl.gz", gzip.compress(b"{}" * 999)[:-9], "cannot be read"),
        ("a.json", b"[\n1,\n]", ":3: not valid JSON"),
        ("b.json", b'{"a": 1}', ":1: unknown columns: a"),
        ("c.json", b"[3]", ": row 1: a row must be an object with columns"),
        ("d.json", b"[]", "no rows"),
        ("e.json", b"", "no rows"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError) as error:
            read_problems(str(tmp_path / name))
        assert (
            message in str(error.value)
            and name in str(error.value)
            and "\n" not in str(error.value)
        )
    with pytest.raises(ValueError, match="no such file"):
        read_problems(str(tmp_path / "missing.jsonl"))


def test_conversion_needs_no_torch():
    code = "import sys, r1mini.sandbox.convert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
