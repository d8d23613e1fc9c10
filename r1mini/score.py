"""Calls the rewards: from `--reward` to the weighted sums, with every value checked.

Nothing that goes wrong in a reward becomes a number. An exception, a list of another length, a value that is no finite
number, ten minutes without an answer: each stops the run with one line that names the row.

The package's own rewards run in threads, so that the programs of one problem are judged while the next is sampled.
Threads are enough: of the 7.3 ms that a small program with one test takes, its thread holds the interpreter for 0.5 and
waits for a helper process of the sandbox for the rest, so that it is 3.6 ms with two threads and 2.2 with four (on a busy
machine of four processors); the other rewards take 0.1 to 0.3 ms, no more than sending them to a process would. Rewards
from a file run in the main thread, one after another: they may keep state, or use signals, as Math-Verify does.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from r1mini import rewards
from r1mini.records import Problem, Rollout
from r1mini.rewards import Reward

WATCHED = ("accuracy", "format", "language")  # computed and logged in every run, rewarded or not
PATIENCE = 600.0  # seconds that a reward of a file may take for the completions of one problem
LARGEST = 1e6  # of a reward or weight: beside a larger one, single precision does not see the others
Scores = list[dict[str, "float | None"]]


class Text(str):
    """A prompt or completion, for functions that read strings and for those that read message lists.

    >>> text = Text("<think>")
    >>> text[0]["content"], text[-1]["role"], text[0] == "<", text[1:]
    ('<think>', 'assistant', True, 'think>')
    """

    def __getitem__(self, index):
        return Message(self, index) if index in (0, -1) else super().__getitem__(index)


class Message(str):
    """The first or last character of a text, which as a message has all of it."""

    def __new__(cls, text: Text, index: int):
        made = super().__new__(cls, str(text)[index:][:1])
        made.fields = {"role": "assistant", "content": str(text)}
        return made

    def __getitem__(self, key):
        return self.fields[key] if isinstance(key, str) else super().__getitem__(key)


def named(text: str) -> list[tuple[str, str, float]]:
    """(file or "", name, weight) of each part of a `--reward`."""
    found: list[tuple[str, str, float]] = []
    for part in text.split(","):
        file, name, weight = re.fullmatch(r"(?:(.*\.py):)?([^:]*)(?::(.*))?", part.strip(), re.DOTALL).groups()
        if not file and name not in rewards.REWARDS:
            raise ValueError(f"--reward {text}: {name!r} is not one of {', '.join(rewards.REWARDS)}, nor file.py:function")
        if name in [other for _, other, _ in found]:
            raise ValueError(f"--reward {text}: {name!r} is there twice")
        if file and name in (*WATCHED, "overlong"):
            raise ValueError(f"--reward {text}: {name!r} is the name of another reward; give the function one of its own")
        try:
            value = float(weight or 1)
        except ValueError:
            raise ValueError(f"--reward {text}: {weight!r} is not a number") from None
        if not abs(value) <= LARGEST:
            raise ValueError(f"--reward {text}: {weight!r} is not a finite number up to {LARGEST:g}")
        found.append((file or "", name, value))
    return found


def weights(text: str) -> dict[str, float]:
    """The weights of a `--reward`: names, or functions of a file, each with an optional weight.

    >>> weights("accuracy,format:0.1,my_rewards.py:brevity:2")
    {'accuracy': 1.0, 'format': 0.1, 'brevity': 2.0}
    """
    return {name: weight for _, name, weight in named(text)}


def functions(text: str) -> dict[str, Reward]:
    """The rewards of a `--reward` by their names, and those that are watched in every run. Files are executed: they are
    the user's. ValueError for a file or function that cannot be had."""
    found, modules = {name: rewards.REWARDS[name] for name in WATCHED}, {}
    for file, name, _ in named(text):
        if file and file not in modules:
            modules[file] = load(file)
        found[name] = getattr(modules[file], name, None) if file else rewards.REWARDS[name]
        if not callable(found[name]):
            raise ValueError(f"--reward {text}: {file} has no function {name!r}")
    return found


def load(file: str):
    """The module of a user's file."""
    if not Path(file).is_file():
        raise ValueError(f"--reward: {file}: no such file")
    spec = importlib.util.spec_from_file_location(f"rewards of {file}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with limit(PATIENCE):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--reward: {file}: {plain(error)}") from error
    except Late:
        raise ValueError(f"--reward: {file}: takes longer than {PATIENCE:g} s to load") from None
    return module


def plain(error: BaseException) -> str:
    """Name and message of an exception in one printable line."""
    message = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__


COLUMNS = {"completion_ids", "max_completion_len", "time_limit"}  # that rewards of the package take


def columns(problem: Problem, rollouts: Sequence[Rollout], shared: Mapping[str, Any]) -> dict[str, list]:
    """What a reward is called with: the problem's columns, its own names and `shared` for every completion, and theirs."""
    every = {**problem.columns, **shared, "task": problem.task} | (
        {"language": problem.language} if problem.language else {})  # to open-r1's rewards it may be one of programs
    return {**{name: [value] * len(rollouts) for name, value in every.items()},
            "prompts": [Text(problem.prompt) for _ in rollouts], "completions": [Text(r.text) for r in rollouts],
            "completion_ids": [list(r.completion_ids) for r in rollouts]}


def call(name: str, reward: Reward, given: Mapping[str, list]) -> list[float | None]:
    """The values of one reward, checked. ValueError, with the row, for all that is not a number or None per row."""

    def stop(why: str, row: int | None) -> ValueError:
        place = f"row {row + 1} of {count}" if row is not None else f"no single row of {count}; the first"
        row = row or 0
        return ValueError(f"reward {name}: {why}; {place}: task {given['task'][row]!r}, prompt "
                          f"{str(given['prompts'][row])[:60]!r}, completion {given['completions'][row][:60]!r}")

    count = len(given["completions"])
    patience = None if reward in rewards.REWARDS.values() else PATIENCE  # the sandbox has limits of its own
    try:
        with limit(patience):
            values = reward(**{column: list(cells) for column, cells in given.items()})
        if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Mapping, Set)):
            raise TypeError(f"returned a {type(values).__name__}, not a list")
        values = list(values)
    except (Exception, SystemExit) as error:
        raise stop(plain(error), culprit(reward, given, patience)) from error
    except Late:
        raise stop(f"takes longer than {PATIENCE:g} s", culprit(reward, given, patience)) from None
    if len(values) != count:
        raise stop(f"returned {len(values)} values for {count} completions", None)
    for row, value in enumerate(values):
        try:
            values[row] = None if value is None else float(value)
        except (TypeError, ValueError, OverflowError):
            raise stop(f"{str(value)[:60]!r} is not a number", row) from None
        if values[row] is not None and (isinstance(value, (str, bytes)) or not abs(values[row]) <= LARGEST):
            raise stop(f"{str(value)[:60]!r} is not a finite number up to {LARGEST:g}", row)
    return values


def culprit(reward: Reward, given: Mapping[str, list], patience: float | None) -> int | None:
    """The first row that the reward cannot take alone; None if it takes each."""
    count = len(given["completions"])
    for row in range(count):
        try:
            with limit(patience and patience / count):
                list(reward(**{column: cells[row : row + 1] for column, cells in given.items()}))
        except (Exception, SystemExit, Late):
            return row
    return None


class Late(BaseException):
    """The time is over. Not an Exception, which a reward may catch."""


@contextmanager
def limit(seconds: float | None) -> Iterator[None]:
    """Ends what hangs in the main thread, where a file's rewards run: by the alarm, which a reward may take for itself, as
    Math-Verify does, and again each second for one that catches all; and what answers to no signal (a call into C) by ending
    the process, with the line of Python that it hangs in."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(*_):
        raise Late

    handler = signal.signal(signal.SIGALRM, late)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    faulthandler.dump_traceback_later(2 * seconds + 60, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


@lru_cache(maxsize=None)
def settings(reward: Reward) -> frozenset[str]:
    """The names of what can be set of one of the package's rewards: columns that happen to be called so are not for it."""
    found = inspect.signature(reward).parameters.values()
    return frozenset(parameter.name for parameter in found if parameter.kind is parameter.KEYWORD_ONLY) - COLUMNS


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """A thread per processor, each with a sandbox of its own once it judges a program; what waits ends with the block."""
    made = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rewards")
    try:
        yield made
    finally:
        made.shutdown(cancel_futures=True)


def begin(problem: Problem, rollouts: Sequence[Rollout], functions: Mapping[str, Reward],
          pool: ThreadPoolExecutor | None = None, **shared: Any) -> Callable[[], Scores]:
    """Starts the package's rewards in the pool, and returns a function that waits for them, runs the others, and returns
    all rewards of each completion, by name and unweighted. `shared` are further columns, one value for the problem."""
    given, ours = columns(problem, rollouts, shared), list(rewards.REWARDS.values())
    asked = problem.columns.get("prompt")  # a file's rewards get messages where the row had messages, as in TRL
    theirs = {**given, "prompts": [asked] * len(rollouts)} if isinstance(asked, list) else given
    each = {name: {column: cells for column, cells in given.items() if column not in settings(reward)} if reward in ours
            else theirs for name, reward in functions.items()}
    started = {name: pool.submit(call, name, reward, each[name]) for name, reward in functions.items()
               if pool is not None and reward in ours}

    def finish() -> Scores:
        found = {name: started[name].result() if name in started else call(name, reward, each[name])
                 for name, reward in functions.items()}
        return [dict(zip(found, values)) for values in zip(*found.values())]

    return finish


def score(problem: Problem, rollouts: Sequence[Rollout], names: Sequence[str] = WATCHED) -> Scores:
    """Those of the package's rewards, of each completion."""
    return begin(problem, rollouts, {name: rewards.REWARDS[name] for name in names})()


def total(scores: Mapping[str, float | None], weighting: Mapping[str, float]) -> float:
    """The weighted sum, as the paper adds its rewards [R1 §2.3.2]; what does not apply adds nothing. Rounded, so that equal
    rewards are equal numbers."""
    return round(sum(weight * scores[name] for name, weight in weighting.items() if scores[name] is not None), 6)


def totals(problem: Problem, scores: Scores, weighting: Mapping[str, float]) -> tuple[float, ...]:
    """The weighted sum of each completion's rewards. ValueError if none applies to the problem: all would be 0."""
    if all(row[name] is None for row in scores for name in weighting):
        raise ValueError(f"--reward {','.join(weighting)}: none applies to the problem of task {problem.task!r}, prompt "
                         f"{problem.prompt[:60]!r}")
    return tuple(total(row, weighting) for row in scores)
