"""Runs experiments: `python -m r1mini.experiments baseline`, or `all`, or `list` to show them.

Each compares a few short runs and writes a plot and a table, OUT/NAME.png and OUT/NAME.md. Runs
that experiments share run once; after an interruption, the same command resumes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from r1mini.config import option, run_script, validate
from r1mini.experiments.catalog import EXPERIMENTS, Arm, Flags
from r1mini.experiments.report import draw, table
from r1mini.infra import files
from r1mini.recipe.scheduler import (
    Stage,
    WorkerOptions,
    claim_folder,
    default_workers,
    schedule,
    worker_flags,
)


@dataclass(frozen=True)
class Config(WorkerOptions):
    names: tuple[str, ...] = option((), "an experiment, or all, or list", positional=True)
    out: str = option("runs/experiments", "folder for the runs, the plots and the tables")
    seed: int = option(0, "first random seed")
    seeds: int = option(1, "runs of each kind", bounds="1 <= x")


def main(cfg: Config) -> None:
    validate(cfg)
    if cfg.names == ("list",):
        print("\n".join(describe(name) for name in EXPERIMENTS))
        return
    for name in cfg.names:
        if name not in ("all", *EXPERIMENTS):
            raise ValueError(f"{name!r} is not one of all, list, {', '.join(EXPERIMENTS)}")
    names = list(EXPERIMENTS) if "all" in cfg.names else list(dict.fromkeys(cfg.names))
    out = Path(cfg.out)
    claim_folder(out, "experiments.json", {})
    seeds = range(cfg.seed, cfg.seed + cfg.seeds)
    plan = {}  # by name: experiments share runs
    for seed in seeds:
        files.prepare_folder(out / f"seed-{seed}" / "eval")
        for arm in [arm for name in names for arm in EXPERIMENTS[name].arms]:
            plan |= {stage.name: stage for stage in stages(arm, out, seed, cfg.device)}
    schedule(list(plan.values()), cfg.workers or default_workers(cfg.device))
    folders = [out / f"seed-{seed}" for seed in seeds]
    for name in names:
        experiment = EXPERIMENTS[name]
        text = table(experiment, folders)
        files.write_text(out / f"{name}.md", text)
        draw(experiment, folders, out / f"{name}.png")
        print(f"\n{experiment.claim}\n\n{text}\n{out / name}.md, {out / name}.png")


def stages(arm: Arm, out: Path, seed: int, device: str) -> list[Stage]:
    """Fine-tuning, RL and evaluation, as far as the arm has them."""
    folder, result, before = out / f"seed-{seed}", [], {}

    def add(script: str, name: str, flags: Flags, output: str) -> None:
        target = folder / name
        settings = {**worker_flags(script, device), **flags, **before}
        settings |= {"seed": seed, "out": str(target)}
        inputs = tuple(Path(model) / "run.json" for model in before.values())
        stage = Stage(str(target.relative_to(out)), script, settings, target / output, inputs)
        result.append(stage)

    for script, name, flags in arm.runs():
        add(script, name, flags, "run.json")
        before = {"model": str(folder / name)}
    add("sample", f"eval/{arm.name}.json", arm.evaluation() | {"eval": True}, "")
    return result


def describe(name: str) -> str:
    lines = [f"{name}: {EXPERIMENTS[name].claim}"]
    return "\n".join(lines + [f"    {arm.label}: {arm.flags}" for arm in EXPERIMENTS[name].arms])


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.experiments"
    run_script(main, Config, description=__doc__)
