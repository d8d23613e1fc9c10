from types import SimpleNamespace

import pytest

from r1mini import diagnose
from r1mini.records import Group, Problem, Rollout

PROBLEM = Problem("countdown", "", "en", "Make 14 from 2, 3, 4.\n", {"numbers": [2, 3, 4], "target": 14})
RIGHT, WRONG = "<think>wait 14 ok</think><answer>2+3*4</answer>", "<think>wait ok</think><answer>2*3+4</answer>"


def group(*texts, rewards=None, finished=True):
    rollouts = [Rollout((1,), (2,) * n, (-1.0,) * n, text, finished) for n, text in enumerate(texts, 1)]
    scores = [{"accuracy": float(text == RIGHT), "format": 1.0, "language": None} for text in texts]
    return Group(PROBLEM, rollouts, scores, tuple(rewards or [s["accuracy"] for s in scores]))


def test_metrics_of_a_step_by_hand():
    row = diagnose.sampling_metrics([group(RIGHT, WRONG), group("stop", "stop")], drawn=3)
    assert row["reward"] == 0.25 and row["reward_std"] == pytest.approx(0.5**0.5 / 2)
    assert row["frac_reward_zero_std"] == 0.5 and row["groups_drawn"] == 3
    assert (row["completions/min_length"], row["completions/mean_length"], row["completions/max_length"]) == (1, 1.5, 2)
    assert row["completions/unparsed_ratio"] == 0.5 and row["completions/wrong_ratio"] == 0.25
    assert row["rewards/accuracy/mean"] == 0.25 and "rewards/language/mean" not in row
    assert row["completions/reflection"] == pytest.approx((1 / 2 + 1 / 2) / 4)  # "wait" of "wait ok", twice


def test_cut_completions_count_as_cut_and_not_as_unparsed():
    row = diagnose.sampling_metrics([group("<think>", "<think>", finished=False)], 1)
    assert row["completions/clipped_ratio"] == 1 and row["completions/unparsed_ratio"] == 0


@pytest.mark.parametrize("thinking, language, share", [
    ("wait, check it", "en", 2 / 3), ("so wait", "en", 1 / 2), ("", "en", 0.0), ("检查 好", "zh", 0.5), ("错\n错\n对", "zh", 0.0),
])
def test_share_of_reflective_words(thinking, language, share):
    assert diagnose.reflection(thinking, language) == pytest.approx(share)


def test_first_look_gives_each_reward_its_reason():
    text = diagnose.first_look(group(WRONG, RIGHT), {"accuracy": 1.0, "format": 0.2, "language": 1.0})
    assert "Make 14 from 2, 3, 4." in text and WRONG in text
    assert "accuracy (weight 1): 0.00 (10 ≠ 14)" in text
    assert "language (weight 1): does not apply" in text
    assert "no <answer>" in diagnose.first_look(group("x", RIGHT), {"accuracy": 1.0})


HEALTHY = {"completions/clipped_ratio": 0.0, "completions/unparsed_ratio": 0.1, "frac_reward_zero_std": 0.2,
           "rewards/accuracy/mean": 0.5, "entropy": 0.4, "kl": 0.01, "sampling/sampling_logp_difference/max": 1e-6}
CONFIG = SimpleNamespace(max_new_tokens=256, bf16=False, learning_rate=1e-3)


def test_healthy_run_is_left_in_peace():
    assert not list(diagnose.causes([HEALTHY] * 10, CONFIG))


@pytest.mark.parametrize("change, flag", [
    ({"completions/clipped_ratio": 0.97}, "97% of completions were cut at 256 tokens.*--max-new-tokens"),
    ({"completions/unparsed_ratio": 0.95}, "<answer>.*cold-start"),
    ({"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.0}, "too hard"),
    ({"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.99}, "too easy.*--resample"),
    ({"frac_reward_zero_std": 0.9}, "--resample"),
    ({"entropy": 0.01}, "entropy fell from 0.40 to 0.01.*--learning-rate"),
    ({"kl": 5.0}, "KL.*--beta"),
    ({"sampling/sampling_logp_difference/max": 0.5}, "sampler and learner.*--correction"),
])
def test_each_trouble_is_named_once_with_its_flag(change, flag):
    import re
    found = list(diagnose.causes([HEALTHY] + [{**HEALTHY, **change}] * 4, CONFIG))
    assert len(found) == 1 and re.search(flag, found[0])


def test_one_bad_step_is_no_trend():
    assert not list(diagnose.causes([HEALTHY] * 5 + [{**HEALTHY, "frac_reward_zero_std": 1.0}], CONFIG))
