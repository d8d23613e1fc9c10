"""The reward model, and evaluation with it, on a pretended GPU: as on the CPU."""

import pytest
from conftest import jsonl
from pretend_gpu import pretend_gpu
from test_on_pretended_gpu import SMALL, same_figures

import sample as script_sample
from reward_model.conftest import toy_rows


def test_reward_model_is_that_of_the_cpu(train):
    expected = train("cpu", toy_rows(24), optimizer="adamw")
    with pretend_gpu():
        results = train("gpu", optimizer="adamw", device="cuda")
    same_figures(results, expected)


@pytest.mark.parametrize("reward", ["", "helpful={}"])
def test_evaluation_is_that_of_the_cpu(folder, tmp_path, reward, reward_folder):
    def run(name, **changes):
        return script_sample.main(
            script_sample.Config(
                eval=True, model=folder, tasks=("countdown", "describe"), problems=3, samples=2,
                max_new_tokens=5, out=str(tmp_path / name), reward=reward.format(reward_folder),
                **changes,
            )
        )  # fmt: skip

    expected = run("cpu.json", device="cpu")
    with pretend_gpu():
        results = run("gpu.json", device="cuda")
    for name in ("countdown", "describe"):
        same_figures(results[name], expected[name])


def test_grpo_run_in_bf16_with_muon_and_a_reward_model(tiny_grpo, tmp_path, reward_folder):
    changes = {"optimizer": "muon", "reward": f"accuracy,helpful={reward_folder}", "minibatches": 1}
    with pretend_gpu():
        tiny_grpo("gpu", device="cuda", bf16=True, **SMALL | changes)
    [row] = jsonl(tmp_path / "gpu" / "metrics.jsonl")
    assert row["grad_norm"] > 0
