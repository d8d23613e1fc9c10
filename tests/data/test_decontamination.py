import pytest

from r1mini.data.problems import read_problems
from r1mini.data.rows import ngrams, read_eval_ngrams
from r1mini.data.sft import sft_rows

from .samples import sample, write

TEN = "one two three four five six seven eight nine ten"


def test_row_that_shares_ten_words_with_an_evaluation_prompt_is_removed(tmp_path, capsys):
    rows = [
        {"prompt": f"Zero, {TEN}!", "answer": 1},
        {"prompt": "0 " + TEN.replace("six", "6"), "answer": 1},
        {"prompt": TEN.rpartition(" ")[0], "answer": 1},
        {"prompt": "Short one?", "answer": 1},
        {"prompt": "short", "answer": 1},
    ]
    evaluated = write(
        tmp_path,
        {"question": TEN.title() + " eleven.", "answer": "#### 4"},
        {"question": "Short: One", "answer": "#### 1"},
        name="eval.jsonl",
    )
    problems = read_problems(str(write(tmp_path, *rows)), decontaminate=(str(evaluated),))
    assert [p.prompt for p in problems] == [rows[1]["prompt"], rows[2]["prompt"], "short"]
    assert "3 rows; 2 removed by --decontaminate (ten consecutive words)" in capsys.readouterr().out


def test_replies_are_decontaminated_too_but_system_prompts_are_not(tmp_path):
    turns = [
        {"role": "system", "content": TEN},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": f"{TEN}"},
    ]
    path = write(
        tmp_path,
        {"messages": turns},
        {"messages": [*turns[:2], {"role": "assistant", "content": "r"}]},
    )
    evaluated = write(tmp_path, {"prompt": TEN}, name="eval.jsonl")
    assert list(sft_rows(path, decontaminate=[str(evaluated)])) == [f"{path}:2"]
    assert not read_eval_ngrams([str(path)]) & ngrams(TEN)


def test_countdown_is_decontaminated_by_its_numbers(tmp_path):
    evaluated = write(tmp_path, {"nums": [35, 44, 19], "target": 98}, name="eval.jsonl")
    problems = read_problems(str(sample("countdown")), decontaminate=(str(evaluated),))
    assert [p.columns["target"] for p in problems] == [24, 10]


def test_dropping_every_row_is_an_error_with_the_reason(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"gsm8k.jsonl: no rows; 2 removed by --decontaminate \(ten consecutive words\)",
    ):
        read_problems(str(sample("gsm8k")), decontaminate=(str(sample("gsm8k")),))


def test_chinese_characters_count_as_words():
    assert ngrams("一二三四五六七八九十百") == {
        "一 二 三 四 五 六 七 八 九 十",
        "二 三 四 五 六 七 八 九 十 百",
    }


def test_short_reply_is_not_compared_with_questions(tmp_path):
    evaluated = write(
        tmp_path, {"prompt": "Yes"}, {"other": 1, "question": "No format?"}, name="eval.jsonl"
    )
    kept = sft_rows(
        write(tmp_path, {"prompt": "Is it so?", "completion": "Yes"}),
        decontaminate=[str(evaluated)],
    )
    assert len(kept) == 1
    with pytest.raises(ValueError, match="--decontaminate .*:1: no question in columns prompt"):
        read_eval_ngrams([str(write(tmp_path, {"q": 1}, name="e.jsonl"))])


def test_equal_choices_of_other_questions_are_no_contamination(tmp_path):
    choices = ["True, True", "False, False", "True, False", "False, True"]
    rows = [
        {
            "question": f"Statement 1: {a} is even. Statement 2: {b}.",
            "choices": choices,
            "answer": 1,
        }
        for a, b in (("every square", "7 is prime"), ("no cube", "pi is real"))
    ]
    evaluated = write(tmp_path, rows[0], name="eval.jsonl")
    problems = read_problems(str(write(tmp_path, *rows)), decontaminate=(str(evaluated),))
    assert [problem.columns["question"] for problem in problems] == [rows[1]["question"]]
    short = [
        {"question": "Which?", "choices": [f"{a} {n}" for n in range(4)], "answer": 0}
        for a in ("apple", "pear")
    ]
    evaluated = write(tmp_path, short[0], name="eval.jsonl")
    problems = read_problems(str(write(tmp_path, *short)), decontaminate=(str(evaluated),))
    assert len(problems) == 1 and "pear 0" in problems[0].prompt
