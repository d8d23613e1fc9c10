import json
import re

import pytest

from r1mini import rewards, score
from r1mini.problems import pick, read_problems
from r1mini.records import Rollout
from r1mini.template import Template

ROWS = [{"prompt": "1+1?", "answer": "2", "id": "first", "language": "en"}, {"prompt": "1/3?", "solution": r"So \boxed{\frac13}."},
        {"prompt": "Print 7.", "tests": [{"stdin": "", "stdout": "7"}]}]


def write(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_become_problems_whose_columns_are_all_there(tmp_path):
    problems = read_problems(write(tmp_path, *ROWS))
    assert [p.prompt for p in problems] == [row["prompt"] for row in ROWS] and [p.columns for p in problems] == ROWS
    assert [p.key for p in problems] == ["first", "row 2", "row 3"] and [p.language for p in problems] == ["en", "", ""]
    right = ["<think>a</think>\\boxed{2}", "<think>a</think><answer>1/3</answer>", "<think>a</think>```\nprint(7)\n```"]
    for problem, text in zip(problems, right):
        [good, bad] = score.score(problem, [Rollout((), (), (), t, True) for t in (text, "<think>a</think>\\boxed{5}")],
                                  ("accuracy", "code"))
        assert 1.0 in good.values() and 0.0 in bad.values() and None in good.values()


def test_name_of_an_embedded_task_gives_no_row_its_checker(tmp_path):
    [problem] = read_problems(write(tmp_path, {"prompt": "p", "answer": "2", "task": "countdown"}, name="countdown.jsonl"))
    assert rewards.gold(problem) == "2"


def test_code_data_is_read_as_such(tmp_path, capsys):
    row = {"text": "Write a function to square.", "code": "def square(x):\n return x * x", "task_id": 7,
           "test_list": ["assert square(2) == 4", "assert square(3) == 9"]}
    [problem] = read_problems(write(tmp_path, row, name="mbpp.jsonl"))
    assert problem.columns["tests"] == [{"call": "square", "args": [2], "expect": 4},
                                        {"call": "square", "args": [3], "expect": 9}]
    assert problem.key == "7" and "1 of 1 rows kept" in capsys.readouterr().out


@pytest.mark.parametrize("row, complaint", [
    ({"answer": "2"}, "no text in column 'prompt'"), ({"prompt": " ", "answer": "2"}, "no text in column 'prompt'"),
    ([1], "no text in columns, but [1]"), ({"prompt": "p"}, "nothing to judge an answer by"),
    ({"prompt": "p", "answer": "9" * 5000}, "gold answer '999"), ({"prompt": "p", "answer": r"\frac{1}{"}, "gold answer"),
    ({"prompt": "p", "tests": []}, "no tests"), ({"prompt": "p", "tests": [{"stdin": "1"}]}, "test 0: it needs"),
    ({"prompt": "p", "tests": 3}, "no tests"), ("{", "not valid JSON"),
])
def test_bad_row_is_named_with_its_line(tmp_path, row, complaint):
    path = write(tmp_path, ROWS[0], row)
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(complaint)):
        read_problems(path)


def test_empty_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        read_problems(write(tmp_path))
    with pytest.raises(ValueError, match="no such file"):
        read_problems(str(tmp_path / "absent.jsonl"))


def test_every_problem_comes_once_before_any_comes_again(tmp_path):
    problems = read_problems(write(tmp_path, *ROWS))
    order = [[pick(problems, 0, 3 * epoch + n).key for n in range(3)] for epoch in range(6)]
    assert all(sorted(keys) == ["first", "row 2", "row 3"] for keys in order) and len(set(map(tuple, order))) > 1
    assert order != [[pick(problems, 1, 3 * epoch + n).key for n in range(3)] for epoch in range(6)]


def test_prompts_are_rendered_and_rewards_get_the_messages(tmp_path):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = write(tmp_path, {"prompt": asked, "answer": 2}, {"prompt": "1+2?<think>", "answer": 3})
    form = Template("x", "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant><think>", {})
    problems = read_problems(path, form)
    assert [p.prompt for p in problems] == ["<system>Be brief.<user>1+1?<assistant><think>", "1+2?<think>"]
    seen = []

    def mine(prompts, completions, **columns):
        seen.append((prompts[0], completions[0][0]["content"]))
        return [1.0] * len(completions)

    for problem in problems:
        rollouts = [Rollout((), (), (), r"a</think>\boxed{2}", True)] * 2
        [found, _] = score.begin(problem, rollouts, {"accuracy": rewards.accuracy, "mine": mine})()
        assert found == {"accuracy": float(problem.columns["answer"] == 2), "mine": 1.0}  # the prompt opened the thinking
    assert seen[0] == (asked, r"a</think>\boxed{2}") and str(seen[1][0]) == problems[1].prompt


def test_another_check_refuses_more(tmp_path):
    def short(problem):
        if len(problem.prompt) > 5:
            raise ValueError(f"too long: {problem.prompt}")

    path = write(tmp_path, {"prompt": "1+1?", "answer": 2}, {"prompt": "10+10?", "answer": 20})
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: too long: 10+10?")):
        read_problems(path, check=short)
    assert len(read_problems(path, check=short, skip_bad=True)) == 1


def test_row_with_messages_and_tests_is_a_program(tmp_path):
    row = {"question": "Print 7.", "tests": [{"stdin": "", "stdout": "7"}]}
    [problem] = read_problems(write(tmp_path, row))
    assert problem.prompt == "Print 7.\n" and problem.columns == row
