"""Experiments: what their runs vary, the bugs and the noise by hand, and the command on tiny models."""

import importlib
import math
from dataclasses import fields

import pytest
import torch
from conftest import interrupt, jsonl, random_model

import train_sft
from r1mini import rewards, tasks
from r1mini.experiments import __main__ as command
from r1mini.experiments import catalog, grpo_bugs, noise, sft_bugs
from r1mini.experiments.catalog import BASE, DEFAULT, EXPERIMENTS, RL, SFT, Arm, Experiment
from r1mini.infra.files import read_run_json
from r1mini.recipe.scheduler import is_done
from r1mini.records import Rollout
from r1mini.rl import learner, rollouts
from r1mini.rl.config import GRPOConfig, resolve
from r1mini.rl.samples import Sample, loss_inputs
from r1mini.sampler import sampling
from r1mini.sampler.sampling import SamplingParams, draw
from r1mini.training.logprobs import collate, token_logprobs

ARMS = [(name, arm) for name, experiment in EXPERIMENTS.items() for arm in experiment.arms]
IDS = [f"{name}: {arm.label}" for name, arm in ARMS]


def settings(arm):
    """The resolved configuration of an arm's RL."""
    script, _, flags = arm.runs()[-1]
    return resolve(importlib.import_module(script).Config(**flags))


@pytest.mark.parametrize(("name", "arm"), ARMS, ids=IDS)
def test_runs_differ_from_the_default_in_what_they_say(name, arm):
    if arm.sft is not None:
        script, _, flags = arm.runs()[0]
        train_sft.check(importlib.import_module(script).Config(**flags))
        assert flags == SFT | arm.sft
    if arm.rl is None:
        return
    cfg, default = settings(arm), settings(DEFAULT)
    changed = {
        field.name
        for field in fields(GRPOConfig)
        if getattr(cfg, field.name) != getattr(default, field.name)
    }
    follows = {"scale"} if arm.rl.get("baseline") == "none" else set()
    assert changed == arm.rl.keys() - {"bug"} | follows
    assert cfg.problems * cfg.completions == default.problems * default.completions


def test_every_experiment_but_one_has_the_default_to_compare_with():
    for name, experiment in EXPERIMENTS.items():
        labels = [arm.label for arm in experiment.arms]
        assert len(labels) == len(set(labels)) and "rewards/accuracy/mean" in experiment.panels
        assert (DEFAULT.name in [arm.name for arm in experiment.arms]) == (name != "end-token")


def test_end_token_is_all_that_differs_in_its_experiment():
    first, *others = EXPERIMENTS["end-token"].arms
    bug = {"bug": "end-token"}
    assert [(arm.rl, arm.sft) for arm in others] == [
        (first.rl | bug, first.sft),
        (first.rl, first.sft | bug),
        (None, first.sft | bug),
    ]


def test_rl_and_evaluation_begin_with_the_cold_start(tmp_path):
    sft, rl, evaluation = command.stages(Arm("", {}, {"rows": 50}), tmp_path, 7, "cpu")
    assert [sft.settings["model"], rl.settings["model"]] == ["base", sft.settings["out"]]
    assert evaluation.settings["model"] == rl.settings["out"]
    assert rl.inputs == (sft.output,) and evaluation.inputs == (rl.output,)
    assert {stage.settings["seed"] for stage in (sft, rl, evaluation)} == {7}
    assert command.stages(BASE, tmp_path, 7, "cpu")[0].settings["model"] == "base"


def test_runs_with_equal_flags_are_one_run():
    by_name = {}
    for _, arm in ARMS:
        assert by_name.setdefault(arm.name, (arm.rl, arm.sft)) == (arm.rl, arm.sft)
    assert len({arm.name for _, arm in ARMS if arm.rl == {} and arm.sft is None}) == 1
    assert Arm("", {"clip_low": 1.0}, {"rows": 50}).name == "sft-rows-50-rl-clip-low-1.0"
    assert Arm("", {"clip_low": 1.0}, {"rows": 50}).flags == "SFT --rows 50, then RL --clip-low 1.0"
    assert (BASE.name, BASE.flags, DEFAULT.flags) == ("base", "", "")


# -- bugs ------------------------------------------------------------------------------------------


def test_end_token_of_finished_completions_has_no_weight():
    samples = [
        Sample(Rollout((5, 6), (7, 8, 9), (-1.0,) * 3, "", finished), 1.0, (-1.0,) * 3, (0.0,) * 3)
        for finished in (True, False)
    ]
    cfg, policy = resolve(GRPOConfig(problems=1, completions=2)), random_model()
    arguments = (cfg, policy, samples, torch.tensor([True, True]), [[0, 1]])
    right, wrong = loss_inputs(*arguments), grpo_bugs.untrained_end_token(*arguments)
    assert right.weight_BT.tolist() == [[0, 0, *[pytest.approx(1 / 6)] * 3]] * 2
    assert wrong.weight_BT.tolist()[0] == [0, 0, *[pytest.approx(1 / 6)] * 2, 0]
    assert wrong.weight_BT.tolist()[1] == right.weight_BT.tolist()[1]
    for name, value in vars(right).items():
        assert name == "weight_BT" or torch.equal(value, getattr(wrong, name))


def test_tokens_are_drawn_at_another_temperature_than_their_log_probabilities(monkeypatch):
    # 0.8^(1/0.7) = 0.727 and 0.2^(1/0.7) = 0.100: at 0.7, the first token has probability 0.879.
    logits_BV, uniform_B = torch.tensor([[0.8, 0.2]] * 3).log(), torch.tensor([0.79, 0.85, 0.89])
    token_B, logp_B = draw(logits_BV, uniform_B, SamplingParams())
    assert token_B.tolist() == [0, 1, 1]
    monkeypatch.setattr(*grpo_bugs.BUGS["temperature"])
    token_B, logp_B = draw(logits_BV, uniform_B, SamplingParams())
    assert token_B.tolist() == [0, 0, 1]
    assert logp_B.exp().tolist() == pytest.approx([0.8, 0.8, 0.2])


def test_end_token_is_masked_with_the_padding(tokens):
    assert tokens.eos_id == sft_bugs.PAD
    model, batch = random_model(), collate([([5, 6], [7, 8, 0]), ([5], [9, 0])])
    right_BT, wrong_BT = token_logprobs(model, batch), sft_bugs.untrained_end_token(model, batch)
    assert (right_BT != 0).int().tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert (wrong_BT != 0).int().tolist() == [[0, 0, 1, 1, 0], [0, 1, 0, 0, 0]]
    assert torch.equal(wrong_BT[wrong_BT != 0], right_BT[wrong_BT != 0])


def test_bug_ends_with_its_run_and_is_in_its_record(tmp_path, folder):
    flags = {"model": folder, "tasks": ("elements",), "device": "cpu"}
    rl = {"steps": 1, "problems": 2, "completions": 2, "max_new_tokens": 4, "reward": "format"}
    real = learner.loss_inputs, sampling.inverse_cdf_sample, train_sft.token_logprobs
    for module, bug, more in (
        (grpo_bugs, "temperature", rl),
        (sft_bugs, "end-token", {"rows": 4, "epochs": 1}),
    ):
        module.main(module.Config(bug=bug, out=str(tmp_path / bug), **flags, **more))
        assert read_run_json(tmp_path / bug / "run.json")["config"]["bug"] == bug
        with pytest.raises(ValueError, match="--bug no: must be end-token"):
            module.main(module.Config(bug="no"))
    assert real == (learner.loss_inputs, sampling.inverse_cdf_sample, train_sft.token_logprobs)


# -- noise -----------------------------------------------------------------------------------------


def test_share_of_the_verdicts_is_flipped():
    problem = tasks.problem("countdown", 0, 0, "train")
    texts = [f"<think>{n}</think><answer>{n}</answer>" for n in range(1000)]
    columns = {name: [value] * 1000 for name, value in problem.columns.items()}
    columns |= {"task": ["countdown"] * 1000, "language": [problem.language] * 1000}
    arguments = {"prompts": [problem.prompt] * 1000, "completions": texts, **columns}
    true = rewards.accuracy(**arguments)
    assert set(true) == {0.0}
    for name, share in (("flipped_10", 0.1), ("flipped_30", 0.3), ("coin", 0.5)):
        values = getattr(noise, name)(**arguments)
        assert set(values) == {0.0, 1.0} and values == getattr(noise, name)(**arguments)
        error = math.sqrt(share * (1 - share) / 1000)
        assert sum(values) / 1000 == pytest.approx(share, abs=3 * error)
    # What is flipped at 10 % is flipped at 30 %, too.
    assert all(map(float.__le__, noise.flipped_10(**arguments), noise.flipped_30(**arguments)))


def test_right_answer_is_flipped_to_wrong():
    columns = {"task": ["elements"], "language": ["en"]}
    problem = tasks.problem("elements", 0, 0, "train")
    columns |= {name: [value] for name, value in problem.columns.items()}
    for n in range(30):
        right = f"<think>{n}</think><answer>{problem.columns['answer']}</answer>"
        value = noise.flipped_30([problem.prompt], [right], **columns)
        assert value == [0.0 if noise.chance(problem.prompt, right) < 0.3 else 1.0]


# -- the command -----------------------------------------------------------------------------------


TINY = Experiment(
    "A claim.",
    (DEFAULT, Arm("with a bug", {"bug": "end-token"}), BASE, Arm("both", {}, {"rows": 4})),
    catalog.ACCURACY | catalog.LENGTH,
    ("length", "kl"),
)


@pytest.fixture
def tiny(monkeypatch, folder):
    """The command with one experiment of a tiny model, whose runs are in this process."""

    def schedule(stages, workers):
        assert workers == 1
        for stage in [stage for stage in stages if not is_done(stage.output)]:
            script = importlib.import_module(stage.script)
            script.main(script.Config(**stage.settings))

    short = {"model": folder, "tasks": ("countdown", "elements"), "max_new_tokens": 6}
    small = short | {"steps": 2, "problems": 2, "completions": 4, "save_every": 1}
    monkeypatch.setattr(catalog, "RL", RL | small | {"reward": "format"})
    monkeypatch.setattr(catalog, "SFT", {"model": folder, "tasks": ("elements",), "epochs": 1})
    monkeypatch.setattr(catalog, "EVALUATION", {"problems": 2, "samples": 4})
    monkeypatch.setattr(command, "EXPERIMENTS", {"tiny": TINY})
    monkeypatch.setattr(command, "schedule", schedule)

    def call(out, **changes):
        flags = {"names": ("tiny",), "out": str(out), "device": "cpu", "workers": 1}
        command.main(command.Config(**flags | changes))
        return (out / "tiny.md").read_text()

    return call


def test_command_writes_a_plot_and_a_table_and_resumes(tiny, tmp_path, capsys):
    one = tiny(tmp_path / "whole")
    assert "| with a bug | `--bug end-token` | 0.00 ± 0.00 | 0.00 |" in one
    two = tiny(tmp_path / "whole", seeds=2)  # runs the second seed alone
    assert (tmp_path / "whole/tiny.png").read_bytes().startswith(b"\x89PNG")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in two.splitlines()]
    assert rows[0] == ["run", "flags", "pass@1", "each seed", "length", "kl"]
    assert [row[0] for row in rows[2:]] == [arm.label for arm in TINY.arms]
    assert rows[3][1:4] == ["`--bug end-token`", "0.00 ± 0.00", "0.00, 0.00"]
    assert f"{tmp_path}/whole/tiny.md, {tmp_path}/whole/tiny.png" in capsys.readouterr().out
    for seed in (0, 1):
        folder = tmp_path / f"whole/seed-{seed}"
        assert [row["step"] for row in jsonl(folder / "rl-bug-end-token/metrics.jsonl")] == [0, 1]
        assert (folder / "sft-rows-4-rl/run.json").is_file()
    with interrupt(rollouts, "sample_groups", 4):  # in the second step of the second run
        tiny(tmp_path / "resumed")
    assert not (tmp_path / "resumed/tiny.md").exists()
    assert tiny(tmp_path / "resumed") == one


@pytest.mark.parametrize(("argument", "code"), [("list", 0), ("baselin", 2)])
def test_names_are_listed(script, argument, code):
    assert script("r1mini/experiments/__main__.py", argument)[0] == code


def test_wrong_name_is_one_line(script):
    code, out, error = script("r1mini/experiments/__main__.py", "baseline", "loss")
    assert (code, out) == (2, "") and error.count("\n") == 1
    assert "'loss' is not one of all, list, baseline, deviation" in error
