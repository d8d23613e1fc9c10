"""A tiny random reward model, pairs with a toy preference, and a way to train on them."""

import copy
import json
from random import Random

import pytest

from r1mini import checkpoint
from r1mini.reward_model import training


@pytest.fixture(scope="session")
def reward_model(model):
    """Read-only, with the decoder of `model`."""
    return training.convert(copy.deepcopy(model), seed=3).requires_grad_(False)


@pytest.fixture(scope="session")
def reward_folder(reward_model, tokens, tmp_path_factory):
    path = tmp_path_factory.mktemp("reward-model")
    checkpoint.save(path, reward_model, tokens)
    return str(path)


def toy_rows(count=60, per_prompt=2, seed=0, shuffled=False):
    """Pairs in which the reply with "gold" is preferred to the one with "lead"."""
    rng = Random(seed)
    rows = []
    for number in range(count):
        prompt = f"Pick a metal, {number // per_prompt}.\n"
        sides = [
            f"{rng.randint(10, 99)} {metal} {rng.randint(10, 99)}" for metal in ("gold", "lead")
        ]
        if shuffled and rng.random() < 0.5:
            sides.reverse()
        rows.append({"prompt": prompt, "chosen": sides[0], "rejected": sides[1]})
    return rows


@pytest.fixture
def train(tmp_path, folder):
    """Shorthand for training: `train("name", rows, epochs=3)`; without rows, on those before."""

    def call(name, content=(), **changes):
        path = tmp_path / "pairs.jsonl"
        if content:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return training.main(
            training.Config(
                **{
                    "out": str(tmp_path / name),
                    "model": folder,
                    "data": str(path),
                    "device": "cpu",
                    "batch_pairs": 8,
                    "held_out": 0.3,
                    **changes,
                }
            )
        )

    return call
