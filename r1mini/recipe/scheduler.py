"""Runs the stages of a recipe in processes: each stage as soon as its inputs exist.

A stage is the `main` of a script, in a single-threaded process per core. A finished stage is not
run again; an interrupted one resumes. After a signal, running stages save their state and end.
"""

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from r1mini.config import option
from r1mini.infra import files, signals, terminal
from r1mini.infra.device import pick_device
from r1mini.training import memory, run_state

# These flags change only memory and speed: small batches stay in a core's cache, large ones fill a
# GPU.
ON_CPU = {"train_grpo": {"learner_tokens": 2048}, "sample": {"sampler_rows": 512}}
ON_GPU = {
    "train_grpo": {"sampler_rows": 4096, "learner_tokens": 65_536},
    "sample": {"sampler_rows": 4096},
}
# Stages that may run side by side on a GPU, and the bytes that each may take: its CUDA context, a
# micro-batch of 65,536 tokens of the embedded base, and the cache of the sampler's rows.
GPU_WORKERS, GPU_MEMORY = 4, 16 * 2**30


def worker_flags(script: str, device: str) -> dict:
    """The flags of a script in a worker process on a device."""
    flags = ON_GPU if pick_device(device, 0).type == "cuda" else ON_CPU
    return {"device": device, "threads": 1, "progress": False, **flags.get(script, {})}


@dataclass(frozen=True)
class WorkerOptions:
    device: str = option("auto", "auto, cpu or cuda[:n]")
    workers: int = option(
        0, "processes to run in parallel (0: one per core; on a GPU at most four)", bounds="0 <= x"
    )


@dataclass(frozen=True)
class Stage:
    name: str
    script: str  # the name of a module with `Config` and `main`
    settings: dict
    output: Path  # complete when the stage has finished
    inputs: tuple[Path, ...] = ()


def is_done(path: Path) -> bool:
    """Whether the file exists and, for a run.json, whether it says that its run has finished."""
    return path.is_file() and (path.name != "run.json" or files.read_run_json(path)["finished"])


def schedule(stages: Sequence[Stage], workers: int) -> None:
    """Run the stages, each as soon as its inputs are complete and a worker is free."""
    begin = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begin:4.0f} s] {text}", flush=True)

    waiting = [stage for stage in stages if not is_done(stage.output)]
    running = {}  # future: (stage, start)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)
    try:
        while waiting or running:
            for stage in list(waiting):
                if len(running) < workers and all(map(is_done, stage.inputs)):
                    waiting.remove(stage)
                    say(f"start {stage.name}")
                    running[submit(pool, stage)] = (stage, time.perf_counter())
            if not running:
                inputs = {path for stage in waiting for path in stage.inputs}
                missing = sorted(str(path) for path in inputs if not is_done(path))
                raise ValueError(f"--stages: {waiting[0].name} needs {', '.join(missing)}")
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                names = sorted(other.name for other, _ in running.values())
                stage, start = running.pop(future)
                check_result(future, stage.name, names)
                say(f"finished {stage.name} in {time.perf_counter() - start:.0f} s")
    finally:
        if running:  # after an error or a signal: the other stages save their state
            for worker in multiprocessing.active_children():
                worker.terminate()
        pool.shutdown(cancel_futures=True)


def submit(pool: ProcessPoolExecutor, stage: Stage) -> Future:
    """Signals are blocked in a worker process that starts, until it can handle them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
    future = pool.submit(run_stage, stage)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    return future


def check_result(future: Future, name: str, running: Sequence[str]) -> None:
    """Raises ValueError if the stage of this name failed; `running` names all that ran."""
    try:
        future.result()
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}") from error
    except BrokenProcessPool:  # the pool does not know which stage's worker it was
        raise ValueError(
            f"{' or '.join(running)}: worker died (killed, perhaps out of memory); rerun the same "
            "command to resume"
        ) from None


# -- in a worker process --------------------------------------------------------------------------


def start_worker() -> None:
    """The first signal waits until a stage runs. Only the parent process handles later ones; if it
    dies, so does the worker."""
    for number in signals.SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as in the parent
            signal.signal(number, signals.on_first_signal)
    signals.defer()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals.SIGNALS)
    tqdm.set_lock(threading.RLock())
    terminal.escape_unencodable()

    def follow_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def run_stage(stage: Stage) -> None:
    """Call the script's `main`."""
    try:
        signals.allow()
        script = importlib.import_module(stage.script)
        script.main(script.Config(**stage.settings))
    finally:
        signals.defer()


# -- around the schedule --------------------------------------------------------------------------


def claim_folder(root: Path, file: str, settings: dict) -> None:
    """Record in `root` the flags that decide the results, and lock it.

    ValueError if the folder has results of other flags, or another process uses it.
    """
    before = files.read_json(root / file) if (root / file).is_file() else settings
    for key, value in settings.items():
        if before.get(key, value) != value:
            raise ValueError(
                f"--out {root}: holds a run with --{key} {before[key]}, not {value}; choose "
                "another folder"
            )
    files.prepare_folder(root)
    run_state.lock(root)
    files.write_json(root / file, settings)


def default_workers(device: str) -> int:
    """One worker per core. On a GPU, which one stage of a tiny model leaves mostly idle, as many as
    fit its free memory, but no more than `GPU_WORKERS`."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    picked = pick_device(device, 0)
    if picked.type == "cpu":
        return cores
    return max(1, min(cores, GPU_WORKERS, memory.available(picked) // GPU_MEMORY))
