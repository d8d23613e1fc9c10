"""From `--reward` to the weighted sums: loads the rewards, runs them and checks every value.

Every failure of a reward stops the run with a one-line error that names the completion: an
exception, a list of the wrong length, a value that is not a finite number, ten minutes without a
result. None becomes a silent wrong number.

The built-in rewards run in threads, so that the programs of one problem are judged while the next
is sampled. Threads are enough: of the 7.3 ms that a small program with one test takes, its thread
holds the interpreter for 0.5 and waits for a helper process of the sandbox for the rest, so that
it takes 3.6 ms with two threads and 2.2 with four (on a busy machine of four processors); the
other rewards take 0.1 to 0.3 ms, no more than sending them to a process would. The functions of a
user's file run in the main thread, one after another: they may keep state, or use signals, as
Math-Verify does.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from r1mini import rewards
from r1mini.infra.timeout import TimedOut, time_limit
from r1mini.records import Problem, Rollout
from r1mini.rewards.completion import Completion
from r1mini.rewards.trl_adapter import Reward, to_columns

# Computed and logged in every run, rewarded or not.
ALWAYS_LOGGED = ("accuracy", "format", "language")
# Seconds that a user's file may take to load, and a user's function for one problem's completions.
# It does not count in the pool's threads, where the sandbox limits the time of programs.
TIME_LIMIT = 600.0
# The largest reward or weight: next to a larger one, single precision loses the others.
MAX_MAGNITUDE = 1e6
FAILURES = (Exception, SystemExit, TimedOut)  # of a user's code
PART = re.compile(
    r"(?:(?P<name>\w+)=(?P<folder>[^:@]*)|(?:(?P<file>.*\.py):)?(?P<function>[^:@]*))"
    r"(?::(?P<weight>[^@]*))?(?:@(?P<start>.*))?",
    re.DOTALL,
)
Scores = list[dict[str, "float | None"]]  # of each completion, by the reward's name, unweighted


# -- the flag `--reward` -------------------------------------------------------------------------


class Term(NamedTuple):
    """A part of `--reward`: a built-in reward, a function of a user's file, or a reward model."""

    name: str
    weight: float = 1.0
    start: float = 0.0  # it counts from this share of the run on
    file: str = ""
    folder: str = ""  # of the reward model


class Rewards(NamedTuple):
    """Rewards by name, and the weights of those in the sum; the others are only logged."""

    functions: dict[str, Reward]
    weights: dict[str, float]
    starts: dict[str, float] = {}  # a weight counts from this share of the run on; default 0

    def at(self, progress: float) -> Rewards:
        """The rewards when this share of the run is done: what starts later has no weight."""
        weights = {
            name: weight if progress >= self.starts.get(name, 0.0) else 0.0
            for name, weight in self.weights.items()
        }
        return self._replace(weights=weights)


def parse_spec(text: str) -> tuple[Term, ...]:
    """The terms of a `--reward`: `name`, `file.py:function` or `name=folder`, then perhaps
    `:weight` and `@start`. ValueError for an invalid part.

    >>> *_, brevity, helpful = parse_spec("accuracy,mine.py:brevity:2,helpful=runs/rm:0.5@0.75")
    >>> brevity
    Term(name='brevity', weight=2.0, start=0.0, file='mine.py', folder='')
    >>> helpful
    Term(name='helpful', weight=0.5, start=0.75, file='', folder='runs/rm')
    """
    terms = {}
    for part in text.split(","):
        match = PART.fullmatch(part.strip())
        try:
            term = read_term(match)
        except ValueError as error:
            raise ValueError(f"--reward {text}: {error}") from None
        if term.name in terms:
            raise ValueError(f"--reward {text}: {term.name!r} is listed twice")
        terms[term.name] = term
    return tuple(terms.values())


def model_folders(text: str) -> list[str]:
    """The folders of the reward models of a `--reward`."""
    return [term.folder for term in parse_spec(text) if term.folder]


def read_term(match: re.Match) -> Term:
    """ValueError for an unknown or reserved name, or an invalid weight or start."""
    part = match.groupdict("")
    name, is_builtin = part["name"] or part["function"], not part["file"] + part["name"]
    if is_builtin and name not in rewards.REWARDS:
        known = ", ".join(rewards.REWARDS)
        raise ValueError(
            f"{name!r} is not one of {known}, nor file.py:function, nor name=folder of a reward "
            "model"
        )
    if part["name"] and not part["folder"]:
        raise ValueError(f"{name}=: give the folder of a reward model")
    reserved = (*rewards.REWARDS, "overlong") if part["name"] else (*ALWAYS_LOGGED, "overlong")
    if not is_builtin and name in reserved:
        raise ValueError(f"{name!r} is the name of a built-in reward; choose another name")
    start = read_start(part["start"]) if match["start"] is not None else 0.0
    return Term(name, finite_number(part["weight"] or "1"), start, part["file"], part["folder"])


def read_start(text: str) -> float:
    """ValueError unless it is a share of the run."""
    try:
        start = float(text)
    except ValueError:
        start = -1.0
    if not 0 <= start < 1:
        raise ValueError(
            f"@{text}: after @ comes the share of the run from which on a reward counts, such as "
            "@0.75 (and before it the weight; a folder cannot contain a comma, : or @)"
        )
    return start


def check_terms(text: str, score_thinking: Sequence[str]) -> tuple[Term, ...]:
    """The terms of a `--reward`. ValueError if `--score-thinking` names no reward model of it."""
    terms = parse_spec(text) if text else ()
    for name in score_thinking:
        if name not in [term.name for term in terms if term.folder]:
            raise ValueError(f"--score-thinking {name}: no reward model of --reward has this name")
    return terms


def load_rewards(text: str, open_model: Callable[[str, str], Any] | None = None) -> Rewards:
    """The rewards of a `--reward`, and those that every run logs.

    Files are executed: they are the user's. `open_model(name, folder)` opens a reward model, which
    needs torch. ValueError if a reward cannot be loaded.
    """
    terms = parse_spec(text)
    functions = {name: rewards.REWARDS[name] for name in ALWAYS_LOGGED}
    namespaces = {"": rewards.REWARDS}
    for term in terms:
        if term.folder:
            functions[term.name] = open_model(term.name, term.folder)
            continue
        if term.file not in namespaces:
            namespaces[term.file] = vars(load_module(term.file))
        functions[term.name] = namespaces[term.file].get(term.name)
        if not callable(functions[term.name]):
            raise ValueError(f"--reward {text}: {term.file} has no function {term.name!r}")
        if inspect.iscoroutinefunction(functions[term.name]):
            raise ValueError(
                f"--reward {text}: {term.name!r} is async; a reward must be a plain function"
            )
    weights = {term.name: term.weight for term in terms}
    return Rewards(functions, weights, {term.name: term.start for term in terms})


def load_module(file: str):
    """The module of a user's file."""
    if not Path(file).is_file():
        raise ValueError(f"--reward: {file}: no such file")
    spec = importlib.util.spec_from_file_location(f"rewards of {file}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with time_limit(TIME_LIMIT):
            spec.loader.exec_module(module)
    except FAILURES as error:
        raise ValueError(f"--reward: cannot load {file}: {one_line(error)}") from error
    return module


# -- all rewards of one problem's completions ----------------------------------------------------


@contextmanager
def worker_pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for each processor. The end of the block cancels jobs that have not started."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rewards")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class PendingScores(NamedTuple):
    """Scores that may still be computed, like a Future."""

    pending: Mapping[str, Callable[[], list]]  # each waits for the values of one reward

    def result(self) -> Scores:
        """Wait for the built-in rewards, run the user's functions in this thread, return all."""
        values = {name: wait() for name, wait in self.pending.items()}
        return [dict(zip(values, row)) for row in zip(*values.values())]


def score_async(
    problem: Problem,
    rollouts: Sequence[Rollout],
    functions: Mapping[str, Reward],
    pool: ThreadPoolExecutor | None = None,
    *,
    max_completion_len: int | None = None,
) -> PendingScores:
    """Start the built-in rewards in the pool; the others run when `result` is called: a user's
    functions, and reward models, which score all waiting completions together."""
    pending = {}
    for name, reward in functions.items():
        if hasattr(reward, "enqueue"):
            pending[name] = reward.enqueue(problem, rollouts)
            continue
        call = partial(call_checked, name, reward, problem, rollouts, max_completion_len)
        run_in_pool = pool and builtin_score(reward)
        pending[name] = pool.submit(call).result if run_in_pool else call
    return PendingScores(pending)


def weighted_sum(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """The weighted sum of one completion's rewards; R1's has no weights [R1 §2.3.2].

    Rewards that do not apply add nothing. Rounded, so that equal rewards are equal numbers.
    """
    terms = (weight * scores[name] for name, weight in weights.items() if scores[name] is not None)
    return round(sum(terms), 6)


def group_rewards(
    problem: Problem, scores: Scores, weights: Mapping[str, float]
) -> tuple[float, ...]:
    """The weighted sum for each completion. ValueError if no reward applies."""
    if all(row[name] is None for row in scores for name in weights):
        raise ValueError(
            f"--reward {','.join(weights)}: none of these rewards applies to the problem of task "
            f"{problem.task!r}, prompt {problem.prompt[:60]!r}"
        )
    return tuple(weighted_sum(row, weights) for row in scores)


# -- one reward ----------------------------------------------------------------------------------


def call_checked(
    name: str,
    reward: Reward,
    problem: Problem,
    rollouts: Sequence[Rollout],
    max_completion_len: int | None = None,
) -> list[float | None]:
    """The values of one reward. ValueError, with the row, unless all are finite numbers or None."""
    call, count = partial(call_reward, reward, problem, max_completion_len), len(rollouts)

    def failure(reason: str, row: int | None) -> ValueError:
        place = (
            f"no single row of {count}; the first" if row is None else f"row {row + 1} of {count}"
        )
        return ValueError(
            f"reward {name}: {reason}; {place}: task {problem.task!r}, prompt "
            f"{problem.prompt[:60]!r}, completion {rollouts[row or 0].text[:60]!r}"
        )

    try:
        with time_limit(TIME_LIMIT):
            values = call(rollouts)
    except FAILURES as error:
        raise failure(one_line(error), failing_row(call, rollouts)) from error
    if len(values) != count:
        raise failure(f"returned {len(values)} values for {count} completions", None)
    for row, value in enumerate(values):
        try:
            if isinstance(value, str | bytes):
                raise ValueError(f"{value[:60]!r} is text, not a finite number")
            values[row] = None if value is None else finite_number(value)
        except ValueError as error:
            raise failure(str(error), row) from None
    return values


def call_reward(
    reward: Reward, problem: Problem, max_completion_len: int | None, rollouts: Sequence[Rollout]
) -> list:
    """The values of one reward as it returns them. A user's function may change its lists."""
    score_rows = builtin_score(reward)
    if score_rows:
        rows = []
        for rollout in rollouts:
            _, text = problem.prompt_and_completion(rollout)
            length = len(rollout.completion_ids)
            rows.append((problem, Completion(text, length, max_completion_len)))
        return score_rows(rows)
    values = reward(**to_columns(problem, rollouts, max_completion_len))
    if inspect.iscoroutine(values):
        values.close()  # or Python warns that it was never awaited
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        raise TypeError(f"returned a {type(values).__name__}, not a list")
    return list(values)


def builtin_score(reward: Reward) -> Callable[..., list[float | None]] | None:
    """The function of (problem, completion) rows behind a built-in reward or a `partial` of one.

    None for a user's function.
    """
    if isinstance(reward, partial) and hasattr(reward.func, "score_rows"):
        return partial(reward.func.score_rows, **reward.keywords)
    return getattr(reward, "score_rows", None)


def failing_row(
    call: Callable[[Sequence[Rollout]], list], rollouts: Sequence[Rollout]
) -> int | None:
    """The first completion that fails on its own; None if each passes."""
    for row, rollout in enumerate(rollouts):
        try:
            with time_limit(TIME_LIMIT / len(rollouts)):
                call([rollout])
        except FAILURES:
            return row
    return None


def finite_number(value: Any) -> float:
    """A reward or weight as float. ValueError if it is not a number, or too large."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{str(value)[:60]!r} is not a number") from None
    if not abs(number) <= MAX_MAGNITUDE:
        raise ValueError(f"{str(value)[:60]!r} is not a finite number up to {MAX_MAGNITUDE:g}")
    return number


def one_line(error: BaseException) -> str:
    """Name and message of an exception in one printable line."""
    if isinstance(error, TimedOut):
        return f"takes longer than {TIME_LIMIT:g} s"
    printable = "".join(char if char.isprintable() else " " for char in str(error))
    message = " ".join(printable.split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__
