"""Programs: what a completion wrote, and what its problem asks of it. For the reward of code, which runs the one against
the other in the sandbox [R1 §2.2.2]. Left out: languages other than Python, checkers for problems of several answers.
"""

from __future__ import annotations

import json

from r1mini import answers
from r1mini.records import Problem


def program(text: str) -> str | None:
    """The program of a completion: the last fenced block after the thinking (in the answer block, if there is one) that
    is Python or has no label; without any fence, the whole answer block. None if there is no such thing.

    >>> program("<think>```x```</think>So:\\n```python\\nprint(1)\\n```\\nDone.")
    'print(1)\\n'
    """
    after = text.rpartition("</think>")[2]
    tagged = "<answer>" in after or "</answer>" in after
    place = None if "<think>" in after else answers.extract(text) if tagged else after
    if place is None:
        return None
    if tagged and "```" not in place:
        return place
    found, label, lines = None, None, []
    for line in place.split("\n"):
        fence = line.strip().partition("```")
        if label is None and fence[:2] == ("", "```") and "`" not in fence[2]:
            label, lines = fence[2].strip().lower(), []
        elif label is not None and fence == ("", "```", ""):
            found, label = "\n".join(lines) + "\n" if label in ("", "py", "python", "python3") else found, None
        else:
            lines.append(line)
    return found


def wanted(problem: Problem) -> bool:
    """Does the problem ask for a program?"""
    return any(problem.columns.get(name) is not None for name in ("tests", "verification_info"))


def tests(problem: Problem) -> list[dict] | None:
    """The sandbox's tests of a problem: its column `tests`, or open-r1's `verification_info` (standard input and output
    alone), as JSON or not. None: it has neither. ValueError for what cannot be run."""
    given, info = (json.loads(value) if isinstance(value, str) else value
                   for value in (problem.columns.get(name) for name in ("tests", "verification_info")))
    if given is not None or info is None:
        return given
    if info.get("language", "python") != "python":
        raise ValueError(f"verification_info: language {info['language']!r}, not python")
    for case in info["test_cases"]:
        if case.get("type", "stdin_stdout") != "stdin_stdout" or case.get("fn_name"):
            raise ValueError(f"verification_info: a test of type {case.get('type')!r}, not stdin_stdout")
    return [{"stdin": case["input"], "stdout": case["output"]} for case in info["test_cases"]]
