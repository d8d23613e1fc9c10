"""Runs the rewards of one problem's completions, checks every value and sums them up.

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

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from r1mini.infra.timeout import TimedOut, time_limit
from r1mini.records import Problem, Rollout
from r1mini.rewards import spec
from r1mini.rewards.completion import Completion
from r1mini.rewards.spec import finite_number, one_line
from r1mini.rewards.trl_adapter import Reward, to_columns

Scores = list[dict[str, "float | None"]]  # of each completion, by the reward's name, unweighted


@contextmanager
def worker_pool() -> Iterator[ThreadPoolExecutor]:
    """A thread for each processor. The end of the block cancels jobs that have not started."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="rewards")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class PendingScores:
    """Scores that may still be computed, like a Future."""

    pending: Mapping[str, Callable[[], list[float | None]]]

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
    """Start the built-in rewards in the pool; the others run when the result is asked for."""
    pending = {}
    for name, reward in functions.items():
        call = partial(call_checked, name, reward, problem, rollouts, max_completion_len)
        run_in_pool = pool and builtin_score(reward)
        pending[name] = pool.submit(call).result if run_in_pool else call
    return PendingScores(pending)


def weighted_sum(scores: Mapping[str, float | None], weights: Mapping[str, float]) -> float:
    """The sum of one completion's rewards, as in the paper [R1 §2.3.2].

    Rewards that do not apply add nothing. Rounded, so that equal rewards are equal numbers.
    """
    terms = (weight * scores[name] for name, weight in weights.items() if scores[name] is not None)
    return round(sum(terms), 6)


def group_rewards(
    problem: Problem, scores: Scores, weights: Mapping[str, float]
) -> tuple[float, ...]:
    """The weighted sum for each completion. ValueError if no reward applies: all would be 0."""
    if all(row[name] is None for row in scores for name in weights):
        raise ValueError(
            f"--reward {','.join(weights)}: none applies to the problem of task {problem.task!r}, "
            f"prompt {problem.prompt[:60]!r}"
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
    count, score_rows = len(rollouts), builtin_score(reward)
    if score_rows is None:
        columns = to_columns(problem, rollouts, max_completion_len)
        call, seconds = partial(call_user_function, reward, columns), spec.TIME_LIMIT
    else:  # the sandbox limits the time
        rows = []
        for rollout in rollouts:
            _, text = problem.prompt_and_completion(rollout)
            length = len(rollout.completion_ids)
            rows.append((problem, Completion(text, length, max_completion_len)))
        call, seconds = lambda part: score_rows(rows[part]), None

    def failure(reason: str, row: int | None) -> ValueError:
        place = (
            f"no single row of {count}; the first" if row is None else f"row {row + 1} of {count}"
        )
        return ValueError(
            f"reward {name}: {reason}; {place}: task {problem.task!r}, prompt "
            f"{problem.prompt[:60]!r}, completion {rollouts[row or 0].text[:60]!r}"
        )

    try:
        with time_limit(seconds):
            values = call(slice(None))
    except (Exception, SystemExit, TimedOut) as error:
        late = isinstance(error, TimedOut)
        reason = f"takes longer than {seconds:g} s" if late else one_line(error)
        raise failure(reason, failing_row(call, count, seconds)) from error
    if len(values) != count:
        raise failure(f"returned {len(values)} values for {count} completions", None)
    for row, value in enumerate(values):
        try:
            values[row] = checked_value(value)
        except ValueError as error:
            raise failure(str(error), row) from None
    return values


def builtin_score(reward: Reward) -> Callable[..., list[float | None]] | None:
    """The function of (problem, completion) rows behind a built-in reward or a `partial` of one.

    None for a user's function.
    """
    if isinstance(reward, partial) and hasattr(reward.func, "score_rows"):
        return partial(reward.func.score_rows, **reward.keywords)
    return getattr(reward, "score_rows", None)


def call_user_function(reward: Reward, columns: Mapping[str, list], rows: slice) -> list[Any]:
    """Call with copies of the columns, which the function may change."""
    values = reward(**{name: list(column[rows]) for name, column in columns.items()})
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Set):
        raise TypeError(f"returned a {type(values).__name__}, not a list")
    return list(values)


def failing_row(
    call: Callable[[slice], list[Any]], count: int, seconds: float | None
) -> int | None:
    """The first completion that fails on its own; None if each passes."""
    for row in range(count):
        try:
            with time_limit(seconds and seconds / count):
                call(slice(row, row + 1))
        except (Exception, SystemExit, TimedOut):
            return row
    return None


def checked_value(value: Any) -> float | None:
    """A reward as float, or None. ValueError for anything but a finite number."""
    if value is None:
        return None
    number = finite_number(value)
    if isinstance(value, str | bytes):
        raise ValueError(f"{value[:60]!r} is text, not a finite number")
    return number
