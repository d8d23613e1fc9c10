"""General prompts, their hidden utility, and the annotator who prefers one of two answers."""

import math
from collections import Counter
from random import Random

import pytest

from r1mini import tasks
from r1mini.evaluation import rejection
from r1mini.tasks import annotator, corpus, describe, elements
from r1mini.tasks.trace import LANGUAGES

# Of iron: number 26, period 4, group 8, oxidation state +3. Of zinc: number 30, group 12.
SYMBOL, NUMBER = "the symbol of iron is Fe", "element 26 is iron"
PERIOD, GROUP, STATE = (
    "the period of Fe is 4",
    "the group of iron is 8",
    "the oxidation state of Fe is +3",
)
FOUR = "\n".join([SYMBOL, NUMBER, PERIOD, GROUP])
ZH_SYMBOL, ZH_NUMBER = "铁的符号是 Fe", "26 号元素是铁"
ZH_PERIOD, ZH_GROUP = "Fe的周期是 4", "铁的族是 8"


def every_problem():
    rng, by_key = Random(0), {}
    for number in range(8000):
        problem = describe.generate(rng, LANGUAGES[number % 2])
        by_key[problem.key] = problem
    return by_key


PROBLEMS = every_problem()


def iron(known="", language="en"):
    return PROBLEMS[f"Fe {language} {known}".strip()]


def kinds(answer, problem=iron()):
    return list(annotator.line_kinds(problem, answer))


def test_general_tasks_have_a_utility_and_no_right_answer():
    for name, task in tasks.TASKS.items():
        is_general = name in tasks.GENERAL
        assert (task.utility is not None) == (task.find_error is None) == is_general, name


# -- prompts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "known, language, prompt, key",
    [
        ("", "en", "Describe iron.\n", "Fe en"),
        ("", "zh", "介绍铁。\n", "Fe zh"),
        (
            "state",
            "en",
            "Describe iron to somebody who knows its oxidation state.\n",
            "Fe en state",
        ),
        ("number", "zh", "向知道序数的人介绍铁。\n", "Fe zh number"),
    ],
)
def test_prompts_by_hand(known, language, prompt, key):
    problem = iron(known, language)
    assert (problem.prompt, problem.key) == (prompt, key)


def test_every_prompt_is_trained_on_or_held_out_and_none_is_both():
    everything = PROBLEMS.values()
    assert len(everything) == 36 * 2 * 6  # elements, languages, what is known (or nothing)
    assert len({p.prompt for p in everything}) == len(everything)  # a key is a prompt
    held_out = {p.prompt for p in everything if tasks.is_held_out(p)}
    assert 0.07 < len(held_out) / len(everything) < 0.13
    trained = {tasks.problem("describe", 0, index, "train").prompt for index in range(1500)}
    evaluated = {tasks.problem("describe", 0, index, "heldout").prompt for index in range(300)}
    assert evaluated == held_out and not trained & held_out and len(trained) > 350


def test_no_row_of_any_stage_has_a_held_out_prompt(monkeypatch):
    monkeypatch.setattr(corpus, "WEIGHTS", {"describe": 1})
    held_out = {p.prompt for p in PROBLEMS.values() if tasks.is_held_out(p)}
    rows = [corpus.document(seed, index) for seed in (0, 1) for index in range(700)]
    rows += corpus.cold_start_rows(("describe",), 700, seed=0)
    rows += rejection.plain_rows(("countdown", "describe"), 700, seed=0)
    prompts = {row["prompt"] for row in rows}
    assert len(prompts) > 350 and not prompts & held_out


# -- lines and utility -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line, kind",
    [
        (SYMBOL, "useful"),
        ("element 26 is iron", "useful"),
        ("element 26 is Fe", "useful"),
        ("the atomic number of iron is 26", "useful"),
        ("the atomic number of Fe is 26", "useful"),
        (f"  {PERIOD} ", "useful"),
        ("the period of iron is 3", "false"),
        ("element 30 is iron", "false"),
        ("the symbol of iron is Zn", "false"),
        ("the symbol of Fe is Fe", "false"),  # says nothing
        ("The period of iron is 4", "false"),
        ("the period of iron is 4.", "false"),
        ("iron: period 4, group 8", "false"),
        ("the period of iron is 4 the group of iron is 8", "false"),
        ("hello", "false"),
        ("the group of zinc is 12", "off topic"),
        ("element 30 is Zn", "off topic"),
        ("锌的族是 12", "off topic"),
        (ZH_PERIOD, "foreign"),
        (ZH_NUMBER, "foreign"),
    ],
)
def test_kind_of_a_line(line, kind):
    assert kinds(line) == [kind]


def test_a_fact_in_other_words_is_a_repetition():
    assert kinds(f"{NUMBER}\nthe atomic number of iron is 26\n{NUMBER}") == [
        "useful",
        "repeated",
        "repeated",
    ]
    assert kinds("the period of iron is 4\nthe period of Fe is 4") == ["useful", "repeated"]


def test_only_a_useful_line_can_be_repeated():
    assert kinds(f"{ZH_PERIOD}\n{PERIOD}\n{ZH_PERIOD}") == ["foreign", "useful", "foreign"]
    assert kinds("element 30 is iron\nelement 26 is iron") == ["false", "useful"]
    assert kinds(f"{NUMBER}\n{NUMBER}", iron("number")) == ["known", "known"]


def test_what_the_reader_knows_is_of_no_use():
    assert kinds(FOUR, iron("period")) == ["useful", "useful", "known", "useful"]
    assert kinds("the atomic number of Fe is 26\n" + SYMBOL, iron("number")) == ["known", "useful"]


def test_blank_lines_are_no_lines():
    assert kinds(f"\n{SYMBOL}\n \n\n{PERIOD}\n") == ["useful", "useful"]


@pytest.mark.parametrize(
    "answer, utility",
    [
        (None, 0),
        ("", 0),
        (" \n\n", 0),
        (SYMBOL, 1 / 4),
        (f"{SYMBOL}\n{NUMBER}", 2 / 4),
        (f"{SYMBOL}\n{NUMBER}\n{STATE}", 3 / 4),
        (FOUR, 1),
        (f"{FOUR}\n{STATE}", 1),  # four are enough
        (f"{FOUR}\nhello", 7 / 8),  # a bad line costs 1/8, whatever is bad about it
        (f"{FOUR}\n{STATE}\nhello", 7 / 8),
        (f"{FOUR}\n{PERIOD}", 7 / 8),
        (f"{FOUR}\nthe period of iron is 3", 7 / 8),
        (f"{FOUR}\nthe group of zinc is 12", 7 / 8),
        (f"{FOUR}\n{ZH_PERIOD}", 7 / 8),
        (f"{FOUR}\nhello\n{PERIOD}\n{ZH_PERIOD}", 5 / 8),
        (f"{NUMBER}\nthe atomic number of iron is 26", 1 / 8),
        (f"{SYMBOL}\nhello\nhello", 0),
        (f"{SYMBOL}\nhello\nhello\nhello", 0),  # never below 0
        ("hello", 0),
        (f"{FOUR}\n" + "hello\n" * 50, 0),
    ],
)
def test_utility_by_hand(answer, utility):
    assert annotator.utility(iron(), answer) == utility


def test_utility_of_an_answer_to_somebody_who_knows_a_fact():
    assert annotator.utility(iron("period"), FOUR) == 3 / 4 - 1 / 8
    assert annotator.utility(iron("state"), FOUR) == 1


def test_utility_of_a_chinese_answer():
    problem, answer = iron(language="zh"), "\n".join([ZH_SYMBOL, ZH_NUMBER, ZH_PERIOD, ZH_GROUP])
    assert annotator.utility(problem, answer) == 1
    assert annotator.utility(problem, f"{ZH_SYMBOL}\n{ZH_PERIOD}\n{GROUP}") == 3 / 8
    assert annotator.utility(problem, FOUR) == annotator.utility(iron(), answer) == 0


# -- preferences -----------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    "first, second, logit",
    [
        (SYMBOL, SYMBOL, 0),
        (SYMBOL, None, 0.25 / 0.15 + 0.1),  # a quarter better, a line more
        (FOUR, "hello", 1 / 0.15 + 0.3),
        (f"{FOUR}\nhello", FOUR, -0.125 / 0.15 + 0.1),
        (f"{FOUR}\n{STATE}", FOUR, 0.1),  # bias alone: the fifth fact adds nothing
        ("hello\n" * 7, "hello", 0.6),
        (None, "hello", -0.1),
        (None, "", 0),
    ],
)
def test_preference_by_hand(first, second, logit):
    first, second = (annotator.appeal(iron(), answer) for answer in (first, second))
    # Either one may be read first, which is worth 0.3.
    assert annotator.preference(first, second) == pytest.approx(sigmoid(logit + 0.3))
    assert annotator.preference(second, first) == pytest.approx(sigmoid(-logit + 0.3))


def share_of_errors(better, worse, count=4000):
    """Of an annotator who reads the better answer first."""
    rng = Random(0)
    appeals = [annotator.appeal(iron(), answer) for answer in (better, worse)]
    return sum(not annotator.prefers_first(*appeals, rng) for _ in range(count)) / count


def test_an_annotator_errs_more_on_close_pairs():
    # All answers have four lines, so the bias does not count. A share's error is at most 0.008.
    close, far = f"{SYMBOL}\n{NUMBER}\n{STATE}\nhello", f"{SYMBOL}\nhello\nhello\nhello"
    assert [annotator.utility(iron(), answer) for answer in (FOUR, close, far)] == [1, 5 / 8, 0]
    assert share_of_errors(FOUR, close) == pytest.approx(sigmoid(-0.375 / 0.15 - 0.3), abs=0.02)
    assert share_of_errors(FOUR, far) == pytest.approx(sigmoid(-1 / 0.15 - 0.3), abs=0.005)
    assert share_of_errors(FOUR, FOUR) == pytest.approx(sigmoid(-0.3), abs=0.03)  # order alone


def test_an_annotator_likes_longer_answers():
    # Both are of no use; ten more lines add a logit of 1.
    assert share_of_errors("hello\n" * 11, "hello") == pytest.approx(sigmoid(-1.3), abs=0.03)


# -- writers ---------------------------------------------------------------------------------------


def test_writers_are_imperfect_in_every_way():
    utilities, counts = [], Counter()
    for index in range(1000):
        problem = tasks.problem("describe", 0, index, "train")
        answer = describe.write(problem, Random(index))
        utilities.append(annotator.utility(problem, answer))
        counts.update(annotator.line_kinds(problem, answer))
    assert 0.40 < sum(utilities) / len(utilities) < 0.48
    assert 0.0 in utilities and 1.0 in utilities
    assert counts.keys() == {"useful", "known", "repeated", "foreign", "off topic", "false"}
    assert min(counts.values()) > 0.01 * counts.total() and counts["useful"] > counts.total() / 2


def test_a_writer_without_flaws_is_perfect(monkeypatch):
    monkeypatch.setattr(describe, "RAMBLE", 0)
    monkeypatch.setattr(describe, "FLAW", 1e-9)
    monkeypatch.setattr(describe, "LINES", (4, 4))
    for problem in PROBLEMS.values():
        assert annotator.utility(problem, describe.write(problem, Random(problem.key))) == 1


def test_the_annotator_reads_every_true_sentence():
    # By name or symbol; the number in two ways; the symbol by name alone.
    assert len(annotator.true_sentences()) == 36 * 2 * (1 + 4 + 2 + 2 + 2)
    rng = Random(0)
    for element in elements.FACTS:
        for kind in elements.PROPERTIES:
            for language in elements.FACT:
                sentence = elements.fact(element, kind, language, rng).strip()
                source = annotator.true_sentences()[sentence]
                assert source == (element["symbol"], kind, language)
