"""Compares presets and flags of train_grpo.py: `python -m r1mini.compare --model runs/r1/dev1`.

    --runs default dapo "dapo --learning-rate 8e-4" "default --lora-rank 8"

All runs start from the same model and sample the same number of completions, with several seeds.
Each is evaluated on held-out problems, including the KL from that model. A preset with settings for
a larger model changes nothing here: it shows how much equal runs differ.
"""

import math
import shlex
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean

from r1mini import checkpoint, tasks
from r1mini.config import any_of, flag, option, parse, run_script, validate
from r1mini.evaluation.figures import (
    MISSING,
    Figures,
    format_figure,
    markdown_table,
    read_figures,
    spread,
)
from r1mini.infra import files
from r1mini.recipe.scheduler import (
    Stage,
    WorkerOptions,
    claim_folder,
    default_workers,
    schedule,
    worker_flags,
)
from r1mini.rl.config import PRESETS, GRPOConfig, resolve
from r1mini.training.setup import trains_adapters

COLUMNS = ("pass@1", "pass@16", "length", "entropy", "kl")
SHARED = ("model", "tasks", "out", "seed", "steps", "sample_budget")  # the same in all runs


@dataclass(frozen=True)
class Config(WorkerOptions):
    out: str = option("runs/compare", "folder for the runs and the table")
    model: str = option("runs/r1/dev1", "model folder that every run starts from")
    runs: tuple[str, ...] = option(
        ("default", *(name for name in PRESETS if name != "lora-7b")),  # its steps are too large
        "what to compare: each a preset of train_grpo.py (default: none) and flags, in quotes",
    )
    sample_budget: int = option(8192, "completions that each run samples", bounds="1 <= x")
    tasks: tuple[str, ...] = option(tasks.REASONING, "tasks to train and evaluate on")
    problems: int = option(32, "held-out problems per task, 16 samples each", bounds="1 <= x")
    seed: int = option(0, "first seed")
    seeds: int = option(3, "runs of each preset", bounds="1 <= x")


def parse_run(run: str) -> GRPOConfig:
    """The flags of a run. Raises ValueError, or exits as a command line does."""
    preset, *argv = shlex.split(run) or [""]
    if preset not in ("default", *PRESETS):
        raise ValueError(f"--runs {run!r}: must begin with {any_of(('default', *PRESETS))}")
    for name in SHARED:
        if flag(name) in (word.split("=")[0] for word in argv):
            raise ValueError(f"--runs {run!r}: {flag(name)} is the same in all runs")
    if preset != "default":
        argv += ["--preset", preset]
    return parse(GRPOConfig, argv, PRESETS, prog=f"python -m r1mini.compare: --runs {run!r}")


def check_runs(cfg: Config) -> None:
    """Raises ValueError for what train_grpo.py would refuse when the run starts."""
    folders = [folder_name(run) for run in cfg.runs]
    for run in cfg.runs:
        if folders.count(folder_name(run)) > 1:
            raise ValueError(f"--runs {run!r}: given twice")
        settings = parse_run(run)
        try:
            trains_adapters(resolve(replace(settings, model=cfg.model, tasks=cfg.tasks)))
        except ValueError as error:
            raise ValueError(f"--runs {run!r}: {error}") from None


def run_settings(run: str, budget: int) -> dict:
    """The settings of a run, with the number of steps that sample `budget` completions without
    resampling.

    >>> run_settings("grpo --problems 8 --completions 16", 1000)["steps"]
    8
    """
    cfg = parse_run(run)
    values = {f.name: getattr(cfg, f.name) for f in fields(cfg)}
    settings = {name: x for name, x in values.items() if x != getattr(GRPOConfig, name)}
    settings["steps"] = math.ceil(budget / (cfg.problems * cfg.completions))
    return settings | ({"sample_budget": budget} if cfg.resample else {})


def folder_name(run: str) -> str:
    """
    >>> folder_name("dapo --learning-rate 8e-4")
    'dapo-learning-rate-8e-4'
    """
    words = (word.lstrip("-").replace("/", "-") for word in shlex.split(run))
    return "-".join(words)


def stages(cfg: Config, out: Path) -> list[Stage]:
    start = str(checkpoint.resolve(cfg.model))
    sampling = {"eval": True, "reference": start, "tasks": cfg.tasks, "problems": cfg.problems}
    sampling |= worker_flags("sample", cfg.device)

    def evaluation(name: str, model: str, seed: int, *inputs: Path) -> Stage:
        file = out / "eval" / f"{name}.json"
        settings = {**sampling, "model": model, "out": str(file), "seed": seed}
        return Stage(f"eval/{name}", "sample", settings, file, inputs)

    plan = [evaluation("start", start, cfg.seed)]
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):
        for run in cfg.runs:
            name = f"{folder_name(run)}-{seed}"
            folder, record = str(out / name), out / name / "run.json"
            settings = worker_flags("train_grpo", cfg.device)
            settings |= run_settings(run, cfg.sample_budget)
            settings |= {"model": start, "tasks": cfg.tasks, "out": folder, "seed": seed}
            plan.append(Stage(name, "train_grpo", settings, record))
            plan.append(evaluation(name, folder, seed, record))
    return plan


def table(cfg: Config, out: Path) -> str:
    start = read_mean(out, "start")
    rows = [["start", "0", *(format_figure(start[name], name) for name in COLUMNS), MISSING]]
    for run in cfg.runs:
        names = [f"{folder_name(run)}-{cfg.seed + i}" for i in range(cfg.seeds)]
        means = [read_mean(out, name) for name in names]
        figures = [spread([mean[column] for mean in means], column) for column in COLUMNS]
        costs = [completions_and_seconds(out / name) for name in names]
        completions, seconds = map(fmean, zip(*costs))
        rows.append([run, f"{completions:.0f}", *figures, f"{seconds:.0f}"])
    deviation = "; ± is the standard deviation over seeds" if cfg.seeds > 1 else ""
    return (
        f"From {cfg.model}; held-out problems: {start['problems']} in {len(cfg.tasks)} tasks, "
        f"{start['samples']} samples each at temperature 1; seeds: {cfg.seeds}{deviation}.\n\n"
        + markdown_table(["run", "completions", *COLUMNS, "seconds"], rows)
        + "\n"
    )


def read_mean(out: Path, name: str) -> Figures:
    return read_figures(out / "eval" / f"{name}.json", k=16, columns=COLUMNS)["mean"]


def completions_and_seconds(folder: Path) -> tuple[int, float]:
    """What a run sampled, with the groups that --resample replaced, and the time it took."""
    record = files.read_run_json(folder / "run.json", "completions", "seconds")
    steps = files.read_metrics(folder / "metrics.jsonl", "groups_drawn")
    groups = sum(step["groups_drawn"] for step in steps)
    return record["config"]["completions"] * groups, record["seconds"]


def main(cfg: Config) -> None:
    validate(cfg)
    cfg = replace(cfg, tasks=tasks.usable(cfg.tasks))
    checkpoint.load(cfg.model)  # report an error before any run starts
    check_runs(cfg)
    out = Path(cfg.out)
    settings = {"model": cfg.model, "sample-budget": cfg.sample_budget}
    settings |= {"tasks": " ".join(cfg.tasks), "problems": cfg.problems}
    claim_folder(out, "compare.json", settings)
    files.prepare_folder(out / "eval")
    schedule(stages(cfg, out), cfg.workers or default_workers(cfg.device))
    result = table(cfg, out)
    files.write_text(out / "compare.md", result)
    print(result)


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.compare"
    run_script(main, Config, description=__doc__)
