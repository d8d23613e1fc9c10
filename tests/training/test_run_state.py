import ast
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import kill_test
import numpy as np
import pytest
import torch
from conftest import ROOT, random_model
from safetensors import SafetensorError

import train_grpo
import train_sft
from r1mini import checkpoint
from r1mini.checkpoint import weights
from r1mini.infra import files as infra_files
from r1mini.infra import signals
from r1mini.recipe import scheduler, stages
from r1mini.training import optim
from r1mini.training import run_state as state
from r1mini.training.run_state import Run

SETTINGS = {"steps": 9, "tasks": ("a", "b"), "save_every": 2, "keep": 2}


class NormRun(Run):
    """A run whose steps add 1 to a norm."""

    seconds = 1.5

    def __init__(self, out, tokens, **settings):
        super().__init__(str(out), {**SETTINGS, **settings}, ("log",))
        model = random_model(vocab_size=tokens.vocab_size, num_hidden_layers=1)
        out.mkdir(exist_ok=True)
        self.optimizers = optim.build_optimizers(model, "muon", 0.0)
        self.model, self.tokenizer, self.others = model, tokens, {}
        self.resume()

    def go(self, to):
        with self, (self.out / "log").open("a") as log:
            for step in range(self.step, to):
                self.begin_update()
                sum((p**2).sum() for p in self.model.parameters()).backward()
                optim.step(self.optimizers, self.model.parameters(), 0.1, 1.0)
                print(step, file=log, flush=True)
                self.end_step(step + 1)
        return self

    def norm(self):
        return self.model.model.norm.weight.tolist()


def names(out):
    return [path.name for path in sorted((out / "checkpoints").iterdir())]


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def saved(tokens, tmp_path_factory):
    """The folder of a run with states at steps 2 and 4. Read only."""
    return NormRun(tmp_path_factory.mktemp("saved"), tokens).go(5).out


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "copied"))


# -- a state -----------------------------------------------------------------------------------------------------------


def test_last_states_are_kept_and_the_latest_is_loaded(tokens, tmp_path):
    run = NormRun(tmp_path, tokens).go(9)
    assert names(tmp_path) == ["step-00000006", "step-00000008"]
    again = NormRun(tmp_path, tokens)
    assert again.step == 8 and (tmp_path / "log").read_text() == "".join(
        f"{step}\n" for step in range(8)
    )
    assert again.go(9).norm() == run.norm()
    for resumed, saved in zip(again.optimizers, run.optimizers):
        resumed, saved = resumed.state_dict(), saved.state_dict()
        for i, values in saved["state"].items():
            assert all(resumed["state"][i][name].equal(value) for name, value in values.items())


@pytest.mark.parametrize("keep, left", [(1, [8]), (3, [4, 6, 8]), (9, [2, 4, 6, 8])])
def test_keep_sets_the_number_of_states(tokens, tmp_path, keep, left):
    NormRun(tmp_path, tokens, keep=keep).go(9)
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]


def test_state_is_a_model_folder(saved):
    model, _ = checkpoint.load(saved / "checkpoints/step-00000004")
    assert model.config.num_hidden_layers == 1
    values = infra_files.read_json(saved / "checkpoints/step-00000004/state.json")
    assert (values["step"], values["ranks"], values["config"]["steps"], values["seconds"]) == (
        4,
        1,
        9,
        1.5,
    )


def flipped(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut_by_one(path):
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("seed", range(2))
def test_every_flipped_bit_and_every_truncation_is_detected(copied, seed):
    """A hundred of each, half of them in the small files, mostly in the manifest."""
    folder, rng = copied / "checkpoints/step-00000004", random.Random(seed)
    everything = sorted(folder.iterdir())
    assert {"manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"} <= {
        p.name for p in everything
    }
    assert state.find_corruption(folder) == ""
    for number in range(100):
        path = folder / "manifest.json" if number % 4 == 0 else everything[number % len(everything)]
        before = path.read_bytes()
        bit, size = rng.randrange(8 * len(before)), rng.randrange(len(before))
        flipped(path, bit)
        assert state.find_corruption(folder), f"{path.name}: bit {bit}"
        path.write_bytes(before[:size])
        assert state.find_corruption(folder), f"{path.name}: cut to {size}"
        path.write_bytes(before)
    assert state.find_corruption(folder) == ""


@pytest.mark.parametrize(
    "hurt, why",
    [
        (
            lambda folder: (folder / "optimizer.safetensors").unlink(),
            "optimizer.safetensors is missing",
        ),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda folder: (folder / "manifest.json").write_text("{}\n"), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").write_text("[1]\n"), "manifest.json is damaged"),
        (
            lambda folder: cut_by_one(folder / "manifest.json"),
            "manifest.json is damaged",
        ),  # the same JSON
        (
            lambda folder: os.truncate(folder / "model.safetensors", 9),
            "model.safetensors is truncated to 9 of",
        ),
        (
            lambda folder: flipped(folder / "state.json", 3),
            "state.json has changed since it was written",
        ),
    ],
)
def test_damaged_state_is_reported_and_the_previous_one_loaded(copied, tokens, capsys, hurt, why):
    whole = NormRun(copied, tokens).go(9).norm()
    assert names(copied)[-1] == "step-00000008"
    hurt(copied / "checkpoints/step-00000008")
    again = NormRun(copied, tokens)
    assert again.step == 6
    [line] = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert "step-00000008: skipped, " + why in line
    assert again.go(9).norm() == whole
    assert names(copied) == ["step-00000006", "step-00000008"] and not state.find_corruption(
        copied / "checkpoints/step-00000008"
    )


def test_damaged_later_state_does_not_displace_a_valid_one(copied, tokens):
    flipped(copied / "checkpoints/step-00000004/model.safetensors", 999)
    again = NormRun(copied, tokens, save_every=3)
    assert again.step == 2
    again.go(3)
    assert names(copied) == ["step-00000002", "step-00000003"]


def test_run_with_only_damaged_states_stops(copied, tokens):
    for folder in (copied / "checkpoints").iterdir():
        flipped(folder / "model.safetensors", 80)
    with pytest.raises(
        ValueError, match="checkpoints: every saved state is damaged; delete this folder to start"
    ):
        NormRun(copied, tokens)


def test_half_written_state_is_ignored_and_deleted(copied, tokens):
    half = shutil.copytree(
        copied / "checkpoints/step-00000004", copied / "checkpoints/step-00000006.tmp"
    )
    (half / "manifest.json").unlink()
    shutil.copytree(half, copied / "checkpoints/step-00000001.gone.tmp")
    again = NormRun(copied, tokens)
    assert again.step == 4
    again.go(6)
    assert names(copied) == ["step-00000004", "step-00000006"]


# -- the disk is full --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "state.json", "manifest.json"],
)
def test_full_disk_leaves_earlier_states_intact(copied, tokens, monkeypatch, name):
    run, before = NormRun(copied, tokens), files(copied / "checkpoints")
    write, write_tensors = Path.write_bytes, weights.save_file

    def full(path, content):
        write(path, content[: len(content) // 2] if path.name == name else content)
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_of_tensors(tensors, path, metadata):
        if path.name == name:
            write(path, b"half")
            raise SafetensorError(
                "I/O error: No space left on device (os error 28)"
            )  # like safetensors 0.8
        write_tensors(tensors, path, metadata)

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(weights, "save_file", full_of_tensors)
    with pytest.raises(
        ValueError, match=f"step-00000006/{name}: cannot be written .*No space left on device"
    ):
        run.go(6)
    assert (
        files(copied / "checkpoints") == before
        and state.latest_valid(copied).name == "step-00000004"
    )


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a disk"
)
def test_really_full_disk(saved, tokens, tmp_path):
    size = sum(map(len, files(saved / "checkpoints/step-00000004").values()))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(size * 2.6)}", "tmpfs", tmp_path],
        stderr=subprocess.PIPE,
    )
    if mounted.returncode:
        pytest.skip(f"no disk to be had: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(
            ValueError, match="step-00000006/.*: cannot be written .*No space left on device"
        ):
            NormRun(tmp_path, tokens).go(9)
        assert (
            names(tmp_path) == ["step-00000002", "step-00000004"]
            and NormRun(tmp_path, tokens).step == 4
        )
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# -- the run's folder --------------------------------------------------------------------------------------------------


def test_run_is_new_then_started_then_finished(tmp_path, tokens):
    run = Run(str(tmp_path), SETTINGS, ())
    for _ in range(2):
        assert not run.has_finished()
        run.claim()
    NormRun(tmp_path, tokens).go(2)
    state.finish_run(tmp_path, loss=0.5)
    assert run.has_finished() and infra_files.read_json(tmp_path / "run.json")["loss"] == 0.5
    assert not (tmp_path / "checkpoints").exists()  # optimizer states are large
    with pytest.raises(ValueError, match="another process has just finished this run"):
        run.claim()
    state.unlock(tmp_path)


def test_states_of_another_run_are_refused(copied, tokens):
    with pytest.raises(ValueError, match="copied: holds another run .--steps was 9, now 10"):
        NormRun(copied, tokens, steps=10)


def test_changes_are_allowed_on_request_and_printed(copied, tokens, capsys):
    NormRun(copied, tokens, steps=10, allow_changes=True)
    assert "copied: --steps was 9, now 10" in capsys.readouterr().out
    with pytest.raises(
        ValueError,
        match="holds another run .--optimizer was None, now 'adamw'.; choose another folder$",
    ):
        NormRun(copied, tokens, optimizer="adamw", allow_changes=True)
    with pytest.raises(
        ValueError,
        match="holds another run .--steps was 9, now 10.; choose another folder, or add --allow-changes",
    ):
        NormRun(copied, tokens, steps=10)


def test_fewer_steps_than_already_done_are_refused(copied, tokens):
    assert NormRun(copied, tokens, steps=4, allow_changes=True).step == 4
    with pytest.raises(ValueError, match="--steps 3: the run in --out .*copied has already done 4"):
        NormRun(copied, tokens, steps=3, allow_changes=True)


def test_finished_run_allows_no_change(tmp_path):
    Run(str(tmp_path), SETTINGS, ()).claim()
    state.finish_run(tmp_path)
    with pytest.raises(
        ValueError,
        match="holds another run .--steps was 9, now 10.; choose another folder, "
        f"with --model {tmp_path} to go on from this run$",
    ):
        Run(str(tmp_path), {**SETTINGS, "steps": 10, "allow_changes": True}, ()).has_finished()


def test_only_one_process_may_use_a_folder(tmp_path, folder):
    """For the scripts and for the recipe."""
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=f"--out {tmp_path}: in use by another process"):
            train_sft.main(
                train_sft.Config(
                    out=str(tmp_path), model=folder, rows=1, tasks=("elements",), device="cpu"
                )
            )
        with pytest.raises(ValueError, match=f"--out {tmp_path}: in use by another process"):
            stages.main(stages.Config(out=str(tmp_path)))
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]
        other.stdin.close()
    state.lock(tmp_path)
    state.unlock(tmp_path)


def test_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(infra_files.fcntl, "flock", refused)
    with pytest.raises(ValueError, match=f"--out {tmp_path}: cannot be locked .No locks available"):
        state.lock(tmp_path)


@pytest.mark.parametrize(
    "hurt", [lambda path: flipped(path, 5), lambda path: os.truncate(path, 3), Path.unlink]
)
def test_changed_log_is_refused(copied, tokens, hurt):
    hurt(copied / "log")
    with pytest.raises(ValueError, match="log: its first 8 bytes have changed since step 4"):
        NormRun(copied, tokens)


def test_logs_start_empty_without_a_state(tokens, tmp_path):
    (tmp_path / "log").write_text("0\n1\n2")
    assert NormRun(tmp_path, tokens).step == 0 and (tmp_path / "log").read_text() == ""


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signal_during_an_update_waits_for_the_step_and_saves_it(tokens, tmp_path, number):
    run = NormRun(tmp_path, tokens)
    before = [signal.getsignal(n) for n in signals.SIGNALS]
    with pytest.raises(KeyboardInterrupt), signals.listening(), run:
        for step in range(9):
            run.begin_update()
            if step == 4:
                os.kill(os.getpid(), number)
            (tmp_path / "log").write_text(f"{step}\n")
            run.end_step(step + 1)
    assert step == 4 and state.latest_valid(tmp_path).name == "step-00000005"
    assert [signal.getsignal(n) for n in signals.SIGNALS] == before and not signals.requested()


def test_signal_between_steps_ends_the_run_at_once_and_saves_the_last_step(tokens, tmp_path):
    run = NormRun(tmp_path, tokens)
    (tmp_path / "log").touch()
    with pytest.raises(KeyboardInterrupt), signals.listening(), run:
        run.begin_update()
        run.end_step(1)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")
    assert names(tmp_path) == ["step-00000001"]


def test_incomplete_step_is_never_saved(tokens, tmp_path):
    """After Ctrl-C without our signal handler, as in a notebook."""
    run = NormRun(tmp_path, tokens)
    with pytest.raises(KeyboardInterrupt), run:
        run.begin_update()
        run.end_step(1)
        run.begin_update()
        raise KeyboardInterrupt
    assert not (tmp_path / "checkpoints").exists()


def test_error_during_an_update_saves_nothing_and_between_steps_the_last_step(tokens, tmp_path):
    run = NormRun(tmp_path, tokens)
    (tmp_path / "log").touch()
    with pytest.raises(ValueError), run:
        run.begin_update()
        raise ValueError
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(ValueError), run:
        run.end_step(1)
        raise ValueError
    assert [path.name for path in state.list_states(tmp_path)] == ["step-00000001"]


LISTENING = """import os, signal, sys, time
from r1mini.infra import signals
number, pause = signal.Signals[sys.argv[1]], float(sys.argv[2])
with signals.listening():
    signals.defer()
    os.kill(os.getpid(), number)
    time.sleep(pause)
    os.kill(os.getpid(), number)
    signals.deferred = False
"""


@pytest.mark.parametrize(
    "name, pause, code",
    [("SIGTERM", 1.1, -signal.SIGTERM), ("SIGINT", 1.1, -signal.SIGINT), ("SIGTERM", 0, 0)],
)
def test_second_signal_ends_the_process_unless_it_is_a_duplicate(name, pause, code):
    done = subprocess.run([sys.executable, "-c", LISTENING, name, str(pause)], cwd=ROOT, timeout=30)
    assert done.returncode == code


LEAVING = """import atexit, os, signal, sys
from dataclasses import make_dataclass
from r1mini import config
number = signal.Signals[sys.argv.pop()]
atexit.register(os.kill, os.getpid(), number)
config.run_script(lambda cfg: os.kill(os.getpid(), number), make_dataclass("Config", [("out", str, config.option("x", "folder"))]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_during_shutdown_does_not_change_the_exit_code(name):
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, name], cwd=ROOT, timeout=30, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        75,
        "\n-c: interrupted; rerun the same command to resume\n",
    )


UNREAD = """import os, signal
from dataclasses import make_dataclass
from r1mini import config
from r1mini.infra import signals

def main(cfg):
    signals.defer()
    os.kill(os.getpid(), signal.SIGINT)
    print("the end of a step", flush=True)
    signals.allow()

config.run_script(main, make_dataclass("Config", [("out", str, config.option("x", "folder"))]))
"""


def test_run_saves_even_if_the_signal_ended_its_reader():
    """As in `… 2>&1 | tee log`."""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", UNREAD], cwd=ROOT, stdout=writer, stderr=writer
    ) as process:
        os.close(writer)
        os.close(reader)
    assert process.returncode == 75


def test_worker_ignores_the_signals_that_its_parent_ignores(monkeypatch):
    """As in a background job (`&` in a script), for which Ctrl-C is not meant."""
    monkeypatch.setattr(scheduler.threading, "Thread", Mock())
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        scheduler.start_worker()
        assert [signal.getsignal(number) for number in signals.SIGNALS] == [
            signal.SIG_IGN,
            signals.on_first_signal,
        ]
    finally:
        for number, handler in zip(signals.SIGNALS, before):
            signal.signal(number, handler)
        signals.deferred = False


def test_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.listening():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


# -- assumptions behind the guarantees ---------------------------------------------------------------------------------


def test_run_never_draws_from_a_global_generator(tmp_path, folder):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    train_sft.main(
        train_sft.Config(
            out=str(tmp_path / "sft"), model=folder, rows=4, tasks=("elements",), device="cpu"
        )
    )
    train_grpo.main(
        train_grpo.Config(
            out=str(tmp_path / "grpo"),
            model=folder,
            steps=1,
            problems=2,
            completions=2,
            beta=0.1,
            minibatches=1,
            max_new_tokens=4,
            tasks=("elements",),
            device="cpu",
        )
    )
    assert (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ) == before


def test_nothing_is_pickled():
    for path in [*(ROOT / "r1mini").rglob("*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "torch"
            ):
                assert node.attr not in ("load", "save"), path
            assert not isinstance(node, (ast.Import, ast.ImportFrom)) or "pickle" not in ast.dump(
                node
            ), path


def test_rows_before_the_saved_position_are_not_generated_again(tmp_path, tokens, monkeypatch):
    indices, real = [], train_sft.document
    monkeypatch.setattr(train_sft, "CORPUS_WINDOW", 8)
    monkeypatch.setattr(
        train_sft, "document", lambda seed, index: indices.append(index) or real(seed, index)
    )
    cfg = train_sft.Config(data="corpus", rows=20, epochs=2, batch_tokens=300)
    whole = list(train_sft.make_batches(cfg, tokens, None, 1024))
    assert indices == [*range(20)] * 2
    for done in (1, len(whole) // 2, len(whole)):
        indices.clear()
        assert (
            list(train_sft.make_batches(cfg, tokens, None, 1024, whole[done - 1][2]))
            == whole[done:]
        )
        assert (
            indices == [*range(20), *range(20)][sum((8, 8, 4, 8, 8, 4)[: whole[done - 1][2][0]]) :]
        )


def test_killed_and_interrupted_run_is_bit_identical(tmp_path, capsys):
    """A short version of kill_test.py, with its negative control."""
    assert kill_test.endured(6, ("SFT", "GRPO"), 0, tmp_path, warm=True), capsys.readouterr().out
    assert "position not restored: detected" in capsys.readouterr().out
