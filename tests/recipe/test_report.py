"""The tables of a recipe with hard problems and general prompts, by hand."""

import json

import pytest

from r1mini.evaluation.figures import average
from r1mini.recipe import report

TITLES = {"base": "base", "dev3": "Dev3", "r1": "R1"}
ORDINARY, HARD, GENERAL = (
    ("countdown", "elements"),
    ("countdown-hard", "repair-long"),
    ("describe",),
)
TASKS = ORDINARY + HARD + GENERAL


def figures(value, error, length, task):
    own = {"pass@1": value, "pass@1_se": error, "pass@2": value, "cons@2": value}
    if task in GENERAL:
        own = {**dict.fromkeys(own), "utility": value, "utility_se": error}
    others = {"format": 0.5, "language": None if task == "elements" else 0.9, "length": length}
    rest = {"truncated": 0.0, "unparsed": 0.0, "entropy": 0.2, "problems": 4, "samples": 2}
    return {**own, **others, **rest}


def evaluation(values, tasks=TASKS):
    """Figures whose errors are 0.06 and 0.08 in turn, and lengths 10, 20, 100, 200, 300."""
    numbers = zip(tasks, values, (0.06, 0.08, 0.06, 0.08, 0.07), (10, 20, 100, 200, 300))
    sets = {task: figures(x, error, length, task) for task, x, error, length in numbers}
    return {**sets, "mean": average(list(sets.values()))}


def completions(utilities):
    """Two samples of two prompts, and a completion that a rule judges."""
    rows = [
        {
            "task": "describe",
            "prompt": f"Describe {'iron' if number < 2 else 'zinc'}.\n",
            "sample": number % 2,
            "completion": f"<answer>{utility}</answer>",
            "rewards": {"accuracy": None},
            "utility": utility,
        }
        for number, utility in enumerate(utilities)
    ]
    judged = {"task": "elements", "prompt": "Fe?\n", "sample": 0, "completion": "<answer>"}
    return "".join(
        json.dumps(row) + "\n" for row in [{**judged, "rewards": {"accuracy": 0.0}}, *rows]
    )


VALUES = {  # of each task
    "base": (0.2, 0.4, 0.1, 0.3, 0.5),
    "dev3": (0.6, 0.8, 0.2, 0.6, 0.4),
    "r1": (0.7, 0.9, 0.3, 0.7, 0.6),
}
UTILITIES = {  # of iron's two samples and zinc's
    "base": (0.0, 0.0, 0.0, 0.0),  # against Dev3: losses, and a tie of two
    "dev3": (0.5, 0.5, 0.0, 1.0),
    "r1": (1.0, 0.5, 0.0, 1.0),  # 3/4 and 1/2
}


def seed_folder(path, values=VALUES, utilities=UTILITIES):
    (path / "eval").mkdir(parents=True)
    for name in TITLES:
        (path / f"eval/{name}.json").write_text(json.dumps(evaluation(values[name])))
        (path / f"eval/{name}.jsonl").write_text(completions(utilities[name]))
    return path


def tables(folders, tasks=TASKS):
    """The lines above the stage table, it, and the table by task: {model: {column: cell}}."""
    results = report.read_results(folders, TITLES, tasks)
    head, *rest = report.stages_table(results, tasks, TITLES).split("\n\n")
    above = [part for part in (head, *rest) if not part.startswith(("|", "pass@1 by"))]
    parsed = []
    for part in rest:
        if part.startswith("|"):
            columns, _, *rows = [
                [cell.strip() for cell in line.strip("|").split("|")]
                for line in part.strip().split("\n")
            ]
            parsed.append({row[0]: dict(zip(columns[1:], row[1:])) for row in rows})
    return above, *parsed


def test_stage_table_of_one_seed(tmp_path):
    (_, covered), stages, by_task = tables([seed_folder(tmp_path)])
    assert covered.split("\n") == [
        "- pass@1, pass@2, cons@2, format, language, length: means over countdown, elements",
        "- hard: mean pass@1 of countdown-hard, repair-long",
        "- general: mean utility, 0 to 1, of describe",
        "- win rate: how often an answer to describe has a higher utility than Dev3's (½ for a tie)",
    ]
    # Errors: sqrt(0.06² + 0.08²) / 2 = 0.05. Win rates: 3/4 and 1/2, so 0.625 ± 0.125.
    assert stages["R1"] == {
        "pass@1": "0.80 ± 0.05",
        "hard": "0.50 ± 0.05",
        "general": "0.60 ± 0.07",
        "win rate": "0.62 ± 0.12",
        "pass@2": "0.80",
        "cons@2": "0.80",
        "format": "0.50",
        "language": "0.90",
        "length": "15",
        "seconds": "–",
    }
    # Two losses, and a tie and a loss: 0 and 1/4.
    assert [row["win rate"] for row in stages.values()] == ["0.12 ± 0.12", "–", "0.62 ± 0.12"]
    assert by_task["R1"] == {
        "countdown": "0.70 ± 0.06",
        "elements": "0.90 ± 0.08",
        "mean": "0.80 ± 0.05",
        "countdown-hard": "0.30 ± 0.06",
        "repair-long": "0.70 ± 0.08",
        "describe": "0.60 ± 0.07",
    }


def test_stage_table_of_several_seeds(tmp_path):
    """± is the standard deviation over seeds: of two, their difference over the root of two."""
    values = VALUES | {"r1": (0.9, 0.9, 0.5, 0.7, 0.8)}
    utilities = UTILITIES | {"r1": (1.0, 1.0, 0.5, 1.0)}  # 1 and 5/8
    seeds = [seed_folder(tmp_path / "0"), seed_folder(tmp_path / "1", values, utilities)]
    _, stages, by_task = tables(seeds)
    r1 = stages["R1"]
    assert r1["pass@1"] == "0.85 ± 0.07" and r1["hard"] == "0.55 ± 0.07"  # 0.1 / sqrt(2)
    assert r1["general"] == "0.70 ± 0.14" == by_task["R1"]["describe"]
    assert r1["win rate"] == "0.72 ± 0.13"  # 0.625 and 0.8125
    assert stages["Dev3"]["win rate"] == "–" and stages["base"]["win rate"] == "0.12 ± 0.00"
    assert by_task["R1"]["countdown"] == "0.80 ± 0.14"


def test_ordinary_tasks_alone_have_today_s_columns(tmp_path):
    above, stages, by_task = tables([seed_folder(tmp_path)], ORDINARY)
    [line] = above  # nothing to say about what a column covers
    assert "in 2 tasks, 2 samples each" in line
    averaged = ["pass@1", "pass@2", "cons@2", "format", "language", "length"]
    assert list(stages["R1"]) == [*averaged, "seconds"] and stages["R1"]["pass@1"] == "0.80 ± 0.05"
    assert list(by_task["R1"]) == [*ORDINARY, "mean"]


@pytest.mark.parametrize(
    "tasks, columns, listed",
    [
        (HARD, ["hard"], [*HARD]),
        (GENERAL, ["general", "win rate"], [*GENERAL]),
        (HARD[:1] + GENERAL, ["hard", "general", "win rate"], [HARD[0], *GENERAL]),
    ],
)
def test_columns_that_no_task_has_are_left_out(tmp_path, tasks, columns, listed):
    _, stages, by_task = tables([seed_folder(tmp_path)], tasks)
    assert list(stages["R1"]) == [*columns, "seconds"] and list(by_task["R1"]) == listed


def test_win_rates_are_kept_with_the_figures(tmp_path):
    results = report.read_results([seed_folder(tmp_path)], TITLES, TASKS)
    assert results["r1"][0]["win rate"] == {"win rate": 0.625, "win rate_se": 0.125}
    assert results["dev3"][0]["win rate"] == {"win rate": None, "win rate_se": None}
    results = report.read_results([tmp_path], TITLES, ORDINARY)
    assert "win rate" not in results["r1"][0]


def test_evaluations_of_other_prompts_are_named(tmp_path):
    folder = seed_folder(tmp_path)
    (folder / "eval/dev3.jsonl").write_text(completions(UTILITIES["dev3"][:2]))
    with pytest.raises(ValueError, match=r"eval/base.jsonl, .*dev3.jsonl: only one .*zinc"):
        report.read_results([folder], TITLES, TASKS)


def test_examples_show_the_utility_of_a_general_answer(tmp_path):
    text = report.examples(TITLES, seed_folder(tmp_path))
    assert "## elements\n\n```\nFe?\n```\n\nbase (wrong):" in text
    assert "## describe\n\n```\nDescribe iron.\n```\n\nbase (utility 0.00):" in text
    assert "R1 (utility 1.00):\n\n```\n<answer>1.0</answer>\n```\n" in text
