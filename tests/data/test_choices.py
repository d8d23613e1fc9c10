"""Questions with choices: the prompt shows them, and the gold is a letter."""

import json

import pytest

from r1mini.data.problems import read_problems
from r1mini.data.sft import sft_rows
from r1mini.rewards import completion

from .samples import THINK, judged, write

ASK = "Capital of France?"
TEXTS = ["Rome", "Paris", "Oslo", "Bern"]
SHOWN = "A) Rome\nB) Paris\nC) Oslo\nD) Bern\n\nPut the letter of the right choice in \\boxed{}.\n"
PAIRS = [{"text": text, "label": label} for text, label in zip(TEXTS, "ABCD")]


@pytest.mark.parametrize(
    "row",
    [
        {"question": ASK, "subject": "x", "choices": TEXTS, "answer": 1},  # MMLU
        {"question": ASK, "options": TEXTS, "answer": "B", "answer_index": 1},  # MMLU-Pro
        {"question": ASK, "choices": {"text": TEXTS, "label": [*"ABCD"]}, "answerKey": "B"},  # ARC
        {"question": ASK, "choices": {"text": TEXTS, "label": [*"1234"]}, "answerKey": "2"},
        {"question": ASK, "choices": PAIRS, "answerKey": "B"},
        {"question": {"stem": ASK, "choices": PAIRS}, "answerKey": "B"},  # ARC's own files
        {"question_stem": ASK, "choices": PAIRS, "answerKey": "B"},  # OpenBookQA
        {"question": ASK, "options": dict(zip("ABCD", TEXTS)), "answer": "Paris"},  # MedQA
        {"question": ASK, **dict(zip("ABCD", TEXTS)), "answer": "B"},  # C-Eval
        {"Question": ASK, **dict(zip("ABCD", TEXTS)), "Answer": "B"},  # CMMLU
        {"question": ASK, **{f"option_{a}": t for a, t in zip("abcd", TEXTS)}, "answer": "b"},
        {"question": ASK, "options": [f"{a}) {t}" for a, t in zip("ABCD", TEXTS)], "correct": "B"},
        {"query": ASK, "choices": [f"({a}){t}" for a, t in zip("ABCD", TEXTS)], "label": "(B)"},
        {"ctx": ASK, "endings": TEXTS, "label": "1"},  # HellaSwag
        {"question": ASK, "choices": TEXTS, "answer": " Paris "},
        {"prompt": ASK, "choices": TEXTS, "answer": 1},
        {"question": ASK, "choices": json.dumps(TEXTS), "answer": 1},  # CSV
        {"question": ASK, "choices": [*TEXTS, None], "answer": 1},
        {"question": ASK, **dict(zip("ABCDE", [*TEXTS, ""])), "answer": "B"},
        {"prompt": [{"role": "user", "content": ASK}], "choices": TEXTS, "answer": 1},
    ],
)
def test_the_prompt_shows_the_choices_and_the_gold_is_the_letter(tmp_path, row):
    [problem] = read_problems(str(write(tmp_path, row)))
    assert problem.prompt == f"{ASK}\n\n{SHOWN}" and completion.gold_answer(problem) == "B"
    for answer, right in (("B", 1), ("A", 0), ("C", 0), ("1", 0)):
        assert judged(problem, rf"{THINK}\boxed{{{answer}}}", "accuracy") == right
    [learned] = sft_rows(write(tmp_path, row)).values()
    assert learned["prompt"][0]["content"] == problem.prompt.rstrip("\n")
    assert learned["completion"][0]["content"] == r"\boxed{B}"


@pytest.mark.parametrize(
    "choices, gold, letter",
    [
        (["4", "8", "2"], 1, "B"),
        (["4", "8", "2"], "8", "B"),
        ([4, 8, 16], 2, "C"),
        ([f"choice {n}" for n in range(10)], "J", "J"),
        (["x", "y"], 0, "A"),
        ([";", ".", "x"], ".", "B"),
    ],
)
def test_a_number_is_an_index_from_0_and_text_is_a_letter_or_a_choice(
    tmp_path, choices, gold, letter
):
    row = {"question": "Which?", "choices": choices, "answer": gold}
    [problem] = read_problems(str(write(tmp_path, row)))
    assert completion.gold_answer(problem) == letter


@pytest.mark.parametrize(
    "columns, complaint",
    [
        ({"choices": TEXTS, "answer": 4}, "no single choice is named by {'answer': 4} of"),
        ({"choices": TEXTS, "answer": -1}, "no single choice is named by {'answer': -1}"),
        ({"choices": TEXTS, "answer": True}, "no single choice is named by {'answer': True}"),
        ({"choices": TEXTS, "answer": "E"}, "no single choice is named by {'answer': 'E'}"),
        ({"choices": TEXTS, "answer": "AB"}, "no single choice is named by {'answer': 'AB'}"),
        ({"choices": TEXTS, "answer": "London"}, "no single choice is named by"),
        ({"choices": [".", "x"], "answer": ""}, "no single choice is named by"),
        ({"choices": TEXTS, "answer": None}, "no single choice is named by {} of"),
        ({"choices": TEXTS, "answer": "A", "answer_index": 1}, "no single choice is named by"),
        ({"choices": ["1", "2", "3"], "answer": "2"}, "no single choice is named by"),
        ({"choices": ["B", "A", "C"], "answer": "B"}, "no single choice is named by"),
        ({"choices": "['Rome' 'Paris']", "answer": "B"}, "the prompt has no choice of this letter"),
        ({"option1": "Rome", "option2": "Paris", "answer": "1"}, "no single choice is named by"),
        ({"opa": "Rome", "opb": "Paris", "cop": 1}, "no single choice is named by {'cop': 1}"),
        ({"choices": ["Rome", "Rome "], "answer": 0}, "two choices are the same"),
        ({"choices": ["Rome", ""], "answer": 0}, "no text in column 'choice'"),
        ({"choices": {"text": TEXTS, "label": [0, 1, 0, 0]}}, "choices need a label each"),
        ({"choices": {"text": TEXTS, "label": [*"AB"]}, "answer": "B"}, "need a label each"),
        ({"choices": [{"text": "x", "label": "A"}, "y"], "answer": "A"}, "not a choices row"),
        ({"choices": ["Rome"], "answer": 0}, "must be a list of 2 to 10 choices, not {0: 'Rome'}"),
        ({"choices": [*"abcdefghijk"], "answer": 10}, "must be a list of 2 to 10 choices"),
        ({"answer": "B"}, "gold answer 'B': the prompt has no choice of this letter"),
        ({"solution": r"\boxed{\text{(C)}}"}, "the prompt has no choice of this letter"),
        ({"answer": r"$\mathrm{(B)}$"}, "the prompt has no choice of this letter"),
    ],
)
def test_a_gold_that_names_no_single_choice_is_refused(tmp_path, columns, complaint):
    with pytest.raises(ValueError) as error:
        read_problems(str(write(tmp_path, {"question": ASK, **columns})))
    assert "rows.jsonl:1: " in str(error.value) and complaint in str(error.value)


@pytest.mark.parametrize("gold", ["Vitamin C", "x", "K", "AB", "C_2", r"\text{all of C}"])
def test_a_letter_within_a_gold_is_no_choice(tmp_path, gold):
    [problem] = read_problems(str(write(tmp_path, {"question": ASK, "answer": gold})))
    assert completion.gold_answer(problem) == gold


@pytest.mark.parametrize(
    "shown",
    ["(A) Rome (B) Paris", r"$\textbf{(B)}$ Paris", "A. x\nB. y", "a) x b) y", "Vertex of ABC?"],
)
def test_choices_in_the_text_of_the_question_are_enough(tmp_path, shown):
    [problem] = read_problems(str(write(tmp_path, {"question": ASK + shown, "answer": "B"})))
    assert completion.gold_answer(problem) == "B"


def test_sft_learns_what_the_user_wrote_beside_the_choices(tmp_path):
    row = {"question": ASK, "choices": TEXTS, "answer": 1, "solution": r"So \boxed{B}."}
    [learned] = sft_rows(write(tmp_path, row)).values()
    assert learned["completion"][0]["content"] == r"So \boxed{B}."
    row = {"prompt": ASK, "completion": "It is Paris.", "choices": TEXTS, "answer": 1}
    assert list(sft_rows(write(tmp_path, row)).values()) == [
        {"prompt": ASK, "completion": "It is Paris."}
    ]
