"""The figures of an evaluation, from its rows alone: pass@1, pass@k, cons@k, KL; tables. [R1 §3]

A problem is one observation: its samples are averaged first. General prompts have no right answer:
their sets have a utility instead. Left out: everything that samples.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from r1mini import answers, tasks
from r1mini.infra.files import is_finite_number, read_json, read_log
from r1mini.rewards.runner import ALWAYS_LOGGED

Row = Mapping[str, Any]  # one completion
Figures = dict  # of one set of problems, or their mean
MISSING = "–"  # in a table
NOT_SETS = (
    "mean",
    "settings",
    "seconds",
    "win rate",
)  # keys of an evaluation that name no set of problems


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased chance that at least one of k samples is correct, if `correct` of n are.
    (Chen et al. 2021, Eq. 1)

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def consensus(rows: Sequence[Row]) -> float | None:
    """cons@k of one problem: is its most frequent answer correct?

    If answers tie, the fraction of them that are correct. Answers to a file's problem are the same
    if `answers.equivalent` says so. None for programs.
    """
    votes = []  # (answer, accuracy of each completion that gives it)
    for row in rows:
        accuracy = row["rewards"]["accuracy"]
        if accuracy is None:
            return None
        if not row["answer"]:
            continue
        for answer, accuracies in votes:
            if agree(row["task"], answer, row["answer"]):
                accuracies.append(accuracy)
                break
        else:
            votes.append((row["answer"], [accuracy]))
    if not votes:
        return 0.0
    most = max(len(accuracies) for _, accuracies in votes)
    return fmean(fmean(accuracies) for _, accuracies in votes if len(accuracies) == most)


def agree(task: str, one: str, other: str) -> bool:
    if one == other or task in tasks.TASKS:
        return one == other
    try:
        return answers.equivalent(one, other)
    except ValueError:  # not readable as a gold answer
        return False


def is_correct(row: Row) -> float | None:
    """1 for a correct answer, or a program that passes its tests; None for a general prompt."""
    rewards = row["rewards"]
    return rewards["code"] if rewards["accuracy"] is None else rewards["accuracy"]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error over problems; a single problem has none."""
    return fmean(values), stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def summarise(groups: Sequence[Sequence[Row]]) -> Figures:
    """The figures of one set; `groups` has the rows of each problem.

    Entropy is in nats per token, of the distribution sampled from: the mean of -log p. The KL from
    it to the reference is the mean of log p - log p_ref.
    """
    rows, k = [row for group in groups for row in group], len(groups[0])
    tokens = sum(row["tokens"] for row in rows)
    logprob = sum(row["logprob"] for row in rows)
    others = [name for name in rows[0]["rewards"] if name not in (*ALWAYS_LOGGED, "code")]
    figures = {
        **accuracy_figures(groups),
        **(utility_figures(groups) if "utility" in rows[0] else {}),
        **{
            f"rewards/{name}": mean_known([row["rewards"][name] for row in rows]) for name in others
        },
        "format": mean_known([row["rewards"]["format"] for row in rows]),
        "language": mean_known([row["rewards"]["language"] for row in rows]),
        "length": tokens / len(rows),
        "truncated": fmean(not row["finished"] for row in rows),
        "unparsed": fmean(row["answer"] is None for row in rows),
        "entropy": -logprob / tokens,
        "problems": len(groups),
        "samples": k,
    }
    if "reference_logprob" in rows[0]:
        figures["kl"] = (logprob - sum(row["reference_logprob"] for row in rows)) / tokens
    return figures


def accuracy_figures(groups: Sequence[Sequence[Row]]) -> Figures:
    """None for general prompts, whose answers are neither right nor wrong."""
    k = len(groups[0])
    correct = [[is_correct(row) for row in group] for group in groups]
    correct = [values for values in correct if None not in values]
    if not correct:
        return dict.fromkeys(("pass@1", "pass@1_se", f"pass@{k}", f"cons@{k}"))
    pass1, error = mean_and_error([fmean(values) for values in correct])
    return {
        "pass@1": pass1,
        "pass@1_se": error,
        f"pass@{k}": fmean(pass_at_k(k, int(sum(values)), k) for values in correct),
        f"cons@{k}": mean_known([consensus(group) for group in groups]),
    }


def utility_figures(groups: Sequence[Sequence[Row]]) -> Figures:
    utility, error = mean_and_error([fmean(row["utility"] for row in group) for group in groups])
    return {"utility": utility, "utility_se": error}


def average(figures: Sequence[Figures]) -> Figures:
    """The mean of each figure over the sets that have it. The standard errors combine those of
    these sets, which are independent."""
    mean = {}
    for key in dict.fromkeys(key for f in figures for key in f):
        values = [f[key] for f in figures if f.get(key) is not None]
        mean[key] = sum(values) / len(values) if values else None
    for key in ("pass@1", "utility"):
        errors = [f[f"{key}_se"] for f in figures if f.get(key) is not None]
        if errors:
            squares = None if None in errors else [error**2 for error in errors]
            mean[f"{key}_se"] = math.sqrt(sum(squares)) / len(errors) if squares else None
    return mean | {
        "samples": figures[0]["samples"],
        "problems": sum(f["problems"] for f in figures),
    }


def win_rate(rows: Iterable[Row], other_rows: Iterable[Row]) -> tuple[float, float | None]:
    """How often the first of two evaluations of the same general prompts has the better answer:
    the rate and its standard error.

    Every two samples of a prompt meet, and the utility decides: 1 for a win, ½ for a tie. A prompt
    is one observation. ValueError if the prompts differ.
    """
    utilities, others = utilities_by_prompt(rows), utilities_by_prompt(other_rows)
    if not utilities:
        raise ValueError("no answers to general prompts")
    if different := utilities.keys() ^ others.keys():
        raise ValueError(f"only one of the evaluations has the prompt {min(different)!r:.60}")
    rates = []
    for prompt, values in utilities.items():
        pairs = product(values, others[prompt])
        rates.append(fmean((one > other) + (one == other) / 2 for one, other in pairs))
    return mean_and_error(rates)


def utilities_by_prompt(rows: Iterable[Row]) -> dict[str, list[float]]:
    """The utility of each sample of each general prompt, in order."""
    utilities = {}
    for row in sorted((row for row in rows if "utility" in row), key=lambda row: row["sample"]):
        utilities.setdefault(row["prompt"], []).append(row["utility"])
    return utilities


# -- reading an evaluation's files ----------------------------------------------------------------


def read_figures(
    path: Path, names: Sequence[str] = (), k: int | None = None, columns: Sequence[str] = ()
) -> dict[str, Figures]:
    """{set: figures, ..., "mean": ...}, read from an evaluation's file.

    ValueError if one of the sets `names` or of these columns is missing, the number of samples is
    not `k` (None: any), or a value is not a finite number.
    """
    results = read_json(path)
    mean = results.get("mean")
    k = k or (mean.get("samples") if isinstance(mean, dict) else None)
    sets = [name for name in results if name != "settings"]
    for name in ["mean", *names, *sets]:  # the mean first: the others have its columns
        figures, place = results.get(name), f"{path}: {name[:60]}"
        valid_k = type(k) is int and 0 < k < 10**6
        if not isinstance(figures, dict) or not valid_k or figures.get("samples") != k:
            raise ValueError(f"{place}: not figures of an evaluation with {k!r:.60} samples")
        general = "utility" in figures and figures.get("pass@1") is None
        required = {"problems", "length", "truncated", "unparsed", "entropy"}
        required |= {"utility"} if general else {"pass@1", f"pass@{k}"}
        if name == "mean" or not general:
            required |= {*columns}
        optional = {"pass@1_se", f"cons@{k}", "format", "language"} | mean.keys() | figures.keys()
        utility = {"utility", "utility_se"}  # the mean may have it from another set
        optional = optional | utility if "utility" in figures else optional - utility
        for column in required | optional:
            value = figures.get(column, "missing")
            if not is_finite_number(value) and (value is not None or column in required):
                raise ValueError(f"{place}: {column[:60]} {value!r:.60} is not a finite number")
    return results


def read_completions(path: Path) -> Iterator[Row]:
    """The rows that an evaluation wrote. ValueError for one without what the examples need."""
    for place, row in read_log(path):
        for name in ("task", "prompt", "completion"):
            if not isinstance(row.get(name), str):
                raise ValueError(f"{place}: {name} {row.get(name)!r:.60} is not text")
        rewards = row.get("rewards")
        accuracy = rewards.get("accuracy", "missing") if isinstance(rewards, dict) else "missing"
        if accuracy is not None and not is_finite_number(accuracy):
            raise ValueError(f"{place}: rewards {rewards!r:.60} are not a completion's rewards")
        if not is_finite_number(row.get("utility", 0.0)):
            raise ValueError(f"{place}: utility {row['utility']!r:.60} is not a number")
        if not is_finite_number(row.get("sample")):
            raise ValueError(f"{place}: sample {row.get('sample')!r:.60} is not a number")
        yield row


# -- Markdown tables ------------------------------------------------------------------------------


def table_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table_head(columns: Sequence[str]) -> str:
    return table_row(columns) + "\n" + "|---" * len(columns) + "|"


def markdown_table(columns: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """
    >>> print(markdown_table(["task", "pass@1"], [["countdown", "0.50"]]))
    | task | pass@1 |
    |---|---|
    | countdown | 0.50 |
    """
    return "\n".join([table_head(columns), *map(table_row, rows)])


def format_figure(value: float | None, column: str) -> str:
    if value is None:
        return MISSING
    digits = {"length": 0, "seconds": 0, "kl": 3}.get(column, 2)
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no -0.00


def spread(values: Sequence[float], column: str, error: float | None = None) -> str:
    """Mean ± standard deviation over seeds; for a single seed, ± its own error if it has one."""
    if len(values) > 1:
        error = stdev(values)
    mean = format_figure(fmean(values), column)
    return mean if error is None else f"{mean} ± {format_figure(error, column)}"


def figure_cell(seeds: Sequence[Figures], column: str) -> str:
    """A figure's mean over seeds; if it has a standard error, with the error of that mean."""
    values, error = [figures.get(column) for figures in seeds], f"{column}_se"
    if error in seeds[0] and None not in values:
        return spread(values, column, seeds[0][error])
    return format_figure(mean_known(values), column)


def figures_table(results: dict[str, Figures]) -> str:
    """A row for each set of one model's evaluation, and one for their mean if there are several."""
    k = results["mean"]["samples"]
    optional = {name: [name] * (name in results["mean"]) for name in ("utility", "kl")}
    columns = ["pass@1", f"pass@{k}", f"cons@{k}", *optional["utility"], "format", "language"]
    columns += ["length", "truncated", "unparsed", "entropy", *optional["kl"]]
    columns += [name for name in results["mean"] if name.startswith("rewards/")]
    names = [name for name in results if name not in NOT_SETS]
    names += ["mean"] * (len(names) > 1)
    rows = [[name, *(figure_cell([results[name]], column) for column in columns)] for name in names]
    return markdown_table(["task", *columns], rows)
