import math
import re
from dataclasses import replace

import pytest
import torch

import train_grpo
from r1mini import diagnose, score
from r1mini.records import Group, Problem, Rollout

PROBLEM = Problem("countdown", "", "en", "Make 14 from 2, 3, 4.\n", {"numbers": [2, 3, 4], "target": 14})
RIGHT, WRONG = "<think>wait 14 ok</think><answer>2+3*4</answer>", "<think>wait ok</think><answer>2*3+4</answer>"


def rollout(text):
    return Rollout((1,), (2,), (-1.0,), text, True)


def group(*texts, rewards=None, finished=True):
    rollouts = [Rollout((1,), (2,) * n, (-1.0,) * n, text, finished) for n, text in enumerate(texts, 1)]
    scores = [{"accuracy": float(text == RIGHT), "format": 1.0, "language": None} for text in texts]
    return Group(PROBLEM, rollouts, scores, tuple(rewards or [s["accuracy"] for s in scores]))


def test_metrics_of_a_step_by_hand():
    row = diagnose.sampling_metrics([group(RIGHT, WRONG), group("stop", "stop")])
    assert row["reward"] == 0.25 and row["reward_std"] == pytest.approx(0.5**0.5 / 2)
    assert row["frac_reward_zero_std"] == 0.5 and row["groups_drawn"] == 2 and row["entropy"] == 1.0
    assert (row["completions/min_length"], row["completions/mean_length"], row["completions/max_length"]) == (1, 1.5, 2)
    assert row["completions/unparsed_ratio"] == 0.5 and row["completions/wrong_ratio"] == 0.25
    assert row["rewards/accuracy/mean"] == 0.25 and "rewards/language/mean" not in row
    assert row["completions/reflection"] == pytest.approx((1 / 2 + 1 / 2) / 4)  # "wait" of "wait ok", twice


def test_cut_completions_count_as_cut_and_not_as_unparsed():
    row = diagnose.sampling_metrics([group("<think>", "<think>", finished=False)])
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
    mixed = group("<think>wait 好 好</think><answer>2*3+4</answer>", RIGHT)
    mixed.scores[0].update(language=1 / 3, overlong=-0.5)
    text = diagnose.first_look(mixed, {"accuracy": 1.0, "language": 1.0, "overlong": 1.0})
    assert "language (weight 1): 0.33 (2 of 3 words are not en)" in text and "overlong (weight 1): -0.50" in text
    assert "no <answer>" in diagnose.first_look(group("x", RIGHT), {"accuracy": 1.0})


def test_first_look_at_problems_of_a_data_file():
    texts = (rollout("<answer>1</answer>"), rollout("no"))
    for columns, expected in (({"answer": "2"}, "accuracy (weight 1): 0.00 ('1' is not '2')"),
                              ({"tests": [{"stdin": "", "stdout": "1"}]}, "accuracy (weight 1): does not apply")):
        problem = Problem("data", "", "", "p", columns)
        look = Group(problem, texts, score.score(problem, texts), (0.0, 0.0))
        assert expected in diagnose.first_look(look, {"accuracy": 1.0})
        row = diagnose.sampling_metrics([look])
        assert row["completions/unparsed_ratio"] == 0.5 and row["completions/wrong_ratio"] == 0.5 * ("answer" in columns)


HEALTHY = {"completions/clipped_ratio": 0.0, "completions/unparsed_ratio": 0.1, "frac_reward_zero_std": 0.2,
           "rewards/accuracy/mean": 0.5, "rewards/format/mean": 0.9, "entropy": 0.4, "kl": 0.01, "loss": 0.1,
           "sampling/sampling_logp_difference/max": 1e-6}
CONFIG = train_grpo.Config(max_new_tokens=256)


def causes(rows, weighting={"accuracy": 1.0, "format": 0.5}, **changes):
    return list(diagnose.causes(rows, replace(CONFIG, **changes), weighting, 1024))


def test_healthy_run_is_left_in_peace():
    assert not causes([HEALTHY] * 10)
    assert not causes([HEALTHY] * 10, bf16=True)


@pytest.mark.parametrize("change, flag", [
    ({"completions/clipped_ratio": 0.97}, "97% of completions were cut at 256 tokens.*--max-new-tokens"),
    ({"completions/unparsed_ratio": 0.95}, "<answer>.*cold-start"),
    ({"rewards/format/mean": 0.01}, "format is kept in 1%.*cold-start"),
    ({"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.0}, "too hard.*--resample"),
    ({"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.99}, "too easy.*--resample"),
    ({"frac_reward_zero_std": 0.9}, "little is learned.*--completions.*--resample"),
    ({"entropy": 0.01}, "entropy fell from 0.40 to 0.01.*--learning-rate"),
    ({"kl": 5.0}, "KL.*--beta"),
    ({"approx_kl": 0.3}, "one step move the policy by 0.30 nats.*--learning-rate"),
    ({"loss": math.nan}, "not a number.*--learning-rate"),
    ({"sampling/sampling_logp_difference/max": 0.5}, "sampler and learner.*: try --correction token-truncate"),
    ({"weights/moved_in_bf16": 2e-4}, "0.02% of the weights.*--learning-rate.*--no-bf16"),
])
def test_each_trouble_is_named_once_with_its_flag(change, flag):
    found = causes([HEALTHY] + [{**HEALTHY, **change}] * 4)
    assert len(found) == 1 and re.search(flag, found[0])


@pytest.mark.parametrize("change, options, sentence", [
    ({"completions/clipped_ratio": 0.97}, {"max_new_tokens": 4096}, "context of 1024 tokens.*--overlong-cache"),
    ({"sampling/sampling_logp_difference/max": 2.0}, {"bf16": True}, "try --no-bf16 or --correction token-truncate"),
    ({"sampling/sampling_logp_difference/max": 0.5}, {"correction": "token-mask"}, "are the same$"),
    ({}, {"learning_rate": 0.0}, "raise --learning-rate"),
    ({"weights/moved_in_bf16": 0.0}, {"learning_rate": 0.0}, "raise --learning-rate"),
    ({"frac_reward_zero_std": 0.9}, {"resample": 3}, "raise --completions$"),
    ({"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.99}, {"weighting": {"format": 1.0}}, "little is learned"),
])
def test_no_flag_is_advised_that_is_set_already_or_would_do_nothing(change, options, sentence):
    found = causes([HEALTHY] + [{**HEALTHY, **change}] * 4, **options)
    assert len(found) == 1 and re.search(sentence, found[0])


def test_a_step_ahead_the_first_step_alone_tells_of_sampler_and_learner():
    stale = {**HEALTHY, "sampling/sampling_logp_difference/max": 0.5}
    ahead = {"ahead": True, "correction": "token-truncate"}
    assert not causes([HEALTHY] + [stale] * 4, **ahead)
    [found] = causes([stale] * 5, **ahead)
    assert found.endswith("are the same")


def test_groups_without_a_baseline_are_never_flat():
    assert not causes([{**HEALTHY, "frac_reward_zero_std": 0.9}] * 5, baseline="none", scale="none")


def test_one_bad_step_is_no_trend():
    for change in ({"frac_reward_zero_std": 1.0}, {"completions/clipped_ratio": 0.9}, {"rewards/format/mean": 0.0}):
        assert not causes([HEALTHY] * 5 + [{**HEALTHY, **change}])


def test_an_update_below_the_rounding_of_bf16_moves_nothing():
    # Next to 1.0 bf16 has steps of 2^-7 (above) and 2^-8 (below): 2^-10 is lost, 2^-7 is not.
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    before = diagnose.rounded(model)
    with torch.no_grad():
        model.weight += torch.tensor([2.0**-10, 2.0**-7, -(2.0**-8), 0.0])
    assert diagnose.moved(before, diagnose.rounded(model)) == 0.5
