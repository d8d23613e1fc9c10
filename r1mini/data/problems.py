"""RL problems of a data file, all checked before training starts.

A row is judged by `answer`, by the box in `solution` or in the reply, by `tests`, or by Countdown's
checker. It is refused without a prompt or anything to judge by, if `answers.equivalent` cannot read
its gold answer, if the sandbox cannot run its tests, or if its prompt is a duplicate.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

from r1mini import tasks
from r1mini.checkpoint.chat_template import ChatTemplate, plain_template
from r1mini.checkpoint.tokenizer import END_OF_TEXT
from r1mini.data.files import RowErrors
from r1mini.data.formats import TEXT_FIELDS, Message, Row, chat, check_unicode, to_messages
from r1mini.data.rows import Example, convert_rows
from r1mini.data.sft import is_plain_text
from r1mini.records import Problem
from r1mini.rewards import completion
from r1mini.sandbox.convert import Dropped, drop_constant, name_function


def read_problems(
    file: str,
    chat_template: ChatTemplate = plain_template(END_OF_TEXT),
    check: Callable[[Problem], None] = lambda problem: None,
    *,
    prompt_key: str = "",
    answer_key: str = "",
    instruction: str = "",
    skip_bad: bool = False,
    decontaminate: Sequence[str] = (),
    general: bool = False,
) -> list[Problem]:
    """The problems of a file, with `instruction` after the user's last message.

    `check` may refuse a problem. `general`: one without anything to judge by is accepted, because
    a reward model scores it. ValueError naming file, line and value for a refused row; with
    `skip_bad` such rows are skipped and counted.
    """
    path, errors = Path(file), RowErrors(skip_bad)
    first_place = {}  # of each prompt

    def convert(example: Example) -> Problem:
        if example.format.tests:
            example = add_tests(example, errors.counts)
        default_key = f"row {len(first_place) + 1}"
        problem = make_problem(path, default_key, example, chat_template, instruction)
        if problem.prompt in first_place:
            raise ValueError(
                f"same prompt as {first_place[problem.prompt]}: {problem.prompt[:60]!r}"
            )
        if problem.task not in tasks.TASKS:
            completion.check_problem(problem, general)
            check_choice(problem)
        check_unicode([problem.prompt, completion.gold_answer(problem)])
        check(problem)
        first_place[problem.prompt] = example.place
        return problem

    problems = convert_rows(path, convert, errors, prompt_key, answer_key, decontaminate)
    return list(problems.values())


def check_choice(problem: Problem) -> None:
    """ValueError if the gold is the letter of a choice that the prompt does not show."""
    gold = re.fullmatch(r"\W*(?:\\[a-z]+\W*)*([A-J])\W*", completion.gold_answer(problem) or "")
    if not gold:
        return
    letter = gold[1]
    shown = rf"(?<![A-Za-z])(?:[A-J]*{letter}[A-J]*(?![A-Za-z]| [a-z])|(?i:{letter})[).])"
    if not re.search(shown, problem.prompt):
        raise ValueError(f"gold answer {gold[0]!r}: the prompt has no choice of this letter")


def add_tests(example: Example, counts: Counter) -> Example:
    """The example with columns `prompt`, `solution`, `id`, `tests` and `dropped` (a number)."""
    row, fields = example.columns, example.fields
    counts["rows"] += 1
    tests, dropped = example.format.tests(row)
    prompt = fields["prompt"][0]["content"]
    for name in sorted({test["call"] for test in tests if "call" in test}):
        prompt = name_function(prompt, name, row.get("starter_code") or fields["solution"] or "")
    tests, dropped = drop_constant(tests, dropped)
    reasons = {f"test: {reason}": count for reason, count in dropped.items()}
    counts.update({"tests": len(tests) + dropped.total(), "tests kept": len(tests), **reasons})
    if not tests:
        raise Dropped("no test left")
    counts["rows kept"] += 1
    added = {"prompt": prompt, **extra_columns(fields), "tests": tests, "dropped": dropped.total()}
    return example._replace(columns={**row, **added}, fields=chat(prompt))


def extra_columns(fields: dict) -> dict:
    return {name: value for name, value in fields.items() if name not in TEXT_FIELDS}


def make_problem(
    path: Path, default_key: str, example: Example, template: ChatTemplate, instruction: str
) -> Problem:
    """The problem of an example, with all its columns for rewards."""
    row, fields = example.columns, example.fields
    messages = prompt_messages(fields, instruction)
    columns = {**row, **extra_columns(fields)}
    answer = columns.get("answer")
    if isinstance(answer, list | dict | bool) or answer in (math.inf, -math.inf):
        raise ValueError(f"column 'answer': must be text or a number, not {answer!r:.60}")
    replies = [m["content"] for m in to_messages(fields) if m["role"] == "assistant"]
    references = ("answer", "solution", "tests", "verification_info")
    if replies and all(columns.get(name) is None for name in references):
        columns["solution"] = replies[-1]
    # The file's name with a dot in it cannot be the name of an embedded task.
    name = path.name if "." in path.name else f"./{path.name}"
    task = fields.get("task", name)
    key = default_key if row.get("id") is None else str(row["id"])
    language = row.get("language") if isinstance(row.get("language"), str) else ""
    if is_plain_text(fields, template):
        prompt, messages = messages[-1]["content"], ()
    else:
        prompt = template.render_prompt(messages)
    return Problem(task, key, language, prompt, columns, messages)


def prompt_messages(fields: Row, instruction: str) -> list[Message]:
    """The messages before the last reply, with the instruction on a line after the user's last.

    ValueError without a user message.
    """
    messages = to_messages(fields, ("messages", "prompt"))
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not users:
        raise ValueError("text without a question" if "text" in fields else "no user message")
    while messages[-1]["role"] == "assistant" and "messages" in fields:
        messages.pop()
    if instruction:
        last = messages[users[-1]]
        separator = "" if instruction[0].isspace() else "\n"
        messages[users[-1]] = {**last, "content": f"{last['content']}{separator}{instruction}"}
    return messages


def problem_at(problems: Sequence[Problem], seed: int | str, index: int) -> Problem:
    """Problem `index` of an endless sequence of epochs, each in its own order."""
    epoch, position = divmod(index, len(problems))
    return problems[epoch_order(len(problems), seed, epoch)[position]]


@lru_cache(maxsize=16)
def epoch_order(count: int, seed: int | str, epoch: int) -> list[int]:
    return Random(f"{seed} {epoch}").sample(range(count), count)
