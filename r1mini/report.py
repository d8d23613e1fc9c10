"""What a recipe leaves to read: the stage tables, the curves, the same problem before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from r1mini import checkpoint
from r1mini.evaluate import cell, known, mean_and_error, read_figures, read_rows, table
from r1mini.plots import draw_curves


def model_titles(rounds: int) -> dict[str, str]:
    """Folder and title of every model in the tables."""
    later = range(2, rounds + 1)
    last = f"-{rounds}" if rounds > 1 else ""
    return {
        "base": "base", "r1-zero": "R1-Zero", "dev1": "Dev1: cold start", "dev2": "Dev2: reasoning RL",
        "dev3": "Dev3: SFT on rejection-sampled rows", "r1": "R1: RL for all scenarios",
        **{f"{k}-{n}": f"{title}, round {n}" for n in later for k, title in (("dev3", "Dev3"), ("r1", "R1"))},
        "student-base": "student base", "student-rl": "student, direct RL",
        f"distilled{last}": "student, distilled from R1",
    }


def write_results(folders: Sequence[Path], out: Path, tasks: Sequence[str], rounds: int) -> str:
    """stages.json, curves.png, examples.md and, last, stages.md, from the evaluations of one or several seeds. Returns
    the beginning of stages.md: what matters most."""
    titles = model_titles(rounds)
    k = read_figures(folders[0] / "eval/base.json")["mean"]["samples"]
    figures = {name: [read_figures(f / "eval" / f"{name}.json", tasks, k) for f in folders] for name in titles}
    checkpoint.write_json(out / "stages.json", {
        name: [{**f, "seconds": seconds(folder / name)} for f, folder in zip(figures[name], folders)]
        for name in titles})
    rl = ["dev2", "r1", *(f"r1-{n}" for n in range(2, rounds + 1))]
    draw_curves({"R1-Zero": [folders[0] / "r1-zero"],
                 "R1 (reasoning RL, then RL for all scenarios)": [folders[0] / name for name in rl]},
                out / "curves.png")
    checkpoint.replace_text(out / "examples.md", examples(titles, folders[0]))
    first = stages_table(figures, folders, tasks, titles) + "\n" + training_table(["r1-zero", *rl, "student-rl"], folders,
                                                                                  titles)
    details = [f"{title}{' (first seed)' * (len(folders) > 1)}:\n\n{table(figures[name][0])}\n"
               for name, title in titles.items()]
    checkpoint.replace_text(out / "stages.md", "\n".join([first, *details]))
    return first


def seconds(folder: Path) -> float | None:
    return checkpoint.read_record(folder / "run.json").get("seconds") if (folder / "run.json").is_file() else None


def spread(values: Sequence[float], error: float | None) -> str:
    """One seed: the standard error over problems. Several: the standard deviation over seeds."""
    mean, se = mean_and_error(values)
    error = error if se is None else se * len(values) ** 0.5
    return f"{mean:.2f}" + (f" ± {error:.2f}" if error is not None else "")


def stages_table(figures: dict[str, list[dict]], folders: Sequence[Path], tasks: Sequence[str],
                 titles: dict[str, str]) -> str:
    first = figures["base"][0]["mean"]
    k, problems = first["samples"], first["problems"]
    columns = [f"pass@{k}", f"cons@{k}", "format", "language", "length"]
    kind = ("standard deviation over seeds" if len(folders) > 1 else "standard error over problems")
    lines = [f"Held-out problems: {problems} in {len(tasks)} tasks, {k} samples each at temperature 1; "
             f"seeds: {len(folders)}; ± is the {kind}.", "",
             "| model | pass@1 | " + " | ".join(columns) + " | seconds |", "|---" * (len(columns) + 3) + "|"]
    for name, title in titles.items():
        means = [f["mean"] for f in figures[name]]
        average = {c: known([m[c] for m in means]) for c in columns}
        spent = [s for s in (seconds(folder / name) for folder in folders) if s is not None]
        cells = [spread([m["pass@1"] for m in means], means[0]["pass@1_se"]), *(cell(average, c) for c in columns),
                 f"{sum(spent) / len(spent):.0f}" if spent else "–"]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", "pass@1 by task:", "", "| model | " + " | ".join(tasks) + " | mean |",
              "|---" * (len(tasks) + 2) + "|"]
    for name, title in titles.items():
        cells = [spread([f[t]["pass@1"] for f in figures[name]], figures[name][0][t]["pass@1_se"])
                 for t in (*tasks, "mean")]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def training_table(names: Sequence[str], folders: Sequence[Path], titles: dict[str, str]) -> str:
    lines = ["Reinforcement learning, first tenth of the steps against the last (training problems):", "",
             "| run | accuracy | response length | language consistency | format |", "|---|---|---|---|---|"]
    for name in names:
        ends = []
        for key in ("rewards/accuracy/mean", "completions/mean_length", "rewards/language/mean", "rewards/format/mean"):
            runs = [[row[key] for row in checkpoint.read_metrics(folder / name / "metrics.jsonl") if key in row] for folder in folders]
            if not all(runs):
                ends.append("–")
                continue
            tenth = lambda run: max(1, len(run) // 10)
            before, after = fmean(fmean(r[: tenth(r)]) for r in runs), fmean(fmean(r[-tenth(r):]) for r in runs)
            ends.append(f"{before:.0f} → {after:.0f}" if "length" in key else f"{before:.2f} → {after:.2f}")
        lines.append(f"| {titles[name]} | " + " | ".join(ends) + " |")
    return "\n".join(lines) + "\n"


def examples(names: dict[str, str], folder: Path) -> str:
    """The first sample of the same held-out problem, of each task, from every model."""
    texts: dict[str, dict[str, dict]] = {}
    for name in names:
        for row in read_rows(folder / "eval" / f"{name}.jsonl"):
            if row["sample"] == 0:
                texts.setdefault(row["task"], {}).setdefault(name, row)
    parts = ["# One held-out problem of each task, before and after\n"]
    for task, rows in texts.items():
        parts.append(f"\n## {task}\n\n```\n{next(iter(rows.values()))['prompt']}```\n")
        for name, row in rows.items():
            verdict = "right" if row["rewards"]["accuracy"] else "wrong"
            parts.append(f"\n{names[name]} ({verdict}):\n\n```\n{row['completion'].rstrip()}\n```\n")
    return "".join(parts)
