"""A sample of each format, read for RL up to its reward, and for SFT."""

import re

import pytest

from r1mini.data.files import read_rows
from r1mini.data.formats import FORMATS, detect, to_messages
from r1mini.data.problems import read_problems
from r1mini.data.sft import sft_rows
from r1mini.rewards import completion

from .samples import THINK, judged, sample, with_sandbox, write

# file: (its format, a correct answer to each problem, which rewards judge it)
SAMPLE_FORMATS = {
    "countdown": ("Countdown-Tasks-3to4", ["3*5+9", "44+19+35", "1+2+3+4"], "accuracy"),
    "open_r1_code": ("open-r1 code", ["```python\nprint(input()[::-1])\n```"], "code"),
    "humaneval": ("HumanEval", ["```python\ndef double(n):\n    return n + n\n```"], "code"),
    "mbpp": ("MBPP", ["```python\nlarger = max\n```"], "code"),
    "apps": ("APPS", ["```python\na, b = map(int, input().split())\nprint(a * b)\n```"], "code"),
    "trl_prompt_completion": ("TRL prompt-completion", ["5", "4"], "accuracy"),
    "ultrachat": ("UltraChat", ["5"], "accuracy"),
    "trl_prompt_only": ("TRL prompt-only", ["42", "4.5"], "accuracy"),
    "openr1_math": ("OpenR1-Math-220k", ["7", "9"], "accuracy"),
    "numinamath": ("NuminaMath", ["9", "12"], "accuracy"),
    "math500": ("MATH-500", ["32", r"2\sqrt3"], "accuracy"),
    "math": ("MATH", ["0.75", r"2, -2"], "accuracy"),
    "gsm8k": ("GSM8K", ["1200", "3"], "accuracy"),
    "bespoke_stratos": ("Bespoke-Stratos", ["25", "11"], "accuracy"),
    "sharegpt": ("ShareGPT", ["8", "12"], "accuracy"),
    "trl_messages": ("TRL messages", ["3", "2"], "accuracy"),
    "gpqa": ("GPQA", ["C", "C"], "accuracy"),
    "guessed": ("columns question, ground_truth", ["64", "25"], "accuracy"),
}
WITHOUT_REPLY = ("countdown", "trl_prompt_only")
every_sample = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=with_sandbox) if judge == "code" else name
        for name, (_, _, judge) in SAMPLE_FORMATS.items()
    ],
)


def test_every_format_has_a_sample():
    assert {known.name for known in FORMATS} <= {name for name, _, _ in SAMPLE_FORMATS.values()}


@every_sample
def test_format_is_detected_by_its_columns_and_read_through_to_a_reward(name, capsys):
    name_of_format, correct, judge = SAMPLE_FORMATS[name]
    problems = read_problems(str(sample(name)))
    assert f"{name_of_format}, {len(correct)} rows\n" in capsys.readouterr().out
    for (_, row), problem, answer in zip(read_rows(sample(name)), problems, correct, strict=True):
        assert problem.columns.keys() >= row.keys()
        final = (
            answer
            if judge == "code"
            else f"<answer>{answer}</answer>"
            if name == "countdown"
            else rf"\boxed{{{answer}}}"
        )
        assert judged(problem, THINK + final, judge) == 1
        assert judged(problem, THINK + "```python\nprint(0)\n```\n" + r"\boxed{77}", judge) == 0


@every_sample
def test_format_is_read_for_sft_and_its_target_is_correct(name):
    name_of_format, correct, judge = SAMPLE_FORMATS[name]
    if name in WITHOUT_REPLY:
        with pytest.raises(ValueError, match=f"{name}.jsonl:1: no text in column 'completion'"):
            sft_rows(sample(name))
        return
    rows = sft_rows(sample(name))
    separator = ": row " if sample(name).suffix == ".csv" else ":"
    assert list(rows) == [
        f"{sample(name)}{separator}{number}" for number in range(1, len(correct) + 1)
    ]
    for row, problem in zip(rows.values(), read_problems(str(sample(name)))):
        reply = to_messages(row)[-1]
        boxed = rf"\boxed{{{reply['content']}}}" if name == "guessed" else reply["content"]
        assert reply["role"] == "assistant" and judged(problem, boxed, judge) == 1


def test_gsm8k_calculator_marks_and_commas_are_removed():
    [first, _] = read_problems(str(sample("gsm8k")))
    assert first.columns["answer"] == "1200" and "<<600*2=1200>>" in first.columns["solution"]
    question, reply = to_messages(next(iter(sft_rows(sample("gsm8k")).values())))
    assert reply["content"] == "It grinds 600*2=1200 sacks.\n\\boxed{1200}"


def test_verified_complete_generation_is_selected():
    first, second = (
        to_messages(row)[-1]["content"] for row in sft_rows(sample("openr1_math")).values()
    )
    assert (
        "3+4=7" in first and "Nine" in second
    )  # the second was verified by Llama, because Math-Verify verified none
    row = {
        "problem": "p",
        "generations": ["g"],
        "is_reasoning_complete": [False],
        "correctness_math_verify": [True],
    }
    assert "completion" not in detect([row]).read(row)


def test_thinking_markers_become_tags():
    row = list(sft_rows(sample("bespoke_stratos")).values())[0]
    system, question, reply = (turn["content"] for turn in row["messages"])
    assert (
        reply
        == "<think>\n\nFive fives.\n\nThat makes 25.\n\n</think>\n\nThe product is \\boxed{25}."
    )
    assert "<think> {steps} </think>" in system and "<|" not in system + question


def test_countdown_rows_use_their_own_numbers():
    first = read_problems(str(sample("countdown")))[0]
    assert first.prompt.startswith(
        "Using the numbers [3, 5, 9], create an equation that equals 24. You can use basic"
    )
    assert first.task == "countdown"
    for answer, right in (("3*(9/3+5)", 0), ("24", 0), ("3*5+9", 1), ("(3 * 5) + 9", 1)):
        assert judged(first, f"{THINK}<answer>{answer}</answer>", "accuracy") == right


def test_reply_is_the_gold_answer_if_there_is_no_other():
    second = read_problems(str(sample("trl_prompt_completion")))[1]
    assert completion.gold_answer(second) == "4" and second.prompt == "What is 7 minus 3?\n"
    first = read_problems(str(sample("trl_messages")))[0]
    assert first.prompt == "Name a square.\nNine.<|endoftext|>Its root?\n"


def test_columns_can_be_chosen_by_flag(tmp_path):
    rows = [{"ask": "2+2?", "gold": 4, "question": "no", "answer": "no"}]
    [problem] = read_problems(str(write(tmp_path, *rows)), prompt_key="ask", answer_key="gold")
    assert (
        problem.prompt == "2+2?\n"
        and completion.gold_answer(problem) == "4"
        and problem.columns["answer"] == 4
    )
    [row] = sft_rows(write(tmp_path, *rows), prompt_key="ask", answer_key="gold").values()
    assert [turn["content"] for turn in to_messages(row)] == ["2+2?", "4"]
    with pytest.raises(
        ValueError,
        match="rows.jsonl:1: --prompt-key q: no such column in ask, gold, question, answer",
    ):
        read_problems(str(write(tmp_path, *rows)), prompt_key="q")


def test_gold_answer_of_a_chosen_solution_column_is_its_box(tmp_path):
    row = {"problem": "p", "answer": "7", "solution": r"so \boxed{3}"}
    [problem] = read_problems(str(write(tmp_path, row)), answer_key="solution")
    assert completion.gold_answer(problem) == "3"


def test_unknown_columns_are_reported_with_the_known_layouts(tmp_path):
    with pytest.raises(ValueError) as error:
        read_problems(str(write(tmp_path, {"input": "1+1", "output": "2"})))
    assert all(
        part in str(error.value)
        for part in (
            "rows.jsonl:1: unknown columns: input, output;",
            "--prompt-key",
            "--answer-key",
            "GSM8K (question, answer)",
            "TRL text (text)",
        )
    )


@pytest.mark.parametrize(
    "row, complaint",
    [
        ({"question": "q", "answer": "5"}, "no answer after '####' in '5'"),
        ({"question": "q", "answer": "#### "}, "no answer after '####'"),
        ({"question": 5, "answer": "#### 5"}, "no text in column 'question', found 5"),
        ({"answer": "#### 5"}, "no text in column 'question'"),
        ({"question": "\ud800", "answer": "#### 5"}, "not valid Unicode"),
    ],
)
def test_bad_row_is_reported_with_line_column_and_value(tmp_path, row, complaint):
    path = write(tmp_path, {"question": "1+1?", "answer": "#### 2"}, row)
    for use in (sft_rows, lambda path: read_problems(str(path))):
        with pytest.raises(
            ValueError, match="^" + re.escape(f"{path}:2: ") + ".*" + re.escape(complaint)
        ):
            use(path)


def test_bad_first_rows_do_not_prevent_format_detection(tmp_path, capsys):
    path = write(
        tmp_path,
        {"question": "1+1?", "answer": None},
        {"question": "1+2?", "answer": "3"},
        {"question": "2+2?", "answer": "2+2\n#### 4"},
    )
    assert [p.columns["answer"] for p in read_problems(str(path), skip_bad=True)] == ["4"]
    assert "GSM8K, 1 rows; 2 skipped" in capsys.readouterr().out
