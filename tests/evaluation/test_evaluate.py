import copy
import errno
import itertools
import math
import os
from dataclasses import replace

import pytest
from conftest import score
from hypothesis import given
from hypothesis import strategies as st

from r1mini import tasks
from r1mini.evaluation.config import SampleConfig
from r1mini.evaluation.evaluate import evaluate, make_rows, reference_logprobs
from r1mini.evaluation.figures import consensus, figures_table, mean_and_error, pass_at_k, summarise
from r1mini.evaluation.jobs import Session, held_out
from r1mini.infra.journal import Journal
from r1mini.records import Problem, Rollout
from r1mini.rewards.runner import ALWAYS_LOGGED
from r1mini.sampler.sampler import sample
from r1mini.sampler.sampling import SamplingParams

PROBLEM = Problem("countdown", "k", "en", "p\n", {"numbers": [2, 3, 4], "target": 14})
RIGHT, SAME, WRONG, OTHER = "2+3*4", "3*4+2", "2+3+4", "4+3+2"


def tagged(answer):
    return f"<think>5+8 no</think><answer>{answer}</answer>"


def rollout(text, length=3, finished=True):
    return Rollout((1,), (2,) * length, (0.0,) * length, text, finished)


SETS = {name: held_out(name, 20) for name in ("countdown", "elements")}


def rows(*rollouts, problem=PROBLEM):
    return make_rows(problem, rollouts, score(problem, rollouts, (*ALWAYS_LOGGED, "code")))


def sample_and_evaluate(
    model, tokens, sets, samples, params, seed, journal=None, reference=None, **options
):
    cfg = SampleConfig(eval=True, samples=samples, seed=seed, progress=False, **options)
    session = Session(cfg, model, tokens, None, params)
    return evaluate(session, sets, journal or Journal(None, {}, 0), reference)


def with_reference(logprobs, rows):
    return [
        {**row, "reference_logprob": logprob} for logprob, row in zip(logprobs, rows, strict=True)
    ]


@given(
    st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))
)
def test_pass_at_k_is_the_fraction_of_draws_with_a_correct_sample(case):
    n, correct, k = case
    draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(
    "answers, expected",
    [
        ([RIGHT, RIGHT, WRONG], 1.0),
        ([RIGHT, WRONG, WRONG], 0.0),
        ([RIGHT, WRONG], 1 / 2),
        ([RIGHT, SAME, WRONG], 2 / 3),  # three answers tie, two of them correct
        ([RIGHT, RIGHT, WRONG, WRONG, OTHER], 1 / 2),
        (
            [RIGHT, " " + RIGHT, WRONG],
            1.0,
        ),  # white space around an answer does not make it different
        ([], 0.0),
    ],
)
def test_consensus_and_its_ties(answers, expected):
    assert consensus(rows(*[rollout(tagged(answer)) for answer in answers])) == pytest.approx(
        expected
    )


def test_completions_without_an_answer_do_not_vote():
    assert consensus(rows(*map(rollout, ["", "no", tagged(""), tagged(RIGHT)]))) == 1.0
    assert consensus(rows(*map(rollout, ["", "no"]))) == 0.0


def test_equivalent_answers_share_their_votes():
    problem = Problem("x.jsonl", "0", "", "p", {"answer": "1/2"})
    result = rows(
        *map(
            rollout,
            [r"\boxed{0.5}", r"\boxed{1/2}", r"\boxed{3}", r"\boxed{\frac12}", r"\boxed{3}"],
        ),
        problem=problem,
    )
    assert consensus(result) == 1.0
    assert [row["gold"] for row in result] == ["1/2"] * 5 and result[0]["answer"] == "0.5"


def test_programs_have_no_consensus():
    problem = Problem("x.jsonl", "0", "", "p", {"tests": [{"stdin": "", "stdout": "1"}]})
    [row] = rows(rollout("```python\nprint(1)\n```"), problem=problem)
    assert consensus([row]) is None
    assert summarise([[row]])["pass@1"] == 1.0 and summarise([[row]])["cons@1"] is None


def test_standard_error_by_hand():
    # Mean 0.5, squared deviations 0.25 + 0.25 + 0 = 0.5; variance 0.5/2; error sqrt(0.25 / 3).
    assert mean_and_error([0.0, 1.0, 0.5]) == pytest.approx((0.5, math.sqrt(0.25 / 3)))
    assert mean_and_error([0.7]) == (0.7, None)


def test_figures_of_a_task_by_hand():
    groups = [
        [rollout(tagged(RIGHT)), rollout(tagged(WRONG)), rollout("no", 9, finished=False)],
        [rollout("x" + tagged(WRONG)), rollout(tagged(WRONG)), rollout(tagged(OTHER))],
    ]
    figures = summarise([rows(*group) for group in groups])
    assert figures == {
        "pass@1": pytest.approx(1 / 6),  # problems 1/3 and 0
        "pass@1_se": pytest.approx(1 / 6),  # variance 2 * (1/6)^2, over 2 problems
        "pass@3": 0.5,
        "cons@3": 0.25,  # first problem: a tie between a correct and a wrong answer
        "format": pytest.approx(4 / 6),
        "language": pytest.approx(5 / 6),
        "length": pytest.approx((5 * 3 + 9) / 6),
        "truncated": pytest.approx(1 / 6),
        "unparsed": pytest.approx(1 / 6),
        "entropy": 0.0,
        "problems": 2,
        "samples": 3,
    }


@pytest.fixture(scope="module")
def evaluated(model, tokens):
    return sample_and_evaluate(model, tokens, SETS, 2, SamplingParams(max_new_tokens=2), seed=0)


def test_each_held_out_problem_is_evaluated_once(evaluated):
    _, all_rows = evaluated
    assert [row["sample"] for row in all_rows] == [0, 1] * 40
    assert len({(row["task"], row["problem"]) for row in all_rows}) == 40
    assert all(tasks.is_held_out(problem) for problems in SETS.values() for problem in problems)


def test_every_seed_evaluates_the_same_problems(evaluated, model, tokens):
    _, again = sample_and_evaluate(model, tokens, SETS, 2, SamplingParams(max_new_tokens=2), seed=1)
    assert [row["problem"] for row in again] == [row["problem"] for row in evaluated[1]]
    assert [row["completion"] for row in again] != [row["completion"] for row in evaluated[1]]


@pytest.mark.parametrize("done", [0, 1, 20, 33])
def test_interrupted_evaluation_resumes_to_the_same_figures(
    evaluated, model, tokens, tmp_path, done
):
    results, expected_rows = evaluated
    path, groups = (
        tmp_path / "eval.json.partial",
        [expected_rows[i : i + 2] for i in range(0, 80, 2)],
    )
    journal = Journal(path, {"seed": 0}, 40)
    for group in groups[:done]:
        journal.add(group)
    with path.open("ab") as file:
        file.write(b'[{"task": "coun')  # truncated in the middle of a line
    journal.file.close()
    again, rows = sample_and_evaluate(
        model,
        tokens,
        SETS,
        2,
        SamplingParams(max_new_tokens=2),
        seed=0,
        journal=Journal(path, {"seed": 0}, 40),
        sampler_rows=6,
    )
    for name, figures in results.items():
        assert again[name] == pytest.approx(
            figures
        )  # the batches have other rows, so the last bits of the log-probabilities differ
    drop = lambda row: {**row, "logprob": 0}
    assert (
        list(map(drop, rows)) == list(map(drop, expected_rows))
        and rows[: 2 * done] == expected_rows[: 2 * done]
    )
    assert Journal(path, {"seed": 0}, 40).parts == [rows[i : i + 2] for i in range(0, 80, 2)]


def test_full_disk_error_names_the_journal(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="out.partial: cannot be written .No space left on device"):
        Journal(tmp_path / "out.partial", {}, 1)


def test_journal_of_another_job_is_refused(tmp_path):
    path = tmp_path / "x.partial"
    left = Journal(path, {"seed": 0, "model": "a"}, 2)
    left.add("x")
    with pytest.raises(ValueError, match="x.partial: in use by another process"):
        Journal(path, {"seed": 0, "model": "a"}, 2)
    left.file.close()
    with pytest.raises(
        ValueError,
        match=r"x.partial: left by a job with model 'a', not 'b'; finish that job, or delete",
    ):
        Journal(path, {"seed": 0, "model": "b"}, 2)
    path.write_bytes(b'{"seed": 0}\nx\n')
    with pytest.raises(ValueError, match="x.partial: damaged .*; delete it to start over"):
        Journal(path, {"seed": 0}, 40)
    path.write_bytes(b"")
    assert Journal(path, {"seed": 0}, 40).parts == []  # killed before its first line was complete


def test_mean_over_tasks_skips_metrics_that_do_not_apply(evaluated):
    results, _ = evaluated
    assert results["elements"]["language"] is None
    assert results["mean"]["language"] == results["countdown"]["language"]
    assert (
        results["mean"]["length"]
        == (results["countdown"]["length"] + results["elements"]["length"]) / 2
    )
    assert results["mean"]["problems"] == 40


def test_table_has_a_line_for_each_task_and_the_mean(evaluated):
    lines = figures_table(evaluated[0]).split("\n")
    assert [line.split("|")[1].strip() for line in lines] == [
        "task",
        "---",
        "countdown",
        "elements",
        "mean",
    ]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_kl_of_a_model_from_itself_is_zero(model, tokens, temperature):
    rollouts = sample(
        model, tokens, ["a\n", "Make 24\n"], 8, SamplingParams(6, temperature), seed=0
    )[0]
    logprobs = reference_logprobs(model, rollouts, temperature)
    assert logprobs == pytest.approx([sum(r.logprobs) for r in rollouts], abs=1e-4)
    assert summarise([with_reference(logprobs, rows(*rollouts))])["kl"] == pytest.approx(
        0.0, abs=1e-5
    )


def test_entropy_and_kl_by_hand(model, tokens):
    rollouts = [
        replace(rollout("x", 2), logprobs=(-1.0, -2.0)),
        replace(rollout("y", 1), logprobs=(-6.0,)),
    ]
    assert summarise([rows(*rollouts)])["entropy"] == 3.0  # 9 nats over 3 tokens
    uniform = copy.deepcopy(model)  # the reference is uniform: log p - log p_ref = log p + log V
    uniform.lm_head.weight.data.zero_()
    figures = summarise(
        [with_reference(reference_logprobs(uniform, rollouts, 1.0), rows(*rollouts))]
    )
    assert figures["kl"] == pytest.approx(math.log(tokens.vocab_size) - 3.0, abs=1e-5)


def test_reference_adds_the_kl_to_the_table(model, tokens):
    results, _ = sample_and_evaluate(
        model,
        tokens,
        {"elements": SETS["elements"][:2]},
        2,
        SamplingParams(3),
        seed=0,
        reference=model,
    )
    assert results["mean"]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert [cell.strip() for cell in figures_table(results).split("\n")[0].split("|")][-3:-1] == [
        "entropy",
        "kl",
    ]
