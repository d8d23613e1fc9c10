"""Presets side by side: `python -m r1mini.compare --model runs/r1/dev1`.

Every preset of train_grpo.py goes from the same model through the same number of sampled completions, with several seeds,
and is evaluated on held-out problems, the KL from that model included. A preset that does nothing here, because its sizes
are meant for another model, shows how much two equal runs differ.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import train_grpo
from r1mini import checkpoint, tasks
from r1mini.config import device as pick_device
from r1mini.config import option, require, run
from r1mini.evaluate import read_figures, shown
from r1mini.recipe import Stage, default_workers, same_run, schedule, speed, stopwatch

COLUMNS = ("pass@1", "pass@16", "length", "entropy", "kl")


@dataclass(frozen=True)
class Config:
    out: str = option("runs/compare", "folder for the runs and the table")
    model: str = option("runs/r1/dev1", "model folder that every run starts from")
    presets: tuple[str, ...] = option(("default", *train_grpo.PRESETS), "presets of train_grpo.py; default: none")
    sample_budget: int = option(8192, "completions that each run samples")
    tasks: tuple[str, ...] = option(tasks.REASONING, "tasks to train and evaluate on")
    problems: int = option(32, "held-out problems per task, 16 samples each")
    seed: int = option(0, "first seed")
    seeds: int = option(3, "runs of each preset")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    workers: int = option(0, "processes side by side (0: one a core on a CPU, one on a GPU)")


def settings(preset: str, budget: int) -> dict[str, Any]:
    """A preset's flags, with the steps that it takes to sample `budget` completions without refills."""
    given = dict(train_grpo.PRESETS.get(preset, {}))
    defaults = train_grpo.Config()
    step = given.get("problems", defaults.problems) * given.get("completions", defaults.completions)
    return given | {"steps": math.ceil(budget / step)} | ({"sample_budget": budget} if given.get("resample") else {})


def stages(cfg: Config, out: Path) -> list[Stage]:
    start = str(checkpoint.resolve(cfg.model))
    common = {"device": cfg.device, "threads": 1, "progress": False, "tasks": cfg.tasks}
    measure = {**common, "eval": True, "reference": start, "problems": cfg.problems, **speed("sample", cfg.device)}
    found = [Stage("eval/start", "sample", {**measure, "model": start, "out": str(out / "eval/start.json"), "seed": cfg.seed},
                   out / "eval/start.json")]
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):
        for preset in cfg.presets:
            name = f"{preset}-{seed}"
            file, record = out / "eval" / f"{name}.json", out / name / "run.json"
            flags = speed("train_grpo", cfg.device) | settings(preset, cfg.sample_budget)
            found.append(Stage(name, "train_grpo", {**common, **flags, "model": start, "out": str(out / name), "seed": seed},
                               record))
            found.append(Stage(f"eval/{name}", "sample", {**measure, "model": str(out / name), "out": str(file), "seed": seed},
                               file, (record,)))
    return found


def table(cfg: Config, out: Path) -> str:
    start = read_figures(out / "eval/start.json", k=16, columns=COLUMNS)["mean"]
    lines = [f"From {cfg.model}; held-out problems: {start['problems']} in {len(cfg.tasks)} tasks, {start['samples']} samples "
             f"each at temperature 1; seeds: {cfg.seeds}" + ("; ± is the standard deviation over seeds." * (cfg.seeds > 1)
                                                             or "."), "",
             "| preset | completions | " + " | ".join(COLUMNS) + " | seconds |", "|---" * (len(COLUMNS) + 3) + "|",
             "| start | 0 | " + " | ".join(shown(start[name], name) for name in COLUMNS) + " | – |"]
    for preset in cfg.presets:
        names = [f"{preset}-{seed}" for seed in range(cfg.seed, cfg.seed + cfg.seeds)]
        means = [read_figures(out / "eval" / f"{name}.json", k=16, columns=COLUMNS)["mean"] for name in names]
        records = [checkpoint.read_record(out / name / "run.json", "completions", "seconds") for name in names]
        drawn = [record["config"]["completions"] * sum(
            step["groups_drawn"] for step in checkpoint.read_metrics(out / name / "metrics.jsonl", "groups_drawn"))
            for name, record in zip(names, records)]
        lines.append(f"| {preset} | {fmean(drawn):.0f} | " + " | ".join(spread(means, name) for name in COLUMNS)
                     + f" | {fmean(record['seconds'] for record in records):.0f} |")
    return "\n".join(lines) + "\n"


def spread(means: Sequence[dict[str, Any]], name: str) -> str:
    """Mean and standard deviation over seeds."""
    values = [m[name] for m in means]
    return shown(fmean(values), name) + (f" ± {shown(stdev(values), name)}" if len(values) > 1 else "")


def main(cfg: Config) -> None:
    tasks.require(cfg.tasks)
    require(cfg, sample_budget=cfg.sample_budget >= 1, problems=cfg.problems >= 1, seeds=cfg.seeds >= 1,
            workers=cfg.workers >= 0)
    for preset in cfg.presets:
        if preset != "default" and preset not in train_grpo.PRESETS:
            raise ValueError(f"--presets: {preset!r} is not one of default, {', '.join(train_grpo.PRESETS)}")
    checkpoint.load(cfg.model)  # what is wrong with it is said here, not by a run
    out, say = Path(cfg.out), stopwatch()
    same_run(out, "compare.json", {"model": cfg.model, "sample-budget": cfg.sample_budget, "tasks": " ".join(cfg.tasks),
                                   "problems": cfg.problems})
    (out / "eval").mkdir(exist_ok=True)
    schedule(stages(cfg, out), cfg.workers or default_workers(pick_device(cfg.device, 0).type == "cuda"), say)
    result = table(cfg, out)
    checkpoint.replace_text(out / "compare.md", result)
    print(result)


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.compare"
    run(main, Config, description=__doc__)
