"""The R1 recipe: `python -m r1mini`. [R1 §2.2] [R1 §2.3] [R1 §2.4]

    base ── GRPO ───────────────────────────────────────────────► R1-Zero
      ├──── cold-start SFT ─► Dev1 ── reasoning RL ─► Dev2
      │                                                 │ rejection sampling
      └──── SFT, from the base again ◄──────────────── rows
                  └─► Dev3 ── RL for all scenarios ─► R1 ── its samples ─► distilled student
    Dev1, Dev2, Dev3 ── pairs ─► reward model ┘         student ── GRPO ─► (for comparison)

Each stage runs a script. Independent stages run in parallel. If you run it again, the recipe skips
finished stages and resumes interrupted ones.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from r1mini import checkpoint, tasks
from r1mini.config import option, validate
from r1mini.infra import files
from r1mini.recipe.report import model_titles, write_results
from r1mini.recipe.scheduler import (
    Stage,
    WorkerOptions,
    claim_folder,
    default_workers,
    is_done,
    schedule,
    worker_flags,
)


@dataclass(frozen=True)
class Config(WorkerOptions):
    out: str = option("runs/r1", "folder for all results of the recipe")
    stages: tuple[str, ...] = option((), "run only these stages (named like their folders)")
    tasks: tuple[str, ...] = option(tasks.DEFAULT, "tasks to train and evaluate on")
    rounds: int = option(
        1, "rounds of rejection sampling, SFT from the base and RL", bounds="1 <= x"
    )
    seed: int = option(0, "random seed; with --seeds, the first one")
    seeds: int = option(
        1, "runs with different seeds; the tables then show mean and spread", bounds="1 <= x"
    )
    scale: float = option(
        1.0,
        "steps, rows and problems of each stage, as a fraction of the full recipe",
        bounds="0 < x",
    )


LONGEST = 512  # tokens of a completion; the longest demonstration has 432
RULES = "accuracy,format:0.5,language:2"
ANNOTATION = {"problems": 2000, "samples": 14, "judgements": 10, "margin": 1.0}
REWARD_MODEL = {"epochs": 3, "batch_pairs": 384, "learning_rate": 9e-3}
PRESETS = {"quick": {"out": "runs/quick", "scale": 0.04}}


def recipe(cfg: Config, seed: int, out: Path) -> list[Stage]:
    """The stages. A free core runs the first one that is ready: those that others need go first."""
    names = {name: tasks.TASKS[name] for name in cfg.tasks}
    reasoning = tuple(name for name, task in names.items() if task.reasoning)
    if not reasoning:
        raise ValueError(f"--tasks {' '.join(cfg.tasks)}: the recipe needs a task with reasoning")
    general = tuple(name for name in names if name in tasks.GENERAL)
    facts = tuple(name for name in names if name not in reasoning + general)
    hardest = ("repair",) if "repair" in reasoning else ()  # twice in each RL step
    on_reasoning, by_rules = hardest + reasoning, hardest + reasoning + facts
    stages = []

    def scaled(count: int) -> int:
        return max(2, round(count * cfg.scale))

    def add(script: str, name: str, model: str = "", rm: str = "", **settings) -> None:
        # Each stage has its own seed: no two see the same problems.
        settings = {
            **worker_flags(script, cfg.device),
            "seed": seed * 1000 + len(stages),
            **settings,
        }
        stages.append(make_stage(out, script, name, model, rm, settings))

    sft = partial(add, "train_sft")
    grpo = partial(add, "train_grpo", minibatch_of="problems", max_new_tokens=LONGEST)
    sample = partial(add, "sample", tasks=cfg.tasks, max_new_tokens=LONGEST)
    reject = partial(sample, reject=True, samples=4)
    evaluate = partial(sample, eval=True, samples=8, problems=scaled(32), seed=seed)
    annotation = ANNOTATION | {"problems": scaled(ANNOTATION["problems"]), "tasks": general}
    make_pairs = partial(add, "r1mini.reward_model.pairs", **annotation)
    train_reward_model = partial(add, "r1mini.reward_model.training", **REWARD_MODEL)

    # Cold start [R1 §2.3.1]
    sft("dev1", "base", tasks=reasoning, rows=scaled(1200), epochs=2)
    # Reasoning RL [R1 §2.3.2]
    grpo("dev2", "dev1", steps=scaled(18), problems=24, tasks=on_reasoning)
    best, rm, compared = "dev2", "", ("dev1", "dev2")
    tries = {"problems": scaled(120), "plain_rows": scaled(1800)}
    by_model = {"reward": "helpful={rm}"} if general else {}
    for number in range(1, cfg.rounds + 1):
        n = f"-{number}" if number > 1 else ""
        # Rejection sampling, and SFT from the base again [R1 §2.3.3].
        reject(f"rows{n}", best, rm, **tries)
        sft(f"dev3{n}", "base", data=f"rows{n}", rows=0, epochs=3)
        # RL for all scenarios: rules for reasoning, a reward model for general prompts.
        # [R1 §2.3.4] DEVIATES: R1's counts in the last 400 of 1,700 steps.
        if general:
            rm = f"rm{n}"
            make_pairs(f"pairs{n}", models=(*compared, f"dev3{n}"))
            train_reward_model(rm, f"dev3{n}", data=f"pairs{n}")
        best = f"r1{n}"
        grpo(
            best,
            f"dev3{n}",
            rm,
            steps=scaled(22),
            tasks=by_rules + len(by_rules) * general,
            temperature=0.7,
            reward=RULES + ",helpful={rm}:1@0.25" * bool(general),
            learning_rate=6e-4,
        )
        # In the next round, the model writes the answers to general prompts, too, and has more
        # tries at what is still hard. The reward model learns from its answers.
        compared = ("dev3", best)
        tries = {"problems": scaled(240), "plain_rows": scaled(900), "samples": 8, **by_model}
    # Distillation: R1's samples train the student. [R1 §2.4]
    distilled = {"problems": scaled(100), "plain_rows": scaled(900), "samples": 2, **by_model}
    reject(f"distill-rows{n}", best, rm, **distilled)
    sft(f"distilled{n}", "student-base", data=f"distill-rows{n}", rows=0, epochs=5)
    # R1-Zero: accuracy and format alone; the language reward came with R1. [R1 §2.2.2]
    grpo("r1-zero", "base", steps=scaled(20), tasks=by_rules, reward="accuracy,format:0.5")
    # The student trained directly by RL, to compare with distillation
    grpo("student-rl", "student-base", steps=scaled(30), tasks=reasoning + facts)
    for model in model_titles(cfg.rounds):
        evaluate(f"eval/{model}", model)
    return stages


def make_stage(out: Path, script: str, name: str, model: str, rm: str, settings: dict) -> Stage:
    """A stage whose `settings` name no paths, but for stages: `data`, the one that writes the rows,
    and `models`. In `reward`, {rm} is the folder of the reward model `rm`."""
    output, target = out / name / "run.json", out / name
    if script in ("sample", "r1mini.reward_model.pairs"):
        output = target = out / f"{name}.{'json' if 'eval' in settings else 'jsonl'}"
    paths, inputs = {"out": str(target)}, []

    def path_of(model: str) -> str:
        if model in checkpoint.EMBEDDED:
            return str(checkpoint.resolve(model))
        inputs.append(out / model / "run.json")
        return str(out / model)

    if model:
        paths["model"] = path_of(model)
    if "models" in settings:
        paths["models"] = tuple(map(path_of, settings["models"]))
    if "data" in settings:
        inputs.append(out / f"{settings['data']}.jsonl")
        paths["data"] = str(inputs[-1])
    if "{rm}" in settings.get("reward", ""):
        paths["reward"] = settings["reward"].replace("{rm}", path_of(rm))
    return Stage(name, script, settings | paths, output, tuple(inputs))


def main(cfg: Config) -> None:
    validate(cfg)
    cfg = replace(cfg, tasks=tasks.usable(cfg.tasks))
    root = Path(cfg.out)
    folders, stages = [], []
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):
        folders.append(root / f"seed-{seed}" if cfg.seeds > 1 else root)
        stages += recipe(cfg, seed, folders[-1])
    names = {stage.name for stage in stages}
    for name in cfg.stages:
        if name not in names:
            raise ValueError(f"--stages: {name!r} is not one of {', '.join(sorted(names))}")
    seeds = {"seed": cfg.seed, "seeds": cfg.seeds}
    settings = {"tasks": " ".join(cfg.tasks), **seeds, "scale": cfg.scale}
    claim_folder(root, "recipe.json", settings)
    chosen = [stage for stage in stages if not cfg.stages or stage.name in cfg.stages]
    done = all(is_done(stage.output) for stage in chosen)
    if done and (cfg.stages or results_written(root, cfg.rounds)):
        print(f"{root}: all stages have already run; see {root / 'stages.md'}")
        return
    schedule(chosen, cfg.workers or default_workers(cfg.device))
    if not all(is_done(stage.output) for stage in stages):
        return
    for folder in folders:
        summary = write_results([folder], folder, cfg.tasks, cfg.rounds)
    if cfg.seeds > 1:
        summary = write_results(folders, root, cfg.tasks, cfg.rounds)
    print(summary)
    print(f"done; {root}/stages.md, stages.json, curves.png, examples.md")


def results_written(root: Path, rounds: int) -> bool:
    if not (root / "stages.md").is_file():
        return False
    return set(model_titles(rounds)) == set(files.read_json(root / "stages.json"))
