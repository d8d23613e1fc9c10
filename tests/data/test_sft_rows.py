import pytest

from r1mini.data.files import read_rows
from r1mini.data.problems import read_problems
from r1mini.data.sft import sft_rows
from r1mini.rewards import completion

from .samples import sample, write


def test_plain_text_rows_are_for_sft_only():
    assert list(sft_rows(sample("trl_text")).values()) == [
        row for _, row in read_rows(sample("trl_text"))
    ]
    with pytest.raises(ValueError, match="trl_text.jsonl:1: text without a question"):
        read_problems(str(sample("trl_text")))


def test_row_without_a_verified_generation_is_for_rl_only(tmp_path):
    row = {
        "problem": "1+0?",
        "answer": "1",
        "generations": ["g"],
        "is_reasoning_complete": [True],
        "correctness_math_verify": [False],
    }
    with pytest.raises(
        ValueError, match="rows.jsonl:1: no generation that is complete and verified"
    ):
        sft_rows(write(tmp_path, row))
    assert len(read_problems(str(write(tmp_path, row)))) == 1


def test_duplicate_rows_are_kept_and_counted(tmp_path, capsys):
    row = {"prompt": "a", "completion": "b"}
    path = write(tmp_path, row, {"prompt": "a", "completion": "c"}, row)
    assert len(sft_rows(path)) == 3
    assert f"1 duplicate rows, the first at {path}:3" in capsys.readouterr().out
    assert len(sft_rows(path, skip_bad=True)) == 2
    assert f"1 skipped by --skip-bad ({path}:3: duplicate of {path}:1)" in capsys.readouterr().out


def test_proofs_are_for_sft_only(tmp_path):
    path = write(
        tmp_path, {"problem": "Prove it.", "solution": "So.", "answer": "proof", "source": "x"}
    )
    assert len(sft_rows(path)) == 1
    with pytest.raises(ValueError, match=":1: column 'answer': 'proof' cannot be checked"):
        read_problems(str(path))


@pytest.mark.parametrize(
    "row, names",
    [
        (
            {"problem": "1+1?", "solution": 42, "level": 1, "type": "x"},
            "the reply must be text, not 42",
        ),
        ({"question": "1+1?", "answer": ["2", "3"]}, "column 'answer': must be text or a number"),
        (
            {
                "Question": "q",
                "Correct Answer": "1",
                "Incorrect Answer 1": "1 ",
                "Incorrect Answer 2": "2",
                "Incorrect Answer 3": "3",
            },
            "two choices are the same",
        ),
    ],
)
def test_reply_that_is_not_text_is_refused(tmp_path, row, names):
    with pytest.raises(ValueError, match=f":1: .*{names}"):
        sft_rows(write(tmp_path, row))


def test_sft_learns_the_solution_while_rl_compares_the_answer(tmp_path):
    path = write(
        tmp_path, {"problem": "1+1?", "solution": "One and one: \\boxed{2}.", "answer": "2"}
    )
    [row] = sft_rows(path).values()
    assert (
        row["completion"][0]["content"].startswith("One and one")
        and completion.gold_answer(read_problems(str(path))[0]) == "2"
    )
