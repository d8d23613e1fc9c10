"""Tokens, weights, reasons and self-corrections, as the page gets them."""

import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import jsonl

from r1mini import tasks
from r1mini.look.data import read_run
from r1mini.look.page import page_html, read_all, within_size
from r1mini.look.reasons import corrects_itself, part_reasons, problem_of_group
from r1mini.look.sources import find_folders
from r1mini.look.tokens import clip_range, ratio_unit, weight_divisors
from r1mini.records import Problem, Rollout
from r1mini.rewards import rules
from r1mini.rl import diagnosis, grpo
from r1mini.rl.config import GRPOConfig
from r1mini.rl.samples import Sample, loss_inputs, minibatches

from .conftest import rollout, token_row, write_run


def test_tokens_of_a_real_run(tiny_grpo, tmp_path):
    tiny_grpo(log_tokens=2)
    run = read_run("out", tmp_path / "out")
    groups = [group for group in run["groups"] if "perToken" in group]
    assert run["tokenGroupsTotal"] == len(groups) == 4 < len(run["groups"])
    for group in groups:
        for text, tokens in zip(group["texts"], group["perToken"]):
            assert "".join(tokens["pieces"]) == text
    rows = jsonl(tmp_path / "out/tokens.jsonl")
    first = groups[0]["perToken"][0]
    change = rows[0]["new_logprobs"][0] - rows[0]["logprobs"][0]
    assert first["changes"][0] == pytest.approx(change, abs=1e-4)
    assert first["logps"] == pytest.approx(rows[0]["logprobs"], abs=6e-4)


def test_runs_without_the_log_and_half_written_groups_have_no_tokens(small_run):
    lines = [token_row(0, 1, g, ["a"]) for g in range(3)]  # of four completions
    (small_run / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines) + "{")
    assert read_run("small", small_run)["tokenGroupsTotal"] == 0
    (small_run / "tokens.jsonl").unlink()
    assert read_run("small", small_run)["tokenGroupsTotal"] == 0


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("step", "0", "step '0' is not a whole number"),
        ("pieces", ["a", 1], "pieces has a value that is not text"),
        ("entropies", [0.1], r"entropies \[0.1\] is not a list of one value a token"),
        ("logprobs", [0.1, math.inf], "is not a finite number"),
    ],
)
def test_damaged_tokens_are_errors(small_run, name, value, message):
    row = token_row(0, 0, 0, ["a", "b"]) | {name: value}
    (small_run / "tokens.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"tokens.jsonl:1: .*{message}"):
        read_run("small", small_run)


def test_groups_with_tokens_are_kept_first_and_within_the_size(tmp_path):
    rows = [
        rollout(step, n, g, "word " * 400) for step in range(10) for n in range(8) for g in range(4)
    ]
    tokens = [token_row(step, step % 8, g, ["word "] * 60) for step in range(10) for g in range(4)]
    folder = write_run(tmp_path / "run", rows, steps=10, problems=8, tokens=tokens)
    data = read_all(find_folders([str(folder)]))
    for size, expected in ((200_000, 9), (400_000, 10)):
        chosen = within_size(data, size)
        assert size - 40_000 < len(page_html(chosen).encode()) <= size
        kept = [group for group in chosen["runs"][0]["groups"] if "perToken" in group]
        assert len({group["step"] for group in kept}) == len(kept) <= 10
        assert len(kept) >= expected - 5 * (size == 200_000)
    assert within_size(data, 10_000_000) == data


# -- weights, ratios, clips -----------------------------------------------------------------------


@pytest.mark.parametrize("loss_per", ["token", "sequence", "constant"])
@pytest.mark.parametrize("changes", [{}, {"minibatch_of": "problems", "overlong": "mask"}], ids=str)
def test_weights_equal_those_of_the_learner(model, loss_per, changes):
    cfg = GRPOConfig(
        problems=2, completions=3, minibatches=2, max_new_tokens=9, loss_per=loss_per, **changes
    )
    lengths = [4, 1, 7, 9, 2, 3]
    rows = [{"tokens": length, "finished": length < 9} for length in lengths]
    divisors = weight_divisors(cfg, 5, rows, model.config.max_position_embeddings)
    samples = [
        Sample(Rollout((1, 2), (3,) * n, (0.0,) * n, "", n < 9), 1.0, [0.0] * n, [0.0] * n)
        for n in lengths
    ]
    for chosen in minibatches(cfg, 2, "0 5"):
        kept_B = torch.tensor([cfg.overlong == "keep" or lengths[i] < 9 for i in chosen])
        parts = [samples[i] for i in chosen]
        inputs = loss_inputs(cfg, model, parts, kept_B, [list(range(len(chosen)))])
        weight_BT = inputs.weight_BT * inputs.mask_BT
        for b, i in enumerate(chosen):
            expected = 1 / divisors[i] if divisors[i] else 0.0
            assert weight_BT[b].max().item() == pytest.approx(expected)
    assert weight_divisors(replace(cfg, loss_per="microbatch"), 5, rows, 99) is None


def test_clip_range_is_that_of_the_loss():
    clip = clip_range(GRPOConfig(clip_low=0.2, clip_high=0.28, delta=2.0))
    assert clip == {"low": 0.8, "high": 1.28, "delta": 2, "caps": False, "sequence": False}
    for advantage, limit in ((1.0, "high"), (-1.0, "low"), (-1.0, "delta")):
        for shift, moves in ((-0.01, limit != "low"), (0.01, limit == "low")):
            logp = torch.tensor([[math.log(clip[limit] + shift)]], requires_grad=True)
            loss, _ = grpo.policy_loss(
                *(logp, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1)),
                **{"clip_low": 0.2, "clip_high": 0.28, "delta": 2.0},
            )
            loss.backward()
            assert bool(logp.grad.any()) == moves, (limit, shift)
    assert clip_range(GRPOConfig(objective="sapo")) is None
    cispo = clip_range(GRPOConfig(objective="cispo", clip_high=4.0))
    assert cispo["caps"] and cispo["low"] is cispo["delta"] is None and cispo["high"] == 5


def test_colours_follow_the_size_of_the_changes():
    rows = {(0, 0, 0): {"changes": [0.0, None, *(x / 1000 for x in range(1, 11))]}}
    assert ratio_unit(rows) == pytest.approx(0.01)
    assert ratio_unit({}) > 1


# -- reasons --------------------------------------------------------------------------------------


def test_reasons_are_those_of_the_first_look():
    """On every task, from the log alone."""
    cfg = GRPOConfig(tasks=(*tasks.REASONING, "elements"), problems=5, resample=1)
    answers = {"countdown": "1+1", "repair": "2 s=9", "balance": "1 1 1", "kinetics": "0 0.1"}
    answers = {**answers, "elements": "?"}
    for n, name in enumerate(cfg.tasks):
        problem = tasks.problem(name, "0 attempt 1", n, "train")
        row = {"step": 0, "problem": n, "task": name, "prompt": problem.prompt}
        assert problem_of_group(cfg, row) == problem
        for text in (
            f"<think>等等 no\n</think><answer>{answers[name]}</answer>",
            "<think>yes",
            f"<answer>{answers[name]}",
        ):
            rewards = {"accuracy": 0.0, "format": rules.format_error(problem, text) is None}
            rewards |= {"language": rules.thinking_consistency(problem, text)}
            reasons = part_reasons(problem, row | {"completion": text, "rewards": rewards})
            for part in rewards:
                expected = diagnosis.reason(problem, text, part)
                if problem.task == "repair" and part == "accuracy" and "</answer>" in text:
                    expected = " (the function still fails one of its calls)"
                shown = f" ({reasons[part]})" if part in reasons else ""
                assert shown == expected, (name, text, part)


def test_reasons_without_the_gold_answer():
    """Of a data file's rows, and of tasks that have changed."""
    cfg = GRPOConfig(data="some.jsonl")
    row = {"step": 0, "problem": 0, "task": "some.jsonl", "prompt": "What is 2+3?"}
    problem = problem_of_group(cfg, row)
    row["rewards"] = {"accuracy": 0.0, "format": 1.0, "language": 0.5}
    row["completion"] = "<think>Right 对不</think><answer>6</answer>"
    assert part_reasons(problem, row) == {
        "accuracy": "'6' is not right",
        "language": "1 of 2 words are not in 'en'",
    }
    row["completion"] = "6"
    assert "exactly one answer" in part_reasons(problem, row)["accuracy"]
    row = {"step": 0, "problem": 0, "task": "countdown", "prompt": "an older wording"}
    assert problem_of_group(GRPOConfig(), row) == Problem("countdown", "", "", "an older wording")


def test_reasons_are_in_the_page_s_data(tiny_grpo, tmp_path):
    tiny_grpo()
    groups = read_run("out", tmp_path / "out")["groups"]
    for group in groups:
        accuracy = list(zip(group["scores"]["accuracy"], group["reasons"]["accuracy"]))
        assert all((score == 1) == (reason is None) for score, reason in accuracy)
    assert {reason for group in groups for reason in group["reasons"]["accuracy"]} == {
        *(None, "no <answer>")
    }


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ("1+2=3 ?4 no\n2+2=4 ?4 yes\n", True),
        ("1+2=3 ?4 错\n1+3=4 ?4 no\n2+2=4 ?4 对", True),
        ("2+2=4 ?4 yes\n", False),
        ("1+2=3 ?4 no\nstop\n", False),
        ("2+2=4 ?4 yes\n1+2=3 ?4 no\n", False),
        ("It is 3. Wait, 2+2 is 4.", True),
        ("等等，应该是 4", True),
        ("等等，这不对\n应该是 4", True),
        ("2+2=4，没错\n这对", False),
        ("It is 4, however I await more casino.", False),
        ("", False),
    ],
)
def test_a_completion_corrects_itself_if_it_says_so(thinking, expected):
    assert corrects_itself(f"<think>{thinking}</think><answer>2+2 no</answer>") == expected
    assert not corrects_itself(thinking)  # no thinking
