import copy
import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mini import tasks
from r1mini.evaluate import consensus, divergence, entropy, evaluate, mean_and_error, pass_at_k, summarise, table
from r1mini.records import Problem, Rollout
from r1mini.rollout import Sampling, sample

PROBLEM = Problem("countdown", "k", "en", "p\n", {"numbers": [2, 3, 4], "target": 14})
RIGHT, SAME, WRONG, OTHER = "2+3*4", "3*4+2", "2+3+4", "4+3+2"


def tagged(answer):
    return f"<think>5+8 no</think><answer>{answer}</answer>"


def rollout(text, length=3, finished=True):
    return Rollout((1,), (2,) * length, (0.0,) * length, text, finished)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(case):
    n, correct, k = case
    draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize("answers, expected", [
    ([RIGHT, RIGHT, WRONG], 1.0),
    ([RIGHT, WRONG, WRONG], 0.0),
    ([RIGHT, WRONG], 1 / 2),
    ([RIGHT, SAME, WRONG], 2 / 3),  # three answers tie, two are right
    ([RIGHT, RIGHT, WRONG, WRONG, OTHER], 1 / 2),
    ([RIGHT, " " + RIGHT, WRONG], 1.0),  # white space around an answer is no other answer
    ([], 0.0),
])
def test_consensus_and_its_ties(answers, expected):
    assert consensus(PROBLEM, [tagged(answer) for answer in answers]) == pytest.approx(expected)


def test_completions_without_an_answer_have_no_vote():
    assert consensus(PROBLEM, ["", "no", tagged(""), tagged(RIGHT)]) == 1.0
    assert consensus(PROBLEM, ["", "no"]) == 0.0


def test_standard_error_by_hand():
    # Mean 0.5, squared deviations 0.25 + 0.25 + 0 = 0.5; variance 0.5/2; error sqrt(0.25 / 3).
    assert mean_and_error([0.0, 1.0, 0.5]) == pytest.approx((0.5, math.sqrt(0.25 / 3)))
    assert mean_and_error([0.7]) == (0.7, 0.0)


def test_figures_of_a_task_by_hand():
    groups = [[rollout(tagged(RIGHT)), rollout(tagged(WRONG)), rollout("no", 9, finished=False)],
              [rollout("x" + tagged(WRONG)), rollout(tagged(WRONG)), rollout(tagged(OTHER))]]
    figures = summarise([PROBLEM, PROBLEM], groups)
    assert figures == {
        "pass@1": pytest.approx(1 / 6),  # problems 1/3 and 0
        "pass@1_se": pytest.approx(1 / 6),  # variance 2 * (1/6)^2, over 2 problems
        "pass@3": 0.5, "cons@3": 0.25,  # first problem: a tie of one right and one wrong
        "format": pytest.approx(4 / 6), "language": pytest.approx(5 / 6), "length": pytest.approx((5 * 3 + 9) / 6),
        "truncated": pytest.approx(1 / 6), "unparsed": pytest.approx(1 / 6), "entropy": 0.0, "problems": 2, "samples": 3}


@pytest.fixture(scope="module")
def evaluated(model, tokens):
    return evaluate(model, tokens, ("countdown", "elements"), 20, 2, Sampling(max_new_tokens=2), seed=0)


def test_only_held_out_problems_are_evaluated_each_once(evaluated):
    _, kept = evaluated
    assert len(kept) == 40 == len({(p.task, p.key) for p, _ in kept})
    assert all(tasks.held_out(p) and len(group) == 2 for p, group in kept)


def test_every_seed_evaluates_the_same_problems(evaluated, model, tokens):
    _, again = evaluate(model, tokens, ("countdown", "elements"), 20, 2, Sampling(max_new_tokens=2), seed=1)
    assert [p for p, _ in again] == [p for p, _ in evaluated[1]]
    assert [g for _, g in again] != [g for _, g in evaluated[1]]


def test_mean_over_tasks_skips_what_does_not_apply(evaluated):
    results, _ = evaluated
    assert results["elements"]["language"] is None
    assert results["mean"]["language"] == results["countdown"]["language"]
    assert results["mean"]["length"] == (results["countdown"]["length"] + results["elements"]["length"]) / 2
    assert results["mean"]["problems"] == 40


def test_table_has_a_line_for_each_task_and_the_mean(evaluated):
    lines = table(evaluated[0]).split("\n")
    assert [line.split("|")[1].strip() for line in lines] == ["task", "---", "countdown", "elements", "mean"]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_divergence_from_itself_is_zero(model, tokens, temperature):
    rollouts = sample(model, tokens, ["a\n", "Make 24\n"], 8, Sampling(6, temperature), seed=0)[0]
    assert divergence(model, rollouts, temperature) == pytest.approx(0.0, abs=1e-5)


def test_entropy_and_divergence_by_hand(model, tokens):
    rollouts = [replace(rollout("x", 2), logprobs=(-1.0, -2.0)), replace(rollout("y", 1), logprobs=(-6.0,))]
    assert entropy(rollouts) == 3.0  # 9 nats over 3 tokens
    uniform = copy.deepcopy(model)  # likes every token alike: log p - log p_ref = log p + log V
    uniform.lm_head.weight.data.zero_()
    assert divergence(uniform, rollouts, 1.0) == pytest.approx(math.log(tokens.vocab_size) - 3.0, abs=1e-5)


def test_reference_adds_the_kl_to_the_table(model, tokens):
    results, _ = evaluate(model, tokens, ("elements",), 2, 2, Sampling(3), seed=0, reference=model)
    assert results["mean"]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert [cell.strip() for cell in table(results).split("\n")[0].split("|")][-3:-1] == ["entropy", "kl"]
