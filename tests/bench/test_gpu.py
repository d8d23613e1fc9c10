"""The measurement for a GPU, rehearsed with tiny shapes on a CPU."""

import json

import pytest

import train_grpo
import train_sft
from r1mini import checkpoint
from r1mini.bench import __main__ as bench
from r1mini.bench import gpu
from r1mini.bench.gpu import Config, Part, main
from r1mini.config import parse
from r1mini.recipe import stages


def part(code, limit=60):
    return Part(limit, ("-c 0",), (f"-c '{code}'",))


def test_parts_are_run_once_and_summarised(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        gpu, "PARTS", {"tests": part('print("| a table |")'), "decode": part("raise SystemExit(3)")}
    )
    cfg = Config(out=str(tmp_path), parts=("tests", "decode"), tiny=True, device="cpu")
    main(cfg)
    first = json.loads((tmp_path / "gpu.json").read_text())
    assert (first["tests"]["exit"], first["decode"]["exit"]) == (0, 3)
    summary = (tmp_path / "gpu.md").read_text()
    assert "\n| a table |\n" in summary and "## decode" in summary and "torch" in summary
    main(cfg)
    again = json.loads((tmp_path / "gpu.json").read_text())
    assert again["tests"] == first["tests"] and again["decode"] != first["decode"]  # tried again


def test_a_part_ends_at_its_limit(tmp_path, monkeypatch):
    slow = Part(1, (), ("-c 'import time; time.sleep(60)'", "-c 'print(1)'"))
    monkeypatch.setattr(gpu, "PARTS", {"tests": slow})
    main(Config(out=str(tmp_path), parts=("tests",), tiny=True, device="cpu"))
    result = json.loads((tmp_path / "gpu.json").read_text())["tests"]
    assert result["exit"] == 124 and len(result["commands"]) == 1 and result["seconds"] < 30


def test_full_shapes_need_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="--device cpu: these shapes need a GPU"):
        main(Config(out=str(tmp_path), device="cpu"))


def test_random_model_can_be_trained_on(tmp_path):
    main(Config(out=str(tmp_path / "model"), write="tiny", device="cpu"))
    model, tokenizer = checkpoint.load(tmp_path / "model")
    assert model.config.vocab_size == 1024 and tokenizer.encode("w3 w0") == [3, 0]


def test_a_part_with_tiny_shapes(tmp_path):
    name = "memory-7B"  # of two commands: the second trains what the first writes
    main(Config(out=str(tmp_path), parts=(name,), tiny=True, device="cpu"))
    result = json.loads((tmp_path / "gpu.json").read_text())[name]
    assert result["exit"] == 0, (tmp_path / f"{name}.log").read_text()


SCRIPTS = {
    "-m r1mini.bench ": (bench.Config, {}),
    "-m r1mini.bench.gpu ": (Config, {}),
    "-m r1mini ": (stages.Config, stages.PRESETS),
    "train_grpo.py ": (train_grpo.Config, train_grpo.PRESETS),
    "train_sft.py ": (train_sft.Config, train_sft.PRESETS),
}


def test_the_commands_for_a_gpu_have_flags_that_exist():
    for name, part in gpu.PARTS.items():
        for command in (part.commands + part.tiny) if name != "tests" else ():
            start = max((start for start in SCRIPTS if command.startswith(start)), key=len)
            argv = command.removeprefix(start).format(out="out", device="cuda").split()
            cls, presets = SCRIPTS[start]
            assert isinstance(parse(cls, argv, presets), cls)
