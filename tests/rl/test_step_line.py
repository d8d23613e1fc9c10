import re

import pytest
from conftest import interrupt, jsonl

from r1mini.infra.terminal import width
from r1mini.rl import metrics
from r1mini.training import run_state

ROW = {
    "step": 3,
    "reward": 0.9,
    "rewards/format/mean": 0.96,
    "rewards/accuracy/mean": 0.77,
    "rewards/language/mean": 0.98,
    "rewards/helpful/mean": 3.03,
    "completions/mean_length": 68.6,
    "completions/clipped_ratio": 0.01,
    "frac_reward_zero_std": 0.78,
    "grad_norm": 0.3,
    "entropy": 0.25,
    "step_time": 7.7,
}
FULL = (
    "r1 4/22: format 0.96 accuracy 0.77 language 0.98 helpful 3.03 length 69 cut 1% "
    "equal groups 78% 8 s"
)


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def test_step_line_of_the_recipe_fits():
    assert metrics.step_line("r1", 22, ROW) == FULL and len(FULL) == 99


@pytest.mark.parametrize(
    "more, omitted",
    [
        (0, []),
        (1, []),
        (2, ["8 s"]),
        (5, ["8 s"]),
        (6, ["helpful 3.03"]),  # which leaves a place for the time
        (14, ["helpful 3.03"]),
        (15, ["helpful 3.03", "8 s"]),
        (18, ["helpful 3.03", "8 s"]),
        (19, ["language 0.98", "8 s"]),  # a shorter reward fits instead
        (33, ["format 0.96", "language 0.98", "helpful 3.03"]),
    ],
)
def test_least_important_parts_are_left_out_in_order(more, omitted):
    """A number of steps that takes so many columns more."""
    expected = FULL.replace("22:", f"22{'0' * more}:")
    for part in omitted:
        expected = expected.replace(f" {part}", "")
    assert metrics.step_line("r1", 22 * 10**more, ROW) == expected and len(expected) <= 100


def test_long_name_of_a_run_is_shortened():
    line = metrics.step_line("run" * 80, 22, ROW)
    assert line.startswith("runrunrunrunrunrunrun... 4/22: ") and len(line) <= 100
    assert "accuracy 0.77" in line and "equal groups 78%" in line
    assert metrics.step_line("a\nb", 22, ROW).startswith("a?b 4/22: ")


def test_step_without_an_update_says_so():
    line = metrics.step_line("r1", 22, without(ROW, "grad_norm"))
    assert line == FULL.replace(" helpful 3.03", "").replace(" 8 s", " no update 8 s")


@pytest.mark.parametrize("name", ["reward_with_a_long_name_" * 2, "很长的奖励名称" * 3, "x" * 95])
def test_custom_rewards_with_long_names_never_wrap_the_line(name):
    row = ROW | {f"rewards/{name}_{i}/mean": -12.345 for i in range(6)}
    line = metrics.step_line("r1", 22, row)
    assert width(line) <= 100 and "\n" not in line
    for part in ("accuracy 0.77", "length 69", "cut 1%", "equal groups 78%"):
        assert part in line
    assert line == FULL  # a name that has no place leaves it to less important parts


def test_wide_name_that_fits_in_characters_but_not_in_columns_is_left_out():
    row = without(ROW, "rewards/helpful/mean", "rewards/language/mean")
    names = {
        "很" * n: metrics.step_line("r1", 22, row | {f"rewards/{'很' * n}/mean": 0.5})
        for n in (10, 13, 20)
    }
    shown = [name in line for name, line in names.items()]
    assert shown == [True, True, False] and all(width(line) <= 100 for line in names.values())


def test_step_without_accuracy_shows_the_reward():
    line = metrics.step_line("r1", 22, without(ROW, "rewards/accuracy/mean"))
    assert line.startswith("r1 4/22: reward 0.90 format")
    assert list(metrics.curves([ROW])) == ["accuracy", "length"]
    curves = metrics.curves([without(ROW, "rewards/accuracy/mean")] * 2)
    assert curves == {"reward": ([0.9, 0.9], ".2f"), "length": ([68.6, 68.6], ".0f")}


# -- a run ------------------------------------------------------------------------------------------------------------


def test_output_that_is_no_terminal_is_plain_lines_and_ends_with_curves(tiny_grpo, capfd, tmp_path):
    tiny_grpo(steps=7, save_every=0)
    out, err = capfd.readouterr()
    assert err == "" and not re.search(
        r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f]", out.split("out 2/7")[1]
    )
    steps = [line for line in out.split("\n") if re.match(r"out \d/7: ", line)]
    assert len(steps) == 7 and all(width(line) <= 100 for line in steps)
    rows = jsonl(tmp_path / "out/metrics.jsonl")
    *_, accuracy, length, end, rest = out.split("\n")
    first, last = rows[0]["rewards/accuracy/mean"], rows[-1]["rewards/accuracy/mean"]
    assert re.fullmatch(rf"out: accuracy {first:.2f} [▁-█]{{7}} {last:.2f} \(.*\)", accuracy)
    assert re.fullmatch(r"out: length +\d+ [▁-█]{7} +\d+ \(lowest \d+, highest \d+\)", length)
    assert "next: python sample.py" in end and rest == ""


def test_curves_of_a_resumed_run_have_all_steps(tiny_grpo, capsys):
    with interrupt(metrics.StepLog, "print_step", 3):
        tiny_grpo(steps=4)
    tiny_grpo(steps=4)
    assert re.search(r"out: accuracy \d.\d\d [▁-█]{4} ", capsys.readouterr().out)


class RecordedBar:
    made = []

    def __init__(self, done, shown):
        self.calls = [(done, shown)]
        self.made.append(self.calls)

    def update(self, done, text):
        self.calls.append((round(done, 3), text))

    def close(self):
        self.calls.append("closed")


@pytest.mark.parametrize("progress", [True, False])
def test_bar_begins_where_the_run_resumes(tiny_grpo, monkeypatch, progress):
    monkeypatch.setattr(run_state, "ProgressBar", RecordedBar)
    monkeypatch.setattr(RecordedBar, "made", [])
    with interrupt(metrics.StepLog, "print_step", 3):
        tiny_grpo(steps=4, save_every=1, progress=progress)
    tiny_grpo(steps=4, save_every=1, progress=progress)
    first, resumed = RecordedBar.made
    assert first[:3] == [(0.0, progress), (0.0, "out 0/4"), (0.25, "out 1/4")]
    assert first[-1] == resumed[-1] == "closed"
    assert resumed[0] == (0.5, progress)
    assert resumed[1:] == [(0.5, "out 2/4"), (0.75, "out 3/4"), (1.0, "out 4/4"), "closed"]


def test_bar_of_a_run_with_a_budget_counts_completions(tiny_grpo, monkeypatch):
    monkeypatch.setattr(run_state, "ProgressBar", RecordedBar)
    monkeypatch.setattr(RecordedBar, "made", [])
    tiny_grpo(steps=9, sample_budget=40)  # 12 completions a step
    [calls] = RecordedBar.made
    assert [call[0] for call in calls[2:-1]] == [0.3, 0.6, 0.9, 1.0]
