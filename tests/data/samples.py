"""A handwritten sample file of every format, and helpers for tests that use it."""

import json
import platform
import sys
from pathlib import Path

import pytest
from conftest import score

from r1mini.records import Rollout
from r1mini.sandbox import child

SAMPLES = Path(__file__).parent
THINK = "<think>a</think>"
with_sandbox = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in child.SYSCALLS,
    reason="seccomp needs Linux on x86-64 or aarch64",
)


def sample(name):
    return next(SAMPLES.glob(f"{name}.*"))


def judged(problem, text, name):
    return score(problem, [Rollout((), (), (), text, True)], ("accuracy", "code"))[0][name]


def write(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return path
