"""Command lines from frozen dataclasses: a field is a flag, its default and help stand beside it.

Defaults < `--preset` < flags. Mistakes are one line on standard error and exit code 2; a job that a signal ended, and that
goes on by the same command, one line and exit code 75.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from r1mini import interrupt

Config = TypeVar("Config")


def option(default: Any, text: str) -> Any:
    """A field of a script's configuration."""
    return dataclasses.field(default=default, metadata={"help": text})


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        once = os.environ.get("LOCAL_RANK", "0") == "0"  # of a machine's ranks, which all have this command line
        self.exit(2, f"{self.prog}: {message}\n" if once else None)


def parse(cls: type[Config], argv: Sequence[str] | None = None, presets: Mapping[str, Mapping[str, Any]] | None = None,
          prog: str | None = None, description: str | None = None,
          moot: Callable[[Config], Mapping[str, str]] = lambda _: {}) -> Config:
    """The configuration of a command line. Of a preset, what the flags beside it make ineffective (`moot`) is dropped."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    if presets:
        shown = "; ".join(f"{name}: " + " ".join(f"{k}={v}" for k, v in values.items())
                          for name, values in presets.items())
        parser.add_argument("--preset", choices=list(presets), help=shown.replace("%", "%%"))
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        flag, kind = "--" + field.name.replace("_", "-"), types[field.name]
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{field.metadata['help']} (default: {shown if shown != '' else 'none'})".replace("%", "%%")
        common = {"dest": field.name, "default": argparse.SUPPRESS, "help": text}
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(flag, nargs="+", type=typing.get_args(kind)[0], metavar=field.name.upper(), **common)
        else:
            parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **common)
    given = vars(parser.parse_args(argv))
    preset = given.pop("preset", None)
    given = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    values = {**(presets[preset] if preset else {}), **given}
    dropped = moot(cls(**values)).keys() - given.keys()
    return cls(**{name: value for name, value in values.items() if name not in dropped})


def run(main: Callable[[Config], Any], cls: type[Config], presets: Mapping[str, Mapping[str, Any]] | None = None,
        description: str | None = None, moot: Callable[[Config], Mapping[str, str]] = lambda _: {}) -> None:
    """A script's entry: its user's mistakes end in one line and exit code 2."""
    name = sys.argv[0].rsplit("/", 1)[-1]
    config = parse(cls, presets=presets, description=description, prog=name, moot=moot)
    goes_on = bool(getattr(config, "out", ""))  # what is not kept anywhere is cut off as usual: chat, above all
    try:
        with interrupt.listening() if goes_on else nullcontext():
            main(config)
        if goes_on:
            interrupt.ignore()
    except (ValueError, OSError) as error:
        sys.exit(fail(name, error))
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("out of memory|allocate memory", str(error)):
            raise
        flags = memory_flags(config, cuda="CUDA" in str(error))
        sys.exit(fail(name, ValueError(f"not enough memory; lower {flags} ({str(error)[:200]})")))
    except KeyboardInterrupt:
        if goes_on:
            interrupt.ignore()
        print(f"\n{name}: interrupted" + "; the same command goes on from what is saved" * goes_on, file=sys.stderr)
        sys.exit(interrupt.EXIT if goes_on else 130)


def memory_flags(config: Any, cuda: bool = False) -> str:
    """The flags of a script that decide how much memory it takes."""
    known = ("sampler_rows", "learner_tokens", "batch_tokens", "max_new_tokens")
    names = [f"--{name.replace('_', '-')}" for name in known if hasattr(config, name)]
    less = ["--gradient-checkpointing"] if not getattr(config, "gradient_checkpointing", True) else []
    if cuda and getattr(config, "optimizer_on", "") == "device" and os.environ.get("WORLD_SIZE", "1") == "1":
        less.append("--optimizer-on cpu")
    return (", ".join(names) or "the model's size") + (f" (or give {', '.join(less)})" if less else "")


def refuse_moot(config: Any, moot: Mapping[str, str]) -> None:
    """Refuse a flag that was given and would have no effect, with the reason."""
    for name, why in moot.items():
        if getattr(config, name) != getattr(type(config)(), name):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(config, name)}: would have no effect ({why})")


def require(config: Any, **bounds: bool) -> None:
    """Refuse a configuration by the flag whose bound is not met."""
    for name, met in bounds.items():
        if not met:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(config, name)} is out of range")


def fail(name: str, error: Exception) -> int:
    told = str(error) or type(error).__name__
    print(f"{name}: {told[:2000]}{' …' * (len(told) > 2000)}".replace("\n", " "), file=sys.stderr)  # of what a file holds, enough
    return 2


def device(name: str, threads: int, deterministic: bool = False):
    """The torch device of `--device auto|cpu|cuda[:n]`, with the number of CPU threads set. `deterministic`: of CUDA's kernels those
    that give the same bits each time, where there are such; torch warns where not. Not undone."""
    import torch

    from r1mini import distributed

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", name):
        raise ValueError(f"--device {name}: not auto, cpu or cuda[:n]")
    name = distributed.device(name)
    if name != "cpu" and int(name[5:] or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices")
    if ":" in name:
        torch.cuda.set_device(name)  # also of what names none: NCCL, CUDA graphs, a scalar on "cuda"
    if threads < 0:
        raise ValueError(f"--threads: {threads} is out of range")
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product is made
        torch.use_deterministic_algorithms(True, warn_only=True)
    return torch.device(name)


def autocast(device, bf16: bool):
    """A context for the compute of a model on `device`: bfloat16 over the weights as they are, or nothing."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
