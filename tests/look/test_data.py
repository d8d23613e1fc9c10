"""Runs are read as they are: the same numbers, the same lines, and text as text."""

import json

import pytest
import torch
from conftest import jsonl
from hypothesis import given
from hypothesis import strategies as st

from r1mini.look.data import arithmetic, context_length, read_groups, read_run
from r1mini.look.page import TEMPLATE, embedded_json, page_html, read_all, within_size
from r1mini.look.sources import find_folders
from r1mini.rl import diagnosis
from r1mini.rl.config import GRPOConfig
from r1mini.rl.grpo import group_advantages

from .conftest import rollout, write_run

HOSTILE = {
    "script": "</script><script>alert(1)</script><!-- <script>",
    "quotes": "\"'`\\ &lt; ${1} </SCRIPT >",
    "bidi": "\u202eabc\u2066\u200f שלום 你好",
    "line ends": "\u2028 \u2029 \r\n \x00 \x1b \x7f \x85",
    "lone surrogates": "\ud800 and \udfff",
    "no space": "x" * 1_000_000,
}


def advantages(group):
    """As the page computes them from a group's numbers."""
    baselines = group["baselines"] * (len(group["rewards"]) // len(group["baselines"]))
    pairs = zip(group["rewards"], baselines)
    return [0.0 if group["equal"] else (r - b) / (group["divisor"] or 1) for r, b in pairs]


@pytest.mark.parametrize(
    "settings",
    [
        {"scale": "group"},
        {"scale": "batch"},
        {"scale": "none"},
        {"baseline": "leave-one-out", "scale": "group"},
        {"baseline": "none", "scale": "none"},
    ],
    ids=str,
)
def test_arithmetic_equals_the_logged_advantages(tiny_grpo, tmp_path, settings):
    tiny_grpo(**settings)
    run = read_run("out", tmp_path / "out")
    assert len(run["groups"]) == 6
    for group in run["groups"]:
        assert advantages(group) == pytest.approx(group["advantages"], abs=2e-5)
    rows = jsonl(tmp_path / "out/rollouts.jsonl")
    logged = [text for group in run["groups"] for text in group["texts"]]
    assert logged == [row["completion"] for row in rows]


@given(st.lists(st.floats(-3, 3).map(lambda x: round(x, 6)), min_size=4, max_size=4))
def test_arithmetic_equals_group_advantages(tmp_path_factory, rewards):
    folder = tmp_path_factory.mktemp("run")
    rows = [rollout(0, 0, g, reward=reward) for g, reward in enumerate(rewards)]
    write_run(folder, rows, steps=1)
    cfg = GRPOConfig(problems=1, completions=4, baseline="group", scale="group")
    (group,) = read_groups(folder / "rollouts.jsonl", cfg)
    expected = group_advantages(torch.tensor([rewards], dtype=torch.float64))[0].tolist()
    assert advantages(group) == pytest.approx(expected, abs=1e-4)


def test_a_mean_has_no_rounding_noise():
    group = arithmetic([0.0, 0.1, 0.2], GRPOConfig(baseline="group", scale="group"))
    assert group["mean"] == 0.1 and group["baselines"] == [0.1]
    group = arithmetic([0.1, 0.1, 0.1, 0.2], GRPOConfig(baseline="leave-one-out", scale="none"))
    assert group["baselines"][3] == 0.1


def test_context_of_an_embedded_model(small_run):
    assert context_length(small_run, GRPOConfig(model="base")) == 1024


def test_weights_of_a_reward_that_starts_later(tmp_path):
    rows = [rollout(step, n, g) for step in range(4) for n in range(2) for g in range(4)]
    folder = write_run(tmp_path / "run", rows, steps=4, reward="accuracy,format:0.5@0.5")
    weights = read_run("run", folder)["weights"]
    assert [row["format"] for row in weights] == [0.0, 0.0, 0.5, 0.5]
    assert [row["accuracy"] for row in weights] == [1.0] * 4


def test_diagnosis_is_that_of_the_run(tiny_grpo, tmp_path, capsys):
    tiny_grpo(steps=6, learning_rate=0.0)
    printed = capsys.readouterr().out
    said = read_run("out", tmp_path / "out")["notes"]
    assert {"step": 4, "text": next(iter(diagnosis_lines(printed)))} in said
    assert sorted(line["text"] for line in said) == sorted(diagnosis_lines(printed))


def diagnosis_lines(printed):
    lines = [line.split(": ", 1) for line in printed.splitlines() if line.startswith("out: ")]
    others = ("step", "accuracy", "length")  # of a step, and the curves at the end
    return [text for _, text in lines if "; next: " not in text and not text.startswith(others)]


def test_a_diagnosis_that_stopped_the_run_is_shown(tmp_path):
    rows = [rollout(0, n, g) for n in range(2) for g in range(4)]
    folder = write_run(tmp_path / "run", rows, steps=1)
    row = jsonl(folder / "metrics.jsonl")[0] | {"sampling/sampling_logp_difference/mean": 5.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError) as stopped:
        diagnosis.check_sampler_gap(row, GRPOConfig())
    assert {"step": 0, "text": str(stopped.value)} in read_run("run", folder)["notes"]


# -- hostile text ---------------------------------------------------------------------------------


def embedded(page):
    """The data that a browser would parse: up to the first end of a script element."""
    start = page.index('id="data">') + len('id="data">')
    return json.loads(page[start : page.index("</script", start)])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_completions_stay_text(tmp_path, name):
    rows = [rollout(0, n, g, HOSTILE[name], prompt=HOSTILE[name]) for n in (0, 1) for g in range(4)]
    folder = write_run(tmp_path / "run", rows, steps=1)
    data = read_all(find_folders([str(folder)]))
    page = page_html(data)
    page.encode("utf-8")
    assert (
        page.count("<script") == TEMPLATE.read_text().count("<script")
        and "<!--" not in page[page.index('id="data">') :]
    )
    (run,) = embedded(page)["runs"]
    for group in run["groups"]:
        for text, missing in zip(group["texts"], group["missing"]):
            assert text == HOSTILE[name][: len(HOSTILE[name]) - missing]
    assert run["groups"][0]["missing"][0] == (800_000 if name == "no space" else 0)


@given(st.text(st.characters(exclude_categories=())))
def test_embedded_text_survives(text):
    encoded = embedded_json(text)
    encoded.encode("utf-8")
    assert "<" not in encoded and json.loads(encoded) == text


# -- what fits ------------------------------------------------------------------------------------


def large_run(tmp_path, steps=10):
    rows = [
        rollout(step, n, g, f"{step} {n} {g} " + "word " * 400)
        for step in range(steps)
        for n in range(8)
        for g in range(4)
    ]
    return write_run(tmp_path / "large", rows, steps=steps, problems=8)


def test_sampling_is_deterministic_even_and_said(tmp_path):
    folder = large_run(tmp_path)
    data = read_all(find_folders([str(folder)]))
    chosen = within_size(data, 300_000)
    assert within_size(data, 300_000) == chosen
    run = chosen["runs"][0]
    by_step = [sum(group["step"] == step for group in run["groups"]) for step in range(10)]
    assert 0 < min(by_step) <= max(by_step) <= min(by_step) + 1 < 8
    assert (run["groupsTotal"], run["completionsTotal"]) == (80, 320)
    assert run["metrics"] == data["runs"][0]["metrics"]
    problems = {group["problem"] for group in run["groups"]}
    assert len(problems) > 3  # not always the same places of a step


def test_the_page_stays_within_its_size(tmp_path):
    data = read_all(find_folders([str(large_run(tmp_path))]))
    for size in (100_000, 300_000, 500_000):
        used = len(page_html(within_size(data, size)).encode())
        assert size - 40_000 < used <= size
    assert within_size(data, 10_000_000) == data


def test_too_small_a_size_is_an_error(small_run):
    data = read_all(find_folders([str(small_run)]))
    with pytest.raises(ValueError, match="--megabytes 0.001: metrics and settings alone need"):
        within_size(data, 1000)


# -- running and broken runs ----------------------------------------------------------------------


def test_a_running_run_is_shown_up_to_its_last_complete_step(small_run):
    log = small_run / "rollouts.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for cut in (lines[:-1], [*lines[:-1], lines[-1][:20]], lines[:12]):
        log.write_text("".join(cut))
        run = read_run("small", small_run)
        assert [group["step"] for group in run["groups"]] == [0, 0]
    metrics = small_run / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 2, "entr')
    assert read_run("small", small_run)["steps"] == [0, 1]


def test_a_run_that_goes_on_while_it_is_read_is_shown_as_far_as_its_metrics(small_run):
    metrics = small_run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    run = read_run("small", small_run)
    assert run["steps"] == [0] and [group["step"] for group in run["groups"]] == [0, 0]


def test_a_folder_is_shown_once_whatever_the_path(small_run, monkeypatch):
    monkeypatch.chdir(small_run)
    folders = find_folders([".", str(small_run), "../small"])
    assert folders.runs == {"small": small_run}
    assert read_all(folders)["runs"][0]["stage"] == "small"


def test_several_runs_have_labels_that_tell_them_apart(small_run, tmp_path):
    other = tmp_path / "b/small"
    other.parent.mkdir()
    small_run.rename(other)
    write_run(tmp_path / "a/small", jsonl(other / "rollouts.jsonl"))
    folders = find_folders([str(tmp_path / "a/small"), str(other), str(other)])
    assert list(folders.runs) == ["a/small", "b/small"]


def breaking(what, folder):
    """Breaks a run in one way."""
    rollouts, metrics = folder / "rollouts.jsonl", folder / "metrics.jsonl"
    if what == "no metrics":
        metrics.unlink()
    elif what == "empty metrics":
        metrics.write_text("")
    elif what == "no rollouts":
        rollouts.unlink()
    elif what == "empty rollouts":
        rollouts.write_text("")
    elif what == "broken line":
        rollouts.write_text(rollouts.read_text().replace("{", "[", 1))
    elif what == "NaN":
        rollouts.write_text(rollouts.read_text().replace('"reward": 0.0', '"reward": NaN', 1))
    elif what == "no text":
        rollouts.write_text(rollouts.read_text().replace('"completion"', '"other"', 1))
    else:
        (folder / "run.json").write_text('{"config": {"rows": 3}, "finished": true}')


@pytest.mark.parametrize(
    "what, message",
    [
        ("no metrics", "no metrics.jsonl yet; look again after the first step"),
        ("empty metrics", "metrics.jsonl has no complete line; look again after the first step"),
        ("no rollouts", "rollouts.jsonl has no complete step"),
        ("empty rollouts", "rollouts.jsonl has no complete step"),
        ("broken line", r"rollouts.jsonl:1: not valid JSON"),
        ("NaN", r"rollouts.jsonl:1: reward nan is not a finite number"),
        ("no text", r"rollouts.jsonl:1: completion None is not of type str"),
        ("an SFT run", "not a run of train_grpo.py"),
    ],
)
def test_errors_name_the_folder_and_what_would_be_right(small_run, what, message):
    breaking(what, small_run)
    with pytest.raises(ValueError, match=message) as error:
        read_all(find_folders([str(small_run)]))
    assert str(small_run) in str(error.value)


def test_folders_without_runs_are_errors(tmp_path):
    with pytest.raises(ValueError, match="RUN nowhere: no such folder"):
        find_folders(["nowhere"])
    with pytest.raises(ValueError, match="not the folder of a run"):
        find_folders([str(tmp_path)])
