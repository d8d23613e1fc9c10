"""The sandbox: benign programs and attacks, what is compared, what happens when it cannot work.

Most attacks print the correct answer only if the forbidden action succeeded, so the verdict shows whether it did.
"""

import itertools
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from r1mini import sandbox, tasks
from r1mini.rl.config import GRPOConfig, resolve
from r1mini.sandbox import SandboxError, child, judge

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in child.SYSCALLS,
    reason="seccomp needs Linux on x86-64 or aarch64",
)

SQUARE = [{"stdin": "7\n", "stdout": "49\n"}, {"stdin": "-12\n", "stdout": "144\n"}]
CALL = [{"call": "f", "args": [3], "expect": 9}, {"call": "f", "args": [-4], "expect": 16}]
RIGHT = "print(int(input()) ** 2)"


@pytest.fixture(autouse=True, scope="module")
def helpers_end():
    yield
    sandbox.close()


# --- Programs that pass ---------------------------------------------------------------------------

GOOD = {
    "plain": RIGHT,
    "open_0": "n = int(open(0).read()); print(n * n)",
    "buffers": (
        "import sys; n = int(sys.stdin.buffer.readline()); sys.stdout.buffer.write(b'%d' % (n * n))"
    ),
    "size_of_stdin": (
        "import os; n = int(os.read(0, os.fstat(0).st_size)); os.write(1, str(n * n).encode())"
    ),
    "seek_and_read_again": (
        "import sys; sys.stdin.read(); sys.stdin.seek(0); print(int(sys.stdin.read()) ** 2)"
    ),
    "main_guard": "if __name__ == '__main__':\n    print(int(input()) ** 2)",
    "exit": RIGHT + "\nexit()",
    "quit_0": RIGHT + "\nquit(0)",
    "os_exit": "import os, sys\n" + RIGHT + "\nsys.stdout.flush(); os._exit(0)",
    "atexit": (
        "import atexit\nout = []\natexit.register(lambda: print(*out))\n"
        "out.append(int(input()) ** 2)"
    ),
    "stderr": "import sys\nprint('x' * 200000, file=sys.stderr)\n" + RIGHT,
    "own_stdout": (
        "import sys, io\nreal = sys.stdout; sys.stdout = io.StringIO()\n"
        + RIGHT
        + "\nreal.write(sys.stdout.getvalue())"
    ),
    "crlf_and_spaces": "print(int(input()) ** 2, end='  \\r\\n\\n \\n')",
    "deep_recursion": (
        "import sys; sys.setrecursionlimit(50000)\n"
        "def g(k): return k and 1 + g(k - 1)\ng(9000)\n" + RIGHT
    ),
    "dataclass": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass(order=True)\nclass P:\n    x: int\nprint(P(int(input())).x ** 2)"
    ),
    "late_imports": (
        "from datetime import datetime\ndatetime.strptime('2024-02-29', '%Y-%m-%d')\n"
        "'ä'.encode('cp1252')\n"
        "'\\N{BULLET}'\nimport inspect, doctest, typing, decimal, secrets\nsecrets.randbelow(9)\n"
        "doctest.testmod()\n" + RIGHT
    ),
    "short_sleep": "import time; time.sleep(0.01)\n" + RIGHT,
    "100_MiB": "b = bytearray(100 << 20)\n" + RIGHT,
    "long_integers": "import sys\nsys.set_int_max_str_digits(0); str(7 ** 20000)\n" + RIGHT,
    "fileinput": "import fileinput\nfor line in fileinput.input(): print(int(line) ** 2)",
    "missing_module": "try:\n    import numpy\nexcept ImportError:\n    " + RIGHT,
    "byte_order_mark": "\ufeff" + RIGHT,
    "names_of_site": "help, copyright, credits, license\n" + RIGHT,
    "no_input_file": (
        "import sys\ntry: sys.stdin = open('input.txt')\nexcept FileNotFoundError: pass\n" + RIGHT
    ),
    "no_such_path": (
        "import os, pathlib\n"
        "assert not pathlib.Path(__file__).exists() and not "
        "os.path.isfile('/etc/passwd')\nassert not os.access('/', os.R_OK)\n" + RIGHT
    ),
    "larger_stack": (
        "import resource as r\n"
        "r.setrlimit(r.RLIMIT_STACK, (-1, r.getrlimit(r.RLIMIT_STACK)[1]))\n" + RIGHT
    ),
    "no_other_descriptor": (
        "import os\ntry: os.fstat(7)\nexcept OSError as e: assert e.errno == 9\n" + RIGHT
    ),
    "codecs": (
        "import codecs\n"
        "for name in 'utf-16-le utf-16-be utf-32-le utf-7 raw_unicode_escape "
        "punycode iso8859-1 iso8859-15 cp437'.split(): assert "
        "'ab'.encode(name).decode(name) == 'ab'\n"
        "assert codecs.encode('ab', 'rot13') == 'no' and codecs.encode(b'ab', 'hex') "
        "== b'6162'\nassert codecs.encode(b'ab', 'base64') == b'YWI=\\n'\n" + RIGHT
    ),
    "unused_imports": (
        "import tempfile, shutil, importlib.util, subprocess, multiprocessing, "
        "concurrent.futures, tracemalloc\nimport cProfile, zoneinfo, gzip, bz2\n" + RIGHT
    ),
    "main_in_a_thread": (
        "import sys, threading\nsys.setrecursionlimit(10 ** 6)\n"
        "threading.stack_size(1 << 26)\ndef main():\n"
        "    def g(k): return k and 1 + g(k - 1)\n    g(9000)\n    "
        + RIGHT
        + "\nt = threading.Thread(target=main); t.start(); t.join(timeout=9)\n"
        "assert not t.is_alive()"
    ),
    "error_in_a_thread": (
        "import threading\n" + RIGHT + "\nthreading.Thread(target=lambda: 1 / 0).start()"
    ),
    "exit_in_a_thread": (
        "import sys, threading\nthreading.Thread(target=lambda: sys.exit(3)).start()\n" + RIGHT
    ),
    "no_future_from_us": (
        "def f(x: undefined_name if False else int): pass\n"
        "assert f.__annotations__['x'] is int\n" + RIGHT
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_correct_programs_pass(name):
    assert judge(GOOD[name], SQUARE, 2) is True


AT_THE_END = {
    "file": "out = open(1, 'w')\nout.write(str(int(input()) ** 2))\ndef f(): return out",
    "file_of_an_object": (
        "class P:\n    def __init__(self): self.out = open(1, 'w')\np = P()\n"
        "p.out.write(str(int(input()) ** 2))"
    ),
    "fdopen": "import os\nout = os.fdopen(1, 'w')\nprint(int(input()) ** 2, file=out)",
    "order": (
        "import sys\n"
        "out = open(1, 'w'); out.write('9\\n'); sys.stdout.write(str(int(input()) ** "
        "2)[:-1])"
    ),
    "codec_writer": (
        "import codecs, sys\nsys.stdout = codecs.getwriter('utf-8')(sys.stdout.detach())\n" + RIGHT
    ),
    "detached": (
        "import io, sys\n"
        "sys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='utf-8')\n" + RIGHT
    ),
    "own_writer": (
        "import sys\nclass W:\n"
        "    def __init__(s, f): s.write, s.flush = f.write, f.flush\n"
        "sys.stdout = W(sys.stdout)\n" + RIGHT
    ),
    "no_stdout": "import sys\n" + RIGHT + "\nsys.stdout = None",
    "deleted": "import sys\n" + RIGHT + "\ndel sys.stdout",
    "closed": "import sys\n" + RIGHT + "\nsys.stdout.close()",
    "finalizer": (
        "def square(x): return x * x\nclass A:\n"
        "    def __del__(self): print(square(int(input())))\na = A()"
    ),
    "generator": (
        "def g():\n    try: yield\n    finally: print(int(input()) ** 2)\nx = g(); next(x)"
    ),
    "old_cycle": (
        "import gc\nclass A:\n    def __del__(self): print(int(input()) ** 2)\n"
        "a = A(); a.a = a; gc.collect(); gc.disable()"
    ),
}


@pytest.mark.parametrize("name", AT_THE_END)
def test_output_written_at_exit_matches_pythons(name, tmp_path):
    """Compared with the output of Python itself."""
    path = tmp_path / "solution.py"
    path.write_text(AT_THE_END[name], encoding="utf-8")
    plain = subprocess.run(
        [sys.executable, "-S", path], input="7\n", capture_output=True, text=True
    )
    assert plain.returncode == 0 and plain.stdout.strip() == "49"
    assert judge(AT_THE_END[name], SQUARE[:1], 2) is True


@pytest.mark.parametrize(
    "code",
    [
        "0",
        "None",
        "256",
        "-256",
        "False",
        "1",
        "-1",
        "257",
        "1 << 70",
        "-1 << 70",
        "1 << 32",
        "0.0",
        "'0'",
    ],
)
def test_exit_status_matches_pythons(code):
    program = f"raise SystemExit({code})"
    plain = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True)
    assert judge(program, [{"stdin": "", "stdout": ""}], 2) is (plain.returncode == 0)


def test_input_and_output_larger_than_a_pipe():
    numbers = list(range(100000))
    text = "\n".join(map(str, numbers))
    program = "import sys\nfor line in sys.stdin: print(int(line) + 1)"
    assert judge(program, [{"stdin": text, "stdout": "\n".join(str(n + 1) for n in numbers)}], 4)


def test_input_and_output_are_utf8():
    assert judge("print(input()[::-1])", [{"stdin": "aé漢🙂\n", "stdout": "🙂漢éa"}], 2)


def test_call_skips_the_main_block_and_may_print():
    program = (
        "def f(x):\n    print('working')\n    return x * x\nif __name__ == '__main__':\n    input()"
    )
    assert judge(program, CALL, 2)


# --- What is compared -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "output",
    [
        "49 49",
        "4 9",
        "0049",
        " 49",
        "\n49",
        "49\n0",
        "49\n\n0",
        "４９",
        "49\u200b",
        "\ufeff49",
        "49\0",
        "49.0",
        "",
        "+49",
        "49\x85",
        "49\u00a0",
    ],
)
def test_different_output_fails(output):
    assert judge(f"print({output!r})", SQUARE[:1], 2) is False


def test_every_line_is_compared():
    test = [{"stdin": "", "stdout": "1\n2\n"}]
    for program, verdict in (
        ("print(1, 2, sep='\\n')", True),
        ("print(1)", False),
        ("print(1, 2)", False),
        ("print('12')", False),
        ("print(1, 2, 3, sep='\\n')", False),
        ("print('1\\n\\n2')", False),
    ):
        assert judge(program, test, 2) is verdict, program


def test_invalid_utf8_output_fails():
    assert not judge("import os; os.write(1, b'49\\xff')", SQUARE[:1], 2)


VALUES = [
    "0",
    "1",
    "-1",
    "True",
    "False",
    "None",
    "0.0",
    "1.0",
    "1e300",
    "''",
    "'1'",
    "'a'",
    "'é'",
    "[]",
    "[1]",
    "[True]",
    "[1.0]",
    "[[1]]",
    "[None]",
    "{}",
    "{'a': 1}",
    "{'a': True}",
    "{'a': [1]}",
    "{'b': 1}",
    "[0]",
    "10 ** 30",
    "'\\ud800'",
    "'\\ud83d\\ude42'",
    "'🙂'",
    "{'🙂': 1}",
    "{'\\ud83d\\ude42': 1}",
]


def test_values_equal_only_themselves():
    """Every pair from a list of similar values, through the function that both sides use."""
    from ast import literal_eval

    values = [10**30 if text == "10 ** 30" else literal_eval(text) for text in VALUES]
    for (i, a), (j, b) in itertools.product(enumerate(values), repeat=2):
        assert (child.canonical(a) == child.canonical(b)) is (i == j), (a, b)


@pytest.mark.parametrize(
    "returned, expect, verdict",
    [
        ("9", 9, True),
        ("True", 1, False),
        ("1", True, False),
        ("1", 1.0, False),
        ("1.0", 1, False),
        ("'1'", 1, False),
        ("0.1 + 0.2", 0.3, False),
        ("-0.0", 0.0, True),
        ("-0.0", 0, False),
        ("(1, (2,))", [1, [2]], True),
        ("{'b': 1, 'a': 2}", {"a": 2, "b": 1}, True),
        ("{1: 2}", {"1": 2}, False),
        ("{True: 2}", {"true": 2}, False),
        ("{1}", [1], False),
        ("range(2)", [0, 1], False),
        ("iter([1])", [1], False),
        ("b'a'", "a", False),
        ("None", None, True),
        ("None", 0, False),
        ("float('nan')", 0.0, False),
        ("float('inf')", 1e308, False),
        ("complex(1)", 1, False),
        ("__import__('decimal').Decimal(1)", 1, False),
        ("__import__('fractions').Fraction(1)", 1, False),
        ("'e\\u0301'", "é", False),
        ("'\\ud800'", "a", False),
        ("'a' ", "a ", False),
        ("type('S', (str,), {})('a')", "a", False),
        ("type('I', (int,), {})(5)", 5, False),
        ("type('F', (float,), {})(5)", 5.0, False),
        ("{'a': {}}", {"a": {}}, True),
        ("__import__('enum').IntEnum('E', 'A').A", 1, False),
        ("'\\ud83d\\ude42'", "🙂", False),
        ("{'\\ud83d\\ude42': 1, '🙂': 1}", {"🙂": 1}, False),
        ("10 ** 4299", 10**4299, True),
        ("type('L', (list,), {'__eq__': lambda s, o: True})([1])", [1], True),
        (
            "type('L', (list,), {'__eq__': lambda s, o: True, "
            "'__iter__': lambda s: iter([1])})([2])",
            [1],
            False,
        ),
        ("__import__('collections').OrderedDict(a=1)", {"a": 1}, True),
        ("__import__('collections').Counter('a')", {"a": 1}, True),
        ("__import__('collections').Counter([1])", {"1": 1}, False),
        ("__import__('collections').defaultdict(int, a=True)", {"a": 1}, False),
        ("__import__('collections').namedtuple('P', 'x y')(1, True)", [1, True], True),
        ("__import__('collections').namedtuple('P', 'x y')(1, True)", [1, 1], False),
    ],
)
def test_return_values_of_calls(returned, expect, verdict):
    assert (
        judge(f"def f(): return {returned}", [{"call": "f", "args": [], "expect": expect}], 2)
        is verdict
    )


@pytest.mark.parametrize(
    "returned, equals, verdict",
    [
        ("25.0", 25, True),
        ("25", 25.0, True),
        ("True", 1, True),
        ("0", False, True),
        ("-0.0", 0, True),
        ("[1.0, {'a': (2, 3.0)}]", [1, {"a": [2.0, 3]}], True),
        ("1e22", 10**22, True),
        ("2.5", 2.5, True),
        ("__import__('collections').Counter('a')", {"a": 1.0}, True),
        ("25.5", 25, False),
        ("'25'", 25, False),
        ("0.1 + 0.2", 0.3, False),
        ("25.000000000001", 25, False),
        ("float(2 ** 53)", 2**53 + 1, False),
        ("1e23", 10**23, False),
        ("None", 0, False),
        ("''", False, False),
        ("[]", False, False),
        ("[1]", 1, False),
        ("{'a': 1}", {"a": 1, "b": 2}, False),
        ("float('nan')", 0, False),
        ("float('inf')", 10**400, False),
        ("complex(1)", 1, False),
        ("type('I', (int,), {'__eq__': lambda s, o: True})(5)", 5, False),
        (
            "type('F', (float,), {'is_integer': lambda s: True, '__int__': lambda s: 5})(4)",
            5,
            False,
        ),
    ],
)
def test_equals_compares_numbers_as_pythons_operator(returned, equals, verdict):
    test = {"call": "f", "args": [], "equals": equals}
    assert judge(f"def f(): return {returned}", [test], 2) is verdict


def test_exact_and_equal_tests_may_stand_together():
    both = [{"call": "f", "args": [], "equals": 1}, {"call": "f", "args": [], "expect": 1}]
    assert judge("def f(): return 1", both, 2)
    assert not judge("def f(): return 1.0", both, 2)


SETUP = "from math import sqrt\nSIDE = 3\ndef twice(x):\n    return 2 * x\n"


@pytest.mark.parametrize(
    "code, verdict",
    [
        ("def f(x): return twice(x) + SIDE - int(sqrt(9))", True),
        ("from __future__ import annotations\ndef f(x): return twice(x)", True),
        ("\ufeffdef f(x): return twice(x)", True),
        ("def twice(x): return x + x\ndef f(x): return twice(x)", True),
        ("def twice(x): return x\ndef f(x): return twice(x)", False),
        ("def f(x): return thrice(x)", False),
        ("", False),
        ("f = SIDE", False),
        ("def f(x: sqrt", False),
    ],
)
def test_setup_runs_before_the_program(code, verdict):
    test = {"call": "f", "args": [2], "expect": 4, "setup": SETUP}
    assert judge(code, [test], 2) is verdict
    assert not judge(code, [{**test, "setup": "def f("}], 2)
    assert not judge(code, [{**test, "setup": "raise SystemExit(0)"}], 2)


def test_type_hints_of_a_called_program_are_not_evaluated():
    for hint, verdict in [("Optional[int]", True), ("'a' / 0", True), ("x y", False), ("", False)]:
        code = f"VALUE: {hint} = 3\ndef f(x: {hint}) -> {hint}:\n    return x * VALUE"
        assert judge(code, [{"call": "f", "args": [3], "expect": 9}], 2) is verdict
    fields = (
        "import dataclasses, typing\n@dataclasses.dataclass(order=True)\nclass P:\n"
        "    x: int\n    n: typing.ClassVar[int] = 3\nclass Q(typing.NamedTuple):\n    y: int = 3\n"
        "def f(x): return P(x).x * P.n * len(dataclasses.fields(P)) * Q().y // 3"
    )
    assert judge(fields, [{"call": "f", "args": [3], "expect": 9}], 2)
    assert not judge("x: Optional[int] = 0\n" + RIGHT, SQUARE, 2)  # a script is run as Python does


def test_arguments_arrive_unchanged():
    args = [
        1,
        1.0,
        True,
        None,
        "a\u2028é",
        [1, [2]],
        {"z": 1, "a": {}},
        "🙂",
        "\ud83d\ude42",
        10**4299,
    ]
    names = ["int", "float", "bool", "NoneType", "str", "list", "dict", "str", "str", "int"]
    assert judge(
        "def f(*a): return [*a, *(type(x).__name__ for x in a), *a[6], len(a[7]), len(a[8])]",
        [{"call": "f", "args": args, "expect": [*args, *names, "z", "a", 1, 2]}],
        2,
    )


def test_one_failing_test_fails():
    assert not judge(RIGHT, [*SQUARE, {"stdin": "3\n", "stdout": "8\n"}], 2)


# --- Fake success ---------------------------------------------------------------------------------

FAKE = {
    "empty": "",
    "syntax_error": "def f(:",
    "nul_in_source": "x = '\0'",
    "surrogate_in_source": "x = '\ud800'",
    "half_characters_in_source": "print('\ud834\udd1e'); print(int(input()) ** 2)",
    "coding_cookie": "# coding: utf-7\n# +AAo-def f(x): return x * x\n",
    "os_exit_0": "import os; os._exit(0)",
    "sys_exit": "import sys; sys.exit(0)",
    "os_exit_in_call": "import os\ndef f(x): os._exit(0)",
    "raise_exit_in_call": "def f(x): raise SystemExit(0)",
    "always_equal": (
        "class E:\n    __eq__ = __req__ = lambda s, o: True\n    __hash__ = None\n"
        "def f(x): return E()"
    ),
    "equal_int": (
        "class I(int):\n    __eq__ = lambda s, o: True\n    __repr__ = lambda s: '9'\n"
        "def f(x): return I(0)"
    ),
    "lying_class": (
        "class L:\n    __class__ = int\n    __repr__ = __str__ = lambda s: '9'\n"
        "    __index__ = lambda s: 9\ndef f(x): return L()"
    ),
    "verdict_on_stdout": (
        "print('passed'); print('True'); print('{\"status\": 0}')\ndef f(x): print(x * x)"
    ),
    "verdict_to_every_descriptor": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'ok{\"status\": 0}')\n"
        "    except OSError: pass\ndef f(x): return 0"
    ),
    "result_then_more": "import os\ndef f(x):\n    os.write(3, b'9'); return x * x",
    "patched_json": (
        "import json, sys\njson.dumps = json.JSONEncoder.encode = lambda *a, **k: '9'\n"
        "json.encoder.c_make_encoder = None\ndef f(x): return 1"
    ),
    "patched_builtins": (
        "import builtins\n"
        "for n in ('type', 'len', 'all', 'any', 'isinstance', 'str', 'repr', 'zip'):\n"
        "    setattr(builtins, n, lambda *a, **k: True)\ndef f(x): return 1"
    ),
    "no_builtins": "import builtins\nbuiltins.__dict__.clear()",
    "patched_exit": "import os\nos._exit = lambda c: None\ndef f(x): return 1",
    "patched_modules": (
        "import sys\nfor m in list(sys.modules.values()):\n"
        "    for n in ('canonical', 'to_json', 'run', 'judge', 'child', 'watch'):\n"
        "        try: setattr(m, n, lambda *a, **k: 0)\n"
        "        except Exception: pass\ndef f(x): return 1"
    ),
    "frames": (
        "import sys\ndef f(x):\n    g = sys._getframe()\n    seen = []\n    while g:\n"
        "        seen += g.f_locals.values()\n        seen += g.f_globals.values()\n"
        "        g = g.f_back\n    for d in seen:\n        if isinstance(d, dict):\n"
        "            for k in ('expect', 'stdout', 'expected'):\n"
        "                if k in d: return d[k]"
    ),
    "heap": (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'expect' in o:\n"
        "            return o['expect']"
    ),
    "right_then_raise": RIGHT + "\nraise ValueError",
    "right_then_exit_1": RIGHT + "\nraise SystemExit(1)",
    "right_then_exit_large": RIGHT + "\nraise SystemExit(1 << 70)",
    "right_then_exit_text": RIGHT + "\nraise SystemExit('0')",
    "right_then_abort": RIGHT + "\nimport os; os.abort()",
    "keyboard_interrupt": "raise KeyboardInterrupt",
    "excepthook": "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\n1 / 0",
    "recursion_error_value": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "nested_value": "def f(x):\n    y = []\n    for _ in range(200000): y = [y]\n    return y",
    "wide_value": "def f(x):\n    y = [0]\n    for _ in range(200): y = [y, y]\n    return y",
    "huge_value": "def f(x): return [9] * 10 ** 6",
    "generator": "def f(x):\n    while True: yield x * x",
    "no_function": "g = 1",
    "not_callable": "f = 9",
    "hedge": "print(*range(200))",
    "pickle": (
        "class P:\n    def __reduce__(self): return (print, ('owned',))\ndef f(x): return P()"
    ),
    "bad_bytecode": (
        "c = (lambda: 0).__code__\n"
        "exec(c.replace(co_code=b'\\x74\\xff' * 40, co_names=(), co_consts=()))"
    ),
    "null_pointer": "import ctypes; ctypes.string_at(0)",
}


@pytest.mark.parametrize("name", FAKE)
def test_faked_success_fails(name):
    assert judge(FAKE[name], SQUARE, 2) is False
    assert judge(FAKE[name], CALL, 2) is False


# --- Resources ------------------------------------------------------------------------------------

BOMBS = {
    "loop": "while True: pass",
    "loop_that_catches_all": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ),
    "right_then_loop": RIGHT + "\nimport sys; sys.stdout.flush()\nwhile True: pass",
    "right_then_close_all_and_loop": (
        "import os\n"
        + RIGHT
        + "\nimport sys; sys.stdout.flush(); os.closerange(0, 99)\nwhile 1: pass"
    ),
    "one_c_call": "print(9 ** 9 ** 9)",
    "long_integer": "import sys; sys.set_int_max_str_digits(0); str(1 << 60000000)",
    "regex": "import re; re.match('(a|aa)+$', 'a' * 200 + 'b')",
    "blocked_signals": (
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile 1: pass"
    ),
    "stops_its_timers": (
        "import ctypes, signal\nlibc = ctypes.CDLL(None)\nfor t in range(64):\n"
        "    libc.timer_delete(t)\n    libc.syscall(226, t); libc.syscall(111, t)\n"
        "signal.alarm(0); signal.setitimer(2, 0)\nwhile 1: pass"
    ),
    "raises_its_limits": (
        "import resource\nfor r in range(16):\n"
        "    try: resource.setrlimit(r, (-1, -1))\n"
        "    except (OSError, ValueError): pass\nwhile 1: pass"
    ),
    "sleep": "import time; time.sleep(60)\n" + RIGHT,
    "short_sleeps": "import time\nwhile 1: time.sleep(0.01)",
    "yield": "import os\nwhile 1: os.sched_yield()",
    "lock": "import threading\nk = threading.Lock(); k.acquire(); k.acquire()\n" + RIGHT,
    "memory": "x = bytearray(2 << 30)\n" + RIGHT,
    "memory_by_the_million": "x = [[] for _ in range(10 ** 8)]\n" + RIGHT,
    "memory_error_caught": (
        "x = []\ntry:\n    while 1: x.append(bytearray(1 << 22))\nexcept MemoryError:\n"
        "    while 1: pass"
    ),
    "shared_map": "import mmap\nx = mmap.mmap(-1, 2 << 30)\n" + RIGHT,
    "stdout": "import os\nwhile 1: os.write(1, b'x' * 65536)",
    "stdout_caught": (
        "import os\nwhile 1:\n    try: os.write(1, b'9' * 65536)\n    except OSError: break\n"
    ),
    "stderr": "import os\nwhile 1: os.write(2, b'x' * 65536)",
    "sparse_stdout": "import os\nos.lseek(1, 1 << 40, 0); os.write(1, b'x')",
    "c_stack": (
        "import sys; sys.setrecursionlimit(10 ** 9)\nx = ()\n"
        "for _ in range(10 ** 6): x = (x,)\nhash(x)\nraise SystemExit(1)"
    ),
    "parser": "compile('(' * 10 ** 5 + ')' * 10 ** 5, '', 'eval')",
    "compiler": "compile('-' * 10 ** 6 + '1', '', 'eval')\nraise SystemExit(1)",
    "constant_folding": "x = 1 << 10 ** 10\n" + RIGHT,
    "large_source": "x = 0\n" * 300000,
    "fork": "import os\nif os.fork() == 0: os._exit(0)\n" + RIGHT,
    "forkpty": "import os\nos.forkpty()\n" + RIGHT,
    "subprocess": "import subprocess; subprocess.run(['true'])\n" + RIGHT,
    "system": "import os\nassert os.system('true') == 0\n" + RIGHT,
    "spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})\n" + RIGHT,
    "thread": "import _thread\n_thread.start_new_thread(print, ())\n" + RIGHT,
    "sleeping_threads": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n" + RIGHT
    ),
    "dup": "import os\nos.dup(1)\n" + RIGHT,
    "pipe": "import os\nos.pipe()\n" + RIGHT,
    "memfd": "import os\nos.memfd_create('x')\n" + RIGHT,
}


@pytest.mark.parametrize("name", BOMBS)
def test_resource_bombs_fail_in_time(name):
    start = time.monotonic()
    assert judge(BOMBS[name], SQUARE, 0.4) is False
    assert (
        time.monotonic() - start < 10
    )  # wall-clock seconds for a busy machine; the limit itself is on CPU time
    assert judge(RIGHT, SQUARE, 2)


def test_program_longer_than_the_limit_fails():
    assert not judge(RIGHT + "\n#" + "x" * sandbox.MAX_CODE, SQUARE, 2)


def test_memory_limit_excludes_the_helpers_memory():
    assert judge("x = bytearray(150 << 20)\n" + RIGHT, SQUARE, 4, memory_mb=200)
    assert not judge("x = bytearray(150 << 20)\n" + RIGHT, SQUARE, 4, memory_mb=100)
    assert judge(RIGHT, SQUARE, 2, memory_mb=8)


def test_output_up_to_the_limit_passes():
    test = [{"stdin": "", "stdout": "x" * child.OUTPUT_CAP}]
    for end, verdict in (("", True), ("\\n", False)):
        assert (
            judge(f"import os; os.write(1, b'x' * {child.OUTPUT_CAP} + b'{end}')", test, 4)
            is verdict
        )


def test_verdict_does_not_depend_on_machine_load(monkeypatch):
    """A program that needs 0.5 s of CPU time passes a limit of 0.9 s, even if it takes 2 s; a limit of 0.2 s ends it."""
    cores = os.sched_getaffinity(0)
    sandbox.close()
    os.sched_setaffinity(0, {max(cores)})
    # In separate sessions, like the helper: Linux may divide CPU time between sessions.
    busy = [
        subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"], start_new_session=True)
        for _ in range(3)
    ]
    try:
        work = "import time\nwhile time.process_time() < 0.5: pass\n" + RIGHT
        start = time.monotonic()
        assert judge(work, SQUARE[:1], 0.9)
        assert time.monotonic() - start > 0.9
        assert not judge(work, SQUARE[:1], 0.2)
    finally:
        for process in busy:
            process.kill()
            process.wait()
        os.sched_setaffinity(0, cores)
        sandbox.close()


@pytest.mark.parametrize("give", ["time.sleep(1e-3)", "pass"])
def test_starved_program_fails_only_if_it_yielded(give, tmp_path, monkeypatch):
    """With a helper that never sees a program asleep: a program that yields fails, and one that does not gets no verdict."""
    source = sandbox.CHILD.read_text(encoding="utf-8")
    for old, new in (
        ("return 10 * seconds + 10", "return 0.8"),
        ('not in (b"R", b"D", b"Z")', "in ()"),
        ("0, 0, int(seconds), int(seconds % 1 * 1e9)", "0, 0, 9, 0"),
    ):
        assert source.count(old) == 1
        source = source.replace(old, new)
    blind = tmp_path / "child.py"
    blind.write_text(source, encoding="utf-8")
    sandbox.close()
    monkeypatch.setattr(sandbox, "CHILD", blind)
    program = f"import time\nwhile 1: {give}"
    try:
        if give == "pass":
            with pytest.raises(SandboxError, match="too busy to give"):
                judge(program, SQUARE, 0.5)
        else:
            assert judge(program, SQUARE, 0.5) is False
        assert judge(RIGHT, SQUARE, 2)
    finally:
        sandbox.close()


# --- The host -------------------------------------------------------------------------------------

CALLS = child.SYSCALLS.get(platform.machine(), (0, dict.fromkeys(child.CALLS)))[1]
CLOCK = (
    "import ctypes, os\nlibc = ctypes.CDLL(None)\nmoment = ctypes.create_string_buffer(16)\n"
    "def call(*a): return libc.syscall(*(ctypes.c_long(x) if type(x) is int else x for x in a))\n"
    f"assert call({CALLS['clock_getres']}, 1, moment) == 0\n"
)
HOST = {
    "open_passwd": "open('/etc/passwd')",
    "open_own_source": f"open({sandbox.__file__!r})",
    "proc_environ": "open('/proc/self/environ')",
    "proc_mem": "open('/proc/self/mem', 'r+b')",
    "open_tmp": "open('/tmp/r1mini_x', 'w')",
    "listdir": "os.listdir('/')",
    "stat": "os.stat('/etc/passwd')",
    "access": "assert os.access('/', os.F_OK)",
    "exists": "assert os.path.exists('/')",
    "readlink": "os.readlink('/proc/self/exe')",
    "getcwd": "os.getcwd()",
    "chdir": "os.chdir('/tmp')",
    "mkdir": "os.mkdir('/tmp/r1mini_d')",
    "unlink": "os.unlink('/tmp/r1mini_none')",
    "rename": "os.rename('/tmp/a', '/tmp/b')",
    "symlink": "os.symlink('/', '/tmp/r1mini_l')",
    "chmod": "os.chmod('/tmp', 0o1777)",
    "fchmod": "os.fchmod(2, 0o777)",
    "utime": "os.utime('/tmp')",
    "mkfifo": "os.mkfifo('/tmp/r1mini_f')",
    "truncate": "os.ftruncate(1, 0)",
    "sendfile": "os.sendfile(1, 0, 0, 1)",
    "chroot": "os.chroot('/')",
    "kill_parent": "os.kill(os.getppid() or 1, 0)",
    "kill_all": "os.kill(-1, 0)",
    "kill_self": "os.kill(os.getpid(), 0)",
    "killpg": "os.killpg(0, 0)",
    "setuid": "os.setuid(0)",
    "setresuid": "os.setresuid(0, 0, 0)",
    "setsid": "os.setsid()",
    "nice": "os.nice(1)",
    "affinity": "os.sched_setaffinity(0, {0})",
    "priority": "os.setpriority(0, 0, 5)",
    "execv": "os.execv('/bin/true', ['true'])",
    "socket": "import socket; socket.socket()",
    "socketpair": "import socket; socket.socketpair()",
    "unix_socket": "import socket; socket.socket(socket.AF_UNIX)",
    "netlink": "import _socket; _socket.socket(16, 3, 0)",
    "uname": "os.uname()",
    "prlimit": "import resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU)",
    "clock_of_another_process": "import time; time.clock_gettime(~1 << 3 | 2)",
    "resolution_of_its_clock": (
        f"{CLOCK}assert call({CALLS['clock_getres']}, ~os.getpid() << 3 | 2, moment) == 0"
    ),
    "sleep_by_its_clock": (
        f"{CLOCK}assert call({CALLS['clock_nanosleep']}, ~os.getpid() << 3 | 2, 1, moment, None)"
        " == 0"
    ),
    "settime": "import time; time.clock_settime(0, 1)",
    "ctypes_load": "import ctypes; ctypes.CDLL('libm.so.6.none')",
    "import_file": "import tkinter",
    "import_ours": "import child",
    "more_descriptors": "assert any(not closed(fd) for fd in range(3, 256))",
    "environment": "assert set(os.environ) - {'PYTHONHASHSEED', 'LC_CTYPE', 'LD_LIBRARY_PATH'}",
    "stop": "import signal; signal.raise_signal(signal.SIGSTOP)",
    "ioctl": "import fcntl; fcntl.ioctl(0, 0x5401)",
    "fcntl": "import fcntl; fcntl.fcntl(1, fcntl.F_GETFL)",
    "waitpid": "os.waitpid(-1, os.WNOHANG)",
}
CLOSED = """
import os
def closed(fd):
    try: os.lseek(fd, 0, 1)
    except OSError as e: return e.errno == 9
    return False
"""


@pytest.mark.parametrize("name", HOST)
def test_program_cannot_reach_the_host(name):
    assert judge(f"{CLOSED}n = int(input())\n{HOST[name]}\nprint(n * n)", SQUARE[:1], 2) is False


def test_every_other_system_call_is_refused():
    """Native code tries every system call: those not allowed give EPERM, or ENOENT if they take a path."""
    number = child.SYSCALLS[platform.machine()][1]
    skip = {number[name] for name in child.ALLOWED}
    if platform.machine() == "x86_64":
        skip |= {
            335,
            336,
        }  # uretprobe, uprobe: they bypass any filter, but are for the kernel's own use (the process is killed, or ENXIO)
    program = f"""
import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
bad = []
for n in [*range(600), *(0x40000000 + n for n in range(600))]:
    if n not in {skip}:
        for args in ((0, 0, 0, 0, 0, 0), (-1, -1, -1, -1, -1, -1), (0, 0x1000, 0, 0, 0, 0)):
            if n in {[number[name] for name in child.CLOCKS]} and args[0] >= 0: continue
            if n == {number["futex"]} and args[1] & 127 == 1: continue
            ctypes.set_errno(0)
            refused = 2 if n in {child.PATHS[platform.machine()]} else 1
            if call(n, *args) != -1 or ctypes.get_errno() != refused: bad.append(n)
print(bad)
"""
    assert judge(program, [{"stdin": "", "stdout": "[]"}], 4)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="int 0x80 is x86")
def test_32_bit_system_call_kills_the_program():
    """32-bit system calls have other numbers: getpid by int 0x80."""
    program = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(b"\\xb8\\x%s\\x00\\x00\\x00%s\\xc3")  # mov eax, number; the call; ret
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print("alive")
"""
    test = [{"stdin": "", "stdout": "alive"}]
    assert judge(program % ("27", "\\x0f\\x05"), test, 2)  # syscall 39
    assert not judge(program % ("14", "\\xcd\\x80"), test, 2)  # int 0x80, 20


def bpf(code: bytes, data: bytes) -> int:
    """An interpreter for the five BPF instructions that the filter uses."""
    steps, at, value = list(struct.iter_unpack("=HBBI", code)), 0, 0
    while True:
        kind, yes, no, k = steps[at]
        at += 1
        match kind:
            case 0x20:
                value = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                value &= k
            case 0x15:
                at += yes if value == k else no
            case 0x35:
                at += yes if value >= k else no
            case 0x06:
                return k


@pytest.mark.parametrize("machine", child.SYSCALLS)
def test_filter_of_every_architecture(machine):
    audit, number = child.SYSCALLS[machine]
    code = child.seccomp_filter(machine)
    allow, refuse, absent, kill = 0x7FFF0000, 0x00050001, 0x00050002, 0x80000000

    def gives(call, *args, arch=audit):
        return bpf(code, struct.pack("<IIQ6Q", call, arch, 0, *args, *[0] * (6 - len(args))))

    names = {n: name for name, n in number.items()}
    paths = child.PATHS[machine]
    assert len(names) == len(number) == len(child.CALLS) and not set(paths) & set(names)
    for call in [*range(600), *range(0x40000000, 0x40000258)]:
        name = names.get(call)
        free = name in child.ALLOWED or name in child.CLOCKS
        assert gives(call) == (allow if free else absent if call in paths else refuse), name
        assert gives(call, arch=0x40000003) == kill
    for name in child.CLOCKS:
        assert [gives(number[name], clock) for clock in (11, 12, 0xFFFFFFFA)] == [
            allow,
            refuse,
            refuse,
        ]
    assert [gives(number["futex"], 0, op) for op in (0, 1, 2, 6, 9, 128, 129, 137)] == [
        allow if op in (1, 129) else refuse for op in (0, 1, 2, 6, 9, 128, 129, 137)
    ]


def test_program_runs_in_an_unprivileged_process():
    """Seen from outside while it runs: not root, no capabilities, the filter active; afterwards it is gone."""
    sandbox.close()
    assert judge(RIGHT, SQUARE, 1)
    thread = threading.Thread(target=judge, args=("while True: pass", SQUARE, 1.0))
    thread.start()
    children = []
    while not children:
        helpers = [z.process.pid for z in list(sandbox.ZYGOTES)]
        children = (
            open(f"/proc/{helpers[0]}/task/{helpers[0]}/children").read().split() if helpers else []
        )
    time.sleep(0.3)
    lines = open(f"/proc/{children[0]}/status").read().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert "0" not in status["Uid"].split() + status["Gid"].split()
    thread.join()
    assert not os.path.exists(f"/proc/{children[0]}")


def test_next_program_inherits_nothing():
    spoil = "import builtins, sys, json, random, math\nbuiltins.int = lambda s: 7\nmath.pi = 3\n"
    spoil += "random.seed(1)\nsys.modules['json'] = 1\n"
    look = "import math, random, json\nassert math.pi > 3.1 and json.loads('1') == 1\n" + RIGHT
    for _ in range(3):
        judge(spoil, SQUARE, 1)
        assert judge(look, SQUARE, 1)


def test_exit_status_of_the_last_program_is_wiped():
    """It is neither in a stack frame that the next program can reach, nor where the kernel wrote it."""
    look = """
import sys
frame, seen = sys._getframe(), {}
while frame := frame.f_back:
    if frame.f_code.co_name in ("serve", "zygote"):
        seen.update(frame.f_locals)
values = list(seen.values())
values += [x for value in values if isinstance(value, dict) for x in value.values()]
print(sorted(seen), bytes(seen["system"].end).count(0), 77 in values, 77 << 8 in values)
"""
    reports = []
    for before in ("pass", "import sys, time\nwhile time.process_time() < 0.1: pass\nsys.exit(77)"):
        sandbox.close()
        judge("pass", SQUARE[:1], 2)
        judge(before, SQUARE[:1], 2)
        reports.append(
            sandbox.run(json.dumps({"code": look}).encode(), b"", 2.0, 1 << 28)[0].decode()
        )
    assert reports[0] == reports[1] and "'control', 'fds', 'file', 'limits'" in reports[0]
    assert reports[0].endswith(f"] {child.END.size} False False\n")


def test_program_output_is_reproducible():
    program = "import random\nprint(random.random(), set('abcdefgh'))"
    reports = set()
    for _ in range(2):
        reports |= {
            sandbox.run(json.dumps({"code": program}).encode(), b"", 1.0, 1 << 28)[0]
            for _ in range(2)
        }
        sandbox.close()
    assert len(reports) == 1 and None not in reports


# --- When it cannot work --------------------------------------------------------------------------

NO_SECCOMP = """
import ctypes, platform, struct
from r1mini.sandbox import child
prctl = {"x86_64": 157, "aarch64": 167}[platform.machine()]
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, prctl), (0x20, 0, 0, 16), (0x15, 0, 1, 22),
         (6, 0, 0, 0x50016), (6, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("=HBBI", *step) for step in steps)
system = child.System()
buffer = ctypes.create_string_buffer(code, len(code))
system.prctl("", 38, 1)
system.prctl("", 22, 2, struct.pack("@HP", len(steps), ctypes.addressof(buffer)))
from r1mini.sandbox import judge
judge("print(1)", [{"stdin": "", "stdout": "1"}], 1)
"""


def test_nothing_runs_without_seccomp():
    """Under a filter that refuses further filters, like an old kernel."""
    end = subprocess.run(
        [sys.executable, "-c", NO_SECCOMP], cwd=ROOT, capture_output=True, text=True
    )
    assert end.returncode == 1
    last = end.stderr.splitlines()[-1]
    assert (
        last.startswith("r1mini.sandbox.SandboxError: the sandbox failed")
        and "PR_SET_SECCOMP" in last
    )


def test_other_machines_are_refused(monkeypatch):
    sandbox.close()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(
        SandboxError, match="no sandbox on Linux riscv64: programs are run only on"
    ) as caught:
        judge(RIGHT, SQUARE, 1)
    assert "\n" not in str(caught.value)


WINDOWS = """
import os, platform, signal, sys
for name in ("resource", "fcntl", "grp", "pwd", "posix", "termios"):
    sys.modules[name] = None
for name in ("fork", "getresuid", "memfd_create", "register_at_fork", "setresuid", "sysconf"):
    delattr(os, name)
for name in ("SIGCHLD", "SIGKILL", "SIG_BLOCK", "pthread_sigmask"):
    delattr(signal, name)
from r1mini.sandbox import judge
platform.system, platform.machine = lambda: "Windows", lambda: "AMD64"
judge("print(1)", [{"stdin": "", "stdout": "1"}], 1)
"""


def test_on_windows_only_a_judgement_is_refused():
    end = subprocess.run([sys.executable, "-c", WINDOWS], cwd=ROOT, capture_output=True, text=True)
    last = end.stderr.splitlines()[-1]
    assert last.startswith("r1mini.sandbox.SandboxError: no sandbox on Windows AMD64: programs are")


def test_tasks_that_run_code_are_refused_without_a_sandbox(monkeypatch):
    sandbox.close()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(
        ValueError, match="--tasks: 'repair' runs its answers, and no sandbox on Linux riscv64"
    ):
        tasks.usable(tuple(" ".join(tasks.DEFAULT).split()))  # as typed
    assert tasks.usable(tasks.DEFAULT, judged=False) is tasks.DEFAULT
    usable = tuple(name for name in tasks.DEFAULT if not tasks.TASKS[name].runs_code)
    assert tasks.usable(usable) is usable


def test_default_tasks_leave_out_what_cannot_be_judged(monkeypatch, capsys):
    assert tasks.usable(tasks.DEFAULT) is tasks.DEFAULT and not capsys.readouterr().out
    sandbox.close()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert tasks.usable(tasks.REASONING) == ("countdown", "balance", "kinetics")
    assert capsys.readouterr().out.startswith(
        "leaving out repair: answers are run, and no sandbox on Linux riscv64"
    )
    assert "repair-long" not in tasks.usable(tasks.DEFAULT)
    assert capsys.readouterr().out.startswith("leaving out repair and repair-long: answers are run")
    assert resolve(GRPOConfig()).tasks == ("countdown", "balance", "kinetics")
    assert resolve(GRPOConfig(data="rows.jsonl")).tasks == tasks.REASONING


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("0x00050002", "0x7FFF0000", "has no effect"),
        ('"timer_settime", timer', '"timer_settime", 99', "timer_settime"),
        (
            "os.setresgid(NOBODY, NOBODY, NOBODY)",
            "raise PermissionError(1, 'no')",
            "root cannot become user",
        ),
        ('control.send(b"ready")', "1 / 0", "ZeroDivisionError"),
        ("reader, writer = os.pipe()", "raise BlockingIOError('no process')", "no process"),
        ("request = json.loads(", "request = json.dumps(", "bytes is not JSON"),
        ("/proc/{pid}/stat", "/proc/{pid}/hidden", "No such file or directory: '/proc/"),
        ('report = "ok"', "os._exit(0)", "before it was confined"),
    ],
)
def test_sandbox_fault_is_not_a_verdict(old, new, message, tmp_path, monkeypatch):
    if "setresgid" in old and os.getuid() != 0:
        pytest.skip("not root: nothing to drop")
    source = sandbox.CHILD.read_text(encoding="utf-8")
    assert source.count(old) == 1
    broken = tmp_path / "child.py"
    broken.write_text(source.replace(old, new), encoding="utf-8")
    sandbox.close()
    monkeypatch.setattr(sandbox, "CHILD", broken)
    for program in (RIGHT, "wrong"):
        with pytest.raises(SandboxError, match=message):
            judge(program, SQUARE, 1)
    sandbox.close()


def test_missing_interpreter_is_not_a_verdict(monkeypatch):
    sandbox.close()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SandboxError, match="does not start"):
        judge(RIGHT, SQUARE, 1)


def test_killed_helper_is_replaced():
    assert judge(RIGHT, SQUARE, 1)
    for zygote in sandbox.ZYGOTES:
        os.kill(zygote.process.pid, signal.SIGKILL)
    assert judge(RIGHT, SQUARE, 1)


def test_helper_killed_twice_is_not_a_verdict():
    sandbox.close()
    done, programs = threading.Event(), set()

    def killer():
        while not done.is_set():
            for zygote in list(sandbox.ZYGOTES):
                with open(f"/proc/{zygote.process.pid}/task/{zygote.process.pid}/children") as file:
                    children = file.read().split()
                if children:
                    programs.update(children)
                    os.kill(zygote.process.pid, signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        with pytest.raises(SandboxError, match="helper process failed"):
            judge("while True: pass", SQUARE, 3)
    finally:
        done.set()
        thread.join()
    deadline = time.monotonic() + 2
    while any(runs(pid) for pid in programs) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert programs and not any(runs(pid) for pid in programs)
    assert judge(RIGHT, SQUARE, 1)


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("way", ["end", "kill"])
def test_no_helper_outlives_its_process(way):
    program = (
        "import os, signal, sys\nfrom r1mini import sandbox\n"
        "sandbox.judge('print(1)', [{'stdin': '', 'stdout': '1'}], 1)\n"
        "print(*(z.process.pid for z in sandbox.ZYGOTES), flush=True)\n"
        "sys.argv[1] == 'kill' and os.kill(os.getpid(), signal.SIGKILL)"
    )
    end = subprocess.run(
        [sys.executable, "-c", program, way], cwd=ROOT, capture_output=True, text=True
    )
    pid, deadline = end.stdout.strip(), time.monotonic() + 5
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert pid and not runs(pid) and not end.stderr


def test_fork_gets_its_own_helpers():
    assert judge(RIGHT, SQUARE, 1)
    mine = {z.process.pid for z in sandbox.ZYGOTES}
    program = (
        "import os\nfrom r1mini import sandbox\nt = [{'stdin': '', 'stdout': '1'}]\n"
        "assert sandbox.judge('print(1)', t, 1)\n"
        "mine = {z.process.pid for z in sandbox.ZYGOTES}\npid = os.fork()\n"
        "assert sandbox.judge('print(1)', t, 1) and not sandbox.judge('print(2)', t, 1)\n"
        "assert ({z.process.pid for z in sandbox.ZYGOTES} == mine) == (pid != 0)\n"
        "assert not pid or os.waitpid(pid, 0)[1] == 0"
    )
    end = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (end.returncode, end.stderr) == (0, "")
    assert mine == {z.process.pid for z in sandbox.ZYGOTES}


def test_judging_in_threads():
    wrong = []

    def work(k):
        for n in range(k, k + 10):
            right = [{"stdin": "", "stdout": str(n)}]
            if not judge(f"print({n})", right, 2) or judge(f"print({n + 1})", right, 2):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(100 * k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(sandbox.IDLE) == len(sandbox.ZYGOTES) <= 5


def test_ctrl_c_leaves_no_late_answer(monkeypatch):
    real = sandbox.Zygote.receive

    def interrupted(self, seconds):
        monkeypatch.setattr(sandbox.Zygote, "receive", real)
        raise KeyboardInterrupt

    assert judge(RIGHT, SQUARE, 1)
    monkeypatch.setattr(sandbox.Zygote, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        judge(RIGHT, SQUARE, 1)
    assert not judge("print(0)", SQUARE, 1)


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "tests, message",
    [
        ([], "no tests"),
        ([{}], "test 0"),
        ([SQUARE[0], {"stdin": "1"}], "test 1"),
        ([{"stdin": 1, "stdout": "1"}], "test 0"),
        ([{"call": "f", "args": 1, "expect": 1}], "test 0"),
        ([{"call": "f", "args": [], "expect": {1}}], "set is not a JSON value"),
        ([{"call": "f", "args": [float("nan")], "expect": 1}], "test 0"),
        ([{"call": "f", "args": [{1: 2}], "expect": 1}], "test 0"),
        ([{"stdin": "", "stdout": "", "expect": 1}], "test 0"),
        ([{"stdin": "", "stdout": "", "setup": ""}], "test 0"),
        ([{"call": "f", "args": [], "expect": 1, "equals": 1}], "one of .expect. and .equals."),
        ([{"call": "f", "args": [], "equals": float("inf")}], "test 0"),
        ([{"call": "f", "args": [], "equals": float("nan")}], "test 0"),
        ([{"call": "f", "args": [], "equals": 10**4300}], "test 0: an integer of more"),
        ([{"call": "f", "args": [], "expect": 1, "setup": None}], "test 0"),
        ([{"call": "f", "args": [], "expect": 1, "exact": False}], "test 0"),
        (["x"], "test 0"),
        ([None], "test 0"),
        ([{"stdin": "\ud800", "stdout": ""}], "test 0"),
        ([{"stdin": "", "stdout": "x" * (1 << 20 | 1)}], "more than a program may"),
        ([{"call": "f", "args": [], "expect": ["x" * (1 << 20)]}], "more than a program may"),
        ([{"call": "f", "args": [10**4300], "expect": 1}], "test 0: an integer of more"),
        ([{"call": "f", "args": [nested(201)], "expect": 1}], "test 0: more than 200 levels"),
        ([{"call": "f", "args": [], "expect": nested(5000)}], "test 0: more than 200 levels"),
    ],
)
def test_malformed_tests_are_refused(tests, message):
    with pytest.raises(ValueError, match=message):
        judge(RIGHT, tests, 1)


def test_limits_on_values_do_not_depend_on_interpreter_settings():
    limit, digits = sys.getrecursionlimit(), getattr(sys, "get_int_max_str_digits", lambda: 0)()
    try:
        sys.setrecursionlimit(20000)
        if digits:
            sys.set_int_max_str_digits(0)
        for value in (10**5000, nested(3000)):
            with pytest.raises(ValueError, match="more than"):
                judge(RIGHT, [{"call": "f", "args": [value], "expect": 1}], 1)
        fits = [nested(198), 10**4299]
        assert judge("def f(x): return x", [{"call": "f", "args": [fits], "expect": fits}], 2)
    finally:
        sys.setrecursionlimit(limit)
        if digits:
            sys.set_int_max_str_digits(digits)


@pytest.mark.parametrize(
    "limits",
    [
        (0,),
        (-1,),
        (float("nan"),),
        (float("inf"),),
        (0.001,),
        (1e9,),
        (1, 0),
        (1, 1 << 40),
        (1, 1.5),
        (1, True),
    ],
)
def test_malformed_limits_are_refused(limits):
    with pytest.raises(ValueError, match="time_limit|memory_mb"):
        judge(RIGHT, SQUARE, *limits)


def test_benchmark_prints_the_rate():
    assert "judgements a second" in sandbox.benchmark(0.2)
