"""train_grpo.py with a reward model: from the first look to a resumed run."""

import json
import math
from statistics import fmean, pstdev, pvariance

import pytest
import torch
from conftest import interrupt, jsonl

import train_grpo
from r1mini import checkpoint
from r1mini.model.reward_model import RewardModel
from r1mini.reward_model.scoring import ModelReward
from r1mini.rl import metrics, setup
from r1mini.training import run_state

from .test_scores import alone


@pytest.fixture
def run(tmp_path, folder, reward_folder):
    """Four steps on a task with rules and on general prompts; the reward model is in the last two."""

    def call(name="out", **changes):
        train_grpo.main(config(tmp_path, folder, reward_folder, name, **changes))
        return tmp_path / name

    return call


def config(tmp_path, folder, reward_folder, name="out", **changes):
    return train_grpo.Config(
        **{
            "out": str(tmp_path / name),
            "model": folder,
            "tasks": ("countdown", "describe"),
            "reward": f"format:0.25,helpful={reward_folder}:0.5@0.5",
            "steps": 4,
            "problems": 4,
            "completions": 3,
            "max_new_tokens": 8,
            "learning_rate": 1e-2,
            "device": "cpu",
            "save_every": 1,
            "show": 0,
            **changes,
        }
    )


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_reward_counts_from_its_start_and_is_logged_from_the_first_step(
    run, reward_model, tokens, capsys
):
    out = run()
    rows = jsonl(out / "rollouts.jsonl")
    assert len(rows) == 4 * 4 * 3
    for row in rows:
        score, expected = row["rewards"]["helpful"], 0.25 * row["rewards"]["format"]
        assert (score is None) == (row["task"] == "countdown")
        if score is not None and row["step"] >= 2:
            expected += 0.5 * score
        assert row["reward"] == pytest.approx(expected, abs=2e-6)
    for step in range(4):
        has_advantage = any(row["advantage"] for row in rows if row["step"] == step)
        assert has_advantage == (step >= 2)
    row = next(row for row in rows if row["task"] == "describe")
    answer = row["completion"].strip()
    if "<" not in answer:  # no tag: the reader sees all of it
        ids = [*tokens.encode(row["prompt"] + answer), tokens.eos_id]
        assert row["rewards"]["helpful"] == pytest.approx(alone(reward_model, [ids]), abs=1e-4)
    means = [row["rewards/helpful/mean"] for row in jsonl(out / "metrics.jsonl")]
    for step, mean in enumerate(means):
        known = [row["rewards"]["helpful"] for row in rows if row["step"] == step]
        assert mean == pytest.approx(fmean(x for x in known if x is not None), abs=1e-5)
    assert weights(out) != weights(run("never", reward="format:0.25"))


def test_first_look_prints_the_spread(run, capsys):
    out = run(steps=2)
    [line] = [x for x in capsys.readouterr().out.split("\n") if x.startswith("--- helpful: ")]
    first = [row for row in jsonl(out / "rollouts.jsonl") if row["step"] == 0]
    groups = {}
    for row in first:
        if row["task"] == "describe":
            groups.setdefault(row["problem"], []).append(row["rewards"]["helpful"])
    every = sum(groups.values(), [])
    within = math.sqrt(fmean(map(pvariance, groups.values())))
    assert line == (
        f"--- helpful: {fmean(every):.2f} ± {pstdev(every):.2f} over the 6 completions of this "
        f"step that it applies to, ± {within:.2f} within a group; its weight is 0.5 "
        "from 50% of the run on"
    )


@pytest.mark.parametrize("step", [2, 4])  # before and after the reward model's start
def test_resumed_run_gives_the_same_bits(run, step):
    whole = run("whole")
    with interrupt(metrics.StepLog, "updated", step):
        run("cut")
    cut = whole.parent / "cut"
    assert run_state.latest_valid(cut).name == f"step-0000000{step - 1}"
    run("cut")
    assert weights(whole) == weights(cut)
    assert (whole / "rollouts.jsonl").read_bytes() == (cut / "rollouts.jsonl").read_bytes()


def test_another_reward_is_another_run(run, reward_folder):
    run()
    with pytest.raises(ValueError, match="holds another run .--reward was .*@0.5', now .*@0.25'"):
        run(reward=f"format:0.25,helpful={reward_folder}:0.5@0.25")


def test_score_thinking_is_passed_on(run, tmp_path, reward_folder):
    """The prompt opens the thinking, and no completion closes it: there is no answer to see."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "Say hello.\n<think>\n"}) + "\n")
    settings = {"data": str(path), "tasks": train_grpo.Config().tasks, "steps": 1, "problems": 1}
    settings["reward"] = f"helpful={reward_folder}"
    for name, names, different in (("answer", (), 1), ("whole", ("helpful",), 3)):
        rows = jsonl(run(name, score_thinking=names, **settings) / "rollouts.jsonl")
        assert len({row["completion"] for row in rows}) == 3
        assert len({row["rewards"]["helpful"] for row in rows}) == different


@pytest.mark.parametrize("bf16", [False, True])
def test_memory_estimate_contains_the_reward_models(tmp_path, folder, reward_folder, bf16):
    settings = {"reward": f"format,a={reward_folder},b={reward_folder}@0.5", "bf16": bf16}
    cfg = config(tmp_path, folder, reward_folder, **settings)
    policy, _ = checkpoint.load(folder)
    sizes = setup.memory_needed(cfg, torch.device("cpu"), policy.config)
    count = sum(p.numel() for p in policy.parameters()) + policy.config.hidden_size
    assert sizes["reward models"] == 2 * count * (2 if bf16 else 4)
    without = config(tmp_path, folder, reward_folder, reward="format")
    assert "reward models" not in setup.memory_needed(without, torch.device("cpu"), policy.config)


def test_row_without_an_answer_needs_a_reward_model(run, tmp_path, reward_folder, folder):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Say hello."}, {"prompt": "2+2?", "answer": "4"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"data": str(path), "tasks": train_grpo.Config().tasks, "steps": 2}
    with pytest.raises(ValueError, match=r"rows.jsonl:1: .*'?answer'?") as error:
        run(reward="format", **settings)
    assert "\n" not in str(error.value)
    out = run(reward=f"accuracy,helpful={reward_folder}", **settings)
    for row in jsonl(out / "rollouts.jsonl"):
        rewards = row["rewards"]
        is_general = "hello" in row["prompt"]
        assert (rewards["helpful"] is not None) == (rewards["accuracy"] is None) == is_general


def test_text_that_is_too_long_ends_the_run_with_one_line(script, tmp_path, folder, reward_folder):
    """The reward model's context is shorter than the policy's completions."""
    short = tmp_path / "short"
    model, tokenizer = checkpoint.load(reward_folder, kind=RewardModel)
    model.hf_config["max_position_embeddings"] = 12
    checkpoint.save(short, model, tokenizer)
    code, _, err = script(
        "train_grpo.py",
        *("--model", folder, "--tasks", "describe", "--reward", f"helpful={short}"),
        *("--out", tmp_path / "out", "--steps", 1, "--max-new-tokens", 16, "--device", "cpu"),
        *("--problems", 2, "--completions", 2, "--no-progress"),
    )
    [line] = err.strip().split("\n")
    assert code == 2 and f"--reward helpful={short}: " in line
    assert "tokens do not fit the model's context of 12; prompt " in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "helpful={rm}@0.5"}, "no reward counts from the start of the run"),
        ({"score_thinking": ("other",)}, "--score-thinking other: no reward model of --reward"),
        ({"score_thinking": ("format",)}, "--score-thinking format: no reward model"),
        ({"reward": "format,helpful=absent"}, "--reward helpful=absent: no such folder"),
        ({"reward": "format,helpful={lm}"}, "LlamaForCausalLM is not a reward model"),
        ({"reward": "helpful={rm}"}, "none of these rewards applies to .* task 'countdown'"),
    ],
)
def test_bad_flag_is_one_line(run, reward_folder, folder, changes, message):
    if "reward" in changes:
        changes = {"reward": changes["reward"].format(rm=reward_folder, lm=folder)}
    with pytest.raises(ValueError, match=message) as error:
        run(**changes)
    assert "\n" not in str(error.value)


def test_start_is_a_share_of_the_completions_with_a_budget(tmp_path, folder, reward_folder):
    """A budget of 24 completions is 2 steps of 12: the reward model counts from the second on."""
    cfg = config(tmp_path, folder, reward_folder, sample_budget=24)
    train_grpo.main(cfg)
    rows = [row for row in jsonl(tmp_path / "out/rollouts.jsonl") if row["task"] == "describe"]
    for row in rows:
        counts = row["step"] >= 1
        expected = 0.25 * row["rewards"]["format"] + 0.5 * row["rewards"]["helpful"] * counts
        assert row["reward"] == pytest.approx(expected, abs=2e-6)
    assert {row["step"] for row in rows} == {0, 1}


def test_reward_model_reads_the_micro_batch_size_that_was_found(run, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        ModelReward, "load", lambda reward, device, bf16, tokens: sizes.append(tokens)
    )
    monkeypatch.setattr(ModelReward, "score", lambda reward, rows: dict.fromkeys(rows, 0.0))
    run(learner_tokens=0, steps=1)
    assert sizes[0] >= 1
