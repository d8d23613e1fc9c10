"""The embedded tasks, R1's four domains in miniature: maths, code, chemistry, facts.

A problem is a function of (task, seed, index, split). One problem in ten is held out, decided by
its canonical key alone, so no permutation or translation of a held-out problem is ever trained on.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from random import Random

from r1mini import sandbox
from r1mini.records import Problem
from r1mini.tasks import annotator, balance, countdown, describe, elements, kinetics, repair
from r1mini.tasks.trace import LANGUAGES, MAX_TRIES, Style, Try, write


@dataclass(frozen=True)
class Task:
    # (rng, language) -> a problem; None to reject this draw
    generate: Callable[[Random, str], Problem | None]
    # (problem, the text between <answer> tags) -> what is wrong; None if it is right. A general
    # task has none: no answer is the right one.
    find_error: Callable[[Problem, str], str | None] | None
    # The search for the answer, for demonstrations; without one, `write` is the answer. A task for
    # reinforcement learning alone needs neither.
    tries: Callable[[Problem, Random], Iterable[Try]] = lambda problem, rng: ()
    write: Callable[[Problem, Random], str] = lambda problem, rng: problem.columns["answer"]
    give_up: float = 0.0  # chance that an imperfect demonstration stops after a failed try
    max_tries: int = MAX_TRIES  # of a demonstration
    reasoning: bool = True  # False: an answer without thinking is well-formed
    runs_code: bool = False  # the sandbox judges the answers
    # For evaluation alone: (problem, the text between the tags; None without a well-formed end) ->
    # how good an answer is, 0 to 1. Only a general task has it, and training never sees it.
    utility: Callable[[Problem, str | None], float] | None = None


TASKS = {
    "countdown": Task(countdown.generate, countdown.find_error, countdown.tries, give_up=0.16),
    "repair": Task(repair.generate, repair.find_error, repair.tries, give_up=0.5, runs_code=True),
    "balance": Task(balance.generate, balance.find_error, balance.tries, give_up=0.6),
    "kinetics": Task(kinetics.generate, kinetics.find_error, kinetics.tries, give_up=0.7),
    "elements": Task(elements.generate, elements.find_error, elements.tries, reasoning=False),
    "describe": Task(
        describe.generate, None, write=describe.write, reasoning=False, utility=annotator.utility
    ),
    "countdown-hard": Task(
        countdown.generate_hard,
        countdown.find_error,
        countdown.tries_hard,
        give_up=0.12,
        max_tries=26,
    ),
    "repair-hard": Task(
        repair.generate_hard, repair.find_error, repair.tries, give_up=0.3, runs_code=True
    ),
    "balance-hard": Task(balance.generate_hard, balance.find_error, balance.tries, give_up=0.3),
    "kinetics-hard": Task(
        partial(kinetics.generate_rates, "kinetics-hard", "AB"),
        kinetics.find_error_rates,
        kinetics.tries_rates,
        give_up=0.3,
    ),
    # Of kinds that the base model's text does not have
    "repair-long": Task(
        repair.generate_long, repair.find_error, repair.tries, give_up=0.2, runs_code=True
    ),
    "kinetics-three": Task(
        partial(kinetics.generate_rates, "kinetics-three", "ABC"),
        kinetics.find_error_rates,
        kinetics.tries_rates,
        give_up=0.1,
    ),
}
REASONING = ("countdown", "repair", "balance", "kinetics")
HARD = ("countdown-hard", "repair-long", "balance-hard", "kinetics-three")
GENERAL = ("describe",)
DEFAULT = (*REASONING, "elements", *HARD, *GENERAL)


def usable(names: tuple[str, ...], judged: bool = True) -> tuple[str, ...]:
    """The tasks of `--tasks`. ValueError for an unknown one, and for one whose answers this machine
    cannot judge; but if they are a flag's default, it is left out, and a line says so."""
    for name in names:
        if name not in TASKS:
            raise ValueError(f"--tasks: {name!r} is not one of {', '.join(TASKS)}")
    unusable = [name for name in names if TASKS[name].runs_code] if judged else []
    if not unusable:
        return names
    try:
        sandbox.require()
        return names
    except sandbox.SandboxError as error:
        if names is not REASONING and names is not DEFAULT:  # the objects that flags default to
            raise ValueError(f"--tasks: {unusable[0]!r} runs its answers, and {error}") from error
        left_out = " and ".join(unusable)
        print(f"leaving out {left_out}: answers are run, and {error}", flush=True)
    return tuple(name for name in names if name not in unusable)


def is_held_out(problem: Problem) -> bool:
    digest = hashlib.sha256(f"{problem.task} {problem.key}".encode()).digest()
    return digest[0] < 26  # one in ten


def problem(task: str, seed: int | str, index: int, split: str) -> Problem:
    """Problem `index` of a task's endless "train" or "heldout" sequence."""
    rng = Random(f"{task} {seed} {index} {split}")
    while True:
        drawn = TASKS[task].generate(rng, rng.choice(LANGUAGES))
        if drawn is not None and is_held_out(drawn) == (split == "heldout"):
            return drawn


def find_error(problem: Problem, answer: str) -> str | None:
    """What is wrong with an answer, or None if it is right."""
    return TASKS[problem.task].find_error(problem, answer)


def demonstrate(problem: Problem, style: Style, rng: Random) -> tuple[str, str, bool]:
    """(thinking, answer, whether the answer is right) of a search in this style."""
    task = TASKS[problem.task]
    tries = task.tries(problem, rng)
    thinking, answer, is_right = write(
        tries, problem.language, style, rng, style.give_up * task.give_up, task.max_tries
    )
    if not answer:  # no search is needed
        return "", task.write(problem, rng), True
    return thinking, answer, is_right
