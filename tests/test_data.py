"""Files of rows: every layout from a sample in tests/data (by hand, in the layout's columns) through to a reward and to SFT."""

import gzip
import json
import platform
import re
import sys
import types
from pathlib import Path

import pytest

from r1mini import rewards, sandbox_child, score
from r1mini.data import Bad, entries, evaluation_ngrams, learnable, ngrams
from r1mini.formats import FORMATS, conversation, detect
from r1mini.problems import read_problems
from r1mini.records import Rollout

SAMPLES = Path(__file__).parent / "data"
THINK = "<think>a</think>"
# file: (its format, a right answer to each problem, which rewards judge it)
LAYOUTS = {
    "countdown": ("Countdown-Tasks-3to4", ["3*5+9", "44+19+35", "1+2+3+4"], "accuracy"),
    "open_r1_code": ("open-r1 code", ["```python\nprint(input()[::-1])\n```"], "code"),
    "humaneval": ("HumanEval", ["```python\ndef double(n):\n    return n + n\n```"], "code"),
    "mbpp": ("MBPP", ["```python\nlarger = max\n```"], "code"),
    "apps": ("APPS", ["```python\na, b = map(int, input().split())\nprint(a * b)\n```"], "code"),
    "trl_prompt_completion": ("TRL prompt-completion", ["5", "4"], "accuracy"),
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
with_sandbox = pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in sandbox_child.SYSCALLS,
                                  reason="seccomp needs Linux on x86-64 or aarch64")
layouts = pytest.mark.parametrize("name", [
    pytest.param(name, marks=with_sandbox) if judge == "code" else name for name, (_, _, judge) in LAYOUTS.items()])


def sample(name):
    return next(SAMPLES.glob(f"{name}.*"))


def judged(problem, text, name):
    return score.score(problem, [Rollout((), (), (), text, True)], ("accuracy", "code"))[0][name]


def write(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_layout_has_a_sample():
    assert {form.name for form in FORMATS} <= {name for name, _, _ in LAYOUTS.values()}


@layouts
def test_layout_is_told_by_its_columns_and_read_through_to_a_reward(name, capsys):
    form, right, judge = LAYOUTS[name]
    problems = read_problems(str(sample(name)))
    assert f"{form}, {len(right)} rows\n" in capsys.readouterr().out
    for (_, row), problem, answer in zip(entries(sample(name)), problems, right, strict=True):
        assert problem.columns.keys() >= row.keys()
        final = answer if judge == "code" else f"<answer>{answer}</answer>" if name == "countdown" else rf"\boxed{{{answer}}}"
        assert judged(problem, THINK + final, judge) == 1
        assert judged(problem, THINK + "```python\nprint(0)\n```\n" + r"\boxed{77}", judge) == 0


@layouts
def test_layout_is_read_for_sft_and_what_is_learned_is_right(name):
    form, right, judge = LAYOUTS[name]
    if name in WITHOUT_REPLY:
        with pytest.raises(ValueError, match=f"{name}.jsonl:1: no text in column 'completion'"):
            learnable(sample(name))
        return
    rows = learnable(sample(name))
    separator = ": row " if sample(name).suffix == ".csv" else ":"
    assert list(rows) == [f"{sample(name)}{separator}{number}" for number in range(1, len(right) + 1)]
    for row, problem in zip(rows.values(), read_problems(str(sample(name)))):
        reply = conversation(row)[-1]
        boxed = rf"\boxed{{{reply['content']}}}" if name == "guessed" else reply["content"]
        assert reply["role"] == "assistant" and judged(problem, boxed, judge) == 1


def test_text_is_for_sft_alone():
    assert list(learnable(sample("trl_text")).values()) == [row for _, row in entries(sample("trl_text"))]
    with pytest.raises(ValueError, match="trl_text.jsonl:1: a text without a question"):
        read_problems(str(sample("trl_text")))


def test_gsm8k_loses_its_calculator_and_its_commas():
    [first, _] = read_problems(str(sample("gsm8k")))
    assert first.columns["answer"] == "1200" and "<<600*2=1200>>" in first.columns["solution"]
    question, reply = conversation(next(iter(learnable(sample("gsm8k")).values())))
    assert reply["content"] == "It grinds 600*2=1200 sacks.\n\\boxed{1200}"


def test_a_verified_and_complete_generation_is_picked():
    first, second = (conversation(row)[-1]["content"] for row in learnable(sample("openr1_math")).values())
    assert "3+4=7" in first and "Nine" in second  # the second by Llama, Math-Verify having found none
    row = {"problem": "p", "generations": ["g"], "is_reasoning_complete": [False], "correctness_math_verify": [True]}
    assert "completion" not in detect([row]).read(row)


def test_row_without_a_verified_generation_is_for_rl_alone(tmp_path):
    row = {"problem": "1+0?", "answer": "1", "generations": ["g"], "is_reasoning_complete": [True],
           "correctness_math_verify": [False]}
    with pytest.raises(ValueError, match="rows.jsonl:1: no generation that is complete and verified"):
        learnable(write(tmp_path, row))
    assert len(read_problems(str(write(tmp_path, row)))) == 1


def test_marks_of_thought_become_tags():
    row = list(learnable(sample("bespoke_stratos")).values())[0]
    system, question, reply = (turn["content"] for turn in row["messages"])
    assert reply == "<think>\n\nFive fives.\n\nThat makes 25.\n\n</think>\n\nThe product is \\boxed{25}."
    assert "<think> {steps} </think>" in system and "<|" not in system + question


def test_countdown_is_judged_by_the_numbers_it_gives():
    first = read_problems(str(sample("countdown")))[0]
    assert first.prompt.startswith("Using the numbers [3, 5, 9], create an equation that equals 24. You can use basic")
    assert first.task == "countdown"
    for answer, right in (("3*(9/3+5)", 0), ("24", 0), ("3*5+9", 1), ("(3 * 5) + 9", 1)):
        assert judged(first, f"{THINK}<answer>{answer}</answer>", "accuracy") == right


def test_reply_that_nothing_else_judges_is_the_solution():
    second = read_problems(str(sample("trl_prompt_completion")))[1]
    assert rewards.gold(second) == "4" and second.prompt == "What is 7 minus 3?\n"
    first = read_problems(str(sample("trl_messages")))[0]
    assert first.prompt == "Name a square.\nNine.<|endoftext|>Its root?\n"


def test_columns_can_be_named(tmp_path):
    rows = [{"ask": "2+2?", "gold": 4, "question": "no", "answer": "no"}]
    [problem] = read_problems(str(write(tmp_path, *rows)), prompt_key="ask", answer_key="gold")
    assert problem.prompt == "2+2?\n" and rewards.gold(problem) == "4" and problem.columns["answer"] == 4
    [row] = learnable(write(tmp_path, *rows), "ask", "gold").values()
    assert [turn["content"] for turn in conversation(row)] == ["2+2?", "4"]
    with pytest.raises(ValueError, match="rows.jsonl:1: --prompt-key q: no such column; there are ask, gold, question, answer"):
        read_problems(str(write(tmp_path, *rows)), prompt_key="q")


def test_named_solution_has_its_answer_in_a_box(tmp_path):
    row = {"problem": "p", "answer": "7", "solution": r"so \boxed{3}"}
    [problem] = read_problems(str(write(tmp_path, row)), answer_key="solution")
    assert rewards.gold(problem) == "3"


def test_unknown_columns_are_listed_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError) as error:
        read_problems(str(write(tmp_path, {"input": "1+1", "output": "2"})))
    assert all(part in str(error.value) for part in (
        "rows.jsonl:1: unknown columns: input, output;", "--prompt-key", "--answer-key", "GSM8K (question, answer)",
        "TRL text (text)"))


@pytest.mark.parametrize("row, complaint", [
    ({"question": "q", "answer": "5"}, "no answer after '####', but '5'"),
    ({"question": "q", "answer": "#### "}, "no answer after '####'"),
    ({"question": 5, "answer": "#### 5"}, "no text in column 'question', but 5"),
    ({"answer": "#### 5"}, "no text in column 'question'"),
    ({"question": "\ud800", "answer": "#### 5"}, "half a character"),
])
def test_bad_row_of_a_layout_is_named_with_line_column_and_value(tmp_path, row, complaint):
    path = write(tmp_path, {"question": "1+1?", "answer": "#### 2"}, row)
    for use in (learnable, lambda path: read_problems(str(path))):
        with pytest.raises(ValueError, match="^" + re.escape(f"{path}:2: ") + ".*" + re.escape(complaint)):
            use(path)


@pytest.mark.parametrize("row, complaint", [
    ({"nums": [1, "2"], "target": 3}, "column 'nums': one to six integers from 0 to 99 expected, not [1, '2']"),
    ({"nums": [1, 2, 3, 4, 5, 6, 7], "target": 3}, "column 'nums'"), ({"nums": [100], "target": 3}, "column 'nums'"),
    ({"nums": [1, 2], "target": "3"}, "column 'target': an integer expected, not '3'"),
    ({"conversations": [{"from": "tool", "value": "x"}]}, "column 'conversations', message 1: 'tool' is not system, user or"),
    ({"conversations": [{"from": "human", "value": ""}]}, "message 1: no text in column 'content', but ''"),
    ({"conversations": None}, "not a row of ShareGPT (TypeError"), ({"messages": [3]}, "not a row of TRL messages"),
    ({"problem": "p", "solution": "s", "source": "x", "answer": "proof"}, "column 'answer': 'proof' is nothing to compare"),
    ({"prompt": "p", "answer": [1, 2]}, "column 'answer': text or a number expected, not [1, 2]"),
    ({"prompt": "p", "answer": float("nan")}, "not valid JSON (NaN is no finite number)"),
    ({"problem": "p", "solution": "no box", "level": 1, "type": "x"}, "nothing to judge an answer by"),
])
def test_row_that_gives_no_problem_is_named(tmp_path, row, complaint):
    with pytest.raises(ValueError, match="^" + re.escape(f"{write(tmp_path, row)}:1: ") + ".*" + re.escape(complaint)):
        read_problems(str(write(tmp_path, row)))


def test_skipped_rows_are_counted_and_told_with_their_reasons(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    good = [json.dumps({"prompt": f"{n}+1?", "answer": n + 1}).encode() for n in range(3)]
    path.write_bytes(b"\n".join([b"{", good[0], b"\xff", good[1], b'{"prompt": " "}', good[0], b"[]", good[2]]))
    assert [p.prompt for p in read_problems(str(path), skip_bad=True)] == ["0+1?", "1+1?", "2+1?"]
    out = capsys.readouterr().out
    assert f"TRL prompt-only, 3 rows; 5 left out by --skip-bad ({path}:1: not valid JSON" in out and "; …)\n" in out
    assert f"{path}:3: not UTF-8 (invalid start byte: byte 0xff); {path}:5: no text in column 'prompt', but ' '" in out
    with pytest.raises(ValueError, match="no rows; 1 left out by --skip-bad"):
        read_problems(str(write(tmp_path, "{")), skip_bad=True)


@with_sandbox
def test_skipped_rows_of_code_are_counted_too(tmp_path, capsys):
    [(_, row)] = entries(sample("mbpp"))
    path = write(tmp_path, {**row, "test_list": 3}, row, row)
    assert len(read_problems(str(path), skip_bad=True)) == 1
    out = capsys.readouterr().out
    assert "2 left out by --skip-bad" in out and f"{path}:1: column 'test_list'" in out
    assert f"{path}:3: the prompt of {path}:2 again" in out


def test_prompt_that_was_there_before_is_refused(tmp_path):
    path = write(tmp_path, {"prompt": "1+1?", "answer": "2"}, {"prompt": "1+1?", "answer": "3"})
    with pytest.raises(ValueError, match=re.escape(f"{path}:2: the prompt of {path}:1 again: '1+1?'")):
        read_problems(str(path))


def test_row_that_is_there_twice_is_learned_twice_and_told(tmp_path, capsys):
    row = {"prompt": "a", "completion": "b"}
    path = write(tmp_path, row, {"prompt": "a", "completion": "c"}, row)
    assert len(learnable(path)) == 3
    assert f"1 rows are there before, the first one in {path}:3" in capsys.readouterr().out
    assert len(learnable(path, bad=Bad(skip=True))) == 2
    assert f"1 left out by --skip-bad ({path}:3: {path}:1 again)" in capsys.readouterr().out


@pytest.mark.parametrize("content, names", [
    (b"Question,Correct Answer\na,b,c\n", "x.csv: row 1: not as many cells as the first line has"),
    (b"Question,Correct Answer\na\n", "x.csv: row 1: not as many cells as the first line has"),
    (b"Question,Correct Answer\n\"a,b\n", "x.csv: not CSV"),
    (b"Question,Correct Answer\n\xff,b\n", "x.csv: row 1: column 'Question': half a character, or a byte that is no UTF-8"),
    (b"", "x.csv: no rows"),
])
def test_bad_csv_is_named(tmp_path, content, names):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=names):
        read_problems(str(tmp_path / "x.csv"))


# -- decontamination -----------------------------------------------------------------------------------------------------

TEN = "one two three four five six seven eight nine ten"


def test_row_that_shares_ten_words_with_an_evaluation_prompt_is_left_out(tmp_path, capsys):
    rows = [{"prompt": f"Zero, {TEN}!", "answer": 1}, {"prompt": "0 " + TEN.replace("six", "6"), "answer": 1},
            {"prompt": TEN.rpartition(" ")[0], "answer": 1}, {"prompt": "Short one?", "answer": 1},
            {"prompt": "short", "answer": 1}]
    evaluated = write(tmp_path, {"question": TEN.title() + " eleven.", "answer": "#### 4"},
                      {"question": "Short: One", "answer": "#### 1"}, name="eval.jsonl")
    found = read_problems(str(write(tmp_path, *rows)), decontaminate=(str(evaluated),))
    assert [p.prompt for p in found] == [rows[1]["prompt"], rows[2]["prompt"], "short"]
    assert "3 rows; 2 left out for ten words in a row with --decontaminate" in capsys.readouterr().out


def test_replies_are_decontaminated_too_but_system_prompts_are_not(tmp_path):
    turns = [{"role": "system", "content": TEN}, {"role": "user", "content": "q"}, {"role": "assistant", "content": f"{TEN}"}]
    path = write(tmp_path, {"messages": turns}, {"messages": [*turns[:2], {"role": "assistant", "content": "r"}]})
    evaluated = write(tmp_path, {"prompt": TEN}, name="eval.jsonl")
    assert list(learnable(path, against=evaluation_ngrams([str(evaluated)]))) == [f"{path}:2"]
    assert not evaluation_ngrams([str(path)]) & ngrams(TEN)


def test_countdown_is_decontaminated_by_its_numbers(tmp_path):
    evaluated = write(tmp_path, {"nums": [35, 44, 19], "target": 98}, name="eval.jsonl")
    found = read_problems(str(sample("countdown")), decontaminate=(str(evaluated),))
    assert [p.columns["target"] for p in found] == [24, 10]


def test_nothing_left_is_an_error_that_says_why(tmp_path):
    with pytest.raises(ValueError, match="gsm8k.jsonl: no rows; 2 left out for ten words in a row with --decontaminate"):
        read_problems(str(sample("gsm8k")), decontaminate=(str(sample("gsm8k")),))


def test_chinese_signs_are_words():
    assert ngrams("一二三四五六七八九十百") == {"一 二 三 四 五 六 七 八 九 十", "二 三 四 五 六 七 八 九 十 百"}


# -- files ---------------------------------------------------------------------------------------------------------------


def test_rows_are_the_same_from_every_kind_of_file(tmp_path):
    rows = [row for _, row in entries(sample("gsm8k"))]
    lines = sample("gsm8k").read_bytes()
    for name, content in (("a.json", json.dumps(rows).encode()), ("b.json", lines), ("a.jsonl.gz", gzip.compress(lines)),
                          ("a.json.gz", gzip.compress(json.dumps(rows).encode())),
                          ("crlf.jsonl", lines.replace(b"\n", b"\r\n"))):
        (tmp_path / name).write_bytes(content)
        assert [row for _, row in entries(tmp_path / name)] == rows, name


def test_parquet_is_read_in_batches(tmp_path, monkeypatch):
    rows = [row for _, row in entries(sample("gsm8k"))]
    batches = [types.SimpleNamespace(to_pylist=lambda row=row: [row]) for row in rows]

    class ParquetFile:
        def __init__(self, path):
            if path.name == "bad.parquet":
                raise ValueError("Parquet magic bytes\nnot found")

        def iter_batches(self, batch_size):
            return iter(batches)

    module = types.ModuleType("pyarrow.parquet")
    module.ParquetFile = ParquetFile
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", module)
    for name in ("rows.parquet", "bad.parquet"):
        (tmp_path / name).write_bytes(b"")
    path = tmp_path / "rows.parquet"
    assert list(entries(path)) == [(f"{path}: row {number}", row) for number, row in enumerate(rows, 1)]
    assert [rewards.gold(p) for p in read_problems(str(path))] == ["1200", "3"]
    with pytest.raises(ValueError, match="bad.parquet: not Parquet that pyarrow reads"):
        list(entries(tmp_path / "bad.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="rows.parquet: Parquet is read by pyarrow, which is not installed: pip"):
        read_problems(str(tmp_path / "rows.parquet"))


def test_parquet_of_pyarrow(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [row for _, row in entries(sample("openr1_math"))]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [row for _, row in entries(tmp_path / "rows.parquet")] == rows
    assert [rewards.gold(p) for p in read_problems(str(tmp_path / "rows.parquet"))] == ["7", "9"]
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="bad.parquet: not Parquet that pyarrow reads"):
        list(entries(tmp_path / "bad.parquet"))


@pytest.mark.parametrize("name, content, complaint", [
    ("a.jsonl", b'{"a": 1}\n{"a"', ":2: not valid JSON (column 5: "),
    ("a.json", b'[\n{"a": 1},\n}]', ":3: not valid JSON (column 1: "),
    ("a.jsonl", b'{"a": 1}\n"\xe4"', ":2: not UTF-8 (invalid continuation byte: byte 0xe4)"),
    ("a.jsonl.gz", b"plain", "cannot be read"), ("a.jsonl", b"\xef\xbb\xbf{", ":1: not valid JSON"),
])
def test_file_that_cannot_be_read_is_named_with_its_line(tmp_path, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name)) + ".*" + re.escape(complaint)):
        list(entries(tmp_path / name))


def test_layout_is_told_by_the_good_rows_among_the_first(tmp_path, capsys):
    path = write(tmp_path, {"question": "1+1?", "answer": None}, {"question": "1+2?", "answer": "3"},
                 {"question": "2+2?", "answer": "2+2\n#### 4"})
    assert [p.columns["answer"] for p in read_problems(str(path), skip_bad=True)] == ["4"]
    assert "GSM8K, 1 rows; 2 left out" in capsys.readouterr().out


@pytest.mark.parametrize("content", [
    b'\xef\xbb\xbf{"prompt": "1+1?", "answer": 2}\r\n', b'\n [{"prompt": "1+1?", "answer": 2}]', b'\xef\xbb\xbf[{"prompt": "1+1?", "answer": 2}]'])
def test_byte_order_marks_and_white_space_are_no_data(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    assert [p.prompt for p in read_problems(str(tmp_path / "x.json"))] == ["1+1?"]


def test_bad_csv_rows_can_be_skipped(tmp_path, capsys):
    (tmp_path / "x.csv").write_bytes(b"question,ground_truth\na,1\nb\n\xff,2\nc,3\n")
    assert len(read_problems(str(tmp_path / "x.csv"), skip_bad=True)) == 2
    assert f"{tmp_path}/x.csv: row 3: column 'question': half a character" in capsys.readouterr().out


def test_proofs_are_learned_but_not_asked(tmp_path):
    path = write(tmp_path, {"problem": "Prove it.", "solution": "So.", "answer": "proof", "source": "x"})
    assert len(learnable(path)) == 1
    with pytest.raises(ValueError, match=":1: column 'answer': 'proof' is nothing to compare with"):
        read_problems(str(path))


@pytest.mark.parametrize("row, names", [
    ({"problem": "1+1?", "solution": 42, "level": 1, "type": "x"}, "text expected as the reply, not 42"),
    ({"question": "1+1?", "answer": ["2", "3"]}, "column 'answer': text or a number expected"),
    ({"Question": "q", "Correct Answer": "1", "Incorrect Answer 1": "1 ", "Incorrect Answer 2": "2", "Incorrect Answer 3": "3"},
     "two choices are the same"),
])
def test_replies_are_text(tmp_path, row, names):
    with pytest.raises(ValueError, match=f":1: .*{names}"):
        learnable(write(tmp_path, row))


def test_solution_is_learned_where_an_answer_is_compared(tmp_path):
    path = write(tmp_path, {"problem": "1+1?", "solution": "One and one: \\boxed{2}.", "answer": "2"})
    [row] = learnable(path).values()
    assert row["completion"][0]["content"].startswith("One and one") and rewards.gold(read_problems(str(path))[0]) == "2"


def test_short_reply_is_nobodys_question(tmp_path):
    evaluated = write(tmp_path, {"prompt": "Yes"}, {"other": 1, "question": "No layout?"}, name="eval.jsonl")
    found = learnable(write(tmp_path, {"prompt": "Is it so?", "completion": "Yes"}), against=evaluation_ngrams([str(evaluated)]))
    assert len(found) == 1
    with pytest.raises(ValueError, match="--decontaminate .*:1: no question in columns prompt"):
        evaluation_ngrams([str(write(tmp_path, {"q": 1}, name="e.jsonl"))])


@with_sandbox
def test_time_limits_as_tacos(tmp_path):
    [row] = [json.loads(line) for line in sample("apps").read_text().split("\n")[:1]]
    for limit, seconds in ((None, 2.0), ("3.5 seconds", 3.5)):
        [problem] = read_problems(str(write(tmp_path, {**row, "time_limit": limit})))
        assert problem.columns["time_limit"] == seconds
