"""The report of a recipe: the stage tables, the curves, and one problem answered by each model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from r1mini.evaluation.figures import (
    MISSING,
    Figures,
    Row,
    average,
    figure_cell,
    figures_table,
    format_figure,
    markdown_table,
    mean_known,
    read_completions,
    read_figures,
    win_rate,
)
from r1mini.infra import files
from r1mini.tasks import DEFAULT, GENERAL, HARD

Titles = Mapping[str, str]  # of models, by their folder
PANELS = {  # of the curves: metric and title
    "rewards/accuracy/mean": "accuracy on training problems  (report, figure 2)",
    "completions/mean_length": "response length (tokens)  (report, figure 3)",
    "rewards/language/mean": "language consistency",
    "rewards/format/mean": "format",
}


def model_titles(rounds: int) -> dict[str, str]:
    """Folder and title of every model in the tables."""
    titles = {
        "base": "base",
        "r1-zero": "R1-Zero",
        "dev1": "Dev1: cold start",
        "dev2": "Dev2: reasoning RL",
        "dev3": "Dev3: SFT on rejection-sampled rows",
        "r1": "R1: RL for all scenarios",
    }
    for number in range(2, rounds + 1):
        titles[f"dev3-{number}"] = f"Dev3, round {number}"
        titles[f"r1-{number}"] = f"R1, round {number}"
    titles["student-base"] = "student base"
    titles["student-rl"] = "student, direct RL"
    titles["distilled" + (f"-{rounds}" if rounds > 1 else "")] = "student, distilled from R1"
    return titles


def write_results(folders: Sequence[Path], out: Path, tasks: Sequence[str], rounds: int) -> str:
    """Write stages.json, curves.png, examples.md and, last, stages.md, from the evaluations of one
    or several seeds. Returns the first part of stages.md: the summary."""
    titles = model_titles(rounds)
    results = read_results(folders, titles, tasks)
    files.write_json(out / "stages.json", results)
    first = folders[0]
    rl = ["dev2", "r1", *(f"r1-{number}" for number in range(2, rounds + 1))]
    curves = {
        "R1-Zero": [first / "r1-zero"],
        "R1 (reasoning RL, then RL for all scenarios)": [first / name for name in rl],
    }
    draw_curves(curves, out / "curves.png")
    files.write_text(out / "examples.md", examples(titles, first))
    training = training_table(["r1-zero", *rl, "student-rl"], folders, titles)
    summary = stages_table(results, tasks, titles) + "\n" + training
    if missing := [task for task in DEFAULT if task not in tasks]:
        summary += f"\nWithout the default tasks: {', '.join(missing)}.\n"
    note = " (first seed)" if len(folders) > 1 else ""
    details = [
        f"{title}{note}:\n\n{figures_table(results[name][0])}\n" for name, title in titles.items()
    ]
    files.write_text(out / "stages.md", "\n".join([summary, *details]))
    return summary


def read_results(
    folders: Sequence[Path], titles: Titles, tasks: Sequence[str]
) -> dict[str, list[dict]]:
    """For each model, its evaluation in each folder (a folder is a seed), the "seconds" that its
    stage took and, if general prompts were evaluated, its "win rate"."""
    k = read_figures(folders[0] / "eval/base.json")["mean"]["samples"]
    *_, general = by_kind(tasks)
    results = {}
    for name in titles:
        results[name] = []
        for folder in folders:
            evaluation = read_figures(folder / "eval" / f"{name}.json", tasks, k)
            run = folder / name / "run.json"  # none of a base model
            seconds = files.read_run_json(run).get("seconds") if run.is_file() else None
            others = {"win rate": win_rate_figures(folder, name)} if general else {}
            results[name].append(evaluation | {"seconds": seconds} | others)
    return results


def win_rate_figures(folder: Path, name: str) -> Figures:
    """The win rate of a model against Dev3 of the same seed; None for Dev3 itself."""
    rate = error = None
    if name != "dev3":
        paths = [folder / "eval" / f"{model}.jsonl" for model in (name, "dev3")]
        evaluations = [list(read_completions(path)) for path in paths]
        try:
            rate, error = win_rate(*evaluations)
        except ValueError as reason:
            raise ValueError(f"{paths[0]}, {paths[1]}: {reason}") from None
    return {"win rate": rate, "win rate_se": error}


def by_kind(tasks: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """The ordinary tasks, the hard ones, and those of general prompts."""
    hard = [task for task in tasks if task in HARD]
    general = [task for task in tasks if task in GENERAL]
    return [task for task in tasks if task not in hard + general], hard, general


def stage_figures(evaluation: Mapping[str, Figures], tasks: Sequence[str]) -> Figures:
    """A model's figures in the stage table: means over the ordinary tasks, mean pass@1 of the hard
    ones, mean utility and win rate of general prompts. What no task has is left out."""
    ordinary, hard, general = ([evaluation[task] for task in kind] for kind in by_kind(tasks))
    figures = average(ordinary) if ordinary else {}
    for column, sets, source in (("hard", hard, "pass@1"), ("general", general, "utility")):
        if sets:
            mean = average(sets)
            figures |= {column: mean[source], f"{column}_se": mean[f"{source}_se"]}
    return figures | (evaluation["win rate"] if general else {})


# -- tables ---------------------------------------------------------------------------------------


def stages_table(
    results: Mapping[str, Sequence[dict]], tasks: Sequence[str], titles: Titles
) -> str:
    base = results["base"][0]["mean"]
    k, seeds = base["samples"], len(results["base"])
    ordinary, hard, general = by_kind(tasks)
    means = {
        name: [stage_figures(evaluation, tasks) for evaluation in results[name]] for name in titles
    }
    averaged = [f"pass@{k}", f"cons@{k}", "format", "language", "length"]
    columns = ["pass@1", "hard", "general", "win rate", *averaged]
    columns = [column for column in columns if column in means["base"][0]]
    sets = [*ordinary, *["mean"] * bool(ordinary), *hard, *general]
    by_model, by_task = [], []
    for name, title in titles.items():
        evaluations = results[name]
        seconds = mean_known([evaluation["seconds"] for evaluation in evaluations])
        cells = [figure_cell(means[name], column) for column in columns]
        by_model.append([title, *cells, format_figure(seconds, "seconds")])
        by_task.append([title])
        for task in sets:
            figures = means[name] if task == "mean" else [seed[task] for seed in evaluations]
            by_task[-1].append(figure_cell(figures, "utility" if task in general else "pass@1"))
    kind = "deviation over seeds" if seeds > 1 else "error over problems"
    return (
        f"Held-out problems: {base['problems']} in {len(tasks)} tasks, {k} samples each at "
        f"temperature 1; seeds: {seeds}; ± is the standard {kind}.\n\n"
        + covered_tasks(ordinary, hard, general, averaged)
        + markdown_table(["model", *columns, "seconds"], by_model)
        + f"\n\npass@1 by task{' (general prompts: utility)' * bool(general)}:\n\n"
        + markdown_table(["model", *sets], by_task)
        + "\n"
    )


def covered_tasks(
    ordinary: Sequence[str], hard: Sequence[str], general: Sequence[str], averaged: Sequence[str]
) -> str:
    """Which tasks a column of the stage table covers; "" if all columns cover all tasks."""
    if not hard and not general:
        return ""
    lines = []
    if ordinary:
        names = ", ".join(["pass@1", *averaged])
        lines.append(f"- {names}: means over {', '.join(ordinary)}")
    if hard:
        lines.append(f"- hard: mean pass@1 of {', '.join(hard)}")
    if general:
        prompts = ", ".join(general)
        lines.append(f"- general: mean utility, 0 to 1, of {prompts}")
        lines.append(
            f"- win rate: how often an answer to {prompts} has a higher utility than Dev3's (½ for "
            "a tie)"
        )
    return "\n".join(lines) + "\n\n"


def training_table(names: Sequence[str], folders: Sequence[Path], titles: Titles) -> str:
    columns = ["run", "accuracy", "response length", "language consistency", "format"]
    rows = [
        [titles[name], *(first_and_last(name, key, folders) for key in PANELS)] for name in names
    ]
    return (
        "Reinforcement learning, on training problems: mean over the first 10 % of the steps → "
        f"the last 10 %:\n\n{markdown_table(columns, rows)}\n"
    )


def first_and_last(name: str, key: str, folders: Sequence[Path]) -> str:
    """A metric's mean over the first and the last tenth of a run's steps, and over the seeds."""
    first, last = [], []
    for folder in folders:
        values = metric_values(folder / name, key)
        if not values:
            return MISSING
        tenth = max(1, len(values) // 10)
        first.append(fmean(values[:tenth]))
        last.append(fmean(values[-tenth:]))
    column = "length" if "length" in key else key
    return f"{format_figure(fmean(first), column)} → {format_figure(fmean(last), column)}"


def metric_values(folder: Path, key: str) -> list[float]:
    return [row[key] for row in files.read_metrics(folder / "metrics.jsonl") if key in row]


def examples(titles: Titles, folder: Path) -> str:
    """For each task, every model's first completion of the same held-out problem."""
    by_task = {}
    for name in titles:
        for row in read_completions(folder / "eval" / f"{name}.jsonl"):
            if row["sample"] == 0:
                by_task.setdefault(row["task"], {}).setdefault(name, row)
    parts = ["# One held-out problem of each task, answered by every model\n"]
    for task, rows in by_task.items():
        prompt = next(iter(rows.values()))["prompt"]
        parts.append(f"\n## {task}\n\n```\n{prompt}```\n")
        for name, row in rows.items():
            completion = row["completion"].rstrip()
            parts.append(f"\n{titles[name]} ({verdict(row)}):\n\n```\n{completion}\n```\n")
    return "".join(parts)


def verdict(row: Row) -> str:
    if "utility" in row:
        return f"utility {format_figure(row['utility'], 'utility')}"
    return "right" if row["rewards"]["accuracy"] else "wrong"


# -- curves, like the report's figures ------------------------------------------------------------


def smooth(values: Sequence[float], window: int = 5) -> list[float]:
    """Trailing mean.

    >>> smooth([0.0, 1.0, 2.0], window=2)
    [0.0, 0.5, 1.5]
    """
    return [fmean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]


def draw_curves(curves: Mapping[str, Sequence[Path]], out: Path) -> None:
    """One line per label, through its RL runs in order; a dotted line where the next one starts."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), constrained_layout=True)
    for axis, (key, title) in zip(axes.flat, PANELS.items()):
        for (label, folders), colour in zip(curves.items(), ("tab:orange", "tab:blue")):
            draw_runs(axis, folders, key, label, colour)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("RL step")
        axis.grid(alpha=0.25)
        if "length" not in key:
            axis.set_ylim(0, 1.02)
    lines = axes.flat[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def draw_seeds(
    axis, steps: Sequence[int], seeds: Sequence[Sequence[float]], colour: str, label: str
) -> None:
    """Thin lines are the seeds, the thick one is their mean."""
    for values in seeds:
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    mean = [fmean(values) for values in zip(*seeds)]
    axis.plot(steps, mean, color=colour, linewidth=1.8, label=label)


def draw_runs(axis, folders: Sequence[Path], key: str, label: str, colour: str) -> None:
    start = 0
    for folder in folders:
        values = metric_values(folder, key)
        steps = range(start, start + len(values))
        if start and values:
            axis.axvline(start - 0.5, color=colour, linestyle=":", linewidth=1)
        axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        label = None if start else label
        axis.plot(steps, smooth(values), color=colour, linewidth=1.8, label=label)
        start += len(values)
