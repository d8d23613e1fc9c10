import pytest

from r1mini.evaluation import rejection
from r1mini.records import Problem

PROBLEM = Problem("data", "", "en", "p", {"answer": "1"})
CODE = Problem("data", "", "en", "p", {"tests": [{"stdin": "", "stdout": ""}]})
CLEAN = "<think>so it is one\nthen two</think><answer>1</answer>"


def think(text, answer="1"):
    return f"<think>{text}</think><answer>{answer}</answer>"


def test_clean_completion_passes_every_filter():
    assert not [name for name, removes in rejection.FILTERS.items() if removes(PROBLEM, CLEAN)]


@pytest.mark.parametrize(
    "text, removed",
    [
        (CLEAN, False),
        (think("so 对"), True),
        (think("so слово"), True),
        (think("5+8=13"), True),
        (think("so θ = 5, 3 km"), False),
        (think("so it is", answer="对"), False),  # R1 filters only the chain of thought
    ],
)
def test_mixed_languages(text, removed):
    assert rejection.mixed_languages(PROBLEM, text) is removed


def test_mixed_languages_filter_needs_a_language():
    assert not rejection.mixed_languages(Problem("data", "", "", "p", {}), think("so 对"))
    assert not rejection.mixed_languages(
        Problem("elements", "", "zh", "p", {}), "<answer>Fe</answer>"
    )


@pytest.mark.parametrize(
    "text, removed",
    [
        (think("so " * 400), False),
        (think("so " * 600), True),
        (think("so it is\n" * 600), False),
        (think("x" * 1501), True),
        (think("so", answer="y" * 1600), True),
    ],
)
def test_long_paragraph(text, removed):
    assert rejection.long_paragraph(PROBLEM, text) is removed


@pytest.mark.parametrize(
    "problem, text, removed",
    [
        (PROBLEM, CLEAN, False),
        (PROBLEM, think("a\n```python\nx\n```\n"), True),
        (PROBLEM, think("a\n~~~\nx\n~~~"), True),
        (PROBLEM, think("a", answer="```\n1\n```"), True),
        (PROBLEM, think("use `x` here"), False),
        (CODE, think("a", answer="```\n1\n```"), False),
        (CODE, think("a\n```\n1\n```"), True),
        (Problem("repair", "", "en", "p", {}), think("a", answer="```\n1\n```"), False),
    ],
)
def test_code_block(problem, text, removed):
    assert rejection.code_block(problem, text) is removed


@pytest.mark.parametrize(
    "text, removed",
    [
        (CLEAN, False),
        (think("so\nthen\nso"), True),
        (think("so\nthen\n so "), True),
        (think("so\n\n\nthen"), False),
        (
            think(" ".join(f"word{'abcdefghij'[i % 10]}" for i in range(100))),
            True,
        ),  # a repetition within one line
        (think("we know that x is 1 and y is 2, so we know that z is 3"), False),
        (think("so\n$$\nx\n$$\nthen\n$$\ny\n$$\n}\nand\n}"), False),
        (think("----\nso\n----"), False),
        (think("so x = 1 + 2 = 3 " + "= 1 + 2 = 3 " * 30), True),
        (think("so it is\n5+8=13\n5+8=13"), True),
        (think("a1 " * 10 + "x = 1 + 2 + 3 + 4 + 5, and again x = 1 + 2 + 3 + 4 + 5"), False),
    ],
)
def test_repetition(text, removed):
    assert rejection.repetition(PROBLEM, text) is removed
