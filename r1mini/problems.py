"""Problems of a data file, checked before anything is trained on them.

A row is of one of the layouts of `formats.py` and is judged by `answer`, a box in `solution` or in the reply, `tests`, or the
checker of Countdown; tests of public code data are read by `code_data.py`. Refused are rows without a prompt or anything to
judge by, golds that `answers.equivalent` cannot read, tests that the sandbox cannot run, and prompts that are there before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

from r1mini import code_data, rewards, tasks
from r1mini.data import Bad, entries, evaluation_ngrams, read, select, whole_characters
from r1mini.formats import Format, Row, chat, conversation, detect
from r1mini.records import Problem
from r1mini.template import Template, plain
from r1mini.tokenizer import END

SAID = ("messages", "prompt", "completion", "text")


def read_problems(file: str, template: Template = plain(END), check: Callable[[Problem], None] = lambda problem: None, *,
                  prompt_key: str = "", answer_key: str = "", instruction: str = "", skip_bad: bool = False,
                  decontaminate: Sequence[str] = ()) -> list[Problem]:
    """The problems of a file, their prompts as the template puts them, with `instruction` behind what the user says last.
    `check` may refuse more. ValueError naming file, line and value for a row that is refused; under `skip_bad` such rows are counted and told."""
    path, bad, first = Path(file), Bad(skip_bad), {}

    def make(where: str, row: Row, form: Format, fields: dict) -> Problem:
        made = problem(path, len(first), row, fields, template, instruction)
        if made.prompt in first:
            raise ValueError(f"the prompt of {first[made.prompt]} again: {made.prompt[:60]!r}")
        if made.task not in tasks.TASKS:
            rewards.check(made)
        whole_characters([made.prompt, rewards.gold(made)])
        check(made)
        first[made.prompt] = where
        return made

    rows = read(path, prompt_key, answer_key, bad)
    head = next((row for _, row in entries(path, Bad(True)) if isinstance(row, dict)), {})
    if code_data.FORMATS.keys() & head.keys() and not (prompt_key or answer_key):
        rows = code_rows(path, detect([head]), bad)
    return list(select(path, rows, make, bad, evaluation_ngrams(decontaminate)).values())


def code_rows(path: Path, form: Format, bad: Bad) -> Iterator[tuple[str, Row, Format, dict]]:
    rows, counts = code_data.read_code(path, bad)
    print(f"{path}: {code_data.summary(counts)}", flush=True)
    return ((row.pop("place"), row, form, chat(row["prompt"])) for row in rows)


def problem(path: Path, number: int, row: Row, fields: dict, template: Template, instruction: str) -> Problem:
    """The problem of a row: what was asked up to the last reply; all its columns, and what its reader found, for rewards."""
    asked = conversation(fields, ("messages", "prompt"))
    while asked and asked[-1]["role"] == "assistant" and "messages" in fields:
        asked.pop()
    if not any(turn["role"] == "user" for turn in asked):
        raise ValueError("a text without a question" if "text" in fields else "no message of a user")
    if row.get("answer") in ("proof", "notfound"):  # NuminaMath-1.5
        raise ValueError(f"column 'answer': {row['answer']!r} is nothing to compare with")
    if instruction:
        last = max(number for number, turn in enumerate(asked) if turn["role"] == "user")
        between = "" if instruction[0].isspace() else "\n"
        asked[last] = {**asked[last], "content": asked[last]["content"] + between + instruction}
    columns = {**row, **{name: value for name, value in fields.items() if name not in SAID}}
    answer = columns.get("answer")
    if isinstance(answer, (list, dict)) or isinstance(answer, float) and not math.isfinite(answer):
        raise ValueError(f"column 'answer': text or a number expected, not {answer!r:.60}")
    replies = [turn["content"] for turn in conversation(fields) if turn["role"] == "assistant"]
    if replies and all(columns.get(name) is None for name in ("answer", "solution", "tests", "verification_info")):
        columns["solution"] = replies[-1]
    # The task is the file's name, whose dot keeps it apart from the embedded tasks; Countdown is one of these.
    language = row.get("language")
    name = path.name if "." in path.name else f"./{path.name}"
    key = f"row {number + 1}" if row.get("id") is None else str(row["id"])
    bare = isinstance(fields.get("prompt"), str) and not template.wraps  # the model's text already, as in TRL
    prompt, messages = (asked[-1]["content"], ()) if bare else (template.prompt(asked), asked)
    return Problem(fields.get("task", name), key, language if isinstance(language, str) else "", prompt, columns, messages)


def pick(problems: Sequence[Problem], seed: int | str, index: int) -> Problem:
    """Problem `index` of an endless sequence that goes through all of them, in another order each time."""
    epoch, place = divmod(index, len(problems))
    return problems[order(len(problems), seed, epoch)[place]]


@lru_cache(maxsize=16)
def order(count: int, seed: int | str, epoch: int) -> list[int]:
    return Random(f"{seed} {epoch}").sample(range(count), count)
