"""Kills runs and starts them again: `python tests/kill_test.py --kills 50`.

Starts tiny jobs as a user would: SFT, GRPO, rejection sampling, evaluation and the whole recipe. Ends them with SIGKILL and
SIGTERM at random moments, some of them during a save, and restarts them until they finish. The SHA-256 of weights, rows,
rollouts and metrics (except times) must be the same as in an uninterrupted run. As negative controls, two runs that do not
restore all of their state must be detected; otherwise this test would prove nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

ELAPSED = ("seconds", "step_time", "time/sample", "time/reward", "time/update")
LETTERS = """def letters(completions, **columns):
    return [text.count("a") + 0.1 * text.count("e") for text in completions]
"""
TINY = ("--model", "../model", "--device", "cpu", "--no-progress", "--out", "out")
SAMPLED = (
    "--model",
    "../dev",
    "--tasks",
    "kinetics",
    "elements",
    "--sampler-rows",
    "16",
    "--max-new-tokens",
    "60",
    "--problems",
    "16",
    "--samples",
    "4",
    "--device",
    "cpu",
    "--no-progress",
)
JOBS = {
    "SFT": (
        "train_sft.py",
        *TINY,
        "--tasks",
        "elements",
        "--rows",
        "120",
        "--epochs",
        "2",
        "--batch-tokens",
        "160",
        "--save-every",
        "8",
    ),
    "GRPO": (
        "train_grpo.py",
        *TINY,
        "--tasks",
        "countdown",
        "elements",
        "--reward",
        "../letters.py:letters",
        "--steps",
        "24",
        "--problems",
        "3",
        "--completions",
        "4",
        "--minibatches",
        "3",
        "--max-new-tokens",
        "8",
        "--beta",
        "0.1",
        "--reference-every",
        "3",
        "--save-every",
        "4",
        "--learning-rate",
        "1e-2",
    ),
    "rejection": (
        "sample.py",
        *SAMPLED,
        "--reject",
        "--plain-rows",
        "10",
        "--out",
        "out/rows.jsonl",
    ),
    "evaluation": ("sample.py", *SAMPLED, "--eval", "--out", "out/eval.json"),
    "recipe": (
        "-m",
        "r1mini",
        "--tasks",
        "kinetics",
        "elements",
        "--scale",
        "0.02",
        "--workers",
        "2",
        "--device",
        "cpu",
        "--out",
        "out",
    ),
}
SAVES = ("SFT", "GRPO")  # jobs that save often enough to be killed during a save
SHARES = {"SFT": 14, "GRPO": 18, "rejection": 6, "evaluation": 6, "recipe": 6}  # out of fifty kills


@dataclass
class Seen:
    """What happened to a job."""

    warm: bool
    kills: Counter = field(default_factory=Counter)
    runs: int = 0
    alike: int = 0
    slowest: float = 0.0  # seconds from SIGTERM to exit


def prepare(work: Path, jobs: tuple[str, ...]) -> None:
    """Makes a random model, a reward, and, for sampling, a base model trained on a few cold-start rows."""
    from conftest import random_model

    from r1mini import checkpoint
    from r1mini.checkpoint import tokenizer
    from r1mini.tasks.corpus import document

    tokens = tokenizer.train(
        (row["prompt"] + row["completion"] for row in map(lambda i: document(0, i), range(300))),
        400,
    )
    checkpoint.save(work / "model", random_model(vocab_size=tokens.vocab_size), tokens)
    (work / "letters.py").write_text(LETTERS)
    if {"rejection", "evaluation"} & set(jobs):
        subprocess.run(
            [
                sys.executable,
                ROOT / "train_sft.py",
                "--rows",
                "200",
                "--epochs",
                "1",
                "--tasks",
                "kinetics",
                "--device",
                "cpu",
                "--no-progress",
                "--out",
                work / "dev",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )


WARM = multiprocessing.get_context("forkserver")


class Warm:
    """A script in a fork of a process that has torch loaded: starts in 0.1 s. Like subprocess.Popen."""

    def __init__(self, command: list[str], cwd: Path, sabotage: str):
        WARM.set_forkserver_preload(
            ["train_sft", "train_grpo", "sample", "torch._dynamo", "torch.distributed.tensor"]
        )
        os.environ["PYTHONPATH"] = str(ROOT)
        self.process = WARM.Process(target=run_script, args=(command, cwd, sabotage))
        self.process.start()

    def poll(self) -> int | None:
        self.returncode = self.process.exitcode
        return self.returncode

    def wait(self, seconds: float) -> int | None:
        self.process.join(seconds)
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid, number)


def run_script(command: list[str], cwd: Path, sabotage: str) -> None:
    os.chdir(cwd)
    sys.stdout, sys.stderr = open(os.devnull, "w"), open("stderr", "w")
    if sabotage:
        break_state(sabotage)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


def start(job: str, cwd: Path, warm: bool, sabotage: str = "") -> subprocess.Popen | Warm:
    cwd.mkdir(parents=True, exist_ok=True)
    (cwd / "stderr").unlink(
        missing_ok=True
    )  # child processes of a killed job may still write to the old file
    script, *flags = JOBS[job]
    command = [script, *flags] if script == "-m" else [str(ROOT / script), *flags]
    if warm and script != "-m":
        return Warm(command, cwd, sabotage)
    if sabotage:
        command = [__file__, "--sabotage", sabotage, *command]
    with (cwd / "stderr").open("w") as stderr_file:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            stdout=subprocess.DEVNULL,
            stderr=stderr_file,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )


def begun(cwd: Path) -> bool:
    """Whether a job has started its work: it has written the first file that a restart would find."""
    out = cwd / "out"
    return (out / ".lock").exists() or any(out.glob("*.partial"))


def finished(cwd: Path) -> bool:
    out = cwd / "out"
    if (out / "run.json").exists():
        return json.loads((out / "run.json").read_text())["finished"]
    return any((out / name).exists() for name in ("rows.jsonl", "eval.json", "stages.md"))


def saving(cwd: Path) -> list[Path]:
    try:
        return [
            Path(entry)
            for entry in os.scandir(cwd / "out/checkpoints")
            if entry.name.endswith(".tmp")
        ]
    except FileNotFoundError:
        return []


def finish(job: str, cwd: Path, warm: bool, sabotage: str = "") -> float:
    """Run to the end. Returns the seconds it took."""
    started, process = time.monotonic(), start(job, cwd, warm, sabotage)
    if process.wait(600):
        raise SystemExit(
            f"{job}: exit code {process.returncode}: {(cwd / 'stderr').read_text()[-2000:]}"
        )
    return time.monotonic() - started


def kill(job: str, cwd: Path, way: str, after: float, seen: Seen) -> bool:
    """Start a job and kill it `after` seconds of work, after its first save, or during its next.

    Returns whether it was still running."""
    fresh = not begun(cwd)
    process, number = (
        start(job, cwd, seen.warm),
        signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL,
    )
    if way == "after a save":
        while process.poll() is None and not any((cwd / "out/checkpoints").glob("step-*0")):
            time.sleep(0.001)
    elif way == "in a save":
        left = set(saving(cwd))  # left by an earlier kill
        while process.poll() is None and not set(saving(cwd)) - left:
            left &= set(saving(cwd))
            time.sleep(0.0002)
        time.sleep(after / 1000)
    else:
        while process.poll() is None and not begun(cwd):
            time.sleep(0.001)
        end = time.monotonic() + after
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
    if process.poll() is not None:
        assert process.returncode == 0, (cwd / "stderr").read_text()
        return False
    sent = time.monotonic()
    process.send_signal(number)
    code = process.wait(60)
    if number == signal.SIGTERM:
        last_line = (cwd / "stderr").read_text().strip().splitlines()[-1:]
        # After a restart, the handler may not be installed yet; a finished job has removed it.
        assert code in (0, 75) or code == -signal.SIGTERM and (not fresh or finished(cwd)), (
            code,
            last_line,
        )
        assert code != 75 or "rerun the same command to resume" in last_line[0], last_line
        seen.slowest = max(seen.slowest, time.monotonic() - sent)
    if way == "in a save" and not saving(cwd):
        way = "SIGKILL"  # the save finished before the kill
    seen.kills[way] += code != 0
    return code != 0


def digests(cwd: Path) -> dict[str, str]:
    """The SHA-256 of each result."""
    hashes = {}
    for path in sorted((cwd / "out").rglob("*")):
        if (
            "checkpoints" not in path.parts
            and path.suffix in (".safetensors", ".jsonl")
            and not path.name.startswith(".")
        ):
            content = path.read_bytes()
            if path.name == "metrics.jsonl":
                rows = [
                    {k: v for k, v in json.loads(line).items() if k not in ELAPSED}
                    for line in content.splitlines()
                ]
                content = json.dumps(rows).encode()
            hashes[str(path.relative_to(cwd))] = hashlib.sha256(content).hexdigest()
    return hashes


def disturbed(
    job: str,
    work: Path,
    kills: int,
    whole: dict[str, str],
    length: float,
    seen: Seen,
    rng: random.Random,
) -> None:
    """One run with so many kills, compared with the uninterrupted one."""
    cwd = work / f"{job} {seen.runs}"
    seen.runs += 1
    for number in range(kills):
        ways = ["SIGKILL", "SIGTERM"] + ["in a save"] * 2 * (job in SAVES)
        way = ways[(number + seen.runs) % len(ways)]
        if not kill(
            job, cwd, way, rng.uniform(0, 2 if way == "in a save" else length / kills), seen
        ):
            break
    finish(job, cwd, seen.warm)
    now = digests(cwd)
    seen.alike += now == whole
    for name in sorted(now.keys() | whole.keys()):
        if now.get(name) != whole.get(name):
            print(f"{job}: {cwd / name} differs from the uninterrupted run", flush=True)


def noticed(job: str, work: Path, sabotage: str, whole: dict[str, str], warm: bool) -> bool:
    """The negative control: is a run detected that does not restore all of its state?"""
    cwd, seen = work / f"{job} without {sabotage}", Seen(warm)
    assert kill(job, cwd, "after a save", 0, seen)
    finish(job, cwd, warm, sabotage)
    return digests(cwd) != whole


def break_state(what: str) -> None:
    """In a child process: makes a resume lose part of the state."""
    from r1mini.training import run_state

    if what == "moments":
        run_state.load_moments = lambda optimizers, moments: None
    elif what == "position":
        resume = run_state.Run.resume

        def forgetful(run):
            resume(run)
            run.values = {**run.values, "position": (0, 0)}

        run_state.Run.resume = forgetful
    else:
        raise SystemExit(f"--sabotage {what}")


def endured(kills: int, jobs: tuple[str, ...], seed: int, work: Path, warm: bool = False) -> bool:
    prepare(work, jobs)
    rng, table, controlled = random.Random(seed), {}, {}
    total = sum(SHARES[job] for job in jobs)
    for job in jobs:
        seen = table[job] = Seen(warm)
        length = finish(job, work / f"{job} whole", warm)
        whole = digests(work / f"{job} whole")
        assert whole, job
        wanted = round(kills * SHARES[job] / total)
        while seen.kills.total() < wanted:
            disturbed(job, work, min(4, wanted - seen.kills.total()), whole, length, seen, rng)
        if job == "SFT":
            controlled = {
                control: noticed(job, work, control, whole, warm)
                for control in ("moments", "position")
            }
        print(f"{job}: {seen.kills.total()} kills", flush=True)
    ways = ("SIGKILL", "in a save", "SIGTERM")
    print(
        "\n| job | "
        + " | ".join(ways)
        + " | runs | bit-identical runs | slowest exit on SIGTERM |\n"
        + "|---" * 7
        + "|"
    )
    for job, seen in table.items():
        print(
            f"| {job} | "
            + " | ".join(str(seen.kills[way]) for way in ways)
            + f" | {seen.runs} | {seen.alike} | {seen.slowest:.2f} s |"
        )
    print(
        f"\n{sum(seen.kills.total() for seen in table.values())} kills, "
        f"{sum(seen.kills['in a save'] for seen in table.values())} of them in a save."
    )
    for control, was_noticed in controlled.items():
        print(
            f"Negative control, {control} not restored: {'detected' if was_noticed else 'NOT DETECTED'}."
        )
    return all(seen.alike == seen.runs for seen in table.values()) and all(controlled.values())


def main() -> None:
    if "--sabotage" in sys.argv[:2]:
        break_state(sys.argv[2])
        del sys.argv[:3]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--warm", action="store_true", help="fork scripts from a process that has torch loaded"
    )
    args = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="r1mini-kill-"))
    started = time.monotonic()
    passed = endured(args.kills, tuple(args.jobs), args.seed, work, args.warm)
    print(
        f"{time.monotonic() - started:.0f} s. "
        + ("Passed." if passed else f"FAILED; the runs are in {work}")
    )
    if passed:
        shutil.rmtree(work)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
