"""Training a reward model: what it learns, its gradient, its held-out pairs, its folder, resuming."""

import copy
import json
import math
import re
from random import Random

import pytest
import torch
from conftest import interrupt, jsonl

from r1mini import checkpoint
from r1mini.model.reward_model import RewardModel
from r1mini.reward_model import data, evaluation, training
from r1mini.reward_model.data import Pair
from r1mini.reward_model.loss import bradley_terry
from r1mini.reward_model.training import Config
from r1mini.training import memory, optim, run_state

from .conftest import toy_rows
from .test_scores import row


def test_toy_preference_is_learned(train, tmp_path, capsys):
    results = train("out", toy_rows(120), epochs=3)
    assert results["held_out_accuracy"] == 1 and results["held_out_accuracy_se"] == 0
    assert results["held_out_loss"] < 0.05
    first, *_, last = jsonl(tmp_path / "out/metrics.jsonl")
    assert first["loss"] > 0.4 and last["loss"] < 0.1 and last["accuracy"] == 1
    out = capsys.readouterr().out
    assert f"held out: {results['held_out_pairs']} pairs, accuracy 1.000 ± 0.000" in out
    assert f"--reward model={tmp_path / 'out'}" in out


def test_shuffled_labels_stay_at_chance(train, tmp_path):
    results = train("out", toy_rows(240, shuffled=True), epochs=3)
    mean, error = results["held_out_accuracy"], results["held_out_accuracy_se"]
    assert abs(mean - 0.5) < 2 * error and 0.02 < error < 0.1
    rows = jsonl(tmp_path / "out/metrics.jsonl")  # although the training pairs are being learned
    assert rows[-1]["accuracy"] > 0.6


# -- the gradient of a step ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    """Three answers to one prompt make three pairs, and two prompts have one pair each."""
    prompt, [a, b, c] = row(6, 1, 0)[0], [row(0, n, n)[1] for n in (5, 9, 2)]
    sides = [((prompt, a), (prompt, b)), ((prompt, b), (prompt, c)), ((prompt, a), (prompt, c))]
    sides += [(row(4, 7, seed), row(4, 3, seed)) for seed in (11, 12)]
    rows = [[tuple(map(tuple, side)) for side in pair] for pair in sides]
    return [Pair(str(chosen[0]), chosen, rejected, {}) for chosen, rejected in rows]


def gradient(reward_model, pairs, **changes):
    model = copy.deepcopy(reward_model).requires_grad_(True)
    cfg = Config(**changes)
    stats = training.accumulate_gradient(model, pairs, cfg.bf16, cfg.learner_tokens)
    return {name: p.grad for name, p in model.named_parameters()}, stats


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=1e-4)


def test_gradient_is_that_of_the_mean_loss_of_pairs_computed_one_by_one(reward_model, pairs):
    model = copy.deepcopy(reward_model).requires_grad_(True)

    def score(row):
        return model(torch.tensor([[token for segment in row for token in segment]]))[0, -1, 0]

    scores = [(score(pair.chosen), score(pair.rejected)) for pair in pairs]
    chosen_P, rejected_P = map(torch.stack, zip(*scores))
    loss = bradley_terry(chosen_P, rejected_P).mean()
    loss.backward()
    values, stats = gradient(reward_model, pairs)
    assert_close(values, {name: p.grad for name, p in model.named_parameters()})
    assert stats["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert stats["accuracy"].item() == pytest.approx((chosen_P > rejected_P).float().mean().item())
    assert 0 < stats["accuracy"] < 1
    # d loss / d score is -(1 - sigmoid(margin)) / pairs; the head's slope is the hidden state's.
    slopes = (torch.sigmoid(chosen_P - rejected_P) - 1) / len(pairs)
    hidden = []
    with torch.no_grad():
        model.model.norm.register_forward_hook(lambda *args: hidden.append(args[-1][-1]))
        for pair in pairs:
            score(pair.chosen), score(pair.rejected)
    expected = sum(s * (c - r) for s, c, r in zip(slopes, hidden[::2], hidden[1::2]))
    torch.testing.assert_close(values["score.weight"][0], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("learner_tokens", [1, 25, 40])
def test_gradient_does_not_depend_on_micro_batches(reward_model, pairs, learner_tokens):
    parts = data.micro_batches(pairs, learner_tokens)
    assert 1 < len(parts) <= len(pairs) and sum(parts, []) == pairs
    values, stats = gradient(reward_model, pairs, learner_tokens=learner_tokens)
    whole, expected = gradient(reward_model, pairs)
    assert_close(values, whole)
    assert {name: x.item() for name, x in stats.items()} == pytest.approx(
        {name: x.item() for name, x in expected.items()}, abs=1e-6
    )


def test_answer_in_several_pairs_is_computed_once(reward_model, pairs, monkeypatch):
    batches, collate = [], evaluation.collate
    monkeypatch.setattr(evaluation, "collate", lambda rows: batches.append(rows) or collate(rows))
    evaluation.pair_scores(reward_model, pairs)
    assert [len(rows) for rows in batches] == [3 + 2 + 2]
    # The prompt of the first three is computed once, too.
    assert sum(collate(batches[0][:3]).lengths) == 6 + 5 + 9 + 2


def star(prompt):
    """Three pairs of four answers of 7 tokens, the first of which is in all of them."""
    answers = [((1,) * 3, (n,) * 4) for n in range(4)]
    return [Pair(prompt, answers[0], answers[n], {}) for n in (1, 2, 3)]


def test_micro_batch_counts_an_answer_once():
    assert [len(part) for part in data.micro_batches(star("p"), 21)] == [2, 1]  # 14, 7 | 7
    assert [len(part) for part in data.micro_batches(star("p"), 28)] == [3]


def test_micro_batches_are_cut_between_prompts_if_a_prompt_fits():
    pairs = star("p") + star("q") + star("r")
    assert data.micro_batches(pairs, 55) == [star("p"), star("q"), star("r")]  # 28 tokens each
    assert data.micro_batches(pairs, 56) == [star("p") + star("q"), star("r")]
    # What is left of a prompt over the budget stands alone.
    assert [len(part) for part in data.micro_batches(pairs, 21)] == [2, 1] * 3


# -- held-out prompts and batches ------------------------------------------------------------------


def some_pairs(prompts, per_prompt=3):
    return [
        Pair(f"prompt {n}", ((1,), (n, i)), ((1,), (n, i, 2)), {})
        for n in range(prompts)
        for i in range(per_prompt)
    ]


def test_held_out_pairs_are_those_of_held_out_prompts():
    pairs = some_pairs(400)
    learned, held_out = data.split(pairs, 0.25, "f")
    assert sorted(learned + held_out) == sorted(pairs)
    assert not {pair.prompt for pair in learned} & {pair.prompt for pair in held_out}
    assert 80 < len({pair.prompt for pair in held_out}) < 120  # 100 ± 9 expected


def pairs_of(pairs, prompt):
    return [pair for pair in pairs if pair.prompt == prompt]


def test_split_depends_on_the_prompt_alone():
    pairs = some_pairs(400)
    few, more = (data.split(pairs, share, "f")[1] for share in (0.1, 0.25))
    assert all(pair in more for pair in few)  # a larger share holds out more, and none less
    shuffled = Random(0).sample(pairs[::2], len(pairs) // 2)
    expected = [pair for pair in shuffled if pair in more]
    assert data.split(shuffled, 0.25, "f")[1] == expected
    # SHA-256 of these three begins with (as a share of 2^32): it is the same on every machine.
    shares = {"prompt 0": 0.281693, "prompt 1": 0.493584, "prompt 2": 0.146887}
    for name, share in shares.items():
        for above, place in ((1e-4, 1), (-1e-4, 0)):
            assert pairs_of(data.split(pairs, share + above, "f")[place], name)


@pytest.mark.parametrize(("count", "part"), [(1, "held out|left to train on"), (0, "left to")])
def test_prompts_too_few_to_hold_one_out_are_an_error(count, part):
    pairs = some_pairs(count)
    match = rf"--held-out 0.1: no pair of f.jsonl is ({part}).*, of {3 * count} pairs of {count} "
    with pytest.raises(ValueError, match=match):
        data.split(pairs, 0.1, "f.jsonl")


def test_batches_keep_the_pairs_of_a_prompt_together():
    pairs = some_pairs(20)
    batches = data.make_batches(pairs, 6, Random(0))
    assert [len(batch) for batch in batches] == [6] * 10
    assert all(len({pair.prompt for pair in batch}) == 2 for batch in batches)
    assert sorted(sum(batches, [])) == sorted(pairs) and sum(batches, []) != pairs
    assert [len(batch) for batch in data.make_batches(pairs, 8, Random(0))] == [6] * 10
    assert batches == data.make_batches(pairs, 6, Random(0))
    assert batches != data.make_batches(pairs, 6, Random(1))


def test_prompt_with_more_pairs_than_a_batch_is_cut_into_equal_parts():
    batches = data.make_batches(some_pairs(4, per_prompt=9), 5, Random(0))
    assert [len(batch) for batch in batches] == [4, 5] * 4
    assert sorted(sum(batches, [])) == sorted(some_pairs(4, per_prompt=9))


# -- the figures of held-out pairs -----------------------------------------------------------------


def evaluated(monkeypatch, columns, scores):
    """`evaluate` on pairs of these columns, where the answers 0, 1, ... have these scores."""
    monkeypatch.setattr(
        evaluation,
        "pair_scores",
        lambda model, part: tuple(
            torch.tensor([scores[getattr(pair, side)[1][0]] for pair in part])
            for side in ("chosen", "rejected")
        ),
    )
    pairs = []
    for prompt, chosen, rejected, fields in columns:
        rows = [((9, 9), (answer,) * (answer + 1)) for answer in (chosen, rejected)]
        pairs.append(Pair(prompt, *rows, fields))
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    return evaluation.evaluate(model, pairs, 4096, False)


def test_held_out_figures_by_hand(monkeypatch):
    columns = [
        ("a", 0, 1, {"second_votes": [4, 0], "chosen_is_likelier": True}),
        ("a", 2, 1, {"second_votes": [1, 3], "chosen_is_likelier": False}),
        ("b", 2, 0, {"second_votes": [3, 0], "chosen_is_likelier": True}),
        ("c", 1, 3, {"second_votes": [2, 2], "chosen_is_likelier": None}),  # neither is
    ]
    results = evaluated(monkeypatch, columns, [2.0, 1.0, 0.0, 1.0])
    assert results["held_out_pairs"] == 4
    # Right, wrong | wrong | a tie, which counts half.
    assert results["held_out_accuracy"] == 1.5 / 4
    deviations = [1 - 2 * 0.375, -0.375, 0.5 - 0.375]
    se = math.sqrt(sum(d * d for d in deviations) * 3 / 2) / 4
    assert results["held_out_accuracy_se"] == pytest.approx(se)
    losses = [math.log(1 + math.exp(-margin)) for margin in (1.0, -1.0, -2.0, 0.0)]
    assert results["held_out_loss"] == pytest.approx(sum(losses) / 4)
    # Without the means of their prompts, the scores are 1 0 -1 | -1 1 | 0 0, and the lengths of
    # 1 2 3 | 3 1 | 2 4 tokens are -1 0 1 | 1 -1 | -1 1.
    assert results["score_mean"] == 1 and results["score_std"] == pytest.approx(math.sqrt(4 / 7))
    assert results["length_correlation"] == pytest.approx(-4 / math.sqrt(4 * 6))
    # The second annotation agrees, disagrees, agrees, and is a tie.
    assert results["annotator_agreement"] == (1 + 0 + 1 + 0.5) / 4
    assert results["best_accuracy"] == (1 + 0 + 1 + 0.5) / 4
    text = evaluation.format_results(results)
    assert (
        "accuracy 0.375 ± 0.143 (the best possible: 0.625); two annotations agree on 0.625" in text
    )


@pytest.mark.parametrize("votes", [12, [1], [2, 1, 0], ["a", "b"], [0.5, 0.5], None])
def test_column_called_votes_that_holds_none_is_ignored(monkeypatch, votes):
    columns = [("a", 0, 1, {"second_votes": [3, 1]}), ("b", 0, 2, {"second_votes": votes})]
    results = evaluated(monkeypatch, columns, [2.0, 1.0, 0.0])
    assert "annotator_agreement" not in results and "best_accuracy" not in results
    assert "held out: 2 pairs" in evaluation.format_results(results)


def test_held_out_loss_of_extreme_scores_is_finite(monkeypatch):
    results = evaluated(monkeypatch, [("a", 0, 1, {}), ("b", 1, 0, {})], [2000.0, -2000.0])
    assert results["held_out_loss"] == 2000


def test_figures_of_a_file_are_those_of_its_held_out_pairs(train):
    rows = [
        {**row, "second_votes": [2, 2], "chosen_is_likelier": None if i % 2 else True}
        for i, row in enumerate(toy_rows(60))
    ]
    results = train("out", rows)
    assert results["annotator_agreement"] == 0.5 and results["best_accuracy"] == 0.75


# -- the folder ------------------------------------------------------------------------------------


def test_folder_is_a_classifier_with_one_label(train, tmp_path, folder):
    train("out", toy_rows(24))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    model, tokenizer = checkpoint.load(tmp_path / "out", kind=RewardModel)
    assert model.score.weight.shape == (1, model.config.hidden_size)
    assert config["pad_token_id"] not in tokenizer.stop_ids
    with pytest.raises(
        ValueError, match=r"config.json: .*is not a language model .* --reward NAME"
    ):
        checkpoint.load(tmp_path / "out")


def test_new_head_depends_on_the_seed_alone(folder):
    load = training.load_or_convert
    heads = [load(folder, torch.device("cpu"), seed)[0].score.weight for seed in (0, 0, 1)]
    assert heads[0].equal(heads[1]) and not heads[0].equal(heads[2])
    assert 0.1 < heads[0].std() < 0.3  # initializer_range is 0.2


def test_reward_model_is_trained_on_as_it_is(train, tmp_path, reward_folder, reward_model):
    train("out", toy_rows(24), model=reward_folder, learning_rate=0.0)
    loaded, _ = checkpoint.load(tmp_path / "out", kind=RewardModel)
    assert loaded.score.weight.equal(reward_model.score.weight)


def test_bf16_trains_fp32_weights(train, tmp_path):
    results = train("out", toy_rows(120), epochs=3, bf16=True)
    assert results["held_out_accuracy"] == 1
    model, _ = checkpoint.load(tmp_path / "out", kind=RewardModel)
    assert any((p != p.bfloat16()).any() for p in model.parameters())


def test_worst_case_is_a_full_micro_batch_and_leaves_no_trace(reward_model, pairs, monkeypatch):
    batches, collate = [], evaluation.collate
    monkeypatch.setattr(evaluation, "collate", lambda rows: batches.append(rows) or collate(rows))
    model = copy.deepcopy(reward_model).requires_grad_(True)
    longest = max(sum(map(len, pair.chosen + pair.rejected)) for pair in pairs)
    for tokens, batch_pairs, expected in ((100, 64, 100 // longest), (100, 2, 2), (9, 64, 1)):
        cfg = Config(learner_tokens=tokens, batch_pairs=batch_pairs)
        training.worst_case_step(cfg, model, pairs)
        assert len(batches.pop()) == 2 * expected and not batches
    assert all(p.grad is None for p in model.parameters())


def test_dry_run_changes_nothing(train, tmp_path, monkeypatch):
    train("plain", toy_rows(24))
    monkeypatch.setattr(memory, "raises_oom", lambda device: True)  # as on a GPU
    train("tried", toy_rows(24))
    plain, tried = (tmp_path / name / "model.safetensors" for name in ("plain", "tried"))
    assert plain.read_bytes() == tried.read_bytes()


# -- interruptions ---------------------------------------------------------------------------------


def test_resumed_run_gives_the_same_bits(train, tmp_path):
    rows, settings = toy_rows(60), {"epochs": 2, "save_every": 3}
    whole = train("whole", rows, **settings)
    with interrupt(optim, "step", 6):
        train("cut", rows, **settings)
    assert run_state.latest_valid(tmp_path / "cut").name == "step-00000003"
    cut = train("cut", rows, **settings)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()
    assert {**whole, "seconds": 0} == {**cut, "seconds": 0}
    logs = [jsonl(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut")]
    one, two = ([{**row, "seconds": 0} for row in log] for log in logs)
    assert one == two and [row["step"] for row in one] == list(range(len(one)))


def test_finished_run_does_not_run_again(train, monkeypatch, capsys):
    train("out", toy_rows(24))
    monkeypatch.setattr(optim, "step", None)  # running a step would raise
    assert train("out")["finished"]
    with pytest.raises(ValueError, match="out: holds another run .--learning-rate"):
        train("out", learning_rate=0.5)


# -- data and flags --------------------------------------------------------------------------------


def test_too_long_pair_is_refused_or_counted(train, capsys):
    rows = toy_rows(24)
    rows[4]["chosen"] += " gold" * 150
    with pytest.raises(ValueError, match=r"pairs.jsonl:5: \d+ tokens do not fit .* context of 128"):
        train("out", rows)
    results = train("out", rows, skip_bad=True)
    out = capsys.readouterr().out
    assert re.search(
        r"pairs.jsonl: 23 pairs; 1 skipped by --skip-bad .*pairs.jsonl:5: \d+ tok", out
    )
    assert results["held_out_pairs"] > 0


def test_pair_of_equal_tokens_is_refused_or_counted(train, capsys):
    rows = toy_rows(24)
    rows[4]["rejected"] = rows[4]["chosen"] + "<|endoftext|>"
    with pytest.raises(
        ValueError, match=r"pairs.jsonl:5: chosen and rejected are the same \d+ tok"
    ):
        train("out", rows)
    train("out", rows, skip_bad=True)
    out = capsys.readouterr().out
    assert (
        "pairs.jsonl: 23 pairs; 1 skipped by --skip-bad" in out and "pairs.jsonl:5: chosen" in out
    )


def test_rows_limits_the_pairs(train):
    few = train("few", toy_rows(60), rows=24)
    assert few == {**train("alone", toy_rows(24)), "seconds": few["seconds"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ""}, "--data: give a file of preference pairs"),
        ({"data": "absent.jsonl"}, "--data absent.jsonl"),
        ({"held_out": 0.0}, "--held-out 0"),
        ({"held_out": 1.0}, "--held-out 1"),
        ({"held_out": 1e-9}, "--held-out 1e-09: no pair of .* is held out, of 24 pairs of 12 prom"),
        ({"batch_pairs": 0}, "--batch-pairs 0"),
        ({"learner_tokens": 0}, "--learner-tokens 0"),
        ({"epochs": 0}, "--epochs 0"),
        ({"model": "absent"}, "absent: no such model folder"),
    ],
)
def test_bad_flag_is_named_and_leaves_the_folder_usable(train, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        train("out", toy_rows(24), **changes)
    assert "\n" not in str(error.value)
    train("out", toy_rows(24))


def test_one_prompt_is_not_enough(train):
    rows = [{**row, "prompt": "Pick a metal.\n"} for row in toy_rows(24)]
    with pytest.raises(ValueError, match="no pair of .* is .*, of 24 pairs of 1 prompts"):
        train("out", rows)


def test_command_line(script, tmp_path, folder):
    main = "r1mini/reward_model/__main__.py"
    code, out, _ = script(main, "--help")
    assert code == 0 and "python -m r1mini.reward_model" in out and "--held-out" in out
    code, _, err = script(main, "--model", folder, "--out", tmp_path / "out")
    assert code == 2 and "--data: give a file of preference pairs" in err
