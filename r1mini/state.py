"""Runs that survive: the saved states of an unfinished run, its folder's lock and record.

A state is a folder `OUT/checkpoints/step-00000040`: the model as any model folder, what else decides the run's next bits
(other models and optimizer moments as safetensors, plain values as JSON), and a manifest with each file's size and SHA-256. It
gets its name when all of it is on the disk, and nothing of it is read before it is verified. There is no state of a random
generator in it: all that is random is a function of (seed, step, row). [docs/survival.md](docs/survival.md) has the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from r1mini import distributed, interrupt
from r1mini.checkpoint import model_files, prepare_folder, read_record, sync, write, write_json
from r1mini.distributed import alike, on_first
from r1mini.journal import alone
from r1mini.model import Transformer
from r1mini.tokenizer import Tokenizer
from r1mini.weights import json_text, read_json, weight_files, write_shard

MANIFEST, VALUES, MOMENTS = "manifest.json", "state.json", "optimizer.safetensors"
# Of a configuration, what decides nothing that a run makes.
FREE = {"out", "progress", "show", "save_every", "keep", "allow_changes"}
# What the files of a state follow: no flag allows another.
SHAPE = {"model", "optimizer", "beta", "ahead", "hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size"}
LOCKS: dict[Path, BinaryIO] = {}  # of this process


# -- the run's folder --------------------------------------------------------------------------------------------------


def lock(out: Path) -> None:
    """No other process may work in this folder until this one ends, or has finished the run."""
    if out.resolve() not in LOCKS:
        LOCKS[out.resolve()] = alone(out / ".lock", f"--out {out}")


def unlock(out: Path) -> None:
    if file := LOCKS.pop(out.resolve(), None):
        file.close()


@alike
def has_finished(out: Path, config: Mapping[str, Any]) -> bool:
    """Whether a run with this configuration has finished in `out`. Another configuration's run is refused."""
    return recorded(out, config)


def recorded(out: Path, config: Mapping[str, Any]) -> bool:
    if not (out / "run.json").is_file():
        return False
    record = read_record(out / "run.json")
    changes(out, record["config"], config, record["finished"])
    return record["finished"]


def changes(out: Path, before: Mapping[str, Any], config: Mapping[str, Any], finished: bool = False) -> list[str]:
    """What of a configuration is not as before, each with both values. ValueError for what may not change (any more)."""
    config, found = json.loads(json.dumps(config)), []
    for key in sorted((config.keys() | before.keys()) - FREE):
        if config.get(key) != before.get(key):
            what = "what --data holds" if key == "data_sha256" else f"--{key.replace('_', '-')}"
            found.append(f"{what} was {before.get(key)!r}, now {config.get(key)!r}")
            may = key not in SHAPE and not finished
            if not (may and config.get("allow_changes")):
                raise ValueError(f"--out {out}: holds another run ({found[-1]}); choose another folder"
                                 + ", or add --allow-changes to go on in it" * may)
    return found


@on_first
def start_run(out: Path, config: Mapping[str, Any]) -> None:
    """Make the run's folder, lock it and record the configuration. Called after everything that a wrong flag could stop."""
    prepare_folder(out)
    lock(out)
    if recorded(out, config):
        raise ValueError(f"--out {out}: another process has finished this run just now")
    write_json(out / "run.json", {"config": config, "finished": False})


@on_first
def finish_run(out: Path, **summary: Any) -> None:
    write_json(out / "run.json", {**read_json(out / "run.json"), "finished": True, **summary})
    if (out / "checkpoints").is_dir():
        shutil.rmtree(out / "checkpoints")  # an optimizer's state is large
    unlock(out)


# -- writing a state -----------------------------------------------------------------------------------------------------


@on_first
def save(out: Path, step: int, values: Mapping[str, Any], files: Mapping[str, bytes | Callable[[Path], None]],
         logs: Sequence[str], keep: int) -> None:
    """Write a state, and delete older ones beyond `keep`. Whatever happens on the way, those that were there are there."""
    root = out / "checkpoints"
    root.mkdir(exist_ok=True)
    for left in root.glob("*.tmp"):
        shutil.rmtree(left)
    target = root / f"step-{step:08d}"
    folder = root / f"{target.name}.tmp"
    folder.mkdir()
    try:
        for name in logs:
            sync(out / name)
        values = {"step": step, **values, "ranks": distributed.ranks(), "torch": str(torch.__version__),
                  "logs": {name: measured(out / name) for name in logs}}
        for name, content in {**files, VALUES: json_text(values).encode()}.items():
            write(folder / name, content, target / name)
        listed = {path.name: measured(path) for path in folder.iterdir()}
        write(folder / MANIFEST, manifest(listed), target / MANIFEST)
        sync(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if target.exists():  # damaged: a run that trusts it does not come here again
        target.rename(root / f"{target.name}.old.tmp")
    folder.rename(target)
    sync(root)
    sync(out)
    earlier = [path for path in states(out) if path < target]
    later = [path for path in states(out) if path > target]  # skipped as damaged, or the run would be behind them
    for path in [*earlier[: 1 - keep or None], *later, *root.glob("*.tmp")]:
        shutil.rmtree(path.rename(path.with_name(f"{path.name}.gone.tmp")))  # half deleted, it would look damaged


def states(out: Path) -> list[Path]:
    return sorted(path for path in (out / "checkpoints").glob("step-*") if not path.name.endswith(".tmp"))


def measured(path: Path, size: int | None = None) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of its first bytes."""
    found, left = hashlib.sha256(), path.stat().st_size if size is None else size
    size = 0
    with path.open("rb") as file:
        while part := file.read(min(left - size, 1 << 20)):
            found.update(part)
            size += len(part)
    return {"bytes": size, "sha256": found.hexdigest()}


def manifest(listed: Mapping[str, Mapping[str, Any]]) -> bytes:
    return json_text({name: listed[name] for name in sorted(listed)}).encode()


def files(model: Transformer, tokens: Tokenizer, steppers: Sequence[torch.optim.Optimizer],
          beside: Mapping[str, Transformer] = {}) -> dict[str, bytes | Callable[[Path], None]]:
    """The files of a state, the same on any number of ranks: of the model, of others beside it by their names, and of the
    optimizers. Called by all ranks."""
    every = [distributed.full(stepper.state_dict())["state"] for stepper in steppers]
    moments = {f"{number}.{parameter}.{name}": value for number, found in enumerate(every)
               for parameter, values in found.items() for name, value in values.items()}
    weights = {name: dict(distributed.whole(other).named_parameters()) for name, other in beside.items()}
    return {**model_files(distributed.whole(model), tokens), MOMENTS: partial(write_shard, moments, None),
            **{f"{name}.safetensors": partial(write_shard, found, None) for name, found in weights.items()}}


# -- reading one ---------------------------------------------------------------------------------------------------------


def damage(folder: Path) -> str:
    """What is wrong with a state; nothing, if each of its bytes is what was written."""
    try:
        content = (folder / MANIFEST).read_bytes()
        listed = json.loads(content)
        for name, before in listed.items():
            now = measured(folder / name)
            if now["bytes"] < before["bytes"]:
                return f"{name} is cut to {now['bytes']} of {before['bytes']} bytes"
            if now != before:
                return f"{name} is not what was written"
        # Written anew, it has to be the same: what JSON does not tell apart counts too.
        return "" if content == manifest(listed) and listed.keys() >= {VALUES, MOMENTS} else f"{MANIFEST} is damaged"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__})"


def newest(out: Path) -> Path | None:
    """The last state that is whole; each later one is told of. ValueError if there are states, and none is whole."""
    found = states(out)
    for folder in reversed(found):
        if not (why := damage(folder)):
            return folder
        print(f"{folder}: skipped, {why}", flush=True)
    if found:
        raise ValueError(f"{out / 'checkpoints'}: none of the saved states is whole; delete this folder to begin again")
    return None


def resume(out: Path, config: Mapping[str, Any], model: nn.Module, steppers: Sequence[torch.optim.Optimizer],
           logs: Sequence[str], beside: Mapping[str, nn.Module] = {}) -> dict[str, Any]:
    """Put model, optimizers and the models beside it into the newest whole state, and cut the logs back to it. Its values; of a run
    that begins, only `step` and `seconds`, both 0."""
    values: dict[str, Any] = {"step": 0, "seconds": 0.0, "logs": {}}
    if folder := newest(out):
        values = read_json(folder / VALUES)
        if values["step"] > config.get("steps", values["step"]):
            raise ValueError(f"--steps {config['steps']}: the run in --out {out} has made {values['step']} already")
        for change in changes(out, values["config"], config):
            print(f"{out}: {change}", flush=True)
        fill(model, {name: x for path in weight_files(folder)[1] for name, x in load_file(path).items()})
        for name, other in beside.items():
            fill(other, load_file(folder / f"{name}.safetensors"))
        # Copied: an optimizer keeps what it is given, and that would be the file, mapped.
        moments = [(key.split("."), x.clone()) for key, x in load_file(folder / MOMENTS).items()]
        for number, stepper in enumerate(steppers):
            found: dict[int, dict[str, Tensor]] = {}
            for (of, parameter, name), x in moments:
                if int(of) == number:
                    found.setdefault(int(parameter), {})[name] = x
            distributed.restore(stepper, {"state": found, "param_groups": stepper.state_dict()["param_groups"]})
        print(f"{out}: going on from step {values['step']}", flush=True)
    distributed.agree(f"the state in --out {out}", values["step"])
    cut(out, logs, values)
    return values


def fill(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    if model.config.tie_word_embeddings:  # stored once
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    distributed.restore(model, tensors)


@on_first
def cut(out: Path, logs: Sequence[str], values: Mapping[str, Any]) -> None:
    """Drop what a run logged after its state was saved; the resumed run will log it again."""
    for name in logs:
        path, before = out / name, values["logs"].get(name, {"bytes": 0})
        if before["bytes"] and (not path.is_file() or measured(path, before["bytes"]) != before):
            raise ValueError(f"{path}: its first {before['bytes']} bytes are not those that it had at step {values['step']}, "
                             "from which the run would go on; put them back, or choose another --out")
        if path.is_file():
            os.truncate(path, before["bytes"])


# -- in the loop ---------------------------------------------------------------------------------------------------------


class Keeper:
    """Saves a run's state every so many steps, and when a signal or an error ends the run.

    `with Keeper(…) as keeper`; in the loop `keeper.hold()` before a step changes the weights, the logs or anything else that
    is saved, and `keeper.done(step + 1)` behind it. Between `done` and `hold` a signal ends the run at once; between `hold`
    and `done`, or on several ranks, it waits for `done`. `taken()` gives the values and files of the state.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], step: int, logs: Sequence[str],
                 taken: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]):
        self.out, self.settings, self.logs, self.taken = out, settings, logs, taken
        self.step = self.saved = step
        self.whole = True  # what is in memory is the state of `step`

    def __enter__(self) -> Keeper:
        if distributed.ranks() > 1:
            interrupt.hold()
        return self

    def hold(self) -> None:
        interrupt.hold()
        self.whole = False

    def done(self, step: int) -> None:
        self.step, self.whole = step, True
        if self.settings["save_every"] and step % self.settings["save_every"] == 0:
            self.save()
        if any(distributed.gather([interrupt.asked()])):
            raise KeyboardInterrupt
        if distributed.ranks() == 1:
            interrupt.let_go()

    def save(self) -> None:
        values, files = self.taken()
        save(self.out, self.step, {**values, "config": self.settings}, files, self.logs, self.settings["keep"])
        self.saved = self.step

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        interrupt.hold()  # to the end: what is left is short
        if kind is None:
            return
        together = distributed.ranks() == 1 or issubclass(kind, KeyboardInterrupt)  # an error may be one rank's alone
        if together and self.whole and self.saved < self.step:
            self.save()
        unlock(self.out)
