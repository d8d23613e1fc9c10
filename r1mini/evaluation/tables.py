"""Markdown tables of figures."""

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from r1mini.evaluation.figures import NOT_SETS, Figures, mean_known

MISSING = "–"


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
    """A figure's mean over seeds; for pass@1, with the error of that mean."""
    values = [figures[column] for figures in seeds]
    if column == "pass@1":
        return spread(values, column, seeds[0]["pass@1_se"])
    return format_figure(mean_known(values), column)


def figures_table(results: dict[str, Figures]) -> str:
    """A row for each set of one model's evaluation, and one for their mean if there are several."""
    k = results["mean"]["samples"]
    columns = ["pass@1", f"pass@{k}", f"cons@{k}", "format", "language", "length", "truncated"]
    columns += ["unparsed", "entropy", *["kl"] * ("kl" in results["mean"])]
    names = [name for name in results if name not in NOT_SETS]
    names += ["mean"] * (len(names) > 1)
    rows = [[name, *(figure_cell([results[name]], column) for column in columns)] for name in names]
    return markdown_table(["task", *columns], rows)
