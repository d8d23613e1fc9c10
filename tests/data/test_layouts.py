"""Layouts of public files: text beside the question, names, nested golds, unusable golds."""

import json

import pytest

from r1mini.data.files import read_rows
from r1mini.data.formats import to_messages
from r1mini.data.problems import read_problems
from r1mini.data.sft import sft_rows
from r1mini.rewards import completion

from .samples import THINK, judged, write


def prompt_and_gold(tmp_path, row):
    [problem] = read_problems(str(write(tmp_path, row)))
    return problem.prompt.rstrip("\n"), completion.gold_answer(problem)


@pytest.mark.parametrize(
    "row, prompt, gold",
    [
        (  # ASDiv
            {
                "body": "There are 7 red and 2 green apples.",
                "question": "How many apples are there?",
                "answer": "9 (apples)",
            },
            "There are 7 red and 2 green apples.\nHow many apples are there?",
            "9 (apples)",
        ),
        ({"instruction": "Add.", "input": "2 and 3", "output": "5"}, "Add.\n2 and 3", "5"),
        ({"instruction": "Add 2 to:", "input": "2", "output": "4"}, "Add 2 to:\n2", "4"),
        ({"prompt": "[1, 2]", "answer": "3"}, "[1, 2]", "3"),
        ({"prompt": '[{"a": 1}]', "answer": "1"}, '[{"a": 1}]', "1"),
        ({"instruction": "Say 5.", "input": "", "output": "5"}, "Say 5.", "5"),
        ({"instruction": "2 + 2 and?", "input": "2", "output": "6"}, "2 + 2 and?\n2", "6"),
        ({"prompt": "Add 15 to it.", "input": "5", "answer": "20"}, "Add 15 to it.\n5", "20"),
        ({"prompt": "Add 15 to\n5", "input": "5", "answer": "20"}, "Add 15 to\n5", "20"),
        ({"instruction": "Count.", "context": "a b", "response": "2"}, "a b\nCount.", "2"),
        ({"passage": "3 cats.", "question": "How many?", "answer": "3"}, "3 cats.\nHow many?", "3"),
        ({"prompt": "How many?", "context": "3 cats.", "answer": "3"}, "3 cats.\nHow many?", "3"),
        ({"prompt": "3 cats. And?", "context": "3 cats.", "answer": "3"}, "3 cats. And?", "3"),
        ({"context": None, "question": "1+1?", "answer": "2"}, "1+1?", "2"),
        # SVAMP, AIME, CSV files
        ({"Body": "3 cats.", "Question": "How many?", "Answer": 3.0}, "3 cats.\nHow many?", "3.0"),
        ({"Problem": "1+1?", "Solution": "Two.", "Answer": 2}, "1+1?", "2"),
        ({" Question ": "1+1?", "Ground Truth": "2"}, "1+1?", "2"),
        ({"QUESTION": "1+1?", "ANSWER": "Two.\n#### 2"}, "1+1?", "2"),
        ({"problem": "1+1?", "final_answer": ["2"], "solution": ["So"]}, "1+1?", "2"),
        ({"problem": "1+1?", "expected_answer": "2", "generated_solution": "3"}, "1+1?", "2"),
    ],
)
def test_text_beside_the_question_and_names_in_capitals(tmp_path, row, prompt, gold):
    assert prompt_and_gold(tmp_path, row) == (prompt, gold)
    if "prompt" not in row:
        [learned] = sft_rows(write(tmp_path, row)).values()
        assert to_messages(learned)[0]["content"] == prompt


def test_columns_keep_their_own_names_for_rewards(tmp_path):
    row = {"Question": "1+1?", "Answer": 2, "Hard Level": 3}
    [problem] = read_problems(str(write(tmp_path, row)))
    assert row.items() <= problem.columns.items() and problem.columns["hard_level"] == 3
    [problem] = read_problems(str(write(tmp_path, {"Ask": "1+1?", "Gold": 2})), prompt_key="Ask",
                              answer_key="Gold")  # fmt: skip
    assert problem.prompt == "1+1?\n" and completion.gold_answer(problem) == "2"


def test_text_that_is_left_out_is_told_once_by_name(tmp_path, capsys):
    rows = [
        {"question": f"{n}+1?", "answer": n + 1, "hint": f"count {n}", "body": f"Day {n}.", "n": 3}
        for n in range(3)
    ]
    for read in (sft_rows, lambda path: read_problems(str(path))):
        read(write(tmp_path, *rows))
        assert capsys.readouterr().out.count("text in other columns is left out: hint\n") == 1
    read_problems(str(write(tmp_path, {"question": "1+1?", "answer": "2", "number": 3})))
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("history", [[["Hi", "Hello"]], "Hi", [{"role": "user"}], [], "", None])
def test_a_history_that_is_left_out_is_told(tmp_path, capsys, history):
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5", "history": history}
    sft_rows(write(tmp_path, row, {**row, "input": "1", "history": []}))
    told = "text in other columns is left out: history\n" in capsys.readouterr().out
    assert told == bool(history)


VERL = {
    "data_source": "math_dapo",
    "prompt": [{"role": "user", "content": "What is 2+2?"}],
    "ability": "MATH",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 1},
}


@pytest.mark.parametrize(
    "row",
    [
        VERL,
        {**VERL, "reward_model": {"ground_truth": 4}},
        {**VERL, "prompt": "What is 2+2?"},
        {**VERL, "solution": "4"},  # DAPO-Math-17k-Processed
        {"messages": VERL["prompt"], "ground_truth": "4"},
        {"messages": json.dumps(VERL["prompt"]), "ground_truth": "4"},  # CSV
        {"prompt": json.dumps(VERL["prompt"]), "ground_truth": "4"},
        {"prompt": "What is 2+2?", "answer": "So\n#### 4"},
        {"prompt": "What is 2+2?", "expected_answer": "4"},
        {"question": "What is 2+2?", "reward_model": {"ground_truth": "4"}},
    ],
)
def test_the_ground_truth_of_verl_is_the_gold(tmp_path, row):
    assert prompt_and_gold(tmp_path, row) == ("What is 2+2?", "4")


@pytest.mark.parametrize("gold", [None, "", ["4", "5"], {"target": "4"}, "nan", '{"inputs": []}'])
def test_a_ground_truth_that_is_no_answer_is_refused(tmp_path, gold):
    with pytest.raises(ValueError, match="rows.jsonl:1: "):
        read_problems(str(write(tmp_path, {**VERL, "reward_model": {"ground_truth": gold}})))


def test_countdown_in_the_layout_of_verl(tmp_path):
    gold = {"target": 98, "numbers": [44, 19, 35]}
    row = {**VERL, "reward_model": {"ground_truth": gold}, "nums": gold["numbers"], "target": 98}
    [problem] = read_problems(str(write(tmp_path, row)))
    assert problem.task == "countdown" and problem.prompt.strip() == "What is 2+2?"
    for answer, right in (("44+19+35", 1), ("44+19-35", 0)):
        assert judged(problem, f"{THINK}<answer>{answer}</answer>", "accuracy") == right


def test_columns_of_rejection_sampled_rows_are_not_told(tmp_path, capsys):
    row = {"prompt": "1+1?", "completion": "2", "task": "sums", "model": "runs/x"}
    for more, told in (({}, True), ({"rewards": {"accuracy": 1.0}}, False)):
        sft_rows(write(tmp_path, {**row, **more}))
        assert ("left out: task, model" in capsys.readouterr().out) is told


@pytest.mark.parametrize("name, value", [("context", ["Ann sang."]), ("tools", [{"name": "add"}])])
def test_lists_that_are_left_out_are_told(tmp_path, capsys, name, value):
    read_problems(str(write(tmp_path, {"question": "1+1?", "answer": "2", name: value})))
    assert f"text in other columns is left out: {name}\n" in capsys.readouterr().out


def test_messages_count_beside_a_prompt(tmp_path):
    turns = [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": r"\boxed{5}"}]
    row = {"prompt": "2+3?", "prompt_id": "x", "messages": turns}
    assert list(sft_rows(write(tmp_path, row)).values()) == [{"messages": turns}]
    assert prompt_and_gold(tmp_path, row) == ("2+3?", "5")
    system = {"role": "system", "content": "Be brief."}
    row = {"prompt": "2+3?", "messages": [system, *turns, *turns]}
    assert list(sft_rows(write(tmp_path, row)).values()) == [{"messages": row["messages"]}]
    row = {"prompt": "2+3?", "completion": "5", "messages": turns}
    assert list(sft_rows(write(tmp_path, row)).values()) == [{"prompt": "2+3?", "completion": "5"}]
    for nothing in (None, []):
        row = {"prompt": "2+3?", "messages": nothing, "answer": "5"}
        assert prompt_and_gold(tmp_path, row) == ("2+3?", "5")


ROWS = [{"question": "1+1?", "answer": "2"}, {"question": "1+2?", "answer": "3"}]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1", "rows": ROWS}, indent=2),
        json.dumps({"description": "sums", "n": 2, "tags": ["x"], "examples": ROWS}),
        json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)) + "\n",
    ],
)
def test_rows_of_a_json_file(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert [row for _, row in read_rows(tmp_path / "a.json")] == ROWS


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a"}]},
        {"conversations": [{"from": "human", "value": "a"}]},
        {"prompt": "Print 7.", "tests": [{"stdin": "", "stdout": "7"}]},
        {"question": "a", "choices": [{"label": "A", "text": "b"}], "answerKey": "A"},
        {"train": ROWS, "test": ROWS},
        {"data": []},
        {"data": ["a"]},
    ],
)
def test_an_object_that_is_a_row_or_has_no_single_list_is_not_unwrapped(tmp_path, row):
    (tmp_path / "a.json").write_text(json.dumps(row))
    assert list(read_rows(tmp_path / "a.json")) == [(f"{tmp_path / 'a.json'}:1", row)]


def test_error_in_a_wrapped_file_names_its_line(tmp_path):
    (tmp_path / "a.json").write_text('{"data": [\n{"question": 1},\n{"a" 2}]}')
    with pytest.raises(ValueError, match=r"a.json:3: not valid JSON \(column 6: "):
        list(read_rows(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "gold", ["nan", "NaN", "None", "null", "NULL", "N/A", "<NA>", "", "  ", None, True, "$$", "1/0"]
)
def test_gold_that_nothing_can_equal_is_refused(tmp_path, gold):
    for row in ({"question": "1?", "answer": gold}, {"prompt": "1?", "answer": gold}):
        with pytest.raises(ValueError, match="rows.jsonl:1: "):
            read_problems(str(write(tmp_path, row)))


@pytest.mark.parametrize("gold", ["none", "no", "0", "x", "undefined", r"\emptyset", 0, "Nancy"])
def test_gold_that_only_looks_like_nothing_is_kept(tmp_path, gold):
    [problem] = read_problems(str(write(tmp_path, {"question": "1?", "answer": gold})))
    assert judged(problem, rf"{THINK}\boxed{{{gold}}}", "accuracy") == 1
    assert judged(problem, THINK + r"\boxed{17}", "accuracy") == 0


def test_refused_rows_are_counted_by_kind(tmp_path, capsys):
    rows = [{"question": f"{n}?", "answer": gold} for n, gold in enumerate(["1", "nan", None])]
    rows += [{"question": f"{n}?", "answer": rf"\foo_{n}"} for n in range(20, 25)]
    rows += [{"question": n, "answer": "1"} for n in range(2)]
    path = write(tmp_path, *rows, "{", "[")
    assert len(read_problems(str(path), skip_bad=True)) == 1
    kinds = capsys.readouterr().out.partition(f"{path}: refused: ")[2].rstrip("\n").split("; ")
    assert kinds[0].startswith("5 gold answer …: \\foo is not in the grammar")
    assert "2 no text in column 'question', found …" in kinds
    assert "1 gold answer …: no answer" in kinds
    assert sum(int(kind.split()[0]) for kind in kinds) == 11


@pytest.mark.parametrize("name", ["solution", "output", "response", "generated_solution"])
def test_sft_learns_the_reply_that_stands_beside_an_answer(tmp_path, name):
    row = {"question": "1+1?", name: "One and one.", "answer": "2"}
    [learned] = sft_rows(write(tmp_path, row)).values()
    assert learned["completion"] == [{"role": "assistant", "content": "One and one."}]
    assert prompt_and_gold(tmp_path, row) == ("1+1?", "2")
    [learned] = sft_rows(write(tmp_path, {**row, name: " "})).values()
    assert learned["completion"] == [{"role": "assistant", "content": "2"}]


@pytest.mark.parametrize("more", [{}, {"choices": ["3", "2"], "gold": "2"}])
def test_a_column_that_is_the_prompt_is_shown_once(tmp_path, more):
    for name in ("input", "context", "instruction"):
        path = str(write(tmp_path, {name: "1+1?", "gold": 2, **more}))
        [problem] = read_problems(path, prompt_key=name, answer_key="gold")
        assert problem.prompt.count("1+1?") == 1
