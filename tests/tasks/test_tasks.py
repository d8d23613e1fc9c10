import json
import re
import time
import warnings
from collections import Counter
from random import Random

import pytest
from conftest import score

import train_sft
from r1mini import tasks
from r1mini.checkpoint import chat_template
from r1mini.checkpoint.tokenizer import END_OF_TEXT
from r1mini.data.sft import encode_rows, sft_rows
from r1mini.records import Problem, Rollout
from r1mini.rewards.completion import has_right_answer
from r1mini.tasks import balance, corpus, countdown, elements, repair
from r1mini.tasks.trace import LANGUAGES, WORDS, Style, Try, write

TASKS = list(tasks.TASKS)
COUNTDOWN = Problem("countdown", "", "en", "", {"numbers": [2, 3, 4], "target": 14})
BALANCE = Problem("balance", "", "en", "", {"left": ("H2", "O2"), "right": ("H2O",)})
# s+=x*2 should be s+=x*3.
REPAIR = Problem(
    "repair",
    "",
    "en",
    "",
    {
        "program": ("def f(v):", " s=0", " for x in v:", "  s+=x*2", " return s"),
        "shown": [(((3, 1),), 12), (((2, 5),), 21)],
        "hidden": [(((4,),), 12), (((9, 1, 1),), 33)],
    },
)
FACT = Problem("elements", "", "en", "", {"answer": "Fe", "terms": []})
RATES = Problem("kinetics-hard", "", "en", "", {"A": [1, 2, 1], "B": [2, 2, 4], "r": [12, 24, 48]})


def kinetics(table, step):
    return Problem("kinetics", "", "en", "", {"table": table, "step": step})


def is_right(problem, answer):
    return tasks.find_error(problem, answer) is None


def problems(task, count=300, split="train", seed=0):
    return [tasks.problem(task, seed, index, split) for index in range(count)]


# -- problems and their split ----------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_problem_is_a_function_of_task_seed_index_and_split(task):
    one = tasks.problem(task, 3, 7, "train")
    tasks.problem(task, 0, 0, "heldout")  # no state is kept between calls
    assert tasks.problem(task, 3, 7, "train") == one
    for other in ((4, 7, "train"), (3, 8, "train"), (3, 7, "heldout")):
        assert tasks.problem(task, *other) != one


@pytest.mark.parametrize("task", TASKS)
def test_no_training_problem_is_held_out(task):
    # Of 100 problems that were not filtered, about 10 would be held out.
    held_out = {p.key for p in problems(task, 30, "heldout", "evaluation")}
    trained = {p.key for seed in (0, 1) for p in problems(task, 50, seed=seed)}
    assert held_out and not held_out & trained


def test_one_problem_in_ten_is_held_out():
    rng = Random(0)
    drawn = [countdown.generate_hard(rng, "en") for _ in range(4000)]
    share = sum(tasks.is_held_out(p) for p in drawn if p) / sum(p is not None for p in drawn)
    assert 0.08 < share < 0.125


def key_from_prompt(problem):
    """A prompt's sorted numbers or species, which identify the problem in both languages."""
    if problem.task.startswith("countdown"):
        numbers = [int(n) for n in re.findall(r"\d+", problem.prompt)]
        target = numbers.pop(0 if problem.language == "en" else -1)
        return f"{sorted(numbers)} {target}"
    left, right = problem.prompt.split(maxsplit=1)[1].split("->")
    return str(
        sorted(sorted(species.strip() for species in side.split(" + ")) for side in (left, right))
    )


@pytest.mark.parametrize("task", ["countdown", "countdown-hard", "balance", "balance-hard"])
def test_key_does_not_depend_on_order_or_language(task):
    generated = problems(task, 400)
    assert {p.language for p in generated} == set(LANGUAGES)
    assert all(p.key == key_from_prompt(p) for p in generated)


@pytest.mark.parametrize("task", ["kinetics", "kinetics-hard", "elements", "repair", "repair-hard"])
def test_languages_share_keys(task):
    generated = problems(task, 900)
    keys = {
        language: {p.key for p in generated if p.language == language} for language in LANGUAGES
    }
    assert keys["en"] & keys["zh"]
    assert not re.search(r"[\u4e00-\u9fff]", "".join(keys["zh"]))


def test_function_and_its_mirror_image_share_a_key():
    # Swapping a and b everywhere, or the operands of + and *, gives the same bug, so one key.
    one, other = ("def f(a,b):", " c=a-b", " return c+a"), ("def f(a,b):", " c=b-a", " return c+b")
    assert repair.mirrored(one) == other and repair.mirrored(other) == one
    listed = ("def f(v,b):", " c=b", " return c")
    assert repair.mirrored(listed) == listed  # a list is not a number
    same = [
        ("def f(v,b):", f" c={c}", f" return {r}") for c in ("b+2", "2+b") for r in ("c*2", "2*c")
    ]
    assert len(set(map(repair.canonical, same))) == 1
    for text in (
        ("def f(s,t):", " c=t+s", " return c+s"),
        ("def f(a,b):", " c=b-a", " return c+c"),
    ):  # the order does not matter
        assert repair.canonical(text) == text


def test_a_reaction_and_its_reverse_share_a_key():
    by_key = {}
    for p in problems("balance", 1500):
        by_key.setdefault(p.key, set()).add(tuple(sorted(p.columns["left"])))
    assert any(len(lefts) == 2 for lefts in by_key.values())


def recorded(monkeypatch):
    """Records the problems that are demonstrated from here on."""
    seen, real = [], tasks.demonstrate
    monkeypatch.setattr(tasks, "demonstrate", lambda p, *rest: seen.append(p) or real(p, *rest))
    return seen


def test_no_document_of_the_corpus_shows_a_held_out_problem(monkeypatch):
    seen = recorded(monkeypatch)
    documents = [corpus.document(0, index) for index in range(2000)]
    new = {"repair-long", "kinetics-three"}  # kinds that the base model never sees
    assert {p.task for p in seen} == set(TASKS) - new and len(seen) > 1400
    assert not any(tasks.is_held_out(p) for p in seen)
    prompts = {p.prompt for task in TASKS for p in problems(task, 40, "heldout", "evaluation")}
    assert not any(row["prompt"] in prompts for row in documents)


def test_no_cold_start_row_shows_a_held_out_problem(monkeypatch):
    seen = recorded(monkeypatch)
    for task in TASKS:
        for index in range(100):
            corpus.cold_start_row(task, 0, index)
    assert len(seen) == 100 * len(TASKS) and not any(tasks.is_held_out(p) for p in seen)


def test_stages_draw_different_problems_with_the_same_seed():
    # With the same seed, cold start, RL and rejection sampling must not draw the same sequence of problems.
    assert (
        corpus.cold_start_row("repair", 0, 0)["prompt"]
        != tasks.problem("repair", 0, 0, "train").prompt
    )


# -- demonstrations and their checkers -------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_perfect_demonstrations_earn_every_reward(task):
    for index, problem in enumerate(problems(task)):
        thinking, answer, _ = tasks.demonstrate(problem, Style(), Random(index))
        if task == "countdown-hard" and thinking.endswith(WORDS[problem.language]["stop"] + "\n"):
            continue  # a search of four numbers may be longer than a trace
        text = corpus.completion(thinking, answer, problem.language, True, True)
        [scores] = score(problem, [Rollout((), (), (), text, True)])
        right = 1 if has_right_answer(problem) else None  # no answer to a general prompt is
        assert (scores["accuracy"], scores["format"]) == (right, 1), problem
        assert scores["language"] in (None, 1.0), thinking


@pytest.mark.parametrize("task", [name for name in TASKS if tasks.TASKS[name].find_error])
def test_checker_agrees_with_the_search(task):
    rejected = 0
    for index, problem in enumerate(problems(task, 100)):
        for attempt in tasks.TASKS[task].tries(problem, Random(index)):
            if attempt.success:
                assert is_right(problem, attempt.answer)
                break
            assert not is_right(problem, attempt.answer)
            rejected += 1
    assert rejected > 50 or task == "elements"  # facts have no search


@pytest.mark.parametrize(
    "problem, right, wrong",
    [
        (
            COUNTDOWN,
            ["2+3*4", "4*3+2", " ( 4 * 3 ) + 2 ", "((2+(3*4)))", "2+3*4=14", "2+3×4"],
            [
                "14",
                "2*4+3+3",
                "2*7",
                "2+3+4",
                "2+3*4=15",
                "34-20",
                "2+3*4-0",
                "-2+3*4+4",
                "2 3*4",
                "2×3+4",
                "2+3*4 yes",
                "2+3*4\n2+3*4",
                "02+3*4",
                "2+3**4",
                "+2+3*4",
                "2.0+3*4",
                "２+3*4",
            ],
        ),
        (
            BALANCE,
            ["2 1 2", " 2  1 2\n"],
            [
                "1 1 1",
                "4 2 4",
                "2 1",
                "2 1 2 0",
                "2,1,2",
                "2 1 2 2",
                "0 0 0",
                "-2 -1 -2",
                "2 1 2.0",
                "２ 1 2",
                "2\n1 2",
            ],
        ),
        (
            REPAIR,
            [
                "4 s+=x*3",
                " 4   s+=x*3\n",
                "4 s=s+3*x",
                "4 s+=x+x+x",
                "5 return s//2*3",
                "5 return sum(v)*3",
            ],
            [
                "s+=x*3",
                "4",
                "4 ",
                "4: s+=x*3",
                "4s+=x*3",
                "3 s+=x*3",
                "4 s+=x*2",
                "4 s+=x*4",
                "5 return s*3",
                "5 return 12",
                "5 s",
                "5 return 12 if v[0]==3 else 21",
                "5 return s*1.5",
                "5 return str(s)",
                "1 def f(v): return sum(v)*3",
                "6 return 3",
                "4 s+=x*3\n5 return s",
                "4 s+=x*3 yes",
                "4 s+=x*３",
                "٤ s+=x*3",
                "4 s+=x*3;" + " " * 60 + "s",
                "5 return f(v)",
                "5 exit(0)",
                "5 while 1: pass",
                "5 return every(v)",
                "5 def every(calls): return [12,21,12,33]",
                "5 return '''",
                "5 import os; os._exit(0)",
                "5 print(12)",
            ],
        ),
        (FACT, ["Fe", " Fe\n"], ["fe", "FE", "F e", "Fe Fe", "iron", "Fe."]),
        # Order 0: A falls by 10 in 5, k = 2. Within 2 %: 1.96 to 2.04.
        (
            kinetics([50, 40, 30], 5),
            ["0 2", "0 10/5", "0 2.03", "0 1.97", " 0 2\n"],
            [
                "0 2.05",
                "0 1.95",
                "1 2",
                "2 2",
                "0 -2",
                "0",
                "2",
                "0 2 2",
                "0 2/0",
                "0 2/00",
                "0 inf",
                "0 2e0",
                "0 ２",
            ],
        ),
        # Order 1: halved in 10, k = ln 2/10 = 0.0693, asked for with two decimals.
        (
            kinetics([80, 40, 20], 10),
            ["1 0.07", "1 0.069", "1 0.0693"],
            ["1 0.06", "1 0.08", "1 0.69", "0 0.07", "2 0.07", "1 4"],
        ),
        # Order 2: 1/30 - 1/60 = 1/60 in 2, k = 1/120 = 0.00833.
        (
            kinetics([60, 30, 20], 2),
            ["2 1/120", "2 2/240", "2 0.0083"],
            ["2 1/60", "2 0.01", "1 1/120", "0 15", "2 0.0080"],
        ),
    ],
)
def test_checker_by_hand(problem, right, wrong):
    assert [answer for answer in right if not is_right(problem, answer)] == []
    assert [answer for answer in wrong if is_right(problem, answer)] == []


@pytest.mark.parametrize(
    "numbers, target, right, wrong",
    [
        (
            [44, 19, 35],
            98,
            [
                r"\boxed{44+19+35}",
                "$44+19+35$",
                "44+19+35 = 98",
                "98 = 44+19+35.",
                "44+19+35 = 63+35 = 98",
                r"$$\boxed{44 + 19 + 35 = 98}$$",
                r"\[44+19+35=\boxed{98}\]",
                r"\fbox{44+19+35.}",
                "44+19\n+35\n= 98。",
                "**44+19+35**",
                "`44+19+35`.",
                "（44＋19）＋35＝98",
                "[44+19]+35",
                "44+19+35 == 98",
                "= 44+19+35",
                "x = 44+19+35",
                "$X = 44+19+35 = 98$",
                "```python\n44+19+35\n```",
                "```\n44+19+35 = 98\n```",
                "```py\nresult = 44+19+35\n```",
                "44 + 19 + 35 = **98**",
                "**44+19+35** = `98`.",
                "44+19+35,",
                "44+19+35；",
                '"44+19+35"',
                "44+19+35 = 98.0",
                "98.00 == 44+19+35",
                "Answer: 44+19+35",
                "**The final answer: 44+19+35 = 98 ✓**",
                "答案：44+19+35",
            ],
            [
                "= 44+19+34",
                "x = 44+19+35 = 97",
                "x = 98",
                "Answer: 98",
                "== 98 ==",
                "44+19+35 == 97",
                "44+19+35 != 98",
                "x != 44+19+35",
                "2x = 44+19+35",
                "x-1 = 44+19+35",
                "Not: 44+19+35",
                "Answer: not 44+19+35",
                "44+19+35 = **97**",
                "44+19+35 = 98.1",
                "44+19+35 = 97.99999999999999999999",
                "44.+19+35",
                "44+19+35*1.0",
                "4.4*10+19+35",
                "```python\n44+19+36\n```",
                "```python\n44+19\n```\n+35",
                "44+19,35",
                "44+19+35, 98",
                "44+19+35; 44+19",
                "44+19+35 = 97",
                "44+19+35 = 98 = 97",
                "97 = 44+19+35",
                "98",
                "98 = 98",
                "44+19+35 =",
                "44+19+35 = 99 - 1 - 1",
                "44+19 = 63\n63+35 = 98",
                r"\boxed{44+19+35} \boxed{44+19+35}",
                r"\boxed{44+19+35",
                "44+19+35 or 98",
                "44+19+35" + " " * 200 + "or 98",
                "44+19+35" + "$" * 200 + "44",
                r"\boxed{44+19}+35",
                r"\boxed{44}+\boxed{19}+\boxed{35}",
                "44+19+35..98",
                "44.0+19+35",
                "44+19+35 ≈ 98",
                "The answer is 44+19+35",
            ],
        ),
        (
            [6, 3, 2],
            4,
            [
                "6 ÷ 3 × 2",
                r"6/3 \cdot 2",
                r"6 \div 3 \times 2 = 4",
                r"\frac{6}{3}\cdot2",
                r"\dfrac{6 \times 2}{3}",
                r"\frac63 \times 2",
                r"\frac{6}{\frac{3}{2}}",
                r"\left(6/3\right)\,\times\ 2",
                r"\bigl( \tfrac{6}{3} \bigr) \quad \cdot 2 = \boxed{4}.",
                "6/3 x 2",
                "6∕3⋅2",
                r"x = \frac{6}{3} \times 2 = \boxed{4.0}",
                "6/3 X 2",
            ],
            [
                r"\frac{6}{3 \cdot 2}",
                r"\frac{6}{3}2",
                r"2\frac{6}{3}",
                r"\frac{3}{6}\cdot 2",
                "6 ÷ (3 × 2)",
                "6 ÷ 3 - 2 = 4",
                "6/3(2)",
                "{6/3}*2",
                r"\sqrt{6/3*2}",
                r"\text{6/3*2}",
                r"6 \timesx 3",
                "6 : 3 * 2",
                "×6/3*2×",
                r"6/3*2\cdot",
                "６/3*2",
                "6−3+2 = 4",
            ],
        ),
    ],
)
def test_countdown_takes_what_means_the_same(numbers, target, right, wrong):
    problem = Problem("countdown", "", "en", "", {"numbers": numbers, "target": target})
    assert [answer for answer in right if not is_right(problem, answer)] == []
    assert [answer for answer in wrong if is_right(problem, answer)] == []


@pytest.mark.parametrize(
    "numbers, target, answer",
    [([4, 5, 2], 9, "4.5*2"), ([5, 2], 1, ".5*2"), ([0, 5, 2], 1, "0.5*2"), ([2, 3], 5, "2.+3")],
)
def test_the_numbers_of_countdown_are_whole(numbers, target, answer):
    problem = Problem("countdown", "", "en", "", {"numbers": numbers, "target": target})
    assert not is_right(problem, answer)


def test_a_task_for_reinforcement_learning_alone_needs_no_search(monkeypatch):
    task = tasks.Task(elements.generate, elements.find_error)
    monkeypatch.setitem(tasks.TASKS, "elements", task)
    assert is_right(FACT, "Fe") and not is_right(FACT, "Cu")
    assert tasks.demonstrate(FACT, Style(give_up=1.0), Random(0)) == ("", "Fe", True)


def test_countdown_division_is_exact():
    thirds = Problem("countdown", "", "en", "", {"numbers": [8, 3, 8, 3], "target": 24})
    assert is_right(thirds, "8/(3-8/3)")  # 8/(1/3): floats give 23.999…
    assert not is_right(thirds, "8/(3-3)+8")  # division by zero is not an answer


HOSTILE = [
    "",
    " ",
    "\n",
    "9**9**9",
    "9**9**9**9",
    "9" * 100,
    "9" * 10_000,
    "1e999",
    "NaN",
    "nan",
    "inf",
    "-1",
    "1/0",
    "0 1/0",
    "1 1e999",
    "0 nan",
    "(" * 99,
    "(" * 10_000 + ")" * 10_000,
    "-" * 99 + "1",
    "(" * 45 + "2" + ")" * 45,
    "__import__('os').system('true')",
    "c=__import__('os')",
    "return exit()",
    "return f(a,b)",
    "c=c",
    "c=b" * 50,
    "c=a" + "*a" * 25,
    "return " + "(" * 25 + "a" + ")" * 25,
    "c=" + "-" * 50 + "a",
    "return lambda:0",
    "c=a\x00",
    "\x00",
    "c=99**99**99",
    "return c<<99",
    "c=a if b else",
    "c=0x",
    "c=1if a else 2",
    "return a:=b",
    "c=(yield)",
    "c=a\\",
    "٣+٤",
    "２+３*４",
    "²",
    "\ud800",
    "2\u200b1 2",
    "1 " * 5000,
    " " * 100_000,
    "1" + " " * 100_000 + "x",
    "0" * 99,
    "2 __import__('os')",
    "2 c=99**99**99",
    "4 s+=9**9**9",
    "4 \x00",
    "4 s+=\ud800",
    "2 s='",
    "3 for x in iter(int,1):",
    "Fe\x00",
    "<answer>",
    "{}",
    "[]",
    "None",
    "True",
    "a" * 1_000_000,
    "2+3*4#" + "x" * 20,
    "2+3*4\\\n",
    "2,3",
    "c=f'{a}'",
]


@pytest.mark.parametrize(
    "problem",
    [COUNTDOWN, BALANCE, REPAIR, FACT, kinetics([50, 40, 30], 5), RATES],
    ids=lambda p: p.task,
)
def test_hostile_answers_are_rejected_quickly(problem):
    started = time.process_time()  # a busy machine must not fail the test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [answer for answer in HOSTILE if is_right(problem, answer)] == []
    assert time.process_time() - started < 2


def test_model_text_raises_no_warning():
    # Python warns about `1if`, which would print a line for each such completion.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_right(REPAIR, "4 s=1if x else 2") and not is_right(COUNTDOWN, "2(3)")


# -- individual cases ------------------------------------------------------------------------------


def test_atom_counts_of_a_formula():
    assert balance.atoms("C6H12O2") == {"C": 6, "H": 12, "O": 2}
    assert balance.atoms("CoCO") == {"Co": 1, "C": 1, "O": 1}


@pytest.mark.parametrize(
    "symbol, number, period, group, state",
    [
        ("H", 1, 1, 1, "+1"),
        ("He", 2, 1, 18, "0"),
        ("B", 5, 2, 13, "+3"),
        ("Ar", 18, 3, 18, "0"),
        ("Sc", 21, 4, 3, "+3"),
        ("Fe", 26, 4, 8, "+3"),
        ("Br", 35, 4, 17, "-1"),
        ("Kr", 36, 4, 18, "0"),
    ],
)
def test_facts_of_the_periodic_table(symbol, number, period, group, state):
    fact = elements.FACTS[number - 1]
    assert [fact[k] for k in ("symbol", "period", "group", "state")] == [
        symbol,
        str(period),
        str(group),
        state,
    ]


def test_balanced_reactions_keep_every_atom():
    for problem in problems("balance"):
        left, right = problem.columns["left"], problem.columns["right"]
        _, answer, _ = tasks.demonstrate(problem, Style(), Random(0))
        surplus = Counter()
        for species, coefficient, sign in zip(
            left + right, map(int, answer.split()), [1] * len(left) + [-1] * len(right)
        ):
            for symbol, count in re.findall(r"([A-Z][a-z]?)(\d*)", species):
                surplus[symbol] += sign * coefficient * int(count or 1)
        assert not any(surplus.values()), (problem.prompt, answer)


def python_of(program):
    """A generated function as a Python function."""
    namespace = {}
    exec("\n".join(program), namespace)
    return namespace["f"]


@pytest.mark.parametrize("task", ["repair", "repair-hard"])
def test_repair_searches_compute_the_same_as_python(task):
    seen = set()
    for problem in problems(task, 300):
        for program in (problem.columns["program"], *repair.fixes(problem.columns["program"])):
            function = python_of(program)
            for call in repair.calls(program[0][6:-2]):
                result = repair.run(program, call)[0]
                assert result is None or repr(result) == repr(function(*call)), (program, call)
            seen.add(re.sub(r"\d", "#", "/".join(program)))
    assert len(seen) > 100


@pytest.mark.parametrize("task", ["repair", "repair-hard"])
def test_repair_prompts_show_true_results(task):
    for problem in problems(task, 200):
        _, answer, right = tasks.demonstrate(problem, Style(), Random(0))
        assert right
        listing = re.findall(r"^\d (.*)$", problem.prompt, re.M)
        number, line = answer.split(" ", 1)
        old = listing[int(number) - 1]
        mended = [*listing]
        mended[int(number) - 1] = old[: -len(old.lstrip())] + line
        shown = problem.columns["shown"]
        assert problem.prompt.endswith(
            ": "
            + " & ".join(
                " ".join(
                    re.sub(r"[()' ]", "", repr(argument)).strip(",")
                    for argument in (*call, f"?{want}")
                )
                for call, want in shown
            )
            + "\n"
        )
        for call, want in shown:
            assert python_of(listing)(*call) != want == python_of(mended)(*call)
        for call, want in problem.columns["hidden"]:
            assert python_of(mended)(*call) == want


def test_repair_has_bugs_of_every_kind():
    kinds = Counter()
    for problem in problems("repair", 1000):
        wrong, right = (half.split("/") for half in re.split(r" (?=def )", problem.key))
        [(old, new)] = [pair for pair in zip(wrong, right) if pair[0] != pair[1]]
        changed = Counter(re.findall(r"\w+|\W", new)) - Counter(re.findall(r"\w+|\W", old))
        kinds["".join(changed) or "order"] += 1
        kinds["loop"] += "for" in problem.prompt
        kinds["text"] += "f(s,t)" in problem.prompt
        kinds["list"] += "," in problem.prompt
        kinds["condition"] += "if" in problem.prompt
    assert (
        min(
            kinds[kind]
            for kind in (
                "+",
                "-",
                "*",
                "<",
                ">",
                "0",
                "1",
                "2",
                "3",
                "max",
                "min",
                "sum",
                "s",
                "t",
                "x",
                "b",
                "order",
                "loop",
                "text",
                "list",
                "condition",
            )
        )
        > 9
    ), kinds


def test_search_of_three_numbers_is_never_truncated():
    longest = max(sum(1 for _ in countdown.tries(p, Random(0))) for p in problems("countdown"))
    assert longest <= 48  # trace.LONGEST


# -- writing traces --------------------------------------------------------------------------------

TRIES = [Try("1+1=2 ?3", False, "1+1"), Try("1+2=3 ?3", True, "1+2"), Try("2+2=4 ?3", False, "2+2")]


def test_trace_ends_at_the_first_success():
    assert write(TRIES, "en", Style(), Random(0), 0.0) == (
        "1+1=2 ?3 no\n1+2=3 ?3 yes\n",
        "1+2",
        True,
    )


def test_giving_up_is_stated_and_answers_with_the_last_try():
    assert write(TRIES, "zh", Style(), Random(0), 1.0) == ("1+1=2 ?3 错\n算了\n", "1+1", False)


def test_slip_is_a_false_verdict():
    assert write(TRIES, "en", Style(slip=1.0), Random(0), 0.0) == ("1+1=2 ?3 yes\n", "1+1", False)


def test_mixing_uses_words_of_the_other_language():
    assert write(TRIES, "en", Style(mix=1.0), Random(0), 0.0)[0] == "1+1=2 ?3 错\n1+2=3 ?3 对\n"


def test_broken_cold_start_rows_lack_one_tag():
    row = corpus.cold_start_row("countdown", 0, 0, Style(broken=1.0))
    assert (
        sum(
            row["completion"].count(tag) for tag in ("<think>", "</think>", "<answer>", "</answer>")
        )
        == 3
    )


# -- rows from a file ------------------------------------------------------------------------------


def test_file_rows_are_read_up_to_the_count(tmp_path, tokens):
    rows = [{"prompt": "p", "completion": f"{n}…"} for n in range(3)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert list(sft_rows(path).values()) == rows
    template, context = chat_template.plain_template(END_OF_TEXT), 1024
    for count, expected in ((2, rows[:2]), (0, rows)):
        cfg = train_sft.Config(data=str(path), rows=count)
        encoded = encode_rows(expected, tokens, template, context)
        assert train_sft.load_rows(cfg, tokens, template, context) == encoded


@pytest.mark.parametrize(
    "text, complaint",
    [
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": ', ":2: not valid JSON"),
        (b'{"prompt": "a"}\n', ":1: no text in column 'completion'"),
        (b'{"prompt": "a", "completion": 3}\n', ":1: no text in column 'completion'"),
        (b'["prompt", "completion"]\n', ":1: a row must be an object with columns"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"\n \n", "no rows"),
        (b"[" * 100_000 + b"\n", ":1: not valid JSON"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, text, complaint):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}") + ".*" + re.escape(complaint)):
        sft_rows(path)


def test_missing_rows_name_the_flag(tmp_path):
    with pytest.raises(ValueError, match="--data .*absent.jsonl: no such file"):
        sft_rows(tmp_path / "absent.jsonl")


def test_text_after_a_correct_answer_makes_it_wrong():
    # If the answer were truncated before it is checked, this would count as correct.
    problem = next(p for p in problems("kinetics", 200) if "1 ln" in demonstrate_perfectly(p))
    answer = demonstrate_perfectly(problem)
    assert is_right(problem, answer)
    assert not is_right(problem, answer + " " * 60 + "or anything else")


def demonstrate_perfectly(problem):
    return tasks.demonstrate(problem, Style(), Random(0))[1]
