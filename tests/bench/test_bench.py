"""The benchmark runs, counts and compares as documented. No test asserts a measured speed."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import interrupt, shape

from r1mini.bench import __main__ as bench
from r1mini.bench import reference, timing
from r1mini.bench.timing import Runs
from r1mini.model.transformer import Transformer
from r1mini.rl import learner

CPU = torch.device("cpu")
needs_trl = pytest.mark.skipif(not importlib.util.find_spec("trl"), reason="needs TRL")
LIMITS = {"copy": 1e9, "fp32": {1: 1e8, 64: 1e9}, "bf16": {1: 2e9}}
SMALL = {
    "shapes": ("1m",),
    "batch": (1, 3),
    "prompt_tokens": 5,
    "new_tokens": 4,
    "repeats": 2,
    "device": "cpu",
}


@pytest.fixture
def tiny(monkeypatch):
    for name, value in {
        "SHAPES": {"1m": shape(initializer_range=0.02)},
        "LARGE_VOCABULARY": 500,
        "MEAN_LENGTH": 4,
        "SFT_ROWS": 3,
        "SFT_LENGTHS": (4, 9),
        "machine_limits": lambda *_: LIMITS,
    }.items():
        monkeypatch.setattr(bench, name, value)


def test_every_measurement_runs_and_is_written(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference, "versions", dict)
    result = bench.main(bench.Config(**SMALL, json=str(tmp_path / "new/figures.json")))
    out = capsys.readouterr().out
    assert json.loads((tmp_path / "new/figures.json").read_text())["rows"] == json.loads(
        json.dumps(result["rows"])
    )
    assert "transformers or TRL is not installed" in out
    table = [line.split("|")[1:-1] for line in out.split("\n") if line.startswith("|")]
    assert len(table) == 2 + len(result["rows"]) and len({len(cells) for cells in table}) == 1
    titles = [row["what"] for row in result["rows"]]
    for wanted in (
        "decode 1, equal",
        "decode 3, ragged",
        "prefill 3 × 5",
        "SFT step, 3 × 4 to 9 (loss",
        "GRPO learner, ragged",
        "GRPO step, 8 × 8 × (5 + 4), ragged",
        "log-probabilities, 9 tokens, vocabulary 500",
        "sandbox judgements",
        "answer checks",
    ):
        assert any(title.startswith(wanted) for title in titles), wanted
    assert all("reference" not in row and row["ours"]["per_second"] > 0 for row in result["rows"])
    assert all(0 < row["of_limit"] for row in result["rows"] if row["shape"])


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"shapes": ("7b",)}, "--shapes 7b: must be embedded, .* or 1.5b"),
        ({"what": ("speed",)}, "--what speed: must be decode, .* or rewards"),
        ({"batch": (0,)}, "--batch 0"),
        ({"repeats": 0}, "--repeats"),
        ({"learner_tokens": 0}, "--learner-tokens"),
    ],
)
def test_bad_choice_of_measurement_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        bench.main(bench.Config(**changes))


@pytest.mark.parametrize(
    "name, parameters", [("1m", 0.79e6), ("30m", 24.6e6), ("0.5b", 494e6), ("1.5b", 1544e6)]
)
def test_shapes_have_as_many_parameters_as_their_names_say(name, parameters):
    with torch.device("meta"):
        model = Transformer(bench.SHAPES[name])
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)


def test_each_row_is_written_before_the_next_measurement(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "versions", dict)
    with interrupt(bench, "prefill", 1):
        bench.main(
            bench.Config(**SMALL, what=("decode", "prefill"), json=str(tmp_path / "figures.json"))
        )
    assert len(json.loads((tmp_path / "figures.json").read_text())["rows"]) == 4


def test_grpo_step_respects_learner_tokens(tiny, monkeypatch):
    passes, real = [], learner.collate
    monkeypatch.setattr(reference, "versions", dict)
    monkeypatch.setattr(
        learner, "collate", lambda rows: passes.append(sum(map(len, sum(rows, ())))) or real(rows)
    )
    bench.main(bench.Config(**SMALL, what=("grpo",), learner_tokens=20))
    assert min(passes) <= 20 + 5 * 2


def test_implementations_alternate_and_two_runs_are_untimed():
    calls = []
    sides = timing.alternate(
        lambda runs: calls.append("ours") or 3, lambda runs: calls.append("reference") or 5, 2, CPU
    )
    assert calls == ["ours", "reference"] * 4
    assert [side.amounts for side in sides] == [[3] * 4, [5] * 4]
    figures = bench.table_figures("tiny", "decode", sides)
    assert [len(figures[side]["rates"]) for side in ("ours", "reference")] == [2, 2]


def test_peak_memory_excludes_memory_already_in_use():
    held = torch.ones(2**22)
    [runs] = timing.alternate(lambda runs: torch.ones(2**23).numel(), None, 1, CPU)
    if runs.peak_bytes is None:
        pytest.skip("the system does not tell")
    assert 2**25 - 2**20 <= runs.peak_bytes <= 2**25 + 2**24 and held[0] == 1


def test_ratios_compare_consecutive_runs():
    ours, other = Runs(CPU), Runs(CPU)
    for runs in (ours, other):  # the untimed ones
        runs.amounts, runs.marks = [99.0, 99.0], [[(0.0, 0.0), (9.0, 9.0)]] * 2
    ours.amounts += [10.0, 20.0]
    ours.marks += [[(0.0, 0.0), (1.0, 1.0)], [(5.0, 2.0), (6.0, 3.0)]]
    other.amounts += [10.0, 10.0]
    other.marks += [[(1.0, 0.0), (3.0, 4.0)], [(6.0, 4.0), (7.0, 6.0)]]
    figures = bench.table_figures("tiny", "decode", [ours, other], limit_seconds=0.25)
    assert figures["times"] == [2.0, 2.0, 2.0] and figures["of_limit"] == 0.25
    assert figures["reference"]["cpu_seconds"] == 3.0 and figures["reference"]["per_second"] == 7.5
    assert len(bench.cells(figures)) == len(bench.COLUMNS) == 12


def test_parts_of_a_run_lie_between_marks():
    runs = Runs(CPU)
    runs.amounts, runs.marks = [10.0] * 3, [[(1.0, 1.0), (3.0, 2.0), (8.0, 4.0)]] * 3
    for part, wall, cpu in ((bench.ALL, 7, 3), (bench.SAMPLING, 2, 1), (bench.LEARNER, 5, 2)):
        side = bench.table_figures("tiny", "GRPO", [runs], part=part)["ours"]
        assert (side["seconds"], side["cpu_seconds"]) == (wall, cpu)


def test_least_seconds_by_hand():
    # One layer with one head of size 2: products of 4 + 4 + 4 + 4 (attention), 3 x 6 (MLP) and 2 x 5
    # (vocabulary) weights.
    config = shape(
        vocab_size=5,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=3,
        head_dim=2,
    )
    model = Transformer(config)
    assert sum(weight.numel() for weight in timing.matrices(model)) == 16 + 18 + 10
    # 3 tokens through the layer, 2 to the vocabulary, 9/2 pairs at 2 numbers of query x key and
    # weight x value each.
    operations = 2 * (3 * 34 + 2 * 10 + 4.5 * 2 * 2)
    assert timing.least_seconds(model, LIMITS, False, [(1, 2)]) == pytest.approx(operations / 1e9)
    assert timing.least_seconds(model, LIMITS, True, [(1, 2)]) == pytest.approx(operations / 2e9)
    assert timing.TRAINING_PASSES == 3
    # Decoded alone: all 44 weights for both tokens, and keys and values (2 numbers each) of 1 x 2 +
    # 2 tokens; 4 bytes each.
    slow = {**LIMITS, "copy": 1e6}
    assert timing.least_seconds(model, slow, False, [(1, 2)], batch=1) == pytest.approx(
        4 * (2 * 44 + 4 * 4) / 1e6
    )


def test_machine_limits_are_positive(monkeypatch):
    monkeypatch.setattr(timing, "COPIED_NUMBERS", 1000)
    limits = timing.machine_limits(Transformer(shape()))
    assert limits["copy"] > 0 and all(
        rate > 0 for kind in ("fp32", "bf16") for rate in limits[kind].values()
    )


def test_reference_tokens_are_counted_up_to_the_end_token():
    made_BT = torch.tensor([[9, 9, 1, 2, 0, 0], [9, 9, 3, 3, 3, 2], [9, 9, 2, 2, 2, 0]])
    fake = SimpleNamespace(generate=lambda part_BT, **_: made_BT[: len(part_BT)])
    assert reference.decode(fake, torch.full((3, 2), 9), 4, 3, frozenset([2, 7]), None) == 2 + 4 + 1


def test_ragged_completions_have_the_stated_mean_length(tiny):
    """One token id in four ends a completion: checks the mean of 400 geometric lengths, whose standard
    error is 0.17."""
    s = bench.Subject(bench.Config(**SMALL), "1m", CPU, {})
    ids = s.prompts(400, 5)
    ragged, equal = s.tokenizer("ragged"), s.tokenizer("equal")
    prompts = list(map(equal.decode, ids))
    count = bench.decode(s.model, ragged, prompts, 1, 64, 400, False, None)
    assert abs(count / 400 - 4) < 4 * 0.17
    assert bench.decode(s.model, equal, prompts[:7], 1, 9, 4, False, None) == 63


def test_words_of_the_tokenizer_are_ids(tiny):
    s = bench.Subject(bench.Config(**SMALL), "1m", CPU, {})
    size = s.model.config.vocab_size
    for case, stop_ids in (("equal", {size}), ("ragged", set(range(size // 4)))):
        tokenizer = s.tokenizer(case)
        assert tokenizer.encode("w3 w7") == [3, 7] and tokenizer.decode([3, 7]) == "w3 w7"
        assert tokenizer.stop_ids == stop_ids


def test_embedded_model_is_prompted_with_corpus_text(monkeypatch):
    monkeypatch.setattr(bench, "machine_limits", lambda *_: LIMITS)
    s = bench.Subject(bench.Config(), "embedded", CPU, {})
    ids = s.prompts(3, 40)
    assert [len(row) for row in ids] == [40] * 3
    tokens = bench.checkpoint.load_tokenizer("base")
    assert (
        tokens.encode(tokens.decode(ids[0]))[:20] == ids[0][:20] and s.stop_ids == tokens.stop_ids
    )


@needs_trl
def test_comparison_with_transformers_and_trl(tiny, capsys):
    result = bench.main(bench.Config(**SMALL))
    rows = {row["what"]: row for row in result["rows"]}
    assert all(("reference" in row) == bool(row["shape"]) for row in rows.values())
    [title] = [title for title in rows if title.startswith("SFT")]
    losses = [float(word) for word in title.rstrip(")").replace(",", "").split() if word.count(".")]
    assert len(losses) == 2 and abs(losses[0] - losses[1]) <= 1e-5
    assert all(
        low <= middle <= high
        for middle, low, high in (row["times"] for row in rows.values() if "times" in row)
    )
    equal = rows["GRPO step, 8 × 8 × (5 + 4), equal"]
    for side in ("ours", "reference"):
        assert equal[side]["per_second"] * equal[side]["seconds"] == pytest.approx(
            8 * 8 * 4, rel=0.5
        )
    assert capsys.readouterr().out.count("times as fast") == 1
