import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import score

from r1mini.records import Group, Problem, Rollout
from r1mini.rewards.runner import parse_spec
from r1mini.rl import diagnosis, metrics
from r1mini.rl.config import GRPOConfig

PROBLEM = Problem(
    "countdown", "", "en", "Make 14 from 2, 3, 4.\n", {"numbers": [2, 3, 4], "target": 14}
)
RIGHT, WRONG = (
    "<think>wait 14 ok</think><answer>2+3*4</answer>",
    "<think>wait ok</think><answer>2*3+4</answer>",
)


def rollout(text):
    return Rollout((1,), (2,), (-1.0,), text, True)


def group(*texts, rewards=None, finished=True):
    rollouts = [
        Rollout((1,), (2,) * n, (-1.0,) * n, text, finished) for n, text in enumerate(texts, 1)
    ]
    scores = [{"accuracy": float(text == RIGHT), "format": 1.0, "language": None} for text in texts]
    return Group(PROBLEM, rollouts, scores, tuple(rewards or [s["accuracy"] for s in scores]))


def test_metrics_of_a_step_by_hand():
    row = metrics.sampling_metrics([group(RIGHT, WRONG), group("stop", "stop")])
    assert row["reward"] == 0.25 and row["reward_std"] == pytest.approx(0.5**0.5 / 2)
    assert row["frac_reward_zero_std"] == 0.5 and row["groups_drawn"] == 2 and row["entropy"] == 1.0
    assert (
        row["completions/min_length"],
        row["completions/mean_length"],
        row["completions/max_length"],
    ) == (1, 1.5, 2)
    assert row["completions/unparsed_ratio"] == 0.5 and row["completions/wrong_ratio"] == 0.25
    assert row["rewards/accuracy/mean"] == 0.25 and "rewards/language/mean" not in row
    assert row["completions/reflection"] == pytest.approx(
        (1 / 2 + 1 / 2) / 4
    )  # "wait" of "wait ok", twice


def test_truncated_completions_do_not_count_as_unparsed():
    row = metrics.sampling_metrics([group("<think>", "<think>", finished=False)])
    assert row["completions/clipped_ratio"] == 1 and row["completions/unparsed_ratio"] == 0


@pytest.mark.parametrize(
    "thinking, language, share",
    [
        ("wait, check it", "en", 2 / 3),
        ("so wait", "en", 1 / 2),
        ("", "en", 0.0),
        ("检查 好", "zh", 0.5),
        ("错\n错\n对", "zh", 0.0),
    ],
)
def test_fraction_of_reflective_words(thinking, language, share):
    assert metrics.reflection(thinking, language) == pytest.approx(share)


def test_first_look_explains_each_reward():
    text = diagnosis.first_look(
        group(WRONG, RIGHT), {"accuracy": 1.0, "format": 0.2, "language": 1.0}
    )
    assert "Make 14 from 2, 3, 4." in text and WRONG in text
    assert "accuracy (weight 1): 0.00 (10 ≠ 14)" in text
    assert "language (weight 1): does not apply" in text
    mixed = group("<think>wait 好 好</think><answer>2*3+4</answer>", RIGHT)
    mixed.scores[0].update(language=1 / 3, overlong=-0.5)
    text = diagnosis.first_look(mixed, {"accuracy": 1.0, "language": 1.0, "overlong": 1.0})
    assert (
        "language (weight 1): 0.33 (2 of 3 words are not in 'en')" in text
        and "overlong (weight 1): -0.50" in text
    )
    assert "no <answer>" in diagnosis.first_look(group("x", RIGHT), {"accuracy": 1.0})


def test_first_look_at_a_problem_of_a_data_file():
    texts = (rollout("<answer>1</answer>"), rollout("no"))
    for columns, expected in (
        ({"answer": "2"}, "accuracy (weight 1): 0.00 ('1' is not '2')"),
        ({"tests": [{"stdin": "", "stdout": "1"}]}, "accuracy (weight 1): does not apply"),
    ):
        problem = Problem("data", "", "", "p", columns)
        look = Group(problem, texts, score(problem, texts), (0.0, 0.0))
        assert expected in diagnosis.first_look(look, {"accuracy": 1.0})
        row = metrics.sampling_metrics([look])
        assert row["completions/unparsed_ratio"] == 0.5 and row[
            "completions/wrong_ratio"
        ] == 0.5 * ("answer" in columns)


@pytest.mark.parametrize(
    "task, prompt, columns, place",
    [
        (
            "rows.jsonl",
            "2+3?",
            {"answer": "5"},
            r"<answer>…</answer>, or else the last \boxed{…} or",
        ),
        (
            "rows.jsonl",
            "End with a line Answer: $Answer.",
            {"answer": "5"},
            r"<answer>…</answer>, or else the last \boxed{…} or line 'Answer: …' or '#### 5'"
            + "\n",
        ),
        ("rows.jsonl", "Print 5.", {"tests": []}, "the last block of Python after the thinking"),
        ("countdown", "Answer:", {}, "<answer>…</answer>\n"),
    ],
)
def test_first_look_says_where_the_answer_was_looked_for(task, prompt, columns, place):
    look = Group(Problem(task, "", "", prompt, columns), (rollout("x"),), ({},), (0.0,))
    assert f"--- the answer is looked for in {place}" in diagnosis.first_look(look, {})


GENERAL = (
    ("rows.jsonl", "Say hello.", {}),
    ("rows.jsonl", "Say hello.", {"answer": ""}),
    ("describe", "Describe iron.\n", {"symbol": "Fe", "known": ""}),
)


@pytest.mark.parametrize("task, prompt, columns", GENERAL)
def test_first_look_at_a_general_prompt_names_no_place(task, prompt, columns):
    problem = Problem(task, "", "en", prompt, columns)
    assert diagnosis.answer_place(problem) == "a general prompt: no rule says what is right"


def test_spread_of_scores_by_hand():
    """Two groups apply: 1, 3 and 5, 7; the mean is 4, the variance 5, and within a group 1."""

    def scored(*values):
        scores = [{"format": 1.0, "overlong": 0.0, "helpful": value} for value in values]
        texts = tuple(rollout("x") for _ in values)
        return Group(Problem("p", "", "", ""), texts, scores, (0.0,) * len(values))

    groups = [scored(1.0, 3.0), scored(None, None), scored(5.0, 7.0)]
    terms = parse_spec("format:0.5,helpful=runs/rm:2")
    assert list(diagnosis.score_spreads(groups, terms)) == [
        "--- helpful: 4.00 ± 2.24 over the 4 completions of this step that it applies to, ± 1.00 "
        "within a group; its weight is 2"
    ]
    assert not list(diagnosis.score_spreads([scored(None)], terms))
    assert not list(diagnosis.score_spreads(groups, parse_spec("format")))
    [line] = diagnosis.score_spreads([scored(2.5, None)], parse_spec("mine.py:helpful:0.1@0.75"))
    assert line.startswith("--- helpful: 2.50 ± 0.00 over the 1 completions")
    assert line.endswith("its weight is 0.1 from 75% of the run on")


HEALTHY = {
    "completions/clipped_ratio": 0.0,
    "completions/unparsed_ratio": 0.1,
    "frac_reward_zero_std": 0.2,
    "rewards/accuracy/mean": 0.5,
    "rewards/format/mean": 0.9,
    "entropy": 0.4,
    "kl": 0.01,
    "loss": 0.1,
    "sampling/sampling_logp_difference/max": 1e-6,
}
CONFIG = GRPOConfig(max_new_tokens=256)


def advice(rows, weighting={"accuracy": 1.0, "format": 0.5}, **changes):
    return list(diagnosis.diagnose(rows, replace(CONFIG, **changes), weighting, 1024))


def test_healthy_run_gets_no_advice():
    assert not advice([HEALTHY] * 10)
    assert not advice([HEALTHY] * 10, bf16=True)


@pytest.mark.parametrize(
    "change, flag",
    [
        (
            {"completions/clipped_ratio": 0.97},
            "97% of completions were truncated at 256 tokens.*--max-new-tokens",
        ),
        ({"completions/unparsed_ratio": 0.95}, "<answer>.*cold-start"),
        ({"rewards/format/mean": 0.01}, "only 1% of completions follow the format.*cold-start"),
        ({"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.0}, "too hard.*--resample"),
        ({"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.99}, "too easy.*--resample"),
        ({"frac_reward_zero_std": 0.9}, "little is learned.*--completions.*--resample"),
        (
            {"rewards/accuracy/mean": 0.08, "rewards/accuracy/std": 0.2, "rewards/format/std": 0.9},
            "8% of answers are right, so format decides .* weight of 0.5 in --reward, or choose",
        ),
        ({"entropy": 0.01}, "entropy fell from 0.40 to 0.01.*--learning-rate"),
        (  # as measured with a rate that was six times too high
            {
                "entropy": 3.58,
                "rewards/accuracy/mean": 0.0,
                "completions/clipped_ratio": 0.97,
                "frac_reward_zero_std": 1.0,
                "kl": 5.0,
            },
            "^entropy rose from 0.40 to 3.58, and accuracy fell from 0.50 to 0.00: .* lower "
            "--learning-rate$",
        ),
        ({"kl": 5.0}, "KL.*--beta"),
        ({"approx_kl": 0.3}, "one step move the policy by 0.30 nats.*--learning-rate"),
        (
            {"weights/moved_in_bf16": 2e-4},
            "changes 0.02% of the weights in bf16.*--learning-rate.*--no-bf16",
        ),
    ],
)
def test_each_problem_is_reported_once_with_the_flag_to_change(change, flag):
    sentences = advice([HEALTHY] + [{**HEALTHY, **change}] * 4)
    assert len(sentences) == 1 and re.search(flag, sentences[0])


@pytest.mark.parametrize(
    "change, options, sentence",
    [
        (
            {"completions/clipped_ratio": 0.97},
            {"max_new_tokens": 4096},
            "context of 1024 tokens.*--overlong-cache",
        ),
        ({}, {"learning_rate": 0.0}, "raise --learning-rate"),
        ({"weights/moved_in_bf16": 0.0}, {"learning_rate": 0.0}, "raise --learning-rate"),
        ({"kl": 5.0}, {"lora_rank": 8, "lora_learning_rate": 1e-3}, "lower --lora-learning-rate"),
        ({"frac_reward_zero_std": 0.9}, {"resample": 3}, "raise --completions$"),
        (
            {"frac_reward_zero_std": 0.9, "rewards/accuracy/mean": 0.99},
            {"weighting": {"format": 1.0}},
            "little is learned",
        ),
    ],
)
def test_advice_omits_flags_that_are_set_or_have_no_effect(change, options, sentence):
    sentences = advice([HEALTHY] + [{**HEALTHY, **change}] * 4, **options)
    assert len(sentences) == 1 and re.search(sentence, sentences[0])


GAPS = [f"sampling/sampling_logp_difference/{name}" for name in ("max", "mean")]


@pytest.mark.parametrize(
    "largest, mean, options, sentence",
    [
        (7e-4, 8e-7, {}, None),
        (0.1, 3e-4, {"bf16": True}, None),
        (0.7, 0.05, {"bf16": True}, None),  # as large as measured
        (0.5, 1e-4, {}, "up to 0.5 nats per token.*: try --correction token-truncate$"),
        (2.0, 0.05, {"bf16": True}, "try --no-bf16 or --correction token-truncate$"),
        (
            0.5,
            0.3,
            {"correction": "token-mask"},
            "0.3 on average, although their weights are the same$",
        ),
    ],
)
def test_gap_between_sampler_and_learner_is_reported_at_once(largest, mean, options, sentence):
    message = diagnosis.check_sampler_gap(
        {"step": 3, **dict(zip(GAPS, (largest, mean)))}, replace(CONFIG, **options)
    )
    assert message is None if sentence is None else re.search(sentence, message)
    assert diagnosis.check_sampler_gap({"step": 3}, CONFIG) is None  # nothing was learned


@pytest.mark.parametrize(
    "mean, options", [(0.011, {}), (0.11, {"bf16": True}), (math.nan, {}), (math.inf, {})]
)
def test_large_mean_gap_between_sampler_and_learner_ends_the_run(mean, options):
    with pytest.raises(
        ValueError,
        match="step 3: sampler and learner differ by up to 0.5 nats .* --correction token-truncate",
    ):
        diagnosis.check_sampler_gap(
            {"step": 3, **dict(zip(GAPS, (0.5, mean)))}, replace(CONFIG, **options)
        )


@pytest.mark.parametrize(
    ("entropy", "accuracy", "reward", "weighting", "found"),
    [
        (1.3, 0.3, 1.0, {"accuracy": 1.0}, "accuracy fell from 0.50 to 0.30"),
        (1.3, 0.4, 0.0, {"accuracy": 1.0}, None),  # 0.4 is more than three quarters of 0.5
        (1.1, 0.0, 0.0, {"accuracy": 1.0}, None),  # 1.1 is less than three times 0.4
        (1.3, 0.5, 0.7, {"mine": 1.0}, "reward fell from 1.00 to 0.70"),
        (1.3, 0.0, 0.8, {"mine": 1.0}, None),
        (1.3, 0.0, -0.1, {"mine": 1.0}, "reward fell from 1.00 to -0.10"),
    ],
)
def test_collapse_needs_more_entropy_and_less_reward(entropy, accuracy, reward, weighting, found):
    row = {**HEALTHY, "reward": 1.0}
    bad = {"entropy": entropy, "rewards/accuracy/mean": accuracy, "reward": reward}
    sentences = advice([row, row] + [row | bad] * 3, weighting=weighting)
    assert not found or re.search(found, sentences[0])
    assert any("too large" in sentence for sentence in sentences) == bool(found)


def test_negative_rewards_that_rise_are_no_collapse():
    rows = [{**HEALTHY, "reward": x, "entropy": 1.3} for x in (-3.0, -2.5, -2.2, -2.0)]
    rows[0]["entropy"] = 0.4
    assert not advice(rows, weighting={"mine": 1.0})
    rows += [{**HEALTHY, "reward": -2.6, "entropy": 1.3}] * 3
    assert "reward fell from -2.00 to -2.60" in advice(rows, weighting={"mine": 1.0})[0]


def test_equal_rewards_are_no_problem_without_a_baseline():
    assert not advice([{**HEALTHY, "frac_reward_zero_std": 0.9}] * 5, baseline="none", scale="none")


@pytest.mark.parametrize(
    ("accuracy", "spread", "language", "weighting"),
    [
        (0.3, 0.45, 0.5, {"accuracy": 1.0, "language": 2.0}),  # right answers are not rare
        (0.05, 0.22, 0.21, {"accuracy": 1.0, "language": 2.0}),  # 0.42 is less than twice 0.22
        (0.05, 0.22, 0.5, {"accuracy": 1.0}),  # language is logged, and does not count
        (0.05, 0.22, 0.5, {"accuracy": 0.0, "language": 2.0}),  # accuracy does not count
    ],
)
def test_weights_are_left_alone(accuracy, spread, language, weighting):
    row = {**HEALTHY, "rewards/accuracy/mean": accuracy, "rewards/accuracy/std": spread}
    assert not advice([row | {"rewards/language/std": language}] * 5, weighting=weighting)


@pytest.mark.parametrize(
    ("accuracy", "completions", "scale", "spread", "found"),
    [
        # (1 - .05)^8 = .66 of the groups have no right answer, (1 - .05)^16 = .44
        (0.05, 8, "group", 0.3, "format decides the advantages .* first: set --scale batch, which"),
        (0.05, 8, "group", 3.0, "lower its weight of 0.5 in --reward and set --scale batch"),
        (0.05, 16, "group", 0.3, None),
        (0.05, 8, "batch", 0.3, None),
        (0.05, 8, "batch", 3.0, "lower its weight of 0.5 in --reward, or choose"),
        (0.05, 8, "group", 0.0, None),
        (0.3, 8, "group", 3.0, None),
    ],
)
def test_small_weight_that_the_group_scales_up(accuracy, completions, scale, spread, found):
    row = {**HEALTHY, "rewards/accuracy/mean": accuracy, "rewards/accuracy/std": 0.22}
    row["rewards/format/std"] = spread
    sentences = advice([row] * 4, completions=completions, scale=scale)
    assert len(sentences) == bool(found)
    assert not found or re.search(found, sentences[0])


def test_single_bad_step_is_not_reported():
    for change in (
        {"frac_reward_zero_std": 1.0},
        {"completions/clipped_ratio": 0.9},
        {"rewards/format/mean": 0.0},
    ):
        assert not advice([HEALTHY] * 5 + [{**HEALTHY, **change}])


def test_update_below_bf16_rounding_changes_no_weight():
    # Next to 1.0 bf16 has steps of 2^-7 (above) and 2^-8 (below): 2^-10 is lost, 2^-7 is not.
    model = torch.nn.Linear(4, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    before = metrics.bf16_weights(model)
    with torch.no_grad():
        model.weight += torch.tensor([2.0**-10, 2.0**-7, -(2.0**-8), 0.0])
    assert metrics.changed_fraction(before, metrics.bf16_weights(model)) == 0.5
