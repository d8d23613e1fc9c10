"""The study guide: its tables are what `python -m r1mini.rl.example` prints, its excerpts the
source."""

import re
from pathlib import Path

import pytest
from update_docs import EXCERPT, LESSONS, with_line_numbers

from r1mini.rl import example

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "r1mini/docs/guide.md"
DECIMAL = re.compile(r"-?\d+\.\d+")


@pytest.fixture(scope="module")
def one_step():
    cfg = example.Config()
    return example.one_step(cfg.seed, cfg.task)


def tables(page):
    """The tables of a page, each as a text."""
    return re.findall(r"^\|.*(?:\n\|.*)*", page, re.MULTILINE)


def same_but_for_the_last_digit(shown, computed):
    """Another CPU may round the last digit that is shown the other way."""
    if DECIMAL.sub("#", shown) != DECIMAL.sub("#", computed):
        return False
    for a, b in zip(DECIMAL.findall(shown), DECIMAL.findall(computed)):
        one_unit = 10.0 ** -len(a.partition(".")[2])
        if abs(float(a) - float(b)) > 1.01 * one_unit:
            return False
    return True


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_tables_of_the_lessons_are_what_the_command_prints(path, one_step):
    number = int(path.stem.partition("_")[0])
    title, lesson = list(example.LESSONS.items())[number - 1]
    page = path.read_text(encoding="utf-8")
    assert page.startswith(f"# {number}. {title}\n")
    shown, computed = tables(page), lesson(one_step)
    assert len(shown) == len(computed)
    for a, b in zip(shown, computed):
        assert same_but_for_the_last_digit(a, b), f"{a}\n\nis now\n\n{b}"


def test_a_wrong_digit_is_noticed():
    assert same_but_for_the_last_digit("| -0.500 | 3.5 |", "| -0.501 | 3.5 |")
    assert not same_but_for_the_last_digit("| -0.500 |", "| -0.502 |")
    assert not same_but_for_the_last_digit("| -0.500 |", "| 0.500 |")
    assert not same_but_for_the_last_digit("| 25 |", "| 26 |")


def test_the_group_has_right_and_wrong_completions(one_step):
    accuracy = {scores["accuracy"] for scores in one_step.group.scores}
    assert accuracy == {0.0, 1.0}
    assert example.Config().seed == 0  # the first seed


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_an_excerpt_of_the_source_and_questions(path):
    page = path.read_text(encoding="utf-8")
    assert page.count("```python") == len(EXCERPT.findall(page)) == 1
    assert with_line_numbers(page, path) == page, "run python tests/update_docs.py"
    assert 2 <= page.count("<details>") == page.count("</details>") <= 3


def test_index_lists_the_lessons_in_order():
    listed = re.findall(r"\]\((guide/\d_\w+\.md)\)", GUIDE.read_text(encoding="utf-8"))
    assert listed == [f"guide/{path.name}" for path in LESSONS]


def test_command_works_for_other_tasks_and_refuses_equal_rewards(capsys):
    example.main(example.Config(task="elements", lesson=3))  # language does not apply
    assert "| – |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--seed 1: all rewards are equal"):
        example.main(example.Config(task="elements", seed=1))


def test_command_prints_one_lesson(capsys):
    example.main(example.Config(lesson=4))
    out = capsys.readouterr().out
    assert out.startswith("4. Groups and advantages\n") and len(tables(out)) == 1
