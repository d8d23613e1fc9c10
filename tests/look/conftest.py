"""A run as train_grpo.py writes it, made of chosen texts."""

import json

import pytest

from r1mini.rl.config import GRPOConfig

G = 4
METRICS = {"num_tokens": 100, "entropy": 0.5, "frac_reward_zero_std": 0.0, "groups_drawn": 2}
METRICS |= {"reward": 0.5, "completions/mean_length": 9.0}
METRICS |= {"completions/clipped_ratio": 0.25, "completions/unparsed_ratio": 0.0, "reward": 0.5}


def rollout(step, problem, sample, text="<think>a</think>", **changes):
    right = float(sample % 2)
    row = {"step": step, "problem": problem, "sample": sample, "task": "countdown"}
    row |= {"prompt": f"Make 24, problem {problem} of step {step}.\n", "completion": text}
    row |= {"tokens": 5, "finished": True, "reward": right}
    row |= {"rewards": {"accuracy": right, "format": 1.0, "language": None}}
    row |= {"advantage": 0.865875 if right else -0.865875}
    return row | changes


def token_row(step, problem, sample, pieces, **changes):
    """A line of tokens.jsonl: probabilities of 1/2, which double, halve and stay in turn."""
    count = len(pieces)
    new = [-0.6931 + (0.6931, -0.6931, 0.0)[t % 3] for t in range(count)]
    row = {"step": step, "problem": problem, "sample": sample, "ids": [7] * count}
    row |= {"pieces": pieces, "logprobs": [-0.6931] * count, "new_logprobs": new}
    return row | {"entropies": [0.5] * count} | changes


def write_run(folder, rollouts, steps=2, finished=True, tokens=(), **config):
    config = {"steps": steps, "problems": 2, "completions": G, **config}
    config = {"reward": "accuracy", "baseline": "group", "scale": "group", **config}
    folder.mkdir(parents=True, exist_ok=True)
    record = {"config": vars(GRPOConfig()) | config, "finished": finished}
    (folder / "run.json").write_text(json.dumps(record))
    metrics = [{"step": step, **METRICS} for step in range(steps)]
    for name, rows in {"metrics": metrics, "rollouts": rollouts, "tokens": tokens}.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def small_run(tmp_path):
    """A run of two steps, each with two groups of four completions."""
    rows = [rollout(step, n, g) for step in range(2) for n in range(2) for g in range(G)]
    return write_run(tmp_path / "small", rows)
