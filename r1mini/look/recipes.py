"""Reads a recipe: the figures of its stages, and held-out problems as every stage answers them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1mini.evaluation.figures import NOT_SETS, figure_cell, mean_known, read_figures
from r1mini.infra import files
from r1mini.look.data import MAX_TEXT, check_numbers, check_types, read_lines
from r1mini.look.sources import Recipe
from r1mini.recipe.report import model_titles, stage_figures

COLUMNS = ("pass@1", "hard", "general", "format", "language", "length")
PAIRS = "held-out pairs right"  # of a reward model


def read_recipe(name: str, recipe: Recipe, runs: Mapping[str, Path]) -> dict[str, Any]:
    """The stages that there are, with figures over the seeds; `runs`: the RL runs of the page."""
    stages = {}
    for stage, title in stage_titles(recipe).items():
        paths = [seed / "eval" / f"{stage}.json" for seed in recipe.seeds]
        seeds = [evaluated(path) for path in paths if path.is_file()]
        records = [seed / stage / "run.json" for seed in recipe.seeds]
        records = [files.read_run_json(path) for path in records if path.is_file()]
        if not seeds and not records:
            continue
        columns = [column for column in COLUMNS if seeds and column in seeds[0]]
        ranked = [{PAIRS: record.get("held_out_accuracy")} for record in records]
        stages[stage] = {
            "title": title,
            "figures": {column: figure_cell(seeds, column) for column in columns}
            | ({PAIRS: figure_cell(ranked, PAIRS)} if stage.startswith("rm") and ranked else {}),
            "seconds": mean_known([record.get("seconds") for record in records]),
            "runs": [
                index
                for index, folder in enumerate(runs.values())
                if folder.name == stage and folder.parent in recipe.seeds
            ],
        }
    return {
        "label": name,
        "seeds": [seed.name for seed in recipe.seeds],
        "columns": [c for c in COLUMNS if any(c in s["figures"] for s in stages.values())],
        "stages": stages,
    }


def stage_titles(recipe: Recipe) -> dict[str, str]:
    """Titles of the stages, for as many rounds as the recipe has; the reward model last."""
    folders = [path.name for seed in recipe.seeds for path in seed.glob("r1-*")]
    rounds = [int(name[3:]) for name in folders if re.fullmatch(r"r1-\d+", name)]
    reward_models = {
        f"rm{n}": "reward model" + f", round {n[1:]}" * bool(n)
        for n in ("", *(f"-{number}" for number in range(2, max(rounds, default=1) + 1)))
    }
    return model_titles(max(rounds, default=1)) | reward_models


def evaluated(path: Path) -> dict[str, Any]:
    """The figures of one evaluation, as in the stage table, without the win rate."""
    evaluation = read_figures(path)
    sets = [name for name in evaluation if name not in NOT_SETS]
    return stage_figures(evaluation | {"win rate": {}}, sets)


def read_held_out(name: str, recipe: Recipe) -> Iterator[dict[str, Any]]:
    """For each seed, the problems that its models were evaluated on, with each model's first
    completion and the verdicts on all of them."""
    for seed in recipe.seeds:
        problems, titles = {}, {}
        for stage, title in stage_titles(recipe).items():
            path = seed / "eval" / f"{stage}.jsonl"
            for where, row in read_lines(path):
                check_answer(row, where)
                titles[stage] = title
                key = (row["task"], row["prompt"])
                new = {"task": row["task"], "prompt": row["prompt"][:MAX_TEXT], "answers": {}}
                add_answer(problems.setdefault(key, new)["answers"], stage, row)
        if problems:
            yield {
                "label": f"{name}/{seed.name}" if len(recipe.seeds) > 1 else name,
                "stages": titles,
                "problems": list(problems.values()),
                "problemsTotal": len(problems),
            }


def check_answer(row: Mapping[str, Any], where: str) -> None:
    """ValueError for a line of an evaluation without what the page shows."""
    check_types(row, where, task=str, prompt=str, completion=str, rewards=dict)
    check_numbers(row["rewards"], where)
    check_numbers({name: row.get(name) for name in ("utility", "tokens")}, where)


def add_answer(answers: dict[str, Any], model: str, row: Mapping[str, Any]) -> None:
    """Add one completion to a problem's answers: its text, if it is the model's first."""
    if model not in answers:
        answers[model] = {"text": row["completion"][:MAX_TEXT], "verdicts": []}
        answers[model] |= {
            "missing": max(0, len(row["completion"]) - MAX_TEXT),
            "tokens": row.get("tokens"),
        }
    if row.get("utility") is not None:
        answers[model].setdefault("utilities", []).append(round(row["utility"], 4))
    answers[model]["verdicts"].append(is_right(row["rewards"]))


def is_right(rewards: Mapping[str, float | None]) -> int | None:
    """1 for a right answer, or a program that passes its tests; None where no rule applies."""
    value = rewards.get("accuracy")
    value = rewards.get("code") if value is None else value
    return None if value is None else int(value > 0)
