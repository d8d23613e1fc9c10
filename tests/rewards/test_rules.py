import time

import pytest
from conftest import score
from hypothesis import example, given
from hypothesis import strategies as st

from r1mini import rewards
from r1mini.answers import extract
from r1mini.records import Problem, Rollout
from r1mini.rewards.completion import check_problem, extract_program, gold_answer, parse, words
from r1mini.rewards.rules import consistency
from r1mini.rewards.runner import call_checked, parse_spec, weighted_sum

COUNTDOWN = Problem(
    "countdown",
    "[3, 5, 9] 24",
    "en",
    "Make 24 from 3, 5, 9.\n",
    {"numbers": [3, 5, 9], "target": 24},
)
FACT = Problem("elements", "symbol Fe", "zh", "铁的符号?\n", {"answer": "Fe", "terms": []})


def one(reward, problem, text, max_completion_len=None):
    """A reward of one completion."""
    rollout = Rollout((), (1,) * len(text), (), text, True)
    [value] = call_checked("x", reward, problem, [rollout], max_completion_len)
    return value


# completion, strict format of a reasoning task, extracted answer
TABLE = [
    ("<think>a</think><answer>b</answer>", 1, "b"),
    ("<think>a\n</think>\n\n<answer>\nb\n</answer>\n \t", 1, "b"),
    ("\n<think>a</think><answer>b</answer>", 1, "b"),
    (
        "<think>a < b > c </thinking></think><answer>b</answer>",
        1,
        "b",
    ),  # not a tag, but looks like one
    ("<think></think><answer>b</answer>", 0, "b"),
    ("<think> \n</think><answer>b</answer>", 0, "b"),
    ("<think>a</think><answer> </answer>", 0, ""),
    ("<think>a</think><answer></answer>", 0, ""),
    ("<answer>b</answer>", 0, "b"),
    ("hello <think>a</think><answer>b</answer>", 0, "b"),
    ("<think>a</think> so <answer>b</answer>", 0, "b"),
    ("<think>a</think><answer>b</answer>\nGARBAGE", 0, "b"),
    ("<think>a<answer>b</answer>", 0, None),  # thinking that never ends
    ("<think>the <answer> now</think><answer>b</answer>", 0, "b"),
    ("<think>a</think><answer>\u200b</answer>", 0, "\u200b"),
    ("<think>\u200b\u2060</think><answer>b</answer>", 0, "b"),
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
def test_format_and_extracted_answer(text, strict, answer):
    assert one(rewards.format, COUNTDOWN, text) == strict
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text",
    [
        "<think>a<answer>b</answer></think>",
        "<answer>b</answer><think>a</think>",
        "<think>a<answer>b</answer> no</think> c",
    ],
)
def test_answer_before_more_thinking_does_not_count(text):
    assert one(rewards.format, COUNTDOWN, text) == 0
    assert extract(text) is None


def test_parsed_blocks_are_verbatim_text():
    assert parse("<think> a\n</think> <answer> b </answer>\n") == (" a\n", " b ")


TAGS = ["<think>", "</think>", "<answer>", "</answer>"]


@given(st.lists(st.sampled_from([*TAGS, "x", " ", "\n", "<", "24"]), max_size=9).map("".join))
@example("<think>x\n</think> <answer>24</answer>\n")
@example("<answer> 24</answer>")
def test_text_with_the_format_equals_its_parsed_blocks(text):
    parsed = parse(text)
    if parsed is not None:
        thinking, answer = parsed
        think = "" if thinking is None else f"<think>{thinking}</think>"
        assert "".join(text.split()) == "".join(f"{think}<answer>{answer}</answer>".split())
        assert not any(tag in answer + (thinking or "") for tag in TAGS)


@given(st.text(), st.sampled_from([COUNTDOWN, FACT]))
def test_no_text_crashes_a_reward(text, problem):
    for wrapped in (text, f"<think>{text}</think><answer>{text}</answer>"):
        scores = score(problem, [Rollout((), (), (), wrapped, True)])[0]
        assert all(value is None or 0 <= value <= 1 for value in scores.values())


def test_answer_alone_has_the_format_if_no_reasoning_is_required():
    assert one(rewards.format, FACT, "<answer>Fe</answer>") == 1
    assert one(rewards.format, FACT, "<think>铁</think><answer>Fe</answer>") == 1
    assert one(rewards.format, FACT, "<think></think><answer>Fe</answer>") == 0
    assert one(rewards.format, FACT, "Fe") == 0


def test_accuracy_applies_the_tasks_checker_to_the_answer():
    assert one(rewards.accuracy, COUNTDOWN, "however untidy <answer> 3*5+9 </answer>") == 1
    assert (
        one(rewards.accuracy, COUNTDOWN, "<think>a</think><answer>9+9+9-3</answer>") == 0
    )  # gives 24, but from other numbers
    assert one(rewards.accuracy, COUNTDOWN, "3*5+9") == 0


@pytest.mark.parametrize(
    "text, expected",
    [
        ("5+8=13 ?24 no", ["no"]),
        ("H2O Fe NaCl C6H12O6", []),
        ("c=a+b return c*2", []),  # a keyword of the notation, in both languages
        ("ln 3/1=1.10", []),
        ("so x1 is f(a)", ["so", "is"]),
        ("算了 stop 对", ["算了", "stop", "对"]),
        ("错no", ["错", "no"]),
        ("让我们想一想", ["让我", "们想", "一想"]),  # a run of Han characters is not one word
        ("AEEE ABAB STOP ДА", ["STOP", "ДА"]),
        ("theValue is_it_so O_H KCl weKnow", ["theValue", "weKnow"]),
    ],
)
def test_words_exclude_notation(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    "thinking, english",
    [
        ("5+8=13 no\n5*8=40 yes", 1.0),
        ("5+8=13 错\n5*8=40 对", 0.0),
        ("5+8=13 no\n5*8=40 对", 1 / 2),
        ("no no 错 no", 3 / 4),
    ],
)
def test_language_consistency_by_hand(thinking, english):
    assert consistency(thinking, "en") == english
    assert consistency(thinking, "zh") == 1 - english


def test_thinking_without_words_has_zero_consistency():
    assert consistency("5+8=13", "en") == consistency("5+8=13", "zh") == consistency("", "en") == 0


def test_language_reward_ignores_the_answer():
    assert one(rewards.language, COUNTDOWN, "<think>5+8=13 no</think><answer>错</answer>") == 1
    assert one(rewards.language, COUNTDOWN, "no <think>错") == 0
    assert one(rewards.language, COUNTDOWN, "no<answer>5</answer>") == 0


def test_language_does_not_apply_to_facts():
    assert one(rewards.language, FACT, "<think>iron</think><answer>Fe</answer>") is None
    scores = score(FACT, [Rollout((), (), (), "<answer>Fe</answer>", True)])[0]
    assert weighted_sum(scores, {"accuracy": 1.0, "format": 0.1, "language": 0.1}) == 1.1


def test_total_is_the_weighted_sum():
    scores = {"accuracy": 1.0, "format": 0.0, "language": 0.5}
    assert weighted_sum(scores, {"accuracy": 2.0, "format": 5.0, "language": 0.2}) == pytest.approx(
        2.1
    )
    assert weighted_sum(scores, {"language": 1.0}) == 0.5


@pytest.mark.parametrize(
    "text", ["acuracy", "accuracy,", "accuracy:high", "", "accuracy:nan", "accuracy:inf"]
)
def test_bad_reward_weights_are_quoted(text):
    with pytest.raises(ValueError, match=f"--reward {text}"):
        parse_spec(text)


def test_hostile_completions_are_scored_quickly():
    for text in [
        "<answer>" * 20_000,
        "<think>" * 20_000 + "</think>" * 20_000,
        "<" * 200_000,
        "\n" * 200_000,
        "<answer>" + "(" * 100_000 + "</answer>",
        "a1" * 100_000,
    ]:
        assert one(rewards.accuracy, COUNTDOWN, text) == 0


# -- answers: the embedded tasks' checkers, and a data file's own -------------------------------------------------------

MATH = Problem("math", "", "en", "What is a third?\n", {"answer": r"\frac{1}{3}"})


@pytest.mark.parametrize(
    "answer",
    [
        "99**98**97",
        "9**9**9",
        "(3,5,9)",
        "9//3*5+9",
        "24",
        "3*5+9+0",
        "3*5+9=25",
        "3*5+9 or 24",
        "__import__('os')",
        "3*5+9 #",
        "３*5+9",
        "3*5+9\n3*5+9",
        "9*5-3*5-3*2",
        "35+9",
        "3*5--9",
        "",
        " ",
        "3*5+9,24",
        ",3*5+9",
    ],
)
def test_wrong_countdown_answers_earn_nothing(answer):
    assert one(rewards.accuracy, COUNTDOWN, f"<think>a</think><answer>{answer}</answer>") == 0


@pytest.mark.parametrize("answer", ["3*5+9", "3*5+9,", "x = 3*5+9", "3*5+9 == 24.0"])
def test_what_stands_around_a_countdown_answer_costs_nothing(answer):
    assert one(rewards.accuracy, COUNTDOWN, f"<think>a</think><answer>{answer}</answer>") == 1


@pytest.mark.parametrize(
    "text, right",
    [
        ("<think>a</think><answer>1/3</answer>", 1),
        (r"<think>a</think>So \boxed{\frac13}.", 1),
        (r"\boxed{1/3}", 1),
        ("<think>a</think><answer>\\boxed{1/3}</answer>", 1),
        ("<think>a</think><answer>0.3333333333</answer>", 0),  # Math-Verify says yes
        ("<think>a</think><answer>1/3, 1/2</answer>", 0),  # two answers
        ("<think>a</think><answer>1/3 or 1/2</answer>", 0),
        (r"<think>a</think>\boxed{1/3} or \boxed{1/2}", 0),  # the last box counts
        (r"<think>\boxed{1/3}</think>I do not know.", 0),  # thinking is not an answer
        (r"<think>\boxed{1/3}", 0),
        ("<think>a<answer>1/3</answer>", 0),
        ("<think>a</think><answer>1/3</answer><answer>1/3</answer>", 0),
        ("<think>a</think><answer>1/3", 0),
        ("<think>a</think>1/3", 0),  # no answer anywhere
        (
            "<think>a</think><answer>0123456789 1/3 /1 1 2 3</answer>",
            0,
        ),  # tiny-grpo accepts this: it contains the answer
        ("<think>a</think><answer></answer>", 0),
        ("<think>a</think><answer>9**9**9</answer>", 0),
        ("<think>a</think><answer>\\frac{1}{</answer>", 0),
    ],
)
def test_accuracy_of_a_data_files_row(text, right):
    assert one(rewards.accuracy, MATH, text) == right


@pytest.mark.parametrize(
    "prompt, gold, answer, right",
    [
        ("Compute 2^{10}.", "1024", "1024", 1),
        ("Compute $2^{10}$.", "1024", "2^{10}", 0),
        ("Compute 2^{10}.", "1024", "4^5", 1),
        (r"Simplify $\sqrt{48}$.", r"4\sqrt{3}", r"\sqrt{48}", 0),
        (r"Simplify $\sqrt{48}$.", r"4\sqrt3", r"4\sqrt{3}", 1),
        ("Expand (x+2)(x+3).", "x^2+5x+6", "(x + 2)(x + 3)", 0),
        ("Is it 3 or 4?", "3", "3", 1),
        ("Which, A or B?", "B", "B", 1),
        ("Is 1/2 or 2/4 reduced?", "1/2", "1/2", 1),
        ("Find -3+5 or so.", "2", "2", 1),
        ("What is -5?", "-5", "-5", 1),
        ("Is x^2+1 or x+1 even?", "x^{2} + 1", "x^2+1", 1),
        (r"Which is more, 1/3 or \frac{1}{4}?", r"\frac{1}{3}", "1/3", 1),
        (r"Which is more, $\frac{1}{3}$ or $\frac{1}{4}$?", "1/3", r"\frac{1}{3}", 1),
        ("On y=x: (3,-4) or (4,4)?", r"\left(4, 4\right)", "(4,4)", 1),
        ("Compute 2+3.", "5", "2 + 3", 0),
        ("Compute 4!.", "24", "4!", 0),
        # in another notation or order
        ("What is 2+3?", "5", "3 + 2", 0),
        ("What is 2+3?", "5", "(2+3)", 0),
        ("What is 2+3?", "5", "**2+3**", 0),
        ("What is 2+3?", "5", r"\text{2+3}", 0),
        ("What is 2+3?", "5", "x = 2+3", 0),
        ("What is 2+3?", "5", "2+3=5", 1),
        ("计算2+3，其中4不用。", "5", "(3+2)", 0),
        (r"Compute $\frac{3}{4}+\frac{1}{8}$.", "7/8", "1/8 + 3/4", 0),
        (r"Compute $12 \times 13$.", "156", "13*12", 0),
        (r"Find $\gcd(12, 18)$.", "6", r"\gcd(18,12)", 0),
        (r"Simplify $\sqrt{48}$.", r"4\sqrt{3}", "√48", 0),
        ("Evaluate $|{-5}|$.", "5", "|-5|", 0),
        (r"Solve $2x-y+1=0$ for $y$.", "y=2x+1", "2x-y+1=0", 0),
        (r"Solve $2x-y+1=0$ for $y$.", "y=2x+1", "y = 1+2x", 1),
        (r"Add $\frac{1}{2}$ and $\frac{1}{4}$.", r"\frac{3}{4}", r"\frac{3}{4}", 1),
    ],
)
def test_repeating_the_questions_expression_is_not_an_answer(prompt, gold, answer, right):
    problem = Problem("data", "", "en", prompt, {"answer": gold})
    assert one(rewards.accuracy, problem, f"<think>a</think><answer>{answer}</answer>") == right


@pytest.mark.parametrize(
    "prompt, gold, answer, right",
    [
        (r"Which is larger, $2^{10}$ or $10^3$?", "1024", "2^{10}", 1),
        (r"Which is larger, $\sqrt{2}$ or $\frac{3}{2}-1$?", "sqrt(2)", r"\sqrt{2}", 1),
        ("Which of x^2-1, (x-1) divides x^3-1?", "(x - 1)", "x-1", 1),
        ("Which? (A) x^2+1 (B) x^2-1", r"\textbf{(B) }x^2-1", "x^2-1", 1),
        ("Expand (x+1)(x-1). (A) x^2+1 (B) x^2-1", "-1+x^2", "x^2-1", 1),
        ("哪个大，2^{10}或10^3?", "1024", "2^{10}", 1),
        (r"Which is larger, $2^{10}$ or $10^3$?", "1024", "10^3", 0),
        ("Which number is 2+3?", "5", "2+3", 0),
        ("Is 2+3 equal to 5 or 6?", "5", "2+3", 0),
        ("Find -3+5 or so.", "2", "-3+5", 0),
        ("Compute 2+3. (A) 5 (B) 6", "5", "2+3", 0),
        ("Which is (x+1)(x+2)? (A) x^2+3x+2 (B) x^2", "x^2+3x+2", "(x+1)(x+2)", 0),
    ],
)
def test_an_answer_that_the_question_offers_may_be_copied(prompt, gold, answer, right):
    problem = Problem("data", "", "en", prompt, {"answer": gold})
    assert one(rewards.accuracy, problem, f"<think>a</think><answer>{answer}</answer>") == right


@pytest.mark.parametrize(
    "answer, right",
    [
        ("B", 1),
        ("(B) 5", 1),
        ("B) 5", 1),
        (r"\textbf{(B)}\ 5", 1),
        ("**B. 5**", 1),
        ("(B) 6", 0),
        ("(A) 4", 0),
        ("5", 0),
        ("(B) 5 (C) 6", 0),
    ],
)
def test_label_with_the_text_that_the_question_gives_it(answer, right):
    problem = Problem("data", "", "en", "2+3?\n\nA) 4\nB) 5\nC) 6", {"answer": "B"})
    assert one(rewards.accuracy, problem, f"<think>a</think><answer>{answer}</answer>") == right


def test_gold_in_a_box_without_braces():
    for solution in (r"so the answer is $\boxed 2$.", r"So $\boxed {2}$", r"So $\fbox{2}$."):
        problem = Problem("data", "", "en", "x?", {"solution": solution, "level": "Level 3"})
        assert one(rewards.accuracy, problem, "<think>a</think><answer>2</answer>") == 1
        assert one(rewards.accuracy, problem, "<think>a</think><answer>3</answer>") == 0


def test_program_is_the_whole_answer_block():
    program = 'def f():\n    """\n    Answer: 5\n    """\n    return "\\boxed{6}"\n'
    assert extract_program(f"<answer>{program}</answer>") == program.strip()


def test_thinking_opened_by_the_prompt_counts_for_the_completion():
    problem = Problem("data", "", "en", "1+1?\n<think>\n", {"answer": "2"})
    assert one(rewards.accuracy, problem, "so it is</think><answer>2</answer>") == 1
    assert one(rewards.format, problem, "so it is</think><answer>2</answer>") == 1
    assert one(rewards.tag_count, problem, "so it is</think><answer>2</answer>") == 1
    assert one(rewards.language, problem, "so it is 对</think><answer>2</answer>") == 3 / 4
    assert (
        one(rewards.accuracy, problem, r"let me see \boxed{2} hm") == 0
    )  # it never stopped thinking


def test_message_content_may_be_a_list_of_parts():
    parts = [
        {"type": "image"},
        {"type": "text", "text": "<answer>"},
        {"type": "text", "text": "2</answer>"},
    ]
    assert rewards.accuracy(
        [[{"content": "p"}]], [[{"role": "assistant", "content": parts}]], answer=["2"]
    ) == [1.0]


@pytest.mark.parametrize(
    "columns, complaint",
    [
        ({}, "answers cannot be checked: no column"),
        ({"solution": "Therefore it holds."}, "answers cannot be checked: no column"),
        ({"answer": "½("}, "gold answer"),
        ({"verification_info": [1]}, "answers cannot be checked: no column"),
        ({"verification_info": {"test_cases": []}}, "no tests"),
        ({"verification_info": {"test_cases": [{"input": "1"}]}}, "no test can be run"),
        ({"tests": [{"stdin": "", "stdout": "1"}], "time_limit": None}, "time_limit None"),
        ({"tests": [{"stdin": "", "stdout": "1"}], "time_limit": "2"}, "time_limit '2'"),
    ],
)
def test_row_without_a_checkable_answer_is_refused(columns, complaint):
    with pytest.raises(ValueError, match=complaint):
        check_problem(Problem("data", "", "en", "p", columns))


@pytest.mark.parametrize(
    "columns, gold",
    [
        ({"answer": "72"}, "72"),
        ({"answer": 72}, "72"),
        ({"answer": None, "solution": r"So \boxed{1} then \boxed{72}."}, "72"),
        ({"answer": "5", "solution": r"\boxed{72}"}, "5"),
        ({"solution": "72"}, None),
        ({}, None),
        ({"answer": " ", "solution": r"\boxed{72}"}, "72"),
        ({"answer": "4", "verification_info": {"ground_truth": "4"}}, "4"),
        ({"answer": "7", "tests": [{"stdin": "", "stdout": ""}]}, None),
        ({"solution": "print(1)", "verification_info": "{}"}, None),
    ],
)
def test_where_the_gold_answer_comes_from(columns, gold):
    if columns.get("verification_info") == "{}":
        columns = {**columns, "verification_info": '{"language": "python", "test_cases": []}'}
    problem = Problem("data", "", "en", "p", columns)
    assert gold_answer(problem) == gold
    assert (one(rewards.accuracy, problem, f"<answer>{gold}</answer>") == 1) == (gold is not None)


def test_task_column_selects_the_checker_per_row():
    result = rewards.accuracy(
        prompts=["a", [{"role": "user", "content": "b"}], "c"],
        completions=[
            "<answer>3*5+9</answer>",
            [{"role": "assistant", "content": "<answer>0.5</answer>"}],
            "<answer>x</answer>",
        ],
        task=["countdown", None, None],
        numbers=[[3, 5, 9], None, None],
        target=[24, None, None],
        answer=[None, "1/2", None],
        trainer_state=object(),
        log_metric=print,
    )
    assert result == [1.0, 1.0, None]


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError):
        rewards.accuracy(prompts=["a", "b"], completions=["x", "y"], answer=["1"])


# -- code ---------------------------------------------------------------------------------------------------------------

DOUBLE = Problem(
    "code",
    "",
    "en",
    "Print the double of each number.\n",
    {
        "verification_info": {
            "language": "python",
            "test_cases": [
                {"input": "1\n2\n", "output": "2\n4\n", "type": "stdin_stdout"},
                {"input": "5\n", "output": "10\n", "type": "stdin_stdout"},
            ],
        }
    },
)
RIGHT = "import sys\nfor line in sys.stdin:\n    print(2 * int(line))\n"


def fenced(program, label="python"):
    return f"<think>hm</think>Here:\n```{label}\n{program}\n```\n"


@pytest.mark.parametrize(
    "text, earned",
    [
        (fenced(RIGHT), 1),
        (fenced(RIGHT, ""), 1),
        (fenced(RIGHT, "py"), 1),
        (f"<think>a</think><answer>{RIGHT}</answer>", 1),
        (f"<answer>{RIGHT}</answer>", 1),
        (f"```python\n{RIGHT}```", 1),
        ("<answer>print(2)</answer>", 0),
        (f"<think>a</think><answer>\n```python\n{RIGHT}```\n</answer>", 1),
        (fenced("print(1)") + fenced(RIGHT).partition("</think>")[2], 1),  # the last one counts
        (fenced(RIGHT) + fenced("print(1)").partition("</think>")[2], 0),
        (fenced("print(2)"), 0),  # open-r1: the first expected line is enough
        (fenced("print('2\\n4\\n10')"), 0),
        (fenced("print('passed')\nexit(0)"), 0),
        (fenced(""), 0),
        (fenced("print(2)\nprint(4)"), 0),  # one test of two: open-r1 gives 0.5
        (fenced(RIGHT, "cpp"), 0),
        (fenced(RIGHT) + "It prints\n```\n2\n4\n```\n", 1),
        (fenced(RIGHT) + "or\n```c\nx\n```\n", 1),
        (fenced("print(2)") + "```\n" + RIGHT + "```\n", 0),
        (
            fenced(RIGHT).replace("<think>", "").replace("</think>", "<think>"),
            0,
        ),  # in thinking that never ends
        (f"<think>\n```python\n{RIGHT}```\n</think>Done.", 0),
        (f"<think>a</think>\n```python\n{RIGHT}", 1),  # never closed
        (f"<think>a</think>\n```python\n{RIGHT[:-9]}", 0),  # cut off
        (f"<think>a</think><answer>{RIGHT}</answer><answer>{RIGHT}</answer>", 0),
        (f"<think>a</think>{RIGHT}", 0),
        ("", 0),
    ],
)
def test_code_reward(text, earned):
    assert one(rewards.code, DOUBLE, text) == earned


ADD = "def add(a, b):\n    return a + b\n"
USE = "```python\nprint(add(1, 2))\n```\n"
DOCSTRING = 'def add(a, b):\n{0}"""\n{0}{1}\n{0}add(1, 2)\n{0}```\n{0}"""\n{0}return a + b\n'


def listed(text, first, rest):
    """The lines of `text` as an item of a list."""
    return "".join((rest if n else first) + line for n, line in enumerate(text.splitlines(True)))


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{ADD}```\nUse:\n{USE}",
        f"```python\n{ADD}```\nIt prints\n```\n3\n```\n",
        f"```\n{ADD}```\n{USE}",
        f"```code\n{ADD}```\n{USE}",
        f"{USE}```python\nimport math\nadd = lambda a, b: a + b\n```\n{USE}",
        f"```python\n{ADD}",  # never closed
        f"```python\n{ADD}{USE}",
        "```python\n" + DOCSTRING.format("  ", "```"),
        f"```python\n{ADD}```\n```python\nfrom solution import add\n\nprint(add(1, 2))\n```\n",
        f"```markdown\n```python\n{ADD}```\nIt adds.\n```\n",
        f"````md\n# Adds\n```python\n{ADD}```\n````\n",
        f"Here:\n~~~\n{ADD}",
        f"~~~python\n{ADD}~~~\n",
        f"~~~~ py\n{ADD}~~~~~\nDone.",
        f"````python\n{ADD}````\n",
        "````python\n" + DOCSTRING.format("    ", "```") + "````\n",
        "```python\n" + DOCSTRING.format("    ", "```") + "```\n",
        "```python\n" + DOCSTRING.format("  ", "```python") + "```\n" + USE,
        '```python\n"""Adds.\n\n```\nadd(1, 2)\n```\n"""\n' + ADD + "```\n" + USE,
        f"```python\n{ADD}``` This adds.\n",
        f"```python\n{ADD}```This adds.\n\n{USE}",
        f"```python\n{ADD}``` This adds.\n\n{USE}",
        "```python\nfrom_prompt = None\n"
        "def add(a: Optional[int], b: int) -> int:\n    return a + b\n```\n",
        f'```python title="a.py"\n{ADD}```\n',
        f"```{{.python .numberLines}}\n{ADD}```\n",
        f"```Python3,linenos\n{ADD}```\n",
        f"``` ipython3\n{ADD}```\n",
        f"```src/add.py\n{ADD}```\n",
        f"```python\n{ADD[:-1]}```",
        f"```python\n{ADD[:-1]}```\nUse:\n{USE}",
        listed(f"```python\n{ADD}```\n", "1. ", "   "),
        listed(f"```python\n{ADD}```\n", "- Code:\n\n      ", "      "),
        listed(f"```python\n{ADD}```\n", "> ", "> "),
        listed(f"```python\n{ADD}```\n", "\t", "\t").replace("    ", "\t"),
        listed("```python\n", "", "") + listed(ADD, "  ", "  ") + "```\n",
        f"```python\r\n{ADD}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
        f"```python\ndef add(a, b):\n    '''Broken\n```\nNo:\n```python\n{ADD}```\n",
    ],
)
def test_program_is_found_in_every_kind_of_fence(text):
    tests = [{"call": "add", "args": [2, 3], "expect": 5}]
    tests += [{"call": "add", "args": [-1, 1], "expect": 0}]
    problem = Problem("code", "", "en", "p", {"tests": tests})
    for completion in (text, f"<think>a</think>{text}", f"<think>a</think><answer>{text}</answer>"):
        assert one(rewards.code, problem, completion) == 1


def test_a_fence_in_a_docstring_of_the_whole_answer_is_no_program():
    problem = Problem(
        "code", "", "en", "p", {"tests": [{"call": "add", "args": [1, 2], "expect": 3}]}
    )
    for mark in ("```", "```python"):
        text = DOCSTRING.format("  ", mark)
        assert one(rewards.code, problem, f"<answer>{text}</answer>") == 1


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{ADD}```\n```python\ndef add(a, b):\n    return a - b\n```\n",  # the last
        f"```python\ndef add(a, b):\n    return a - b\n```\n```\n{ADD}```\n",  # a label first
        f"```python\n{ADD}print(\n```\n",
        f"```python\n{ADD}",  # never closed, and more text
        f"```python\n{ADD}~~~\n",
        f"````python\n{ADD}```\n",
        f"`` python\n{ADD}``\n",
        f"```bash\n{ADD.replace('def', 'function')}```\n",
        f"<think>```python\n{ADD}```\n</think>\n{USE}",
        f"{ADD}\n{USE}",
        "```python\ndef add(a, b):\n    return undefined(a) + b\n```\n",
        "```python\ndef add(a=Optional, b=0):\n    return a + b\n```\n",
        "```python\ndef adder(a, b):\n    return a + b\n```\n",
    ],
)
def test_program_that_is_not_the_last_whole_one_fails(text):
    tests = [{"call": "add", "args": [2, 3], "expect": 5}]
    problem = Problem("code", "", "en", "p", {"tests": tests})
    text += "And more." * (text == f"```python\n{ADD}")
    assert one(rewards.code, problem, text) == 0


def test_code_accepts_every_form_of_tests_and_refuses_malformed_ones():
    call = [{"call": "f", "args": [2], "expect": 4}]
    for tests in (call, '[{"call": "f", "args": [2], "expect": 4}]'):
        problem = Problem("code", "", "en", "p", {"tests": tests})
        assert one(rewards.code, problem, fenced("def f(x):\n    return 2 * x")) == 1
        assert one(rewards.code, problem, fenced("def f(x):\n    return 4.0")) == 0
    called = {
        "language": "Python",
        "test_cases": [{"fn_name": "f", "type": "function_call", "input": "[2]", "output": "4"}],
    }
    problem = Problem("code", "", "en", "p", {"verification_info": called})
    assert one(rewards.code, problem, fenced("def f(x):\n    return 2 * x")) == 1
    assert (
        one(rewards.code, COUNTDOWN, fenced(RIGHT)) is None
        and one(rewards.accuracy, DOUBLE, fenced(RIGHT)) is None
    )
    for bad in (
        {"tests": []},
        {"tests": ["assert f(2) == 4"]},
        {"verification_info": {"language": "cpp", "test_cases": []}},
        {
            "verification_info": {
                "language": "python",
                "test_cases": [{"type": "other", "input": "2", "output": "4"}],
            }
        },
    ):
        with pytest.raises(ValueError, match="reward x: .*row 1 of 1"):
            one(rewards.code, Problem("code", "", "en", "p", bad), fenced(RIGHT))


# -- the rewards under open-r1's names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, earned",
    [
        ("B", 1),
        ("(B)", 1),
        ("b", 1),
        ("B.", 1),
        (r"\text{B}", 1),
        (r"\mathrm{(B)}", 1),
        ("A", 0),
        ("A or B", 0),
        ("A, B", 0),
        ("AB", 0),
        ("B. or C", 0),
        ("B) since A is wrong", 0),
        ("ABCD", 0),
        ("", 0),
        ("not A", 0),
        ("В", 0),  # the last one is Cyrillic
    ],
)
def test_multiple_choice(answer, earned):
    problem = Problem("science", "", "en", "p", {"answer": "(B)"})
    assert (
        one(rewards.multiple_choice, problem, f"<think>A B C D</think><answer>{answer}</answer>")
        == earned
    )


@pytest.mark.parametrize(
    "problem",
    [MATH, FACT, DOUBLE, Problem("d", "", "en", "p", {"answer": "x"})],
    ids=lambda p: p.task,
)
def test_multiple_choice_applies_only_to_labels(problem):
    assert one(rewards.multiple_choice, problem, "<answer>B</answer>") is None


@pytest.mark.parametrize(
    "text, earned",
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("<think>\na\n</think>\n<answer>\nb\n</answer>", 1),
        ("<think>a</think>b", 0.5),
        ("<think>a</think><answer>b", 0.75),
        ("<answer>b</answer>", 0.5),
        ("a", 0),
        ("", 0),
        ("</answer><answer></think><think>", 0),
        ("<answer>b</answer><think>a</think>", 0),  # out of order
        ("<think>" * 4 + "</think><answer></answer>", 0.75),
        ("<think></think><answer></answer>" * 2, 0),
        ("<think>" * 100_000, 0),
    ],
)
def test_tag_count(text, earned):
    assert one(rewards.tag_count, COUNTDOWN, text) == earned


@pytest.mark.parametrize(
    "thinking, earned",
    [
        ("Step 1: add\nStep 2: double\nStep 3: stop", 1),
        ("First, add 2\nNext, double\n", 2 / 3),
        ("1. a\n2. b\n3. c\n4. d", 1),
        ("- a\n* b", 2 / 3),
        ("首先 相加\n其次 相乘\n最后 得", 1),
        ("plain words", 0),
        ("\n-\n-\n-", 0),
        ("First,First,First,", 1 / 3),
        ("1.\n2.\n3.", 0),
        ("1. a\n1. a\n2. a", 1 / 3),
        ("- -\n- *\n- !", 0),  # open-r1: 1
    ],
)
def test_reasoning_steps(thinking, earned):
    assert one(
        rewards.reasoning_steps, COUNTDOWN, f"<think>{thinking}</think><answer>b</answer>"
    ) == pytest.approx(earned)


def test_reasoning_steps_outside_the_thinking_do_not_count():
    assert one(rewards.reasoning_steps, COUNTDOWN, "<think>a</think>1. a\n2. b\n3. c") == 0


@pytest.mark.parametrize(
    "text, low, high",
    [
        ("a b c d", 0, 0),
        ("", 0, 0),
        ("a b", 0, 0),
        ("a b c a b c", -1 / 4, -1 / 4),  # 3 distinct of 4
        ("no " * 100, -1, -0.95),
        ("no. no! no? " * 50, -1, -0.9),
        ("!" * 300, -1, -0.95),
        ("错" * 100, -1, -0.95),
        ("ha" * 2000, -1, -0.95),
        ("NO no No " * 50, -1, -0.95),
        ("等等" * 60, -1, -0.95),
        ("1" * 5000, -1, -0.95),
        ("The cat sat on the mat, and then it went away again.", 0, 0),
    ],
)
def test_repetition_penalty(text, low, high):
    assert low <= one(rewards.repetition_penalty, COUNTDOWN, text) <= high


def test_repetition_penalty_takes_open_r1s_parameters():
    result = rewards.repetition_penalty(["p"], ["a b a b"], ngram_size=2, max_penalty=-0.5)
    assert result == [pytest.approx(-0.5 / 3)]
    with pytest.raises(ValueError, match="max_penalty 1.0"):
        rewards.repetition_penalty(["p"], ["a b a b"], max_penalty=1.0)


def graded(reward, *cases, **parameters):
    """A reward of several answers to COUNTDOWN, each given as (is correct, length in tokens)."""
    return reward(
        prompts=[COUNTDOWN.prompt] * len(cases),
        task=["countdown"] * len(cases),
        numbers=[[3, 5, 9]] * len(cases),
        target=[24] * len(cases),
        completion_ids=[[0] * length for _, length in cases],
        completions=[
            "<answer>3*5+9</answer>" if right else "<answer>3</answer>" for right, _ in cases
        ],
        **parameters,
    )


def test_cosine_by_hand_and_beyond_the_maximum_length():
    lengths = (0, 50, 100, 150, 200, 400)  # open-r1 at twice the length: full reward again
    assert graded(rewards.cosine, *((True, n) for n in lengths), max_len=100) == pytest.approx(
        [1.0, 0.75, 0.5, 0.5, 0.5, 0.5]
    )
    assert graded(rewards.cosine, *((False, n) for n in lengths), max_len=100) == pytest.approx(
        [-1.0, -0.75, -0.5, -0.5, -0.5, -0.5]
    )
    assert graded(rewards.cosine, (True, 100), max_len=100, min_value_correct=0.0) == pytest.approx(
        [0.0]
    )


def test_kimis_length_reward_by_hand():
    assert graded(
        rewards.length, (True, 10), (True, 20), (True, 30), (False, 10), (False, 30)
    ) == pytest.approx([0.5, 0.0, -0.5, 0.0, -0.5])
    assert graded(rewards.length, (True, 7), (False, 7)) == [0.0, 0.0]


def test_lengths_are_in_characters_if_token_counts_are_unknown():
    result = rewards.length(
        ["p", "p"], ["<answer>1</answer>", "<answer>1 </answer>"], answer=["1", "1"]
    )
    assert result == [0.5, -0.5]
    assert rewards.cosine(["p"], ["<answer>1</answer>"], answer=["1"], max_len=18) == [0.5]
    assert (
        rewards.cosine(["p"], ["<answer>1</answer>"])
        == rewards.length(["p"], ["<answer>1</answer>"])
        == [None]
    )


def test_soft_overlong_punishment_uses_each_rows_limit():
    arguments = {
        "prompts": "abc",
        "completions": "abc",
        "completion_ids": [[0] * 80, [0] * 90, [0] * 100],
    }
    assert rewards.soft_overlong_punishment(
        **arguments, max_completion_len=100, soft_punish_cache=20
    ) == [0.0, -0.5, -1.0]
    assert rewards.soft_overlong_punishment(**arguments, max_completion_len=100) == [
        0.0,
        -0.5,
        -1.0,
    ]  # a fifth
    assert rewards.soft_overlong_punishment(**arguments, max_completion_len=[100, 1000, 50]) == [
        0.0,
        0.0,
        -1.0,
    ]


@pytest.mark.parametrize(
    "thinking, english",
    [
        ("yes слово слово слово", 1 / 4),
        ("yes ありがとう", 1 / 2),
        ("yes", 1),
        ("yes θ α", 1),
        ("yes на", 1 / 2),
        ("так", 0),
    ],
)
def test_words_in_a_third_script_count_as_wrong_language(thinking, english):
    assert consistency(thinking, "en") == english and consistency(thinking, "zh") == 0


def test_capitalised_words_count_as_words():
    assert consistency("对 WAIT CHECK", "zh") == 1 / 3 and words("NaOH HCN KOH") == []


def test_time_limit_column_applies_per_problem():
    problem = Problem(
        "code", "", "en", "p", {"tests": [{"stdin": "", "stdout": "1"}], "time_limit": 0.2}
    )
    assert (
        one(rewards.code, problem, fenced("while True: pass")) == 0
        and one(rewards.code, problem, fenced("print(1)")) == 1
    )


def test_language_applies_to_english_and_chinese():
    assert one(rewards.language, Problem("data", "", "", "p", {}), "<think>yes</think>") is None
    assert (
        one(rewards.language, Problem("data", "", "python", "p", {}), "<think>yes</think>") is None
    )
    assert one(rewards.language, Problem("data", "", "en", "p", {}), "<think>yes 对</think>") == 0.5


@given(
    st.text(),
    st.sampled_from([COUNTDOWN, FACT, MATH, Problem("d", "", "en", "p", {"answer": "B"})]),
)
def test_no_text_crashes_any_reward(text, problem):
    for wrapped in (
        text,
        f"<think>{text}</think><answer>{text}</answer>",
        f"1. {text}\n```{text}\n```",
    ):
        for reward in rewards.REWARDS.values():
            value = one(reward, problem, wrapped, max_completion_len=50)
            assert value is None or -1 <= value <= 1


def test_every_reward_is_fast_on_hostile_texts():
    hostile = [
        "<answer>" * 20_000,
        "```python\n" * 20_000,
        "```\n" * 20_001,
        "- " * 100_000,
        " " * 200_000,
        "1." * 100_000,
        "!" * 200_000,
        "\\boxed{" * 30_000,
        "<think>" + "-\t" * 100_000,
        "ab" * 100_000,
        "`" * 200_000,
        "~" * 200_000,
        "```c\n" * 20_000,
        '```\n"""\n' * 20_000,
        "```\n'''\n```x\n\"\"\"\n" * 10_000,
        "a```\n" * 20_000,
        "- " * 100_000 + "```",
        "```" + "-." * 100_000,
        "```python\n" + " \n" * 50_000 + "add\n" * 20_000,
        "```python\n" + "import x " * 20_000,
    ]
    for text in hostile:
        for name, reward in rewards.REWARDS.items():
            started = time.process_time()
            one(reward, DOUBLE if name == "code" else MATH, text, max_completion_len=50)
            assert time.process_time() - started < 2, (name, text[:10])
