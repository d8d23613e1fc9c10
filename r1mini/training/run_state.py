"""A training run's folder: its lock and record, its logs, the saved states that it resumes from,
and the signals that end it. It is independent of the loss; both training scripts use it.

A state is a folder `OUT/checkpoints/step-00000040`: the model as any model folder (with LoRA, its
adapters alone), what else decides the run's next bits (other models and optimizer moments as
safetensors, plain values as JSON), and a manifest with the size and SHA-256 of each file. It gets
its name when all of it is on the disk, and it is verified before it is read. It holds no state of a
random generator: everything random is a function of (seed, step, row). docs/survival.md has the
rest.
"""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from r1mini import checkpoint
from r1mini.checkpoint.adapter import ADAPTER_WEIGHTS, check_state, own_name, saved_files
from r1mini.checkpoint.tokenizer import Tokenizer
from r1mini.checkpoint.weights import weight_files, write_tensors
from r1mini.infra import distributed, signals
from r1mini.infra.distributed import main_rank_only, shard_like
from r1mini.infra.files import (
    Content,
    fsync,
    json_text,
    lock_file,
    prepare_folder,
    read_json,
    read_run_json,
    write_file,
    write_json,
)
from r1mini.infra.terminal import ProgressBar, shorten
from r1mini.model.lora import own_parameters
from r1mini.model.transformer import Transformer
from r1mini.training.tensorboard import TensorBoard, writer_class

MANIFEST, VALUES, MOMENTS = "manifest.json", "state.json", "optimizer.safetensors"
# Flags that do not change what a run learns.
IGNORED = {"out", "progress", "show", "save_every", "keep", "allow_changes", "report_to"}
IGNORED |= {"log_tokens"}
# Flags that decide which tensors a state has: --allow-changes does not cover them.
SHAPE = {"hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size"}
LORA = {"lora_rank", "lora_alpha", "lora_targets"}
FIXED = {"model", "optimizer", "beta", *SHAPE, *LORA}
NAMES = {
    "data_sha256": "the content of --data",
    "reward_models_sha256": "the files of the reward models of --reward",
    "date": "the day in the chat template",
}
LOCKS: dict[Path, BinaryIO] = {}  # held by this process

Files = Mapping[str, Content]


class Run:
    """One training run in its folder.

        run = Run(out, settings, logs=("metrics.jsonl",))
        if run.has_finished(): return run.record()
        run.start(model, tokenizer, optimizers)        # lock the folder; resume the last state
        with run:
            for step in run.steps(count):              # saves a state every --save-every steps
                ...                                    # a signal here ends the run at once
                run.begin_update()                     # from here on it waits for the step's end
                ...
                run.write("metrics.jsonl", row)
        run.finish(steps=count)

    `values` are plain numbers that a state saves beside the tensors; a resumed run has them back.
    Whether a signal or an error ends the run, the last complete step is saved.
    """

    def __init__(self, out: str, settings: Mapping[str, Any], logs: Sequence[str]):
        self.out, self.logs = Path(out), logs
        recorded = self.record()["config"] if (self.out / "run.json").is_file() else {}
        # A chat template may show the day: a run keeps its first one.
        self.settings = {**settings, **{k: x for k, x in recorded.items() if k == "date"}}
        self.bar = self.tensorboard = None
        self.reports = settings.get("report_to") == "tensorboard"
        if self.reports:
            writer_class()  # the package may be missing: before anything is written
        self.step_is_whole = True  # what is in memory is the state after `step` steps

    @property
    def name(self) -> str:
        return self.out.name

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between an interruption and its resumption."""
        return time.perf_counter() - self.started

    def has_finished(self) -> bool:
        """Whether the same run has finished in this folder. Raises ValueError if it holds another
        run, or if the ranks, on nodes that do not share the folder, see different ones."""
        finished = self.is_recorded_as_finished()
        distributed.require_same(f"the content of {self.out}", finished)
        if finished:
            self.save_merged()
            print(
                f"{self.out}: this run has finished already; nothing to do; to go on from it: "
                f"--model {self.out} and another --out"
            )
        return finished

    def is_recorded_as_finished(self) -> bool:
        """`has_finished`, as this rank sees the folder."""
        if not (self.out / "run.json").is_file():
            return False
        record = self.record()
        changes(self.out, record["config"], self.settings, record["finished"])
        return record["finished"]

    def record(self) -> dict[str, Any]:
        return read_run_json(self.out / "run.json")

    @main_rank_only
    def claim(self) -> None:
        """Make the folder, lock it and record the configuration."""
        prepare_folder(self.out)
        lock(self.out)
        if self.is_recorded_as_finished():
            raise ValueError(f"--out {self.out}: another process has just finished this run")
        write_json(self.out / "run.json", {"config": self.settings, "finished": False})

    def start(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        optimizers: Sequence[torch.optim.Optimizer],
        others: Mapping[str, Transformer] = {},
    ) -> None:
        """Make and lock the folder, then put the model, the optimizers and `others` (a reference
        model) into the latest saved state. Call it after everything that may fail because
        of a wrong flag."""
        distributed.require_same("the content of --data", self.settings.get("data_sha256"))
        self.claim()
        self.model, self.tokenizer, self.optimizers = model, tokenizer, optimizers
        self.others = others
        self.resume()
        if self.reports and distributed.is_main_rank():
            self.tensorboard = TensorBoard(self.out, self.seconds)

    def resume(self) -> None:
        """Load the latest valid state, if there is one, and cut the logs back to it."""
        state = {"step": 0, "seconds": 0.0, "values": {}, "logs": {}}
        if folder := latest_valid(self.out):
            state = read_json(folder / VALUES)
            steps = self.settings.get("steps", state["step"])
            if state["step"] > steps:
                raise ValueError(
                    f"--steps {steps}: the run in --out {self.out} has already done {state['step']}"
                )
            for change in changes(self.out, state["config"], self.settings):
                print(f"{self.out}: {change}", flush=True)
            if self.model.adapter_files:
                check_state(folder, self.model)
            load_weights(self.model, read_weights(folder))
            for name, other in self.others.items():
                load_weights(other, load_file(folder / f"{name}.safetensors"))
            load_moments(self.optimizers, load_file(folder / MOMENTS))
            print(f"{self.out}: resuming from step {state['step']}", flush=True)
        distributed.require_same(f"the state in --out {self.out}", state["step"])
        self.truncate_logs(state)
        self.step = self.saved_step = state["step"]
        self.started = time.perf_counter() - state["seconds"]
        self.values = state["values"]

    @main_rank_only
    def truncate_logs(self, state: Mapping[str, Any]) -> None:
        """Drop log lines from after the state was saved: the resumed run logs them again."""
        for name in self.logs:
            path, before = self.out / name, state["logs"].get(name, {"bytes": 0})
            size = before["bytes"]
            if size and (not path.is_file() or digest(path, size) != before):
                raise ValueError(
                    f"{path}: its first {size} bytes have changed since step {state['step']}, from "
                    "which the run would resume; restore them, or choose another --out"
                )
            if path.is_file():
                os.truncate(path, size)
            else:
                path.touch()

    def __enter__(self) -> "Run":
        if distributed.world_size() > 1:
            signals.defer()
        return self

    def steps(self, count: int) -> Iterator[int]:
        """Iterates over the remaining steps.

        If the loop breaks out of its last step, as train_grpo.py does, `end_step` is not called for
        it: no state is saved, and a signal during its update does not keep the run from finishing.
        Otherwise `end_step` ends the run with that step saved, and a rerun only has to finish it.
        """
        for step in range(self.step, count):
            self.step_began, self.laps = time.perf_counter(), []
            yield step
            self.end_step(step + 1)

    def show_progress(self, done: float, text: str) -> None:
        """Show the share of the run that is done, from 0 to 1, and a text. Called first where this
        process begins."""
        if self.bar is None:
            self.bar = ProgressBar(done, self.settings["progress"])
        self.bar.update(done, f"{shorten(self.name, 20)} {text}")

    def lap(self, name: str) -> None:
        """Records the end of a named part of the step."""
        self.laps.append((name, time.perf_counter()))

    def times(self) -> dict[str, float]:
        """Seconds of the step so far, and of each of its parts."""
        times, start = {"step_time": time.perf_counter() - self.step_began}, self.step_began
        for name, end in self.laps:
            times[f"time/{name}"], start = end - start, end
        return times

    def begin_update(self) -> None:
        """Weights, logs and values change from here on: a signal waits for `end_step`."""
        signals.defer()
        self.step_is_whole = False

    def end_step(self, step: int) -> None:
        """Marks the first `step` steps as complete. With several ranks, signals are handled only
        here."""
        self.step, self.step_is_whole = step, True
        if self.settings["save_every"] and step % self.settings["save_every"] == 0:
            self.save()
        if any(distributed.all_gather([signals.requested()])):
            raise KeyboardInterrupt
        if distributed.world_size() == 1:
            signals.allow()

    def write(self, log: str, *rows: Mapping[str, Any]) -> None:
        """Append rows to a log, as JSON lines. Only the main rank's reach the file."""
        path = self.out / log if distributed.is_main_rank() else Path(os.devnull)
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise ValueError(f"{path}: cannot be written ({error.strerror})") from None
        if self.tensorboard and log == "metrics.jsonl":
            self.tensorboard.write(*rows)

    def save(self) -> None:
        """Write a state. Called by all ranks."""
        self.write_state(self.state_files())
        self.saved_step = self.step

    def state_files(self) -> Files:
        """The files of a state, without its values: the same for any number of ranks. Called by all
        ranks."""
        moments = {}
        for number, optimizer in enumerate(self.optimizers):
            for parameter, values in optimizer.state_dict()["state"].items():
                for name, value in values.items():
                    key = f"{number}.{parameter}.{name}"
                    moments[key] = distributed.gather_tensor(value)
        files = saved_files(distributed.gather_model(self.model), self.tokenizer)
        files[MOMENTS] = partial(write_tensors, moments)
        for name, other in self.others.items():
            weights = own_parameters(distributed.gather_model(other))
            files[f"{name}.safetensors"] = partial(write_tensors, weights)
        return files

    @main_rank_only
    def write_state(self, files: Files) -> None:
        """Write the state after `step` steps, then delete older ones beyond `--keep`. If writing
        fails, the earlier states are untouched."""
        root = self.out / "checkpoints"
        root.mkdir(exist_ok=True)
        for leftover in root.glob("*.tmp"):
            shutil.rmtree(leftover)
        target = root / f"step-{self.step:08d}"
        folder = root / f"{target.name}.tmp"
        folder.mkdir()
        try:
            for name in self.logs:
                fsync(self.out / name)
            values = {
                "step": self.step,
                "seconds": self.seconds,
                "config": self.settings,
                "values": self.values,
                "ranks": distributed.world_size(),
                "torch": str(torch.__version__),
                "logs": {name: digest(self.out / name) for name in self.logs},
            }
            for name, content in {**files, VALUES: json_text(values).encode()}.items():
                write_file(folder / name, content, target / name)
            digests = {path.name: digest(path) for path in folder.iterdir()}
            write_file(folder / MANIFEST, manifest(digests), target / MANIFEST)
            fsync(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if target.exists():  # it is damaged, or the run would have resumed from it
            target.rename(root / f"{target.name}.old.tmp")
        folder.rename(target)
        fsync(root)
        fsync(self.out)
        states = list_states(self.out)
        not_later = states[: states.index(target) + 1]  # later ones were skipped as damaged
        for path in [*states, *root.glob("*.tmp")]:
            if path not in not_later[-self.settings["keep"] :]:
                # Renamed first: a half-deleted state would look like a damaged one.
                shutil.rmtree(path.rename(path.with_name(f"{path.name}.gone.tmp")))

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        signals.defer()  # to the end: what is left is short
        try:
            if kind and self.step_is_whole and self.saved_step < self.step:
                # An error may be one rank's alone; then the others cannot take part in saving.
                if distributed.world_size() == 1 or issubclass(kind, KeyboardInterrupt):
                    self.save()
        finally:
            for display in filter(None, (self.bar, self.tensorboard)):
                display.close()
            if kind:
                unlock(self.out)

    def finish(self, **summary: Any) -> dict[str, Any]:
        """Save the trained model, record the run as finished and delete its states; with `--merge`,
        save the merged model, too."""
        checkpoint.save(self.out, distributed.gather_model(self.model), self.tokenizer)
        summary["seconds"] = round(self.seconds, 1)
        finish_run(self.out, **summary)
        self.save_merged()
        return summary

    def save_merged(self) -> None:
        """With `--merge`, what a finished run still owes."""
        folder = self.out / "merged"
        if self.settings.get("merge") and not (folder / "config.json").is_file():
            checkpoint.save_merged(folder, self.out, self.settings["merge_dtype"])


# -- the folder's lock and record ------------------------------------------------------------------


def lock(out: Path) -> None:
    """Keep other processes out of this folder until this one ends or has finished the run."""
    if out.resolve() not in LOCKS:
        LOCKS[out.resolve()] = lock_file(out / ".lock", f"--out {out}")


def unlock(out: Path) -> None:
    if file := LOCKS.pop(out.resolve(), None):
        file.close()


def changes(
    out: Path, before: Mapping[str, Any], config: Mapping[str, Any], finished: bool = False
) -> list[str]:
    """The changes in a configuration, each with both values. Raises ValueError for a change that is
    not allowed, or no longer allowed."""
    config, messages = json.loads(json.dumps(config)), []
    for key in sorted((config.keys() | before.keys()) - IGNORED):
        if config.get(key) == before.get(key):
            continue
        name = NAMES.get(key, f"--{key.replace('_', '-')}")
        messages.append(f"{name} was {before.get(key)!r}, now {config.get(key)!r}")
        may_change = key not in FIXED and not finished
        if not (may_change and config.get("allow_changes")):
            advice = ", or add --allow-changes to resume it" if may_change else ""
            if finished:
                advice = f", with --model {out} to go on from this run"
            raise ValueError(
                f"--out {out}: holds another run ({messages[-1]}); choose another folder{advice}"
            )
    return messages


@main_rank_only
def finish_run(out: Path, **summary: Any) -> None:
    write_json(out / "run.json", {**read_json(out / "run.json"), "finished": True, **summary})
    if (out / "checkpoints").is_dir():
        shutil.rmtree(out / "checkpoints")  # optimizer states are large
    unlock(out)


# -- saved states ----------------------------------------------------------------------------------


def list_states(out: Path) -> list[Path]:
    """In the order of their steps; without temporary folders, whose names are longer."""
    return sorted((out / "checkpoints").glob("step-????????"))


def digest(path: Path, size: float = math.inf) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of its first `size` bytes."""
    sha256, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(min(size - done, 1 << 20)):
            sha256.update(part)
            done += len(part)
    return {"bytes": done, "sha256": sha256.hexdigest()}


def manifest(digests: Mapping[str, Mapping[str, Any]]) -> bytes:
    return json_text(dict(sorted(digests.items()))).encode()


# -- reading a state -------------------------------------------------------------------------------


def find_corruption(folder: Path) -> str:
    """What is wrong with a state; "" if every byte is unchanged."""
    try:
        content = (folder / MANIFEST).read_bytes()
        listed = json.loads(content)
        for name, before in listed.items():
            now = digest(folder / name)
            if now["bytes"] < before["bytes"]:
                return f"{name} is truncated to {now['bytes']} of {before['bytes']} bytes"
            if now != before:
                return f"{name} has changed since it was written"
        # Written again it must be the same bytes: JSON alone would overlook some changes.
        is_whole = content == manifest(listed) and listed.keys() >= {VALUES, MOMENTS}
        return "" if is_whole else f"{MANIFEST} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__})"


def latest_valid(out: Path) -> Path | None:
    """The latest undamaged state; prints which later ones are skipped. Raises ValueError if there
    are states and all are damaged."""
    states = list_states(out)
    for folder in reversed(states):
        if not (corruption := find_corruption(folder)):
            return folder
        print(f"{folder}: skipped, {corruption}", flush=True)
    if states:
        raise ValueError(
            f"{out / 'checkpoints'}: every saved state is damaged; delete this folder to start "
            "again"
        )
    return None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """A state's weights: of a model, or of its adapters alone."""
    adapter = folder / ADAPTER_WEIGHTS
    if adapter.is_file():
        return {own_name(name): x for name, x in load_file(adapter).items()}
    weights = {}
    for path in weight_files(folder)[1]:
        weights |= load_file(path)
    return weights


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Loads all that is trained: the whole model, or its adapters."""
    assert weights.keys() == own_parameters(model).keys()
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in weights:  # stored once
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    current = model.state_dict()
    own = {name: shard_like(current.get(name), x) for name, x in weights.items()}
    model.load_state_dict(own, strict=not model.adapter_files)


def load_moments(optimizers: Sequence[torch.optim.Optimizer], moments: dict[str, Tensor]) -> None:
    """Moments are named "optimizer number.parameter number.name"."""
    saved = [{**optimizer.state_dict(), "state": {}} for optimizer in optimizers]
    for key, value in moments.items():
        number, i, name = key.split(".")
        groups = optimizers[int(number)].param_groups
        parameter = [p for group in groups for p in group["params"]][int(i)]
        # Copied: an optimizer keeps the tensor, and this one is a view of the mapped file.
        moment = shard_like(parameter, value.clone())
        saved[int(number)]["state"].setdefault(int(i), {})[name] = moment
    for optimizer, state in zip(optimizers, saved):
        optimizer.load_state_dict(state)
