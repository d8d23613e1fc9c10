"""The R1 recipe, stage after stage: `python -m r1mini`. [R1 §2.2] [R1 §2.3] [R1 §2.4]

    base ── GRPO ───────────────────────────────────────────────► R1-Zero
      ├──── cold-start SFT ─► Dev1 ── reasoning RL ─► Dev2
      │                                                 │ rejection sampling
      └──── SFT, from the base again ◄──────────────── rows
                  └─► Dev3 ── RL for all scenarios ─► R1 ── its samples ─► distilled student
                                                        student ── GRPO ─► (beside it)

Every stage is the `main` of a script. A stage that has finished is not run again; an interrupted one goes on where it
was. A signal makes the stages that run save what they have. Stages that do not need each other run side by side, one
single-threaded process a core.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from r1mini import checkpoint, interrupt, state, tasks
from r1mini.config import device as pick_device
from r1mini.config import option, require
from r1mini.report import model_titles, write_results


@dataclass(frozen=True)
class Config:
    out: str = option("runs/r1", "folder for everything the recipe leaves")
    stages: tuple[str, ...] = option((), "run only these stages (names as in the folder)")
    tasks: tuple[str, ...] = option(tasks.DEFAULT, "tasks to train and evaluate on")
    rounds: int = option(1, "times that rejection sampling, SFT from the base and RL are gone through")
    seed: int = option(0, "seed of everything random; the first one with --seeds")
    seeds: int = option(1, "runs with seeds of their own; the tables then show their mean and spread")
    scale: float = option(1.0, "steps, rows and problems of every stage, as a share of the recipe's")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    workers: int = option(0, "processes side by side (0: one a core on a CPU, one on a GPU)")


PRESETS = {"quick": {"out": "runs/quick", "scale": 0.04}}


# What only changes memory and speed: small pieces stay in a core's cache, large ones fill a GPU.
ON_CPU = {"train_grpo": {"learner_tokens": 2048}, "sample": {"sampler_rows": 512}}
ON_GPU = {"train_grpo": {"sampler_rows": 4096, "learner_tokens": 65_536}, "sample": {"sampler_rows": 4096}}


def speed(script: str, device: str) -> dict[str, Any]:
    """The flags of a script that suit a device."""
    gpu = pick_device(device, 0).type == "cuda"
    return (ON_GPU if gpu else ON_CPU).get(script, {})


@dataclass(frozen=True)
class Stage:
    name: str
    script: str  # train_sft, train_grpo or sample
    settings: dict[str, Any]
    done: Path  # exists (and says so, if it is a run's record) when the stage has finished
    needs: tuple[Path, ...] = ()

    def finished(self) -> bool:
        return is_done(self.done)


def is_done(path: Path) -> bool:
    return path.is_file() and (path.name != "run.json" or checkpoint.read_record(path)["finished"])


def recipe(cfg: Config, seed: int, out: Path) -> list[Stage]:
    """The stages in the order in which they should get a free core: what others wait for comes first."""
    reasoning = tuple(t for t in cfg.tasks if tasks.TASKS[t].reasoning)
    plain = tuple(t for t in cfg.tasks if not tasks.TASKS[t].reasoning)
    if not reasoning:
        raise ValueError(f"--tasks {' '.join(cfg.tasks)}: the recipe needs a task with reasoning")
    hardest = ("repair",) * ("repair" in reasoning)  # once more in each step of RL
    count = lambda n: max(2, round(n * cfg.scale))
    stages: list[Stage] = []

    def path(model: str) -> Path:
        return checkpoint.resolve(model) if model in checkpoint.EMBEDDED else out / model

    def record(model: str) -> tuple[Path, ...]:
        return () if model in checkpoint.EMBEDDED else (out / model / "run.json",)

    def add(name: str, script: str, model: str, target: Path, done: Path, **settings) -> None:
        needs = record(model)
        if str(settings.get("data", "")).endswith(".jsonl"):
            needs += (Path(settings["data"]),)
        settings = {"model": str(path(model)), "out": str(target), "device": cfg.device, "threads": 1, "progress": False,
                    # A seed of its own for each stage: no two see the same problems.
                    "seed": seed * 1000 + len(stages), **speed(script, cfg.device), **settings}
        stages.append(Stage(name, script, settings, done, needs))

    def sft(name: str, model: str, data: str, **settings) -> None:
        add(name, "train_sft", model, out / name, out / name / "run.json", data=data,
            **({"tasks": reasoning} if data == "cold-start" else {}), **settings)

    def grpo(name: str, model: str, steps: int, on: tuple[str, ...], **settings) -> None:
        add(name, "train_grpo", model, out / name, out / name / "run.json", steps=count(steps), tasks=on,
            minibatch_of="problems", **settings)

    def reject(name: str, model: str, problems: int) -> str:
        file = out / f"{name}.jsonl"
        add(name, "sample", model, file, file, reject=True, tasks=cfg.tasks, problems=count(problems), samples=4,
            plain_rows=count(2000))
        return str(file)

    def evaluate(name: str) -> None:
        file = out / "eval" / f"{name}.json"
        add(f"eval/{name}", "sample", name, file, file, eval=True, tasks=cfg.tasks, problems=count(32), samples=16,
            seed=seed)

    # R1 [R1 §2.3]
    sft("dev1", "base", "cold-start", rows=count(1500), epochs=2)
    grpo("dev2", "dev1", 40, hardest + reasoning)
    improved = "dev2"
    for number in range(1, cfg.rounds + 1):
        suffix = f"-{number}" if number > 1 else ""
        rows = reject(f"rows{suffix}", improved, 600)
        sft(f"dev3{suffix}", "base", rows, rows=0, epochs=3)
        improved = f"r1{suffix}"
        grpo(improved, f"dev3{suffix}", 24, hardest + reasoning + plain, learning_rate=2e-4)
    # Distillation [R1 §2.4]: R1's samples into the student; beside it the student with RL of its own.
    rows = reject(f"distill-rows{suffix}", improved, 300)
    sft(f"distilled{suffix}", "student-base", rows, rows=0, epochs=5)
    # R1-Zero: accuracy and format alone, the language reward came with R1 [R1 §2.2.2]
    grpo("r1-zero", "base", 80, hardest + reasoning + plain, reward="accuracy,format:0.5")
    grpo("student-rl", "student-base", 30, reasoning + plain)
    for name in model_titles(cfg.rounds):
        evaluate(name)
    return stages


def start_worker() -> None:
    """A signal waits until a stage runs; what comes after the first is the parent's to handle, without whom a worker ends
    itself."""
    for number in interrupt.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as the parent does
            signal.signal(number, interrupt.first)
    interrupt.hold()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt.SIGNALS)
    tqdm.set_lock(threading.RLock())

    def follow_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def run_stage(stage: Stage) -> None:
    """In a worker process: the script's own `main`."""
    try:
        interrupt.let_go()
        script = importlib.import_module(stage.script)
        script.main(script.Config(**stage.settings))
    finally:
        interrupt.hold()


def schedule(stages: Sequence[Stage], workers: int, say: Callable[[str], None]) -> None:
    """Run the stages, each as soon as what it needs is there and a worker is free."""
    waiting = [stage for stage in stages if not stage.finished()]
    running: dict[Future, tuple[Stage, float]] = {}
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    try:
        while waiting or running:
            for stage in list(waiting):
                if len(running) < workers and all(map(is_done, stage.needs)):
                    waiting.remove(stage)
                    say(f"start {stage.name}")
                    signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.SIGNALS)  # of a worker that starts, until it can
                    running[pool.submit(run_stage, stage)] = (stage, time.perf_counter())
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt.SIGNALS)
            if not running:
                missing = sorted({str(path) for stage in waiting for path in stage.needs if not is_done(path)})
                raise ValueError(f"--stages: {waiting[0].name} needs {', '.join(missing)}")
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                stage, started = running.pop(future)
                try:
                    future.result()
                except (ValueError, OSError) as error:
                    raise ValueError(f"{stage.name}: {error}") from error
                except BrokenProcessPool:  # which of them, the pool does not know
                    names = sorted([stage.name, *(other.name for other, _ in running.values())])
                    raise ValueError(f"the process of {' or '.join(names)} is gone: something killed it, for want of memory perhaps; "
                                     "the same command goes on from what is saved") from None
                say(f"finished {stage.name} in {time.perf_counter() - started:.0f} s")
    finally:
        if running:  # an error or a signal: the other stages save what they have
            for worker in multiprocessing.active_children():
                worker.terminate()
        pool.shutdown(cancel_futures=True)


def main(cfg: Config) -> None:
    tasks.require(cfg.tasks)
    require(cfg, rounds=cfg.rounds >= 1, seeds=cfg.seeds >= 1, workers=cfg.workers >= 0, scale=cfg.scale > 0)
    gpu = pick_device(cfg.device, 0).type == "cuda"
    say, root = stopwatch(), Path(cfg.out)
    seeds = range(cfg.seed, cfg.seed + cfg.seeds)
    folders = {seed: root / f"seed-{seed}" if cfg.seeds > 1 else root for seed in seeds}
    every = [stage for seed, folder in folders.items() for stage in recipe(cfg, seed, folder)]
    known = {stage.name for stage in every}
    for name in cfg.stages:
        if name not in known:
            raise ValueError(f"--stages: {name!r} is not one of {', '.join(sorted(known))}")
    same_run(root, "recipe.json", {"tasks": " ".join(cfg.tasks), "seed": cfg.seed, "seeds": cfg.seeds, "scale": cfg.scale})
    wanted = [stage for stage in every if not cfg.stages or stage.name in cfg.stages]
    if all(stage.finished() for stage in wanted) and (cfg.stages or results_written(root, cfg.rounds)):
        print(f"{root}: everything has run already; see {root / 'stages.md'}")
        return
    for folder in folders.values():
        checkpoint.prepare_folder(folder)
        (folder / "eval").mkdir(exist_ok=True)
    schedule(wanted, cfg.workers or default_workers(gpu), say)
    if not all(stage.finished() for stage in every):
        return
    for folder in folders.values():
        summary = write_results([folder], folder, cfg.tasks, cfg.rounds)
    if cfg.seeds > 1:
        summary = write_results(list(folders.values()), root, cfg.tasks, cfg.rounds)
    print(summary)
    say(f"done; {root}/stages.md, stages.json, curves.png, examples.md")


def results_written(root: Path, rounds: int) -> bool:
    return (root / "stages.md").is_file() and set(model_titles(rounds)) == set(checkpoint.read_json(root / "stages.json"))


def same_run(root: Path, file: str, choice: dict[str, Any]) -> None:
    """Record the flags that decide the results in `root`; refuse a folder whose results another choice has made, or on which
    another process works."""
    before = checkpoint.read_json(root / file) if (root / file).is_file() else choice
    for key, value in choice.items():
        if before.get(key, value) != value:
            raise ValueError(f"--out {root}: holds a run with --{key} {before[key]}, not {value}; choose another folder")
    checkpoint.prepare_folder(root)
    state.lock(root)
    checkpoint.write_json(root / file, choice)


def stopwatch() -> Callable[[str], None]:
    """Prints a line behind the seconds since this call."""
    started = time.perf_counter()
    return lambda text: print(f"[{time.perf_counter() - started:4.0f} s] {text}", flush=True)


def default_workers(gpu: bool) -> int:
    if gpu:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
