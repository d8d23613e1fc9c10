import json
import sys
import types
from pathlib import Path

import pytest
from conftest import interrupt, jsonl

import train_sft
from r1mini.infra import distributed
from r1mini.reward_model import training
from r1mini.rl import metrics

MODULE = "torch.utils.tensorboard"


class FakeWriter:
    """Writes scalars as lines of JSON into a new file, as SummaryWriter writes events."""

    def __init__(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        count = len(list(Path(folder).iterdir()))
        self.path = Path(folder) / f"events.out.tfevents.{count}"
        self.lines = []

    def add_scalar(self, name, value, step, walltime):
        assert isinstance(walltime, float)
        self.lines.append(json.dumps({"step": step, "name": name, "value": value}) + "\n")

    def flush(self):
        self.path.write_text("".join(self.lines))

    close = flush


@pytest.fixture
def fake(monkeypatch):
    module = types.ModuleType(MODULE)
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, MODULE, module)


def scalars(out):
    """The scalars of a run, in the order in which they were written."""
    return [row for path in sorted((out / "tensorboard").iterdir()) for row in jsonl(path)]


def logged(out):
    """What they must be."""
    return [
        {"step": row["step"], "name": name, "value": value}
        for row in jsonl(out / "metrics.jsonl")
        for name, value in row.items()
        if name != "step"
    ]


def test_scalars_of_a_grpo_run_are_its_metrics(fake, tiny_grpo, tmp_path):
    tiny_grpo(report_to="tensorboard")
    assert scalars(tmp_path / "out") == logged(tmp_path / "out")
    assert {"reward", "loss", "rewards/accuracy/mean", "completions/mean_length"} <= {
        row["name"] for row in scalars(tmp_path / "out")
    }


@pytest.mark.parametrize("before", ["tensorboard", "none"])
def test_resumed_run_neither_repeats_nor_loses_steps(fake, tiny_grpo, tmp_path, before):
    """Step 3 was logged before the interruption, and is logged again. A run may begin to report
    when it resumes."""
    with interrupt(metrics.StepLog, "print_step", 3):
        tiny_grpo(steps=4, save_every=2, report_to=before)
    assert (tmp_path / "out/tensorboard").exists() == (before == "tensorboard")
    tiny_grpo(steps=4, save_every=2, report_to="tensorboard")
    assert scalars(tmp_path / "out") == logged(tmp_path / "out")
    assert [row["step"] for row in scalars(tmp_path / "out") if row["name"] == "reward"] == [
        0,
        1,
        2,
        3,
    ]


def test_scalars_of_fine_tuning_and_of_a_reward_model(fake, tmp_path, folder):
    rows = [{"prompt": f"{n}+{n}?\n", "completion": f"<answer>{2 * n}</answer>"} for n in range(8)]
    pairs = [{"prompt": f"{n}?\n", "chosen": "gold", "rejected": "lead"} for n in range(12)]
    for name, content in (("rows", rows), ("pairs", pairs)):
        (tmp_path / name).with_suffix(".jsonl").write_text(
            "".join(json.dumps(x) + "\n" for x in content)
        )
    common = {"model": folder, "device": "cpu", "report_to": "tensorboard"}
    train_sft.main(
        train_sft.Config(
            out=str(tmp_path / "sft"),
            data=str(tmp_path / "rows.jsonl"),
            epochs=30,
            batch_tokens=64,
            **common,
        )
    )
    training.main(
        training.Config(
            out=str(tmp_path / "rm"),
            data=str(tmp_path / "pairs.jsonl"),
            batch_pairs=4,
            held_out=0.3,
            **common,
        )
    )
    for name in ("sft", "rm"):
        assert len(logged(tmp_path / name)) >= 10
        assert scalars(tmp_path / name) == logged(tmp_path / name)


def test_only_the_main_rank_writes(fake, tiny_grpo, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_main_rank", lambda: False)
    monkeypatch.setattr("r1mini.training.run_state.lock", lambda out: None)
    monkeypatch.setattr("r1mini.training.run_state.TensorBoard", None)  # calling it would raise
    (tmp_path / "out").mkdir()
    (tmp_path / "out/metrics.jsonl").touch()
    tiny_grpo(report_to="tensorboard", save_every=0)


@pytest.mark.parametrize(
    "name, flags",
    [
        ("train_sft.py", ()),
        ("train_grpo.py", ()),
        ("r1mini/reward_model/__main__.py", ("--data", "pairs.jsonl")),
    ],
)
def test_missing_package_is_one_line_before_anything_is_written(
    script, monkeypatch, tmp_path, folder, name, flags
):
    monkeypatch.setitem(sys.modules, MODULE, None)
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    code, out, err = script(
        name, "--report-to", "tensorboard", "--model", folder, "--out", "out", *flags
    )
    assert (code, out) == (2, "") and not Path("out").exists()
    assert err.split(": ", 1)[1] == (
        "--report-to tensorboard: needs the package tensorboard (pip install tensorboard)\n"
    )


def test_events_of_the_real_package_are_the_metrics(tiny_grpo, tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with interrupt(metrics.StepLog, "print_step", 3):
        tiny_grpo(steps=4, save_every=2, report_to="tensorboard")
    tiny_grpo(steps=4, save_every=2, report_to="tensorboard")
    log = events.EventAccumulator(str(tmp_path / "out/tensorboard"))
    log.Reload()
    rows = jsonl(tmp_path / "out/metrics.jsonl")
    names = {name for row in rows for name in row if name != "step"}
    assert set(log.Tags()["scalars"]) == names
    for name in names:
        expected = [(row["step"], pytest.approx(row[name])) for row in rows if name in row]
        assert [(event.step, event.value) for event in log.Scalars(name)] == expected
