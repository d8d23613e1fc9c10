"""What too much of a reward model does (Gao et al. 2023, arXiv 2210.10760). [R1 §2.3.4]

    python -m r1mini.recipe.overoptimization --recipe runs/r1

From Dev3, three runs of RL on general prompts alone: with the reward model from the first step to
the last; the same with a KL term to Dev3; and late and short, as R1 uses it. The reward model's
score rises in all of them. The utility, which no run sees, says which answers are better.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from r1mini import tasks
from r1mini.config import option, run_script, validate
from r1mini.evaluation.figures import markdown_table, spread
from r1mini.infra import files
from r1mini.recipe.report import draw_seeds, smooth
from r1mini.recipe.scheduler import (
    Stage,
    WorkerOptions,
    claim_folder,
    default_workers,
    is_done,
    schedule,
    worker_flags,
)
from r1mini.records import Problem
from r1mini.rewards.completion import parse
from r1mini.rl.config import GRPOConfig
from r1mini.rl.rollouts import problems_of_step
from r1mini.tasks import annotator

NAMES = {
    "too-much": "the reward model in every step",
    "with-kl": "the same, with a KL term of 0.1",
    "late": "the reward model in the last quarter",
}
PANELS = {
    "score": "reward model's score",
    "utility": "utility, which no run sees",
    "length": "length (tokens)",
    "kl": "KL to Dev3 (nats per token)",
}
MEASURED = 1e-6  # a KL coefficient that measures the KL and changes nothing


@dataclass(frozen=True)
class Config(WorkerOptions):
    recipe: tuple[str, ...] = option(
        ("runs/r1",), "folders of finished recipes, one for each seed or one for all"
    )
    out: str = option("runs/overoptimization", "folder for the runs, the table and the plot")
    steps: int = option(80, "steps of each run", bounds="8 <= x")
    seed: int = option(0, "first random seed")
    seeds: int = option(3, "runs of each kind", bounds="1 <= x")


def stages(cfg: Config) -> list[Stage]:
    result = []
    for number in range(cfg.seeds):
        recipe = Path(cfg.recipe[number % len(cfg.recipe)])
        for name in NAMES:
            start = "@0.75" if name == "late" else ""
            settings = {
                **worker_flags("train_grpo", cfg.device),
                "model": str(recipe / "dev3"),
                "out": str(run_folder(cfg, name, number)),
                "seed": cfg.seed + number,
                "tasks": tasks.GENERAL,
                "reward": f"format:0.5,helpful={recipe / 'rm'}:1{start}",
                "steps": cfg.steps,
                "problems": 16,
                "minibatches": 4,
                "minibatch_of": "problems",
                "learning_rate": 4e-4,
                "final_lr": 1.0,
                "beta": 0.1 if name == "with-kl" else MEASURED,
                "reference_every": 0,
            }
            inputs = (recipe / "dev3/run.json", recipe / "rm/run.json")
            output = Path(settings["out"]) / "run.json"
            result.append(Stage(f"{name}-{number}", "train_grpo", settings, output, inputs))
    return result


def run_folder(cfg: Config, name: str, number: int) -> Path:
    return Path(cfg.out) / f"{name}-{cfg.seed + number}"


def main(cfg: Config) -> None:
    validate(cfg)
    out = Path(cfg.out)
    settings = asdict(cfg) | {"recipe": " ".join(cfg.recipe)}
    for name in ("out", "device", "workers"):
        del settings[name]
    claim_folder(out, "overoptimization.json", settings)
    planned = stages(cfg)
    for path in {path for stage in planned for path in stage.inputs}:
        if not is_done(path):
            raise ValueError(f"--recipe {path.parent.parent}: {path.parent.name} is not finished")
    schedule(planned, cfg.workers or default_workers(cfg.device))
    runs = {
        name: [read_run(run_folder(cfg, name, number)) for number in range(cfg.seeds)]
        for name in NAMES
    }
    draw(runs, out / "overoptimization.png")
    text = table(runs) + "\n" + examples(runs["too-much"][0])
    files.write_text(out / "overoptimization.md", text)
    print(text)
    print(f"done; {out}/overoptimization.md, overoptimization.png")


# -- figures of a run ------------------------------------------------------------------------------


def read_run(folder: Path) -> list[dict[str, Any]]:
    """A row of figures for each step, with its answers."""
    config = files.read_run_json(folder / "run.json")["config"]
    fields = GRPOConfig.__dataclass_fields__
    cfg = GRPOConfig(**{name: value for name, value in config.items() if name in fields})
    rollouts = {}
    for _, row in files.read_log(folder / "rollouts.jsonl"):
        rollouts.setdefault(row["step"], []).append(row)
    steps = []
    for metrics in files.read_metrics(folder / "metrics.jsonl"):
        problems = problems_of_step(cfg, (), metrics["step"])
        answers = [judged(problems[row["problem"]], row) for row in rollouts[metrics["step"]]]
        steps.append(
            {
                "score": metrics["rewards/helpful/mean"],
                "utility": fmean(answer["utility"] for answer in answers),
                "length": metrics["completions/mean_length"],
                "kl": metrics.get("kl", 0.0),
                "answers": answers,
            }
        )
    return steps


def judged(problem: Problem, row: Mapping[str, Any]) -> dict[str, Any]:
    """A completion with its utility and the kinds of its lines."""
    parsed = parse(row["completion"]) if row["finished"] else None
    answer = parsed[1] if parsed else None
    kinds = Counter(annotator.line_kinds(problem, answer or ""))
    return {
        "prompt": row["prompt"],
        "completion": row["completion"],
        "score": row["rewards"]["helpful"],
        "utility": annotator.utility(problem, answer),
        "lines": kinds,
        "unfinished": answer is None,
    }


# -- tables, examples, plot ------------------------------------------------------------------------


def table(runs: Mapping[str, Sequence[Sequence[Mapping]]]) -> str:
    """Means over tenths of the run: the first, the one of the highest utility, and the last."""
    columns = ["run", "steps", *PANELS, *("useful repeated known false").split(), "off topic"]
    rows = []
    for name, seeds in runs.items():
        for label, picked in tenths(seeds):
            cells = [spread([fmean(s[c] for s in part) for part in picked], c) for c in PANELS]
            cells += [spread([lines(part, kind) for part in picked], kind) for kind in columns[6:]]
            rows.append([NAMES[name], label, *cells])
    seeds = len(next(iter(runs.values())))
    head = (
        f"Seeds: {seeds}; ± is the standard deviation over seeds; lines are per answer. The tenth "
        "of the highest utility is chosen afterwards, so its utility is a little too high."
    )
    return f"{head}\n\n{markdown_table(columns, rows)}\n"


def tenths(seeds: Sequence[Sequence[Mapping]]) -> Iterator[tuple[str, list[Sequence[Mapping]]]]:
    """(label, those steps of each seed)."""
    size = max(1, len(seeds[0]) // 10)
    starts = range(0, len(seeds[0]) - size + 1, size)
    parts = [[steps[i : i + size] for i in starts] for steps in seeds]
    best = [max(part, key=lambda s: fmean(step["utility"] for step in s)) for part in parts]
    yield "first tenth", [part[0] for part in parts]
    yield "tenth of the highest utility", best
    yield "last tenth", [steps[-size:] for steps in seeds]


def lines(steps: Sequence[Mapping], kind: str) -> float:
    return fmean(answer["lines"][kind] for step in steps for answer in step["answers"])


def examples(steps: Sequence[Mapping], count: int = 2) -> str:
    """The answers of the last steps that the reward model likes most, of those that are useless."""
    answers = [answer for step in steps[-max(1, len(steps) // 10) :] for answer in step["answers"]]
    useless = [answer for answer in answers if answer["utility"] <= 0.25] or answers
    best = {answer["prompt"]: answer for answer in sorted(useless, key=lambda a: a["score"])}
    text = "Answers of the last steps that the reward model likes and that are of little use:\n"
    for answer in list(best.values())[::-1][:count]:
        text += (
            f"\n{answer['prompt'].strip()} (score {answer['score']:.2f}, utility "
            f"{answer['utility']:.2f})\n\n```\n{answer['completion'].rstrip()}\n```\n"
        )
    return text


def draw(runs: Mapping[str, Sequence[Sequence[Mapping]]], out: Path) -> None:
    """A panel for each figure, a colour for each kind of run; thin lines are the seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), constrained_layout=True)
    for axis, (key, title) in zip(axes.flat, PANELS.items()):
        for (name, seeds), colour in zip(runs.items(), ("tab:red", "tab:blue", "tab:green")):
            values = [smooth([step[key] for step in steps]) for steps in seeds]
            draw_seeds(axis, range(len(values[0])), values, colour, NAMES[name])
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("RL step")
        axis.grid(alpha=0.25)
    axes.flat[1].set_ylim(0, 1)
    handles = axes.flat[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(out, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.argv[0] = "python -m r1mini.recipe.overoptimization"
    run_script(main, Config, description=__doc__)
