import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mini import rewards
from r1mini.records import Problem
from r1mini.rewards import Parsed, consistency, extract, parse, words

COUNTDOWN = Problem("countdown", "[3, 5, 9] 24", "en", "Make 24 from 3, 5, 9.\n", {"numbers": [3, 5, 9], "target": 24})
FACT = Problem("elements", "symbol Fe", "zh", "铁的符号?\n", {"answer": "Fe", "terms": []})

# completion, strict format of a reasoning task, extracted answer
TABLE = [
    ("<think>a</think><answer>b</answer>", 1, "b"),
    ("<think>a\n</think>\n\n<answer>\nb\n</answer>\n \t", 1, "b"),
    ("\n<think>a</think><answer>b</answer>", 1, "b"),
    ("<think>a < b > c </thinking></think><answer>b</answer>", 1, "b"),  # no tag, only looks like one
    ("<think></think><answer>b</answer>", 0, "b"),
    ("<think> \n</think><answer>b</answer>", 0, "b"),
    ("<think>a</think><answer> </answer>", 0, ""),
    ("<think>a</think><answer></answer>", 0, ""),
    ("<answer>b</answer>", 0, "b"),
    ("hello <think>a</think><answer>b</answer>", 0, "b"),
    ("<think>a</think> so <answer>b</answer>", 0, "b"),
    ("<think>a</think><answer>b</answer>\nGARBAGE", 0, "b"),
    ("<think>a<answer>b</answer>", 0, "b"),
    ("a</think><answer>b</answer>", 0, "b"),
    ("<think>a</think><answer>b", 0, None),
    ("<think>a</think>b</answer>", 0, None),
    ("<think>a</think>b", 0, None),
    ("<think>a", 0, None),
    ("", 0, None),
    ("<think>a</think><answer>b</answer><answer>c</answer>", 0, None),
    ("<think>a</think><answer>b<answer>c</answer></answer>", 0, None),
    ("<think>a</think><answer>b</answer></answer>", 0, None),
    ("<think>a</think><think>a</think><answer>b</answer>", 0, "b"),
    ("<think><think>a</think></think><answer>b</answer>", 0, "b"),
    ("<think>a</think><answer><think>b</think></answer>", 0, None),
    ("<think>a</answer></think><answer>b", 0, None),
    ("</answer>b<answer>", 0, None),
    ("<THINK>a</THINK><ANSWER>b</ANSWER>", 0, None),
    ("<Think>a</Think><answer>b</answer>", 0, "b"),
    ("< think>a</ think><answer>b</answer>", 0, "b"),
]


@pytest.mark.parametrize("text, strict, answer", TABLE)
def test_format_and_answer_of(text, strict, answer):
    assert rewards.format(COUNTDOWN, text) == strict
    assert extract(text) == answer


@pytest.mark.parametrize("text", [
    "<think>a<answer>b</answer></think>",
    "<answer>b</answer><think>a</think>",
    "<think>a<answer>b</answer> no</think> c",
])
def test_answer_that_thinking_follows_is_none(text):
    assert rewards.format(COUNTDOWN, text) == 0
    assert extract(text) is None


def test_parsed_blocks_are_verbatim():
    assert parse("<think> a\n</think> <answer> b </answer>\n") == Parsed(" a\n", " b ")


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


@given(st.lists(st.sampled_from([*TAGS, "x", " ", "\n", "<", "24"]), max_size=9).map("".join))
def test_what_has_the_format_is_the_blocks_put_together(text):
    parsed = parse(text)
    if parsed is not None:
        think = "" if parsed.thinking is None else f"<think>{parsed.thinking}</think>"
        assert "".join(text.split()) == "".join(f"{think}<answer>{parsed.answer}</answer>".split())
        assert not any(tag in parsed.answer + (parsed.thinking or "") for tag in TAGS)


@given(st.text(), st.sampled_from([COUNTDOWN, FACT]))
def test_no_text_breaks_a_reward(text, problem):
    for wrapped in (text, f"<think>{text}</think><answer>{text}</answer>"):
        scores = rewards.score(problem, wrapped)
        assert all(value is None or 0 <= value <= 1 for value in scores.values())


def test_short_answer_has_the_format_where_no_reasoning_is_asked_for():
    assert rewards.format(FACT, "<answer>Fe</answer>") == 1
    assert rewards.format(FACT, "<think>铁</think><answer>Fe</answer>") == 1
    assert rewards.format(FACT, "<think></think><answer>Fe</answer>") == 0
    assert rewards.format(FACT, "Fe") == 0


def test_accuracy_is_the_tasks_checker_on_the_answer():
    assert rewards.accuracy(COUNTDOWN, "however untidy <answer> 3*5+9 </answer>") == 1
    assert rewards.accuracy(COUNTDOWN, "<think>a</think><answer>9+9+9-3</answer>") == 0  # 24, of other numbers
    assert rewards.accuracy(COUNTDOWN, "3*5+9") == 0


@pytest.mark.parametrize("text, found", [
    ("5+8=13 ?24 no", ["no"]),
    ("H2O Fe NaCl C6H12O6", []),
    ("c=a+b return c*2", []),  # a keyword of the notation, in both languages
    ("ln 3/1=1.10", []),
    ("so x1 is f(a)", ["so", "is"]),
    ("算了 stop 对", ["算了", "stop", "对"]),
    ("错no", ["错", "no"]),
])
def test_words_are_what_is_not_notation(text, found):
    assert words(text) == found


@pytest.mark.parametrize("thinking, english", [
    ("5+8=13 no\n5*8=40 yes", 1.0),
    ("5+8=13 错\n5*8=40 对", 0.0),
    ("5+8=13 no\n5*8=40 对", 1 / 2),
    ("no no 错 no", 3 / 4),
])
def test_language_consistency_by_hand(thinking, english):
    assert consistency(thinking, "en") == english
    assert consistency(thinking, "zh") == 1 - english


def test_thinking_without_words_is_consistent_in_no_language():
    assert consistency("5+8=13", "en") == consistency("5+8=13", "zh") == consistency("", "en") == 0


def test_language_is_of_the_thinking_alone():
    assert rewards.language(COUNTDOWN, "<think>5+8=13 no</think><answer>错</answer>") == 1
    assert rewards.language(COUNTDOWN, "no <think>错") == 0
    assert rewards.language(COUNTDOWN, "no<answer>5</answer>") == 0


def test_language_does_not_apply_to_facts():
    assert rewards.language(FACT, "<think>iron</think><answer>Fe</answer>") is None
    scores = rewards.score(FACT, "<answer>Fe</answer>")
    assert rewards.total(scores, {"accuracy": 1.0, "format": 0.1, "language": 0.1}) == 1.1


def test_total_is_the_weighted_sum():
    scores = {"accuracy": 1.0, "format": 0.0, "language": 0.5}
    assert rewards.total(scores, {"accuracy": 2.0, "format": 5.0, "language": 0.2}) == pytest.approx(2.1)
    assert rewards.total(scores, {"language": 1.0}) == 0.5


@pytest.mark.parametrize("text", ["acuracy", "accuracy,", "accuracy:high", "", "accuracy:nan", "accuracy:inf"])
def test_bad_reward_weights_are_quoted(text):
    with pytest.raises(ValueError, match=f"--reward {text}"):
        rewards.weights(text)


def test_hostile_completions_are_scored_at_once():
    for text in ["<answer>" * 20_000, "<think>" * 20_000 + "</think>" * 20_000, "<" * 200_000, "\n" * 200_000,
                 "<answer>" + "(" * 100_000 + "</answer>", "a1" * 100_000]:
        assert rewards.score(COUNTDOWN, text)["accuracy"] == 0
