"""The evaluation of general prompts: a utility instead of right and wrong."""

import json
import math
import random

import pytest
from conftest import score

from r1mini.evaluation.config import SampleConfig
from r1mini.evaluation.evaluate import evaluate, make_rows
from r1mini.evaluation.figures import (
    average,
    figures_table,
    read_completions,
    read_figures,
    summarise,
    win_rate,
)
from r1mini.evaluation.jobs import Session, held_out
from r1mini.infra.journal import Journal
from r1mini.records import Problem, Rollout
from r1mini.rewards.runner import ALWAYS_LOGGED
from r1mini.sampler.sampling import SamplingParams

IRON = Problem("describe", "Fe en", "en", "Describe iron.\n", {"symbol": "Fe", "known": ""})
ZINC = Problem("describe", "Zn en", "en", "Describe zinc.\n", {"symbol": "Zn", "known": ""})
FACTS = "element 26 is iron\nthe period of Fe is 4"  # two of four: utility 0.5


def rows(*completions, problem=IRON, finished=True):
    rollouts = [Rollout((1,), (2, 2), (-1.0, -1.0), text, finished) for text in completions]
    return make_rows(problem, rollouts, score(problem, rollouts, (*ALWAYS_LOGGED, "code")))


def utilities(problem, *values):
    """Rows with these utilities of a problem's samples."""
    answers = ["<answer>x</answer>"] * len(values)
    return [{**row, "utility": x} for row, x in zip(rows(*answers, problem=problem), values)]


# -- rows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, utility",
    [
        (f"<answer>{FACTS}</answer>", 0.5),
        (f"<answer>{FACTS}\n</answer>\n", 0.5),
        (f"<think>so</think><answer>{FACTS}</answer>", 0.5),
        (f"<answer>{FACTS}\nhello</answer>", 0.375),
        ("<answer>hello</answer>", 0),
        ("<answer> </answer>", 0),
        ("", 0),
        (FACTS, 0),
        (f"<answer>{FACTS}", 0),
        (f"<answer>{FACTS}</answer> and more", 0),
        (f"So <answer>{FACTS}</answer>", 0),
        (f"<think> </think><answer>{FACTS}</answer>", 0),
        (f"<answer>{FACTS}</answer><answer>{FACTS}</answer>", 0),
    ],
)
def test_utility_of_a_completion(text, utility):
    [row] = rows(text)
    assert row["utility"] == utility and row["rewards"]["accuracy"] is None


def test_completion_that_was_cut_off_is_of_no_use():
    [row] = rows(f"<answer>{FACTS}</answer>", finished=False)
    assert row["utility"] == 0


def test_only_general_prompts_have_a_utility():
    fact = Problem("elements", "", "en", "", {"answer": "Fe", "terms": []})
    data = Problem("x.jsonl", "0", "", "p", {"answer": "1"})
    for problem in (fact, data):
        [row] = rows("<answer>Fe</answer>", problem=problem)
        assert "utility" not in row
        assert not {"utility", "utility_se"} & summarise([[row]]).keys()


# -- figures ---------------------------------------------------------------------------------------


def test_figures_of_general_prompts_by_hand():
    # Problems 0.75 and 0.25: mean 0.5, squared deviations 2/16, error sqrt(1/8 / 2) = 0.25.
    figures = summarise([utilities(IRON, 1.0, 0.5), utilities(ZINC, 0.25, 0.25)])
    assert figures == {
        "pass@1": None,
        "pass@1_se": None,
        "pass@2": None,
        "cons@2": None,
        "utility": 0.5,
        "utility_se": pytest.approx(0.25),
        "format": 1.0,
        "language": None,
        "length": 2.0,
        "truncated": 0.0,
        "unparsed": 0.0,
        "entropy": 1.0,
        "problems": 2,
        "samples": 2,
    }
    assert summarise([utilities(IRON, 1.0, 0.5)])["utility_se"] is None


COMMON = {"format": 1.0, "truncated": 0.0, "unparsed": 0.0, "entropy": 0.5, "samples": 2}


def judged(pass1, error, length=10.0):
    judged = {"pass@1": pass1, "pass@1_se": error, "pass@2": pass1, "cons@2": pass1}
    return {**judged, "language": 1.0, "length": length, "problems": 4, **COMMON}


def general(utility, error, length=40.0):
    undefined = dict.fromkeys(("pass@1", "pass@1_se", "pass@2", "cons@2", "language"))
    utilities = {"utility": utility, "utility_se": error}
    return {**undefined, **utilities, "length": length, "problems": 6, **COMMON}


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [2, 0, 3, 1]])
def test_mean_is_over_the_sets_that_have_a_figure(order):
    sets = [judged(0.5, 0.3), judged(1.0, 0.4), general(0.6, 0.05), general(0.2, 0.12)]
    assert average([sets[i] for i in order]) == pytest.approx(
        {
            "pass@1": 0.75,
            "pass@1_se": 0.25,  # sqrt(0.09 + 0.16) / 2
            "pass@2": 0.75,
            "cons@2": 0.75,
            "utility": 0.4,
            "utility_se": 0.065,  # sqrt(0.0025 + 0.0144) / 2
            "language": 1.0,
            "length": 25.0,
            "problems": 20,
            **COMMON,
        }
    )


def test_mean_of_sets_of_one_kind():
    assert "utility" not in average([judged(0.5, 0.3)])
    mean = average([general(0.6, 0.3), general(0.2, 0.4)])
    assert (mean["pass@1"], mean["pass@1_se"], mean["pass@2"]) == (None, None, None)
    assert (mean["utility"], mean["utility_se"]) == pytest.approx((0.4, 0.25))


def test_mean_has_no_error_if_one_of_its_sets_has_none():
    mean = average([judged(0.5, None), judged(1.0, 0.4), general(0.6, None)])
    assert mean["pass@1_se"] is None and mean["utility_se"] is None
    assert average([judged(0.5, 0.3), general(0.6, None)])["pass@1_se"] == 0.3


# -- win rate --------------------------------------------------------------------------------------


def test_win_rate_by_hand():
    # Iron: a win, a tie, a loss: 1/2. Zinc: two wins and a tie: 5/6. Their mean is 2/3, and their
    # standard error half of their difference.
    ours = utilities(IRON, 1.0, 0.5, 0.25) + utilities(ZINC, 1.0, 1.0, 1.0)
    others = utilities(IRON, 0.5, 0.5, 0.5) + utilities(ZINC, 0.0, 0.875, 1.0)
    assert win_rate(ours, others) == pytest.approx((2 / 3, 1 / 6))
    assert win_rate(others, ours) == pytest.approx((1 / 3, 1 / 6))
    assert win_rate(ours, ours) == (0.5, 0.0)
    assert win_rate(ours[:3], others[:3]) == (0.5, None)
    # Each sample meets all of the other's: of six, four wins and a tie.
    assert win_rate(utilities(IRON, 1.0, 0.5, 0.25), utilities(IRON, 0.5, 0.0)) == (0.75, None)
    shuffled = random.Random(0).sample(ours, len(ours))
    assert shuffled != ours and win_rate(shuffled, others) == win_rate(ours, others)


def test_win_rate_leaves_out_what_rules_judge():
    fact = Problem("elements", "", "en", "", {"answer": "Fe", "terms": []})
    judged = rows("<answer>Fe</answer>", problem=fact)
    assert win_rate(utilities(IRON, 1.0) + judged, utilities(IRON, 0.0)) == (1.0, None)


@pytest.mark.parametrize(
    "ours, others, complaint",
    [
        (utilities(IRON, 1.0), utilities(ZINC, 1.0), "only one .* has the prompt 'Describe iron"),
        (utilities(IRON, 1.0), [], "only one .* has the prompt 'Describe iron"),
        ([], [], "no answers to general prompts"),
    ],
)
def test_win_rate_needs_the_same_prompts(ours, others, complaint):
    with pytest.raises(ValueError, match=complaint):
        win_rate(ours, others)


# -- tables and files ------------------------------------------------------------------------------


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(results):
    head, _, *lines = map(cells, figures_table(results).split("\n"))
    return {line[0]: dict(zip(head[1:], line[1:])) for line in lines}


def with_mean(**sets):
    return {**sets, "mean": average(list(sets.values()))}


def test_table_shows_the_utility_of_a_set_that_has_one():
    shown = table(with_mean(countdown=judged(0.5, 0.3), describe=general(0.6, 0.2)))
    assert [row["utility"] for row in shown.values()] == ["–", "0.60 ± 0.20", "0.60 ± 0.20"]
    assert [row["pass@1"] for row in shown.values()] == ["0.50 ± 0.30", "–", "0.50 ± 0.30"]
    assert [row["length"] for row in shown.values()] == ["10", "40", "25"]
    assert "utility" not in figures_table(with_mean(countdown=judged(0.5, 0.3)))


def test_files_of_figures_with_and_without_utility_are_read(tmp_path):
    path = tmp_path / "eval.json"
    for sets in (
        {"countdown": judged(0.5, 0.3)},
        {"countdown": judged(0.5, 0.3), "describe": general(0.6, None)},
        {"describe": general(0.6, 0.2)},
    ):
        path.write_text(json.dumps(with_mean(**sets)))
        assert read_figures(path, list(sets), 2) == with_mean(**sets)
    with pytest.raises(ValueError, match="mean: pass@1 None is not a finite number"):
        read_figures(path, k=2, columns=["pass@1"])  # of the comparison of presets


def test_columns_that_are_asked_for_need_not_exist_for_general_prompts(tmp_path):
    path, results = (
        tmp_path / "eval.json",
        with_mean(countdown=judged(0.5, 0.3), describe=general(0.6, 0.2)),
    )
    path.write_text(json.dumps(results))
    assert read_figures(path, k=2, columns=["pass@1", "pass@2", "length"]) == results


@pytest.mark.parametrize(
    "name, change, complaint",
    [
        ("describe", {"utility": "x"}, "describe: utility 'x' is not a finite number"),
        ("describe", {"utility": None}, "describe: utility None is not a finite number"),
        ("describe", {"utility": math.nan}, "describe: utility nan is not a finite number"),
        ("describe", {"utility_se": "x"}, "describe: utility_se 'x' is not a finite number"),
        ("countdown", {"pass@1": None}, "countdown: pass@1 None is not a finite number"),
        ("mean", {"utility": "x"}, "mean: utility 'x' is not a finite number"),
    ],
)
def test_damaged_figures_are_named(tmp_path, name, change, complaint):
    results = with_mean(countdown=judged(0.5, 0.3), describe=general(0.6, 0.2))
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({**results, name: {**results[name], **change}}))
    with pytest.raises(ValueError, match=f"{path}: {complaint}"):
        read_figures(path, ["describe"], 2)


def test_set_without_the_error_of_its_utility_is_refused(tmp_path):
    results = with_mean(countdown=judged(0.5, 0.3), describe=general(0.6, 0.2))
    del results["describe"]["utility_se"]
    (tmp_path / "eval.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="describe: utility_se 'missing' is not a finite number"):
        read_figures(tmp_path / "eval.json", ["describe"], 2)


def test_row_whose_utility_is_no_number_is_named(tmp_path):
    path = tmp_path / "eval.jsonl"
    good, bad = utilities(IRON, 0.5, "high")
    path.write_text(f"{json.dumps(good)}\n{json.dumps(bad)}\n")
    with pytest.raises(ValueError, match=f"{path}:2: utility 'high' is not a number"):
        list(read_completions(path))


def test_evaluation_of_general_prompts_and_others(model, tokens, tmp_path):
    sets = {name: held_out(name, 3) for name in ("elements", "describe")}
    cfg = SampleConfig(eval=True, samples=2, progress=False)
    session = Session(cfg, model, tokens, None, SamplingParams(max_new_tokens=2))
    results, all_rows = evaluate(session, sets, Journal(None, {}, 0), None)
    assert {row["task"] for row in all_rows if "utility" in row} == {"describe"}
    assert results["describe"]["utility"] == results["mean"]["utility"] == 0
    assert results["mean"]["pass@1"] == results["elements"]["pass@1"]
    assert table(results)["describe"]["utility"] == "0.00 ± 0.00"
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(results))
    assert read_figures(path, ["elements", "describe"], 2) == results
