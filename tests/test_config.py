import dataclasses
import os
import re
import signal

import pytest
import torch

from r1mini import config
from r1mini.bench import __main__ as bench
from r1mini.evaluation.config import SampleConfig
from r1mini.infra.device import pick_device
from r1mini.sampler import cuda_graphs


@dataclasses.dataclass(frozen=True)
class Config:
    out: str = config.option("runs/x", "folder")
    steps: int = config.option(10, "steps, in 100 %")
    learning_rate: float = config.option(0.5, "rate")
    bf16: bool = config.option(False, "half precision")
    compile: bool = config.option(True, "compile")
    tasks: tuple[str, ...] = config.option(("a", "b"), "tasks")
    note: str = config.option("", "text")


PRESETS = {"small": {"steps": 5, "learning_rate": 0.1, "bf16": True}}


def parse(*argv):
    return config.parse(Config, argv, PRESETS, prog="prog")


def test_flags_override_preset_overrides_defaults():
    assert parse() == Config()
    assert parse("--preset", "small") == Config(steps=5, learning_rate=0.1, bf16=True)
    assert parse("--steps", "7", "--preset", "small") == Config(
        steps=7, learning_rate=0.1, bf16=True
    )
    # A flag that repeats the default still overrides the preset.
    assert parse("--preset", "small", "--steps", "10", "--no-bf16") == Config(learning_rate=0.1)


def test_switches_have_both_forms():
    assert parse("--bf16", "--no-compile") == Config(bf16=True, compile=False)


def test_several_values_make_a_tuple():
    assert parse("--tasks", "c").tasks == ("c",)
    assert parse("--tasks", "c", "c", "d", "--steps", "3") == Config(tasks=("c", "c", "d"), steps=3)


@pytest.mark.parametrize(
    "argv, names",
    [
        (["--stepz", "3"], "--stepz"),
        (
            ["--step", "3"],
            "--step",
        ),  # no abbreviations: a new flag must not change what an old command means
        (["stray"], "stray"),
        (["--steps"], "--steps"),
        (["--steps", "three"], "--steps: invalid int value: 'three'"),
        (["--learning-rate", "fast"], "--learning-rate"),
        (["--preset", "large"], "--preset"),
        (["--tasks"], "--tasks"),
    ],
)
def test_bad_command_line_prints_one_line_and_exits_with_2(argv, names, capsys):
    with pytest.raises(SystemExit) as exit:
        parse(*argv)
    captured = capsys.readouterr()
    assert exit.value.code == 2 and captured.out == ""
    assert re.fullmatch(f"prog: [^\n]*{re.escape(names)}[^\n]*\n", captured.err)


@dataclasses.dataclass(frozen=True)
class Bounded:
    mode: str = config.option("fast", "how", choices=("fast", "slow"))
    share: float = config.option(0.5, "a share", bounds="0 < x <= 1")
    most: int = config.option(4, "a maximum", bounds="1 <= x")
    count: int = config.option(2, "a number", bounds="0 <= x < most")
    depth: int = config.option(3, "depth of slow", when="mode=slow")
    wide: bool = config.option(False, "with deep", when="mode!=fast and depth>3")
    data: str = config.option("", "a file")
    key: str = config.option("", "a column", when="data and data!=made|drawn")
    plain: bool = config.option(False, "without a file", when="!data")
    half: bool = config.option(False, "of either", when="plain|wide")
    below: int = config.option(1, "below most", when="count<most")


@pytest.mark.parametrize(
    "changes, line",
    [
        ({"mode": "odd"}, "--mode odd: must be fast or slow"),
        ({"share": 0.0}, "--share 0.0: must be above 0 and at most 1"),
        ({"share": float("nan")}, "--share nan: must be a finite number"),
        ({"most": 0}, "--most 0: must be at least 1"),
        ({"count": 4}, "--count 4: must be at least 0 and below --most 4"),
        ({"depth": 9}, "--depth 9: has no effect with --mode fast"),
        ({"wide": True}, "--wide True: has no effect with --mode fast"),
        ({"wide": True, "mode": "slow"}, "--wide True: has no effect with --depth 3"),
        ({"key": "a"}, "--key a: has no effect without --data"),
        ({"key": "a", "data": "made"}, "--key a: has no effect with --data made"),
        ({"plain": True, "data": "x"}, "--plain True: has no effect with --data x"),
        ({"half": True}, "--half True: has no effect without --plain or --wide"),
        ({"below": 2, "count": 0, "most": 0}, "--most 0: must be at least 1"),
    ],
)
def test_flags_are_checked_against_their_fields(changes, line):
    with pytest.raises(ValueError, match=f"^{re.escape(line)}$"):
        config.validate(Bounded(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": "slow", "depth": 9, "wide": True},
        {"key": "a", "data": "x"},
        {"plain": True, "half": True},
    ],
)
def test_compatible_flags_pass(changes):
    config.validate(Bounded(**changes))


def test_help_shows_choices_bounds_and_conditions(capsys):
    with pytest.raises(SystemExit):
        config.parse(Bounded, ["--help"], prog="prog")
    text = " ".join(capsys.readouterr().out.split())
    assert "--mode {fast,slow}" in text and "a share; above 0 and at most 1 (default: 0.5)" in text
    assert "a number; at least 0 and below most (default: 2)" in text
    assert "depth of slow; only with mode=slow (default: 3)" in text


@pytest.mark.parametrize(
    "error, code, line",
    [
        (ValueError("--steps: bad"), 2, "prog: --steps: bad\n"),
        (ValueError("two\nlines"), 2, "prog: two lines\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "prog: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 75, "\nprog: interrupted; rerun the same command to resume\n"),
    ],
)
def test_user_mistakes_end_in_one_line(monkeypatch, capsys, error, code, line):
    monkeypatch.setattr("sys.argv", ["path/to/prog"])

    def main(cfg):
        raise error

    with pytest.raises(SystemExit) as exit:
        config.run_script(main, Config)
    assert exit.value.code == code and capsys.readouterr().err == line


def test_script_without_out_keeps_pythons_signal_handlers(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prog", "--out", ""])

    def main(cfg):
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        config.run_script(main, Config)
    assert exit.value.code == 130 and capsys.readouterr().err == "\nprog: interrupted\n"


def test_internal_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["prog"])
    with pytest.raises(ZeroDivisionError):
        config.run_script(lambda cfg: 1 / 0, Config)


def test_device_is_chosen():
    assert pick_device("cpu", 1) == torch.device("cpu")
    assert pick_device("auto", 1).type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_numbered_device_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [str(pick_device(name, 1)) for name in ("cuda:1", "cuda", "cpu")] == [
        "cuda:1",
        "cuda",
        "cpu",
    ]
    assert chosen == ["cuda:1"]


@pytest.mark.parametrize(
    "name, flag", [("gpu", "--device gpu"), ("cpu:x", "--device cpu:x"), ("", "--device")]
)
def test_bad_device_names_the_flag(name, flag):
    with pytest.raises(ValueError, match=flag):
        pick_device(name, 1)


@pytest.mark.parametrize("cls", [config.TrainOptions, SampleConfig, bench.Config])
def test_negative_number_of_threads_names_the_flag(cls):
    with pytest.raises(ValueError, match="--threads -1: must be at least 0"):
        config.validate(cls(threads=-1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_reported():
    with pytest.raises(ValueError, match="--device cuda:0"):
        pick_device("cuda:0", 1)


def test_deterministic_selects_kernels_and_turns_graphs_off(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.delenv("R1MINI_GRAPHS", raising=False)
    assert cuda_graphs.graphs_enabled(torch.device("cuda"))
    try:
        pick_device("cpu", 0, deterministic=True)
        assert (
            torch.are_deterministic_algorithms_enabled()
            and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        )
        assert not cuda_graphs.graphs_enabled(torch.device("cuda"))
    finally:
        torch.use_deterministic_algorithms(False)
