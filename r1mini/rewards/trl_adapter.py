"""TRL's signature for rewards: `reward(prompts, completions, **columns) -> list[float | None]`.

All arguments are lists with one item for each completion. Prompts and completions are strings or
message lists. The columns are `task`, `language`, `completion_ids`, `max_completion_len` and
whatever else the problem has. This module offers the built-in rewards under this signature, and
prepares the arguments for functions from a user's file, which run as under TRL.

Left out: TRL's `trainer_state`, `log_extra`, `log_metric`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

from r1mini.records import Problem, Rollout, think_prefix
from r1mini.rewards.completion import Completion

Reward = Callable[..., "Sequence[float | None]"]  # called with TRL's signature
Rows = list[tuple[Problem, Completion]]


# -- built-in rewards, called by TRL -----------------------------------------------------------


def per_completion(score: Callable[..., float | None]) -> Reward:
    """Give `score(problem, completion, **settings)` TRL's signature."""

    @per_group
    @wraps(score)
    def score_rows(rows: Rows, **settings) -> list[float | None]:
        return [score(problem, completion, **settings) for problem, completion in rows]

    return score_rows


def per_group(score_rows: Callable[..., list[float | None]]) -> Reward:
    """Give `score_rows(rows, **settings)` TRL's signature.

    The undecorated function stays available as `.score_rows`. A list is always a column, even
    under the name of a setting.
    """
    names = inspect.getfullargspec(inspect.unwrap(score_rows)).kwonlyargs

    @wraps(score_rows)
    def reward(prompts, completions, **columns) -> list[float | None]:
        settings = {
            name: value
            for name, value in columns.items()
            if name in names and not isinstance(value, list | tuple)
        }
        return score_rows(to_rows(prompts, completions, columns), **settings)

    del reward.__wrapped__  # so that inspect and help show TRL's signature
    reward.score_rows = score_rows
    return reward


def to_rows(prompts: Sequence, completions: Sequence, columns: Mapping[str, Any]) -> Rows:
    """TRL's arguments as (problem, completion) pairs.

    A column must have one value for each row. Arguments that are not lists are not columns.
    """
    max_length = columns.get("max_completion_len")
    lists = {name: value for name, value in columns.items() if isinstance(value, list | tuple)}
    rows = []
    for prompt, message, *values in zip(prompts, completions, *lists.values(), strict=True):
        row = dict(zip(lists, values))
        prompt, text = message_text(prompt), message_text(message)
        problem = Problem(row.get("task") or "", "", row.get("language") or "", prompt, row)
        ids = row.get("completion_ids")
        completion = Completion(
            think_prefix(prompt) + text,
            len(text if ids is None else ids),
            None if ids is None else row.get("max_completion_len", max_length),
        )
        rows.append((problem, completion))
    return rows


def message_text(message: Any) -> str:
    """The text of a prompt or completion: of a string, or of the last message's text parts."""
    if isinstance(message, str):
        return str(message)
    parts = message[-1]["content"]
    if isinstance(parts, str):
        return parts
    return "".join(part["text"] for part in parts if part["type"] == "text")


# -- functions of a user's file, called by the runner ------------------------------------------


def to_columns(
    problem: Problem, rollouts: Sequence[Rollout], max_completion_len: int | None
) -> dict[str, list]:
    """TRL's arguments for the completions of one problem.

    A prompt is a message list if the row had one, as in TRL. The problem's own names win over
    columns of the same name. Without a language, a column `language` stays: open-r1's code
    rewards expect a programming language there.
    """
    messages = problem.columns.get("prompt")
    prompt = messages if isinstance(messages, list) else Text(problem.prompt)
    values = {**problem.columns, "task": problem.task, "prompts": prompt}
    values["max_completion_len"] = max_completion_len
    if problem.language:
        values["language"] = problem.language
    return {
        **{name: [value] * len(rollouts) for name, value in values.items()},
        "completions": [Text(rollout.text) for rollout in rollouts],
        "completion_ids": [list(rollout.completion_ids) for rollout in rollouts],
    }


class Text(str):
    """A string that can also be read as a list of one message.

    TRL passes strings or message lists, depending on the data, and a user's function expects one
    of the two. This lets both kinds of function run on any data.

    >>> text = Text("<think>")
    >>> text[0]["content"], text[-1]["role"], text[0] == "<", text[1:]
    ('<think>', 'assistant', True, 'think>')
    """

    def __getitem__(self, index):
        if index not in (0, -1):
            return super().__getitem__(index)
        message = Message(str(self)[index:][:1])
        message.fields = {"role": "assistant", "content": str(self)}
        return message


class Message(str):
    """The first or last character of a `Text`, which can also be read as its message."""

    def __getitem__(self, key):
        return self.fields[key] if isinstance(key, str) else super().__getitem__(key)
