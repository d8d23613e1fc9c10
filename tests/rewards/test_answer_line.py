"""The line `Answer: …`."""

import pytest

from r1mini.records import Problem
from r1mini.rewards import completion, rules

ASKS = "The last line of your response should be of the form Answer: $Answer.\n\n2+3?"


@pytest.mark.parametrize(
    "text, answer",
    [
        ("Answer: 5", "5"),
        ("So.\n**Answer:** $5$", "$5$"),
        ("**Answer: 5**", "5"),
        (r"Final answer: \boxed{5}", "5"),
        ("Answer: 6\nAnswer: 5\n", "5"),
        ("\\boxed{6}\nAnswer: 5", "5"),
        ("<answer>Answer: 5</answer>", "5"),
        ("<answer>5</answer>", "5"),
        (r"It is \boxed{5}.", "5"),
        ("答案：5", "5"),
        ("Answer: 5\nAnswer: 6", "6"),
        ("\\boxed{5}\nAnswer: 6", "6"),
        ("My answer: 5", None),
        ("The answer is 5", None),
        ("Answer:", None),
        ("<answer>6</answer>\nAnswer: 5", "6"),
    ],
)
def test_last_line_is_the_answer(text, answer):
    problem = Problem("rows.jsonl", "", "", ASKS, {"answer": "5"})
    text = f"<think>Answer: 7</think>\n{text}"
    assert completion.extract_answer(problem, text) == answer
    assert rules.is_correct(problem, text) == (answer in ("5", "$5$"))


def test_line_counts_only_after_the_thinking_whatever_the_prompt_asks():
    asks = Problem("rows.jsonl", "", "", ASKS, {"answer": "5"})
    other = Problem("rows.jsonl", "", "", "2+3? Answer in one line.", {"answer": "5"})
    task = Problem("countdown", "", "", ASKS, {"answer": "5"})
    for problem in (asks, other, task):
        assert completion.extract_answer(problem, "<think>a\nAnswer: 5") is None
        assert completion.extract_answer(problem, "<think>Answer: 5</think>") is None
        assert completion.extract_answer(problem, "<think>a</think>\nAnswer: 5") == "5"
