"""Which folders a command names: RL runs, and recipes with one or several seeds."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mini.recipe.report import model_titles


@dataclass(frozen=True)
class Recipe:
    """A folder of `python -m r1mini`, and the folders of its seeds (itself, if there is one)."""

    root: Path
    seeds: tuple[Path, ...]


@dataclass(frozen=True)
class Folders:
    runs: dict[str, Path]  # RL runs, by a label that tells them apart
    recipes: dict[str, Recipe]  # by the name that the command gives


def find_folders(names: Sequence[str]) -> Folders:
    """The runs and recipes in the folders `names`, each once and by its absolute path. ValueError
    for a folder that has none."""
    runs, recipes = [], {}
    for name in names:
        path = Path(os.path.abspath(name))
        if not path.is_dir():
            raise ValueError(f"RUN {name}: no such folder; name the folder of a run or of a recipe")
        if recipe := as_recipe(path):
            if recipe not in recipes.values():
                recipes[name] = recipe
            of_path = [run for seed in recipe.seeds for run in recipe_runs(seed)]
        else:
            of_path = [path] if (path / "metrics.jsonl").is_file() else []
        if not of_path:
            raise ValueError(f"RUN {name}: {reason(path)}")
        runs += [run for run in of_path if run not in runs]
    return Folders(dict(zip(labels(runs), runs)), recipes)


def as_recipe(path: Path) -> Recipe | None:
    """None if this is not a recipe's folder. A running recipe has some of its stages only."""
    seeds = [folder for folder in path.glob("seed-*") if is_recipe_seed(folder)]
    if seeds:
        seeds.sort(key=lambda folder: (len(folder.name), folder))
        return Recipe(path, tuple(seeds))
    return Recipe(path, (path,)) if is_recipe_seed(path) else None


def is_recipe_seed(path: Path) -> bool:
    stages = [path / name / "run.json" for name in ("dev1", *model_titles(1))]
    return not (path / "run.json").is_file() and any(file.is_file() for file in stages)


def recipe_runs(seed: Path) -> Iterator[Path]:
    """The RL runs of a recipe that have finished a step, in the order of the recipe's tables."""
    logs = [log for log in seed.glob("*/rollouts.jsonl") if log.stat().st_size]
    for log in sorted(logs, key=lambda log: list_position(log.parent.name)):
        if (log.parent / "metrics.jsonl").is_file():
            yield log.parent


def list_position(name: str) -> tuple[int, str]:
    """Stages in the order of the recipe's tables; other runs after them."""
    names = list(model_titles(9))
    return (names.index(name) if name in names else len(names), name)


def reason(path: Path) -> str:
    """Why a folder shows nothing."""
    if (path / "run.json").is_file():
        return "no metrics.jsonl yet; look again after the first step"
    if as_recipe(path):
        return "no RL stage of this recipe has finished a step yet"
    return (
        "not the folder of a run (run.json, metrics.jsonl), of a recipe, or of a recipe's seeds "
        "(seed-0, seed-1, ...)"
    )


def labels(runs: Sequence[Path]) -> list[str]:
    """The shortest paths that tell the runs apart: below the last folder that all have in common.

    >>> labels([Path("runs/s3/seed-0/r1"), Path("runs/s3/seed-1/r1")])
    ['seed-0/r1', 'seed-1/r1']
    """
    common = os.path.commonpath([run.parent for run in runs])
    return [run.relative_to(common).as_posix() for run in runs]
