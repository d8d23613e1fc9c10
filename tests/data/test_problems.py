import json
import re

import pytest
from conftest import score

from r1mini import rewards
from r1mini.checkpoint.chat_template import ChatTemplate
from r1mini.data.files import read_rows
from r1mini.data.problems import problem_at, read_problems
from r1mini.records import Rollout
from r1mini.rewards import completion
from r1mini.rewards.runner import score_async

from .samples import sample, with_sandbox, write

ROWS = [
    {"prompt": "1+1?", "answer": "2", "id": "first", "language": "en"},
    {"prompt": "1/3?", "solution": r"So \boxed{\frac13}."},
    {"prompt": "Print 7.", "tests": [{"stdin": "", "stdout": "7"}]},
]


def test_problems_keep_all_columns_of_their_rows(tmp_path):
    problems = read_problems(str(write(tmp_path, *ROWS)))
    assert [p.prompt for p in problems] == [row["prompt"] for row in ROWS]
    assert [p.columns for p in problems] == ROWS
    assert [p.key for p in problems] == ["first", "row 2", "row 3"]
    assert [p.language for p in problems] == ["en", "", ""]
    correct = [
        "<think>a</think>\\boxed{2}",
        "<think>a</think><answer>1/3</answer>",
        "<think>a</think>```\nprint(7)\n```",
    ]
    for problem, text in zip(problems, correct):
        [good, bad] = score(
            problem,
            [Rollout((), (), (), t, True) for t in (text, "<think>a</think>\\boxed{5}")],
            ("accuracy", "code"),
        )
        assert 1.0 in good.values() and 0.0 in bad.values() and None in good.values()


def test_file_rows_named_like_a_task_do_not_use_its_checker(tmp_path):
    row = {"prompt": "p", "answer": "2", "task": "countdown"}
    [problem] = read_problems(str(write(tmp_path, row, name="countdown.jsonl")))
    assert completion.gold_answer(problem) == "2"


def test_code_dataset_is_recognised(tmp_path, capsys):
    row = {
        "text": "Write a function to square.",
        "code": "def square(x):\n return x * x",
        "task_id": 7,
        "test_list": ["assert square(2) == 4", "assert square(3) == 9"],
    }
    [problem] = read_problems(str(write(tmp_path, row, name="mbpp.jsonl")))
    assert problem.columns["tests"] == [
        {"call": "square", "args": [2], "equals": 4},
        {"call": "square", "args": [3], "equals": 9},
    ]
    assert problem.key == "7" and "1 of 1 rows kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    "row, complaint",
    [
        ({"answer": "2"}, "no text in column 'prompt'"),
        ({"prompt": " ", "answer": "2"}, "no text in column 'prompt'"),
        ([1], "a row must be an object with columns, not [1]"),
        ({"prompt": "p"}, "answers cannot be checked: no column"),
        ({"prompt": "p", "answer": "9" * 5000}, "gold answer '999"),
        ({"prompt": "p", "answer": r"\frac{1}{"}, "gold answer"),
        ({"prompt": "p", "tests": []}, "no tests"),
        ({"prompt": "p", "tests": [{"stdin": "1"}]}, "test 0: it needs"),
        ({"prompt": "p", "tests": 3}, "no tests"),
        ("{", "not valid JSON"),
    ],
)
def test_bad_row_is_reported_with_its_line(tmp_path, row, complaint):
    path = write(tmp_path, ROWS[0], row)
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: ") + ".*" + re.escape(complaint)):
        read_problems(str(path))


def test_empty_and_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        read_problems(str(write(tmp_path)))
    with pytest.raises(ValueError, match="no such file"):
        read_problems(str(tmp_path / "absent.jsonl"))


def test_every_problem_is_drawn_once_per_epoch(tmp_path):
    problems = read_problems(str(write(tmp_path, *ROWS)))
    order = [[problem_at(problems, 0, 3 * epoch + n).key for n in range(3)] for epoch in range(6)]
    assert all(sorted(keys) == ["first", "row 2", "row 3"] for keys in order)
    assert len(set(map(tuple, order))) > 1
    assert order != [
        [problem_at(problems, 1, 3 * epoch + n).key for n in range(3)] for epoch in range(6)
    ]


def test_prompts_are_rendered_and_rewards_get_the_messages(tmp_path):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = write(
        tmp_path, {"prompt": messages, "answer": 2}, {"prompt": "1+2?<think>", "answer": 3}
    )
    chat_template = ChatTemplate(
        "x",
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant><think>",
        {},
    )
    problems = read_problems(str(path), chat_template)
    assert [p.prompt for p in problems] == [
        "<system>Be brief.<user>1+1?<assistant><think>",
        "1+2?<think>",
    ]
    seen = []

    def record(prompts, completions, **columns):
        seen.append((prompts[0], completions[0][0]["content"]))
        return [1.0] * len(completions)

    for problem in problems:
        rollouts = [Rollout((), (), (), r"a</think>\boxed{2}", True)] * 2
        [scores, _] = score_async(
            problem, rollouts, {"accuracy": rewards.accuracy, "record": record}
        ).result()
        accuracy = float(problem.columns["answer"] == 2)  # the prompt opened the thinking
        assert scores == {"accuracy": accuracy, "record": 1.0}
    assert seen[0] == (messages, r"a</think>\boxed{2}") and str(seen[1][0]) == problems[1].prompt


def test_additional_check_is_applied_to_each_row(tmp_path):
    def short(problem):
        if len(problem.prompt) > 5:
            raise ValueError(f"too long: {problem.prompt}")

    path = write(tmp_path, {"prompt": "1+1?", "answer": 2}, {"prompt": "10+10?", "answer": 20})
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: too long: 10+10?")):
        read_problems(str(path), check=short)
    assert len(read_problems(str(path), check=short, skip_bad=True)) == 1


def test_messages_with_tests_are_a_code_problem(tmp_path):
    row = {"question": "Print 7.", "tests": [{"stdin": "", "stdout": "7"}]}
    [problem] = read_problems(str(write(tmp_path, row)))
    assert problem.prompt == "Print 7.\n" and problem.columns == row


@pytest.mark.parametrize(
    "row, complaint",
    [
        (
            {"nums": [1, "2"], "target": 3},
            "column 'nums': must be one to six integers from 0 to 99, not [1, '2']",
        ),
        ({"nums": [1, 2, 3, 4, 5, 6, 7], "target": 3}, "column 'nums'"),
        ({"nums": [100], "target": 3}, "column 'nums'"),
        ({"nums": [1, 2], "target": "3"}, "column 'target': must be an integer, not '3'"),
        (
            {"conversations": [{"from": "tool", "value": "x"}]},
            "column 'conversations', message 1: role 'tool' is not system, user or",
        ),
        (
            {"conversations": [{"from": "human", "value": ""}]},
            "message 1: no text in column 'content', found ''",
        ),
        ({"conversations": None}, "not a ShareGPT row (TypeError"),
        ({"messages": [3]}, "not a TRL messages row"),
        (
            {"problem": "p", "solution": "s", "source": "x", "answer": "proof"},
            "gold answer 'proof': no answer",
        ),
        (
            {"prompt": "p", "answer": [1, 2]},
            "column 'answer': must be text or a number, not [1, 2]",
        ),
        ({"prompt": "p", "answer": float("nan")}, "not valid JSON (NaN is not a finite number)"),
        (
            {"problem": "p", "solution": "no box", "level": 1, "type": "x"},
            "answers cannot be checked: no column",
        ),
    ],
)
def test_row_without_a_problem_is_reported_with_its_line(tmp_path, row, complaint):
    with pytest.raises(
        ValueError,
        match="^" + re.escape(f"{write(tmp_path, row)}:1: ") + ".*" + re.escape(complaint),
    ):
        read_problems(str(write(tmp_path, row)))


def test_skipped_rows_are_counted_with_their_reasons(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    good = [json.dumps({"prompt": f"{n}+1?", "answer": n + 1}).encode() for n in range(3)]
    path.write_bytes(
        b"\n".join([b"{", good[0], b"\xff", good[1], b'{"prompt": " "}', good[0], b"[]", good[2]])
    )
    assert [p.prompt for p in read_problems(str(path), skip_bad=True)] == ["0+1?", "1+1?", "2+1?"]
    out = capsys.readouterr().out
    assert (
        f"TRL prompt-only, 3 rows; 5 skipped by --skip-bad ({path}:1: not valid JSON" in out
        and "; …)\n" in out
    )
    reasons = (
        f"{path}:3: not UTF-8 (invalid start byte: byte 0xff); "
        f"{path}:5: no text in column 'prompt', found ' '"
    )
    assert reasons in out
    with pytest.raises(ValueError, match="no rows; 1 skipped by --skip-bad"):
        read_problems(str(write(tmp_path, "{")), skip_bad=True)


@with_sandbox
def test_skipped_rows_of_code_are_counted_too(tmp_path, capsys):
    [(_, row)] = read_rows(sample("mbpp"))
    path = write(tmp_path, {**row, "test_list": 3}, row, row)
    assert len(read_problems(str(path), skip_bad=True)) == 1
    out = capsys.readouterr().out
    assert "2 skipped by --skip-bad" in out and f"{path}:1: column 'test_list'" in out
    assert f"{path}:3: same prompt as {path}:2" in out


def test_duplicate_prompt_is_refused(tmp_path):
    path = write(tmp_path, {"prompt": "1+1?", "answer": "2"}, {"prompt": "1+1?", "answer": "3"})
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: same prompt as {path}:1: '1+1?'")):
        read_problems(str(path))


@with_sandbox
def test_time_limits_of_taco(tmp_path):
    [row] = [json.loads(line) for line in sample("apps").read_text().split("\n")[:1]]
    for limit, seconds in ((None, 2.0), ("3.5 seconds", 3.5)):
        [problem] = read_problems(str(write(tmp_path, {**row, "time_limit": limit})))
        assert problem.columns["time_limit"] == seconds
