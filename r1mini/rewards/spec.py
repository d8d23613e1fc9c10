"""Parses `--reward accuracy,format:0.5,my_rewards.py:brevity:2` and loads its functions."""

import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mini import rewards
from r1mini.infra.timeout import TimedOut, time_limit
from r1mini.rewards.trl_adapter import Reward

# Computed and logged in every run, rewarded or not.
ALWAYS_LOGGED = ("accuracy", "format", "language")
# Seconds that a user's file may take to load, and a user's function for one problem's completions.
TIME_LIMIT = 600.0
# The largest reward or weight: next to a larger one, single precision loses the others.
MAX_MAGNITUDE = 1e6
PART = re.compile(r"(?:(.*\.py):)?([^:]*)(?::(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Rewards:
    """Rewards by name, and the weights of those that count; the others are only logged."""

    functions: Mapping[str, Reward]
    weights: Mapping[str, float]


def parse_spec(text: str) -> list[tuple[str, str, float]]:
    """(file or "", name, weight) of each part of a `--reward`. ValueError for an invalid part."""
    parts = []
    for part in text.split(","):
        file, name, weight = PART.fullmatch(part.strip()).groups()
        if not file and name not in rewards.REWARDS:
            known = ", ".join(rewards.REWARDS)
            raise ValueError(
                f"--reward {text}: {name!r} is not one of {known}, nor file.py:function"
            )
        if name in [other for _, other, _ in parts]:
            raise ValueError(f"--reward {text}: {name!r} is listed twice")
        if file and name in (*ALWAYS_LOGGED, "overlong"):
            raise ValueError(
                f"--reward {text}: {name!r} is the name of a built-in reward; rename the function"
            )
        try:
            parts.append((file or "", name, finite_number(weight or "1")))
        except ValueError as error:
            raise ValueError(f"--reward {text}: {error}") from None
    return parts


def finite_number(value: Any) -> float:
    """A reward or weight as float. ValueError if it is not a number, or too large."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{str(value)[:60]!r} is not a number") from None
    if not abs(number) <= MAX_MAGNITUDE:
        raise ValueError(f"{str(value)[:60]!r} is not a finite number up to {MAX_MAGNITUDE:g}")
    return number


def reward_weights(text: str) -> dict[str, float]:
    """The weights of a `--reward` by the names of the rewards.

    >>> reward_weights("accuracy,format:0.1,my_rewards.py:brevity:2")
    {'accuracy': 1.0, 'format': 0.1, 'brevity': 2.0}
    """
    return {name: weight for _, name, weight in parse_spec(text)}


def load_rewards(text: str) -> dict[str, Reward]:
    """The rewards of a `--reward` by name, and those that every run logs.

    Files are executed: they are the user's. ValueError if one cannot be loaded.
    """
    functions = {name: rewards.REWARDS[name] for name in ALWAYS_LOGGED}
    namespaces = {"": rewards.REWARDS}
    for file, name, _ in parse_spec(text):
        if file not in namespaces:
            namespaces[file] = vars(load_module(file))
        functions[name] = namespaces[file].get(name)
        if not callable(functions[name]):
            raise ValueError(f"--reward {text}: {file} has no function {name!r}")
    return functions


def load_module(file: str):
    """The module of a user's file."""
    if not Path(file).is_file():
        raise ValueError(f"--reward: {file}: no such file")
    spec = importlib.util.spec_from_file_location(f"rewards of {file}", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with time_limit(TIME_LIMIT):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"--reward: {file}: {one_line(error)}") from error
    except TimedOut:
        raise ValueError(f"--reward: {file}: takes longer than {TIME_LIMIT:g} s to load") from None
    return module


def one_line(error: BaseException) -> str:
    """Name and message of an exception in one printable line."""
    printable = "".join(char if char.isprintable() else " " for char in str(error))
    message = " ".join(printable.split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__
