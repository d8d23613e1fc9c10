"""Command lines from frozen dataclasses. A field is a flag, and its line says all about it:
default, help, choices, bounds, and the flags that it needs to have an effect.

    clip_low: float = option(0.2, "lower clip of the ratio", bounds="0 <= x <= 1",
                             when="objective=clip and minibatches>1")

Flags override `--preset`, which overrides the defaults. A user's mistake prints one line to
standard error and exits with code 2. A job that a signal interrupts prints one line and exits with
code 75; the same command resumes it.
"""

import argparse
import dataclasses
import math
import operator
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from r1mini.infra import signals, terminal
from r1mini.model.config import LINEAR

Config = TypeVar("Config")
Presets = Mapping[str, Mapping[str, Any]]  # name -> field -> value
COMPARE = {"<=": operator.le, "<": operator.lt, ">": operator.gt, ">=": operator.ge}
BOUND_WORDS = {"<=": "at most", "<": "below", ">": "above", ">=": "at least"}
FROM_FILE = "data and data!=cold-start|corpus"  # the rows come from a file


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    bounds: str = "",
    when: str = "",
    positional: bool = False,
) -> Any:
    """A flag.

    choices  the values that it may have
    bounds   its range: "0 < x <= 1", "1 <= x"; a bound may be the name of another flag
    when     conditions joined by " and ", without which it has no effect: "data" (is set),
             "eval|reject" (one is set), "!data" (is not), "objective=clip|cispo",
             "objective!=reinforce", "minibatches>1", "reference_every<steps"
    positional  one or more values without a flag's name (for a tuple)
    """
    metadata = {"help": help, "choices": tuple(choices), "bounds": bounds, "when": when}
    metadata["positional"] = positional
    return dataclasses.field(default=default, metadata=metadata)


# -- options that scripts share --------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceOptions:
    seed: int = option(0, "random seed")
    device: str = option("auto", "auto, cpu or cuda[:n]")
    threads: int = option(1, "CPU threads (0: torch's choice)", bounds="0 <= x")
    progress: bool = option(True, "show progress bars, if the output is a terminal")
    bf16: bool = option(False, "compute in bfloat16; trained weights stay fp32")
    tf32: bool = option(
        False,
        "on CUDA, multiply what stays fp32 in TF32: faster, with 10 of 23 bits",
        when="device!=cpu",
    )


@dataclass(frozen=True)
class DataOptions:
    prompt_key: str = option(
        "", "prompt column of --data, if its layout is unknown", when=FROM_FILE
    )
    answer_key: str = option("", "answer column of --data", when=FROM_FILE)
    template: str = option(
        "auto",
        "how messages become text: chat (the model's own template), r1-zero or plain; auto: chat "
        "if the model has a template, else plain; rows of text are used unchanged",
        choices=("auto", "chat", "r1-zero", "plain"),
        when=FROM_FILE,
    )
    skip_bad: bool = option(
        False, "skip and count bad rows, instead of stopping at the first", when=FROM_FILE
    )


@dataclass(frozen=True)
class TrainOptions(DataOptions, DeviceOptions):
    model: str = option("base", "model folder, embedded model or hub id to start from")
    decontaminate: tuple[str, ...] = option(
        (), "evaluation files; drop rows that share ten consecutive words with them", when=FROM_FILE
    )
    # DEVIATES: Muon, where R1 uses AdamW.
    optimizer: str = option(
        "muon", "muon (for matrices; AdamW for the rest) or adamw", choices=("muon", "adamw")
    )
    optimizer_on: str = option(
        "device",
        "where to keep the optimizer state between steps: device or cpu (slower, the same bits)",
        choices=("device", "cpu"),
        when="device!=cpu",
    )
    learning_rate: float = option(1e-3, "peak learning rate", bounds="0 <= x")
    warmup: float = option(0.05, "warm-up, as a fraction of the run", bounds="0 <= x < 1")
    final_lr: float = option(0.1, "final learning rate, as a fraction of the peak", bounds="0 <= x")
    weight_decay: float = option(0.0, "decoupled weight decay", bounds="0 <= x")
    max_grad_norm: float = option(1.0, "clip the gradient to this norm", bounds="0 < x")
    deterministic: bool = option(
        False,
        "on CUDA, use slower, deterministic kernels (CPU kernels are always deterministic)",
        when="device!=cpu",
    )
    gradient_checkpointing: bool = option(
        False, "recompute each layer in the backward pass: less memory, a third more time"
    )
    compile: bool = option(
        False,
        "torch.compile the model, and on CUDA the sampler's step; on a CPU it needs a C++ compiler",
    )
    report_to: str = option(
        "none",
        "also write the metrics as scalars to OUT/tensorboard; needs the package tensorboard",
        choices=("none", "tensorboard"),
    )
    keep: int = option(
        2,
        "saved states to keep; if the last is damaged, the run resumes from the previous one",
        bounds="1 <= x",
    )
    allow_changes: bool = option(
        False,
        "resume the run in --out with other flags or data, for example with smaller micro-batches "
        "after it ran out of memory; every change is printed",
    )


@dataclass(frozen=True)
class PolicyOptions(TrainOptions):
    """What trains of a language model: all of it, or LoRA's adapters."""

    base: str = option(
        "", "base model of the adapter folder --model, if it is not where the folder says"
    )
    lora_rank: int = option(
        0,
        "train LoRA adapters of this rank, beside the frozen model (0: all weights; the adapters, "
        "if --model is an adapter folder)",
        bounds="0 <= x",
    )
    lora_alpha: float = option(
        32.0,
        "scale of the adapters, which is divided by their rank",
        bounds="0 < x",
        when="lora_rank",
    )
    lora_targets: tuple[str, ...] = option(
        LINEAR, "linear layers that get an adapter", choices=LINEAR, when="lora_rank"
    )
    lora_learning_rate: float = option(
        0.0, "peak learning rate of adapters (0: ten times --learning-rate)", bounds="0 <= x"
    )
    base_dtype: str = option(
        "auto",
        "dtype of the frozen weights under adapters: float32, or bfloat16, which needs --bf16; "
        "auto: bfloat16 with --bf16",
        choices=("auto", "float32", "bfloat16"),
    )
    merge: bool = option(
        False, "also save base and adapters as one plain model, in the folder OUT/merged"
    )
    merge_dtype: str = option(
        "float32",
        "dtype of the merged model; bfloat16 rounds small updates away",
        choices=("float32", "bfloat16"),
        when="merge",
    )


# -- checks ----------------------------------------------------------------------------------------


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def format_value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def validate(config: Any) -> None:
    """Raises ValueError naming the first flag that is not finite, not among its choices, out of
    bounds, or set without effect."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if problem := invalid_reason(config, one, **field.metadata):
                raise ValueError(f"{flag(field.name)} {one}: {problem}")
    for name, reason in ineffective(config).items():
        value = getattr(config, name)
        if value != getattr(type(config), name):
            raise ValueError(f"{flag(name)} {format_value(value)}: has no effect {reason}")


def invalid_reason(config: Any, value: Any, choices: Sequence[str], bounds: str, **_: Any) -> str:
    """What is wrong with one value; "" if nothing is."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if choices and value not in choices:
        return f"must be {any_of(choices)}"
    if bounds and not in_bounds(config, value, bounds):
        return f"must be {describe_bounds(config, bounds)}"
    return ""


def any_of(choices: Sequence[str]) -> str:
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def split_bounds(bounds: str) -> list[tuple[str, str]]:
    """How x compares with each limit.

    >>> split_bounds("0 < x <= 1"), split_bounds("1 <= x")
    ([('>', '0'), ('<=', '1')], [('>=', '1')])
    """
    pattern = r"(?:(\S+) (<=?) )?x(?: (<=?) (\S+))?"
    low, over, under, high = re.fullmatch(pattern, bounds).groups(default="")
    pairs = [(over.replace("<", ">"), low), (under, high)]
    return [pair for pair in pairs if all(pair)]


def bound(config: Any, text: str) -> float:
    return float(getattr(config, text, text))


def in_bounds(config: Any, value: float, bounds: str) -> bool:
    return all(
        COMPARE[comparison](value, bound(config, limit))
        for comparison, limit in split_bounds(bounds)
    )


def describe_bounds(config: Any, bounds: str) -> str:
    """
    >>> describe_bounds(None, "0 < x <= 1"), describe_bounds(None, "1 <= x")
    ('above 0 and at most 1', 'at least 1')
    """
    parts = []
    for comparison, limit in split_bounds(bounds):
        if hasattr(config, limit):
            limit = f"{flag(limit)} {getattr(config, limit)}"
        parts.append(f"{BOUND_WORDS[comparison]} {limit}")
    return " and ".join(parts)


def ineffective(config: Any) -> dict[str, str]:
    """The flags that have no effect, given the other flags, and why."""
    reasons = {}
    for field in dataclasses.fields(config):
        for condition in filter(None, field.metadata["when"].split(" and ")):
            if not is_met(config, condition):
                reasons.setdefault(field.name, unmet_reason(config, condition))
    return reasons


def split_condition(condition: str) -> tuple[str, str, str]:
    """
    >>> split_condition("objective!=reinforce"), split_condition("eval|reject")
    (('objective', '!=', 'reinforce'), ('eval|reject', '', ''))
    """
    return re.fullmatch(r"(!?[\w|]+?)(?:(!=|=|<|>)(.*))?", condition).groups(default="")


def is_met(config: Any, condition: str) -> bool:
    name, comparison, other = split_condition(condition)
    if name.startswith("!"):
        return not getattr(config, name[1:])
    values = [getattr(config, one) for one in name.split("|")]
    if not comparison:
        return any(values)
    if comparison in COMPARE:
        return COMPARE[comparison](values[0], bound(config, other))
    return (str(values[0]) in other.split("|")) == (comparison == "=")


def unmet_reason(config: Any, condition: str) -> str:
    """What follows "has no effect": with which value of a flag, or without which flags."""
    name, comparison, other = split_condition(condition)
    names = name.lstrip("!").split("|")
    value = getattr(config, names[0])
    if value in ("", (), False):
        return f"without {any_of([flag(one) for one in names])}"
    reason = f"with {flag(names[0])} {format_value(value)}".removesuffix(" True")
    if hasattr(config, other):
        reason += f" and {flag(other)} {getattr(config, other)}"
    return reason


# -- the command line ------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        main_rank = os.environ.get("LOCAL_RANK", "0") == "0"  # all ranks have this command line
        self.exit(2, f"{self.prog}: {message}\n" if main_rank else None)


def parse(
    cls: type[Config],
    argv: Sequence[str] | None = None,
    presets: Presets | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> Config:
    """The configuration of a command line. Drops values of a preset that the typed flags make
    ineffective."""
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=style)
    if presets:
        parser.add_argument("--preset", choices=list(presets), help=describe_presets(presets))
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        add_flag(parser, field, types[field.name])
    typed = vars(parser.parse_args(argv))
    preset = typed.pop("preset", None)
    typed = {name: tuple(v) if isinstance(v, list) else v for name, v in typed.items()}
    values = {**(presets[preset] if preset else {}), **typed}
    dropped = ineffective(cls(**values)).keys() - typed.keys()
    return cls(**{name: value for name, value in values.items() if name not in dropped})


def describe_presets(presets: Presets) -> str:
    lines = [
        f"{name}: " + " ".join(f"{k}={v}" for k, v in values.items())
        for name, values in presets.items()
    ]
    return "; ".join(lines).replace("%", "%%")


def add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field, kind: Any) -> None:
    choices, text = field.metadata["choices"], field.metadata["help"]
    if field.metadata["bounds"]:
        text += f"; {describe_bounds(None, field.metadata['bounds'])}"
    if field.metadata["when"]:
        text += f"; only with {field.metadata['when']}"
    if not field.metadata["positional"]:
        text += f" (default: {format_value(field.default) or 'none'})"
    text = text.replace("%", "%%")
    metavar = "{" + ",".join(choices) + "}" if choices else field.name.upper()
    if field.metadata["positional"]:
        kind, metavar = typing.get_args(kind)[0], field.name.upper().removesuffix("S")
        parser.add_argument(field.name, nargs="+", type=kind, metavar=metavar, help=text)
        return
    if kind is bool:
        options = {"action": argparse.BooleanOptionalAction}
    elif typing.get_origin(kind) is tuple:
        options = {"nargs": "+", "type": typing.get_args(kind)[0], "metavar": metavar}
    else:
        options = {"type": kind, "metavar": metavar if choices else kind.__name__.upper()}
    parser.add_argument(flag(field.name), default=argparse.SUPPRESS, help=text, **options)


def run_script(
    main: Callable[[Config], Any],
    cls: type[Config],
    presets: Presets | None = None,
    description: str | None = None,
) -> None:
    """A script's entry point. A user's mistake prints one line and exits with code 2."""
    name = sys.argv[0].rsplit("/", 1)[-1]
    terminal.escape_unencodable()
    config = parse(cls, presets=presets, description=description, prog=name)
    resumable = bool(getattr(config, "out", ""))  # chat, for example, writes no file
    try:
        with signals.listening() if resumable else nullcontext():
            main(config)
        if resumable:
            signals.ignore()
    except (ValueError, OSError) as error:
        fail(name, str(error) or type(error).__name__)
    except (MemoryError, RuntimeError) as error:
        no_memory = re.search("out of memory|allocate memory", str(error))
        if isinstance(error, RuntimeError) and not no_memory:
            raise
        advice = memory_flags(config, cuda="CUDA" in str(error))
        fail(name, f"not enough memory; lower {advice} ({str(error)[:200]})")
    except KeyboardInterrupt:
        if resumable:
            signals.ignore()
        advice = "; rerun the same command to resume" if resumable else ""
        print(f"\n{name}: interrupted{advice}", file=sys.stderr)
        sys.exit(signals.EXIT_CODE if resumable else 130)


def memory_flags(config: Any, cuda: bool = False) -> str:
    """The flags of a script that lower its memory use."""
    known = ("sampler_rows", "learner_tokens", "batch_tokens", "max_new_tokens")
    lower = [flag(name) for name in known if hasattr(config, name)]
    add = [] if getattr(config, "gradient_checkpointing", True) else ["--gradient-checkpointing"]
    one_rank = os.environ.get("WORLD_SIZE", "1") == "1"
    if cuda and one_rank and getattr(config, "optimizer_on", "") == "device":
        add.append("--optimizer-on cpu")
    advice = f" (or add {', '.join(add)})" if add else ""
    return (", ".join(lower) or "the model's size") + advice


def fail(name: str, text: str) -> typing.NoReturn:
    if len(text) > 2000:  # it may quote a file's content
        text = text[:2000] + " …"
    print(f"{name}: {text}".replace("\n", " "), file=sys.stderr)
    sys.exit(2)
