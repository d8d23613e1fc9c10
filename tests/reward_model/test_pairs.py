"""Preference pairs: votes, lengths, what is left out, and the file."""

from collections import Counter
from random import Random

import pytest
from conftest import jsonl

from r1mini import tasks
from r1mini.data.preferences import read_pairs
from r1mini.records import Rollout
from r1mini.reward_model import pairs
from r1mini.reward_model.pairs import (
    Answer,
    balance_lengths,
    clear_pairs,
    random_pairs,
    read_answers,
)
from r1mini.tasks import annotator, describe

PROBLEM = tasks.problem("describe", 0, 0, "train")


def answers(*texts):
    return [Answer(text, len(text), f"model {n}") for n, text in enumerate(texts)]


def every_pair(answers):
    return random_pairs(answers, 99, Random(0))


def judged(monkeypatch, texts, prefers_first, judgements=4, margin=0.0):
    """The rows of a judge who prefers the first of two texts if `prefers_first(first, second)`,
    to whom the first in the alphabet should appeal more."""
    calls = []

    def judge(first, second, rng):
        first, second = chr(-first), chr(-second)
        calls.append(first + second)
        return prefers_first(first, second)

    monkeypatch.setattr(annotator, "prefers_first", judge)
    monkeypatch.setattr(annotator, "appeal", lambda problem, text: -ord(text[0]))
    pairs = every_pair(answers(*texts))
    rows = clear_pairs(PROBLEM, pairs, judgements, margin, Random(0))
    return list(rows), Counter(calls)


def test_votes_are_counted_in_both_orders(monkeypatch):
    rows, calls = judged(monkeypatch, "ab", lambda first, second: first == "a")
    assert calls == {"ab": 2 * 2, "ba": 2 * 2}  # annotated twice
    [row] = rows
    assert (row["chosen"], row["rejected"], row["votes"]) == ("a", "b", [4, 0])
    assert row["second_votes"] == [4, 0]
    assert row["chosen_is_likelier"] is True
    assert row["models"] == ["model 0", "model 1"] and row["tokens"] == [1, 1]
    assert row["prompt"] == PROBLEM.prompt and row["task"] == "describe"
    assert row["problem"] == PROBLEM.key


def test_winner_is_chosen_and_everything_turns_with_it(monkeypatch):
    [row], _ = judged(monkeypatch, ["a", "bb"], lambda first, second: first == "b")
    assert (row["chosen"], row["rejected"], row["votes"]) == ("bb", "a", [4, 0])
    assert row["chosen_is_likelier"] is False  # most annotators would prefer "a"
    assert row["models"] == ["model 1", "model 0"] and row["tokens"] == [2, 1]


@pytest.mark.parametrize("prefers", [True, False])
def test_judge_who_looks_at_the_order_alone_decides_nothing(monkeypatch, prefers):
    [row], _ = judged(monkeypatch, "ab", lambda first, second: prefers)
    assert row["votes"] == [2, 2]


def test_three_votes_to_one(monkeypatch):
    # Of a b, a b, b a, b a: for a, for a, for b, for a; and once more: for a, b, b, b.
    verdicts = iter([True, True, True, False, True, False, True, True])
    [row], calls = judged(monkeypatch, "ab", lambda first, second: next(verdicts))
    assert list(calls) == ["ab", "ba"]
    assert (row["chosen"], row["votes"], row["chosen_is_likelier"]) == ("a", [3, 1], True)
    assert row["second_votes"] == [1, 3]


def test_answers_that_are_alike_to_the_annotator_have_no_likelier_one():
    """Both are worth nothing, and equally long: the best guess is right half of the time."""
    some = [Answer(text, 2, "m") for text in ("iron is", "lead is")]
    [row] = clear_pairs(PROBLEM, every_pair(some), 4, 0, Random(0))
    assert row["chosen_is_likelier"] is None and sum(row["votes"]) == 4


def test_every_two_different_answers_are_a_pair_once(monkeypatch):
    rows, calls = judged(monkeypatch, "abac", lambda first, second: first < second, judgements=2)
    assert sorted(row["chosen"] + row["rejected"] for row in rows) == ["ab", "ac", "bc"]
    assert sum(calls.values()) == 2 * 2 * 3


def test_pairs_are_chosen_at_random():
    some = answers(*"abcdef")
    pairs = random_pairs(some, 5, Random(0))
    texts = [first.text + second.text for first, second in pairs]
    assert len(set(texts)) == 5 and set(texts) != {"ab", "ac", "ad", "ae", "af"}
    assert pairs == random_pairs(some, 5, Random(0)) != random_pairs(some, 5, Random(1))


def test_unclear_pair_is_left_out_and_not_annotated_again(monkeypatch):
    verdicts = iter([True, False, True, False])  # of a and b; c is liked less by everybody

    def prefers_first(first, second):
        return second == "c" if "c" in first + second else next(verdicts)

    rows, calls = judged(monkeypatch, "abc", prefers_first, margin=0.5)
    assert sorted(row["chosen"] + row["rejected"] for row in rows) == ["ac", "bc"]
    assert calls["ab"] + calls["ba"] == 4 and calls["ac"] + calls["ca"] == 8


@pytest.mark.parametrize(("margin", "kept"), [(0.5, 1), (0.51, 0)])
def test_margin_is_the_difference_of_the_votes(monkeypatch, margin, kept):
    verdicts = iter([True, True, True, False] * 2)  # of a b, a b, b a, b a: three votes for a
    rows, _ = judged(monkeypatch, "ab", lambda first, second: next(verdicts), margin=margin)
    assert len(rows) == kept and all(row["votes"] == [3, 1] for row in rows)


def test_simulated_annotator_prefers_the_useful_answer():
    useful = max((describe.write(PROBLEM, Random(n)) for n in range(20)), key=utility)
    assert utility(useful) > 0.9
    some = [Answer("lead is tall", 3, "weak"), Answer(useful, 40, "strong")]
    [row] = clear_pairs(PROBLEM, every_pair(some), 8, 1, Random(0))
    assert row["chosen"] == useful and row["votes"] == [8, 0] and row["chosen_is_likelier"]
    # What is broken is read as it is: these lines are no statements.
    broken = Answer(useful.replace("\n", ".\n"), 40, "broken")
    [row] = clear_pairs(PROBLEM, [(broken, some[1])], 8, 1, Random(0))
    assert row["models"] == ["strong", "broken"]


def utility(text):
    return annotator.utility(PROBLEM, text)


# -- lengths ---------------------------------------------------------------------------------------


def of_lengths(*lengths):
    return [{"tokens": list(tokens), "number": n} for n, tokens in enumerate(lengths)]


def test_longer_answers_win_as_often_as_shorter_ones():
    rows = of_lengths(*[(9, 4)] * 7, *[(4, 9)] * 3, (5, 5))
    kept = balance_lengths(rows, Random(0))
    assert [row for row in rows if row in kept] == kept  # in their order
    signs = Counter((a > b) - (a < b) for a, b in (row["tokens"] for row in kept))
    assert signs == {1: 3, -1: 3, 0: 1}
    flipped = [{**row, "tokens": row["tokens"][::-1]} for row in rows]
    signs = Counter(
        a > b for a, b in (row["tokens"] for row in balance_lengths(flipped, Random(0)))
    )
    assert signs[True] == 3
    assert kept == balance_lengths(rows, Random(0)) != balance_lengths(rows, Random(1))


def test_balanced_pairs_are_all_kept():
    for rows in (of_lengths((1, 2), (2, 1)), of_lengths((3, 3)), []):
        assert balance_lengths(rows, Random(0)) == rows
    assert balance_lengths(of_lengths((2, 1), (3, 1)), Random(0)) == []


# -- the answers that a reader sees ----------------------------------------------------------------


def test_answers_are_what_a_reader_sees(tokens):
    def rollout(text, finished=True):
        return Rollout((1,), (5,) * 7, (), text, finished)

    rollouts = [
        rollout("<answer>\niron is Fe\n</answer>"),
        rollout("<think>hm</think><answer>iron</answer>"),
        rollout("iron, without tags"),
        rollout("<answer>cut off</answer>", finished=False),
        rollout("<think>only thoughts"),
        rollout("<answer> \n</answer>"),
        rollout(""),
    ]
    texts = ["iron is Fe", "iron", "iron, without tags", "cut off"]
    assert read_answers("m", rollouts, tokens) == [
        Answer(text, len(tokens.encode(text)), "m") for text in texts
    ]


# -- the command -----------------------------------------------------------------------------------


def run(folder, out, **changes):
    return pairs.main(
        pairs.Config(
            **{
                "models": (folder, folder),
                "out": str(out),
                "problems": 4,
                "samples": 2,
                "max_new_tokens": 8,
                "device": "cpu",
                "progress": False,
                **changes,
            }
        )
    )


def test_command_writes_pairs_that_can_be_read(folder, tmp_path, capsys):
    counts = run(folder, tmp_path / "pairs.jsonl")
    rows = jsonl(tmp_path / "pairs.jsonl")
    assert counts["judged"] == 4 * 6  # two answers of each of two models make six pairs
    assert counts["judged"] > counts["clear"] >= counts["kept"] == len(rows) > 0
    assert all(row["votes"] in ([4, 0], [3, 1]) for row in rows)  # the margin: half of the votes
    assert sum(a > b for a, b in (row["tokens"] for row in rows)) == sum(
        a < b for a, b in (row["tokens"] for row in rows)
    )
    assert f"{counts['kept']} kept with balanced lengths" in capsys.readouterr().out
    assert {row["prompt"] for row in rows} <= {
        tasks.problem("describe", "pairs 0", i, "train").prompt for i in range(4)
    }
    assert len(read_pairs(tmp_path / "pairs.jsonl")) == len(rows)


def test_pairs_depend_on_the_seed_alone(folder, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(folder, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c


def test_larger_margin_keeps_fewer(folder, tmp_path):
    half, all_votes = (
        run(folder, tmp_path / "a", margin=margin, problems=20) for margin in (0.5, 1.0)
    )
    assert half["judged"] == all_votes["judged"] and half["clear"] > all_votes["clear"] > 0
    assert all(row["votes"] == [4, 0] for row in jsonl(tmp_path / "a"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judgements": 3}, "--judgements 3: must be even, half in each order"),
        ({"judgements": 0}, "--judgements 0: must be even"),
        ({"margin": 0.0}, "--margin 0"),
        ({"margin": 1.5}, "--margin 1.5"),
        ({"problems": 0}, "--problems 0"),
        ({"tasks": ("countdown",)}, "--tasks: 'countdown' is not one of describe"),
        ({"models": ("absent",)}, "absent: no such model folder"),
    ],
)
def test_bad_flag_is_named(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(folder, tmp_path / "pairs.jsonl", **changes)
    assert not (tmp_path / "pairs.jsonl").exists()


def test_no_clear_pair_is_an_error(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(annotator, "prefers_first", lambda *args: True)  # the order alone
    with pytest.raises(
        ValueError, match="24 pairs .* judged, 0 clear with --margin 0.5, none left"
    ):
        run(folder, tmp_path / "pairs.jsonl")


def test_one_answer_to_a_prompt_is_an_error(folder, tmp_path):
    with pytest.raises(
        ValueError, match="--samples 1: of one model, at least 2 answers make a pair"
    ):
        run(folder, tmp_path / "pairs.jsonl", models=(folder,), samples=1)


def test_command_line(script):
    code, out, _ = script("r1mini/reward_model/pairs.py", "--help")
    assert code == 0 and "python -m r1mini.reward_model.pairs" in out and "--judgements" in out
