"""The hard variants of the reasoning tasks."""

import math
from fractions import Fraction
from itertools import combinations_with_replacement, islice
from random import Random

import pytest

from r1mini import tasks
from r1mini.records import Problem
from r1mini.tasks import balance, countdown, kinetics
from r1mini.tasks.trace import Style


def hard(task, **columns):
    return Problem(task, "", "en", "", columns)


def problems(task, count=300):
    return [tasks.problem(task, 0, index, "train") for index in range(count)]


def test_every_reasoning_task_has_a_hard_variant():
    assert [name.split("-")[0] for name in tasks.HARD] == list(tasks.REASONING)
    assert set(tasks.HARD) < set(tasks.TASKS)


# c=a-2 should be c=a+2.
REPAIR = hard(
    "repair-hard",
    program=("def f(a,b):", " c=a-2", " d=c*b", " return d-a"),
    shown=[((3, 2), 7), ((5, 4), 23)],
    hidden=[((1, 9), 26), ((4, 1), 2), ((2, 2), 6)],
)
# A doubles and the rate doubles: order 1. B doubles and the rate is 4 times: order 2. 12/(1*2*2)=3.
KINETICS = hard("kinetics-hard", A=[1, 2, 1], B=[2, 2, 4], r=[12, 24, 48])


@pytest.mark.parametrize(
    "problem, right, wrong",
    [
        (
            hard("countdown-hard", numbers=[2, 3, 4, 5], target=24),
            [
                "(5+3-2)*4",
                "4*(3-2+5)",
                " ( 5 + 3 - 2 ) * 4\n",
                "(5 + 3 − 2) × 4 = 24",
                "24 = 4·(5+3-2)",
                r"\boxed{4 \times (5 + 3 - 2)}",
                "**(5+3-2)*4**",
                "Answer: [5+3-2]*4.",
            ],
            [
                "24",
                "4*3*2",  # no 5
                "4*3*2*5/5",
                "5*4+3*2",  # 26
                "5*4+3+2-1",
                "(5+3-2)*4 = 25",
                "5+3-2*4",
                "(5+3-2)*4 yes",
                "(5+3)*4-2*4",
            ],
        ),
        (
            hard("countdown-hard", numbers=[1, 3, 4, 6], target=24),
            ["6/(1-3/4)", r"\frac{6}{1-\frac{3}{4}}", "6 ÷ (1 − 3 ÷ 4) = 24"],
            ["6/(1-4/3)", "6/1-3/4", "6*4*1"],
        ),
        (
            REPAIR,
            [
                "2 c=a+2",
                " 2  c = 2 + a\n",
                "2 c=a--2",
                "3 d=(c+4)*b",
                "3 d=(a+2)*b",
                "4 return d+4*b-a",
            ],
            [
                "c=a+2",
                "2 c=a-2",
                "2 c=a*2",
                "2 c=a+3",
                "3 d=c+b",
                "3 c=a+2",
                "4 return 7 if a==3 else 23",
                "5 return (a+2)*b-a",
                "1 def f(a,b): return (a+2)*b-a",
                "2 c=a+2\n3 d=c*b",
            ],
        ),
        (  # Fe 4?4, S 6?6, O 18?6+12
            hard("balance-hard", left=("Fe2S3", "O2"), right=("SO2", "Fe2O3")),
            ["2 9 6 2", "  2 9  6 2\n", "02 9 6 2"],
            [
                "2 9 2 6",
                "4 18 12 4",
                "1 4 3 1",
                "2 9 6",
                "2 9 6 2 1",
                "2, 9, 6, 2",
                "2 Fe2S3 9 6 2",
            ],
        ),
        (
            hard("balance-hard", left=("HCl", "MnO2"), right=("Cl2", "H2O", "MnCl2")),
            ["4 1 1 2 1"],
            ["1 4 1 2 1", "8 2 2 4 2", "4 1 1 2", "4 1 2 2 1", "4 1 1 2 1.0"],
        ),
        (
            KINETICS,
            ["1 2 3", " 1  2   3\n", "1 2 03"],
            [
                "2 1 3",
                "1 2 12",
                "1 2 6",
                "1 1 3",
                "0 2 3",
                "1 2",
                "1 2 3 0",
                "1 2 3.0",
                "1 2 -3",
                "1,2,3",
                "1 2 k=3",
                "1 2 ３",
                "9 9 3",
                "1 2\n3",
            ],
        ),
        (  # The rate depends on nothing: both orders are 0.
            hard("kinetics-hard", A=[2, 4, 2], B=[3, 3, 9], r=[7, 7, 7]),
            ["0 0 7"],
            ["0 0 6", "0 1 7", "1 0 7", "0 7"],
        ),
    ],
)
def test_checkers_by_hand(problem, right, wrong):
    errors = {answer: tasks.find_error(problem, answer) for answer in right + wrong}
    assert [answer for answer in right if errors[answer] is not None] == []
    assert [answer for answer in wrong if errors[answer] is None] == []


# -- countdown -------------------------------------------------------------------------------------


def test_no_try_of_four_numbers_is_repeated():
    nines = hard("countdown-hard", numbers=[9, 9, 9, 9], target=36)  # there are 42 ways
    for problem, count in [(nines, 42), *((p, 30) for p in problems("countdown-hard", 100))]:
        attempts = islice(countdown.tries_hard(problem, Random(1)), count)
        assert len({attempt.text for attempt in attempts}) == count


def test_tries_of_four_numbers_say_what_they_reach():
    for problem in problems("countdown-hard", 100):
        for attempt in islice(countdown.tries_hard(problem, Random(1)), 20):
            *steps, goal = attempt.text.split(" ")
            assert len(steps) == 3 and goal == f"?{problem.columns['target']}"
            for step in steps:
                term, result = step.split("=")
                assert countdown.evaluate(term) == int(result) and 0 <= int(result) <= 60
            assert countdown.evaluate(attempt.answer) == int(result)
            assert attempt.success == (tasks.find_error(problem, attempt.answer) is None)


def test_a_search_of_four_numbers_has_enough_tries():
    # Equal numbers have the fewest. A demonstration that had tried them all would never end.
    most = tasks.TASKS["countdown-hard"].max_tries
    for numbers in combinations_with_replacement(range(1, 10), 4):
        if len(set(numbers)) < 3:
            written = {" ".join(steps) for steps, *_ in countdown.search(numbers, Random(0))}
            assert len(written) > most, numbers


def test_half_of_the_searches_of_four_numbers_succeed():
    found = [
        tasks.demonstrate(problem, Style(), Random(index))[2]
        for index, problem in enumerate(problems("countdown-hard", 400))
    ]
    assert 0.4 < sum(found) / len(found) < 0.6


# -- balance ---------------------------------------------------------------------------------------


def smallest_coefficients(left, right):
    """The only solution of a reaction's atom balance, in lowest terms; None unless it is one line.

    Gauss-Jordan elimination of a matrix with a row for each element.
    """
    counts = [balance.atoms(species) for species in left + right]
    signs = [1] * len(left) + [-1] * len(right)
    rows = [
        [Fraction(sign * count[element]) for sign, count in zip(signs, counts)]
        for element in sorted(set().union(*counts))
    ]
    pivots = []
    for column in range(len(counts)):
        row = next((row for row in rows[len(pivots) :] if row[column]), None)
        if row is None:
            continue
        rows.remove(row)
        row = [x / row[column] for x in row]
        rows = [[x - other[column] * y for x, y in zip(other, row)] for other in rows]
        rows.insert(len(pivots), row)
        pivots.append(column)
    if len(pivots) != len(counts) - 1:
        return None
    [free] = set(range(len(counts))) - set(pivots)
    solution = [Fraction(1)] * len(counts)
    for row, column in zip(rows, pivots):
        solution[column] = -row[free]
    scale = math.lcm(*(x.denominator for x in solution))
    whole = [int(x * scale) for x in solution]
    return [x // math.gcd(*whole) for x in whole]


@pytest.mark.parametrize(
    "left, right, coefficients",
    [
        (("H2", "O2"), ("H2O",), [2, 1, 2]),
        (("Fe2S3", "O2"), ("Fe2O3", "SO2"), [2, 9, 2, 6]),
        (("C", "O2"), ("CO", "CO2"), None),  # any share of the carbon may become CO
    ],
)
def test_smallest_coefficients_by_hand(left, right, coefficients):
    assert smallest_coefficients(left, right) == coefficients


def test_hard_reactions_have_one_solution():
    drawable = [pair for pair in balance.hard_reactions() if balance.smallest_multiple(*pair)]
    assert len(drawable) > 1000
    for left, right in drawable:
        solution = smallest_coefficients(left, right)
        assert solution and min(solution) > 0, (left, right)
        problem = hard("balance-hard", left=left, right=right)
        assert tasks.demonstrate(problem, Style(), Random(0))[1] == " ".join(map(str, solution))
        assert tasks.find_error(problem, " ".join(map(str, solution))) is None


def test_no_hard_reaction_is_an_easy_one():
    easy, difficult = (
        {str(sorted(map(sorted, pair))) for pair in pairs}  # in either direction
        for pairs in (balance.reactions(), balance.hard_reactions())
    )
    assert not easy & difficult
    assert all(problem.key in difficult for problem in problems("balance-hard"))
    assert all(problem.key in easy for problem in problems("balance"))


def test_hard_reactions_have_four_or_five_species_and_each_once():
    sizes = [len({*left, *right}) for left, right in balance.hard_reactions()]
    assert set(sizes) == {4, 5}
    assert sizes == [len(left + right) for left, right in balance.hard_reactions()]


# -- kinetics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate, ratio, order, text, value",
    [(12, 2, 0, "12", 12), (12, 2, 1, "12*2=24", 24), (2, 3, 2, "2*3=6 6*3=18", 18)],
)
def test_power_steps_by_hand(rate, ratio, order, text, value):
    assert kinetics.power_steps(rate, ratio, order) == (text, value)


def test_tries_of_orders_by_hand():
    attempts = {attempt.text[:3]: attempt for attempt in kinetics.tries_rates(KINETICS, Random(0))}
    assert len(attempts) == 9
    assert [orders for orders, attempt in attempts.items() if attempt.success] == ["1 2"]
    assert attempts["1 2"].answer == "1 2 3"
    assert attempts["1 2"].text == (
        "1 2 2/1=2 12*2=24 ?24 4/2=2 12*2=24 24*2=48 ?48 k 12/1=12 12/2=6 6/2=3"
    )
    assert attempts["1 0"].text == "1 0 2/1=2 12*2=24 ?24 4/2=2 12 ?48"
    assert attempts["0 2"].text == "0 2 2/1=2 12 ?24"
    assert attempts["2 2"].text == "2 2 2/1=2 12*2=24 24*2=48 ?24"


def test_tables_of_rates_follow_one_law():
    for problem in problems("kinetics-hard"):
        (a, *more_a), (b, *more_b), rates = (problem.columns[name] for name in "ABr")
        assert more_a[0] in (2 * a, 3 * a) and more_a[1] == a  # then only B is another one
        assert more_b[0] == b and more_b[1] in (2 * b, 3 * b)
        answer = tasks.demonstrate(problem, Style(), Random(0))[1]
        x, y, k = map(int, answer.split())
        assert rates == [k * a**x * b**y, k * more_a[0] ** x * b**y, k * a**x * more_b[1] ** y]
        assert max(rates) < 100 and 1 <= k <= 9
        listed = [" ".join(map(str, problem.columns[name])) for name in "ABr"]
        question = {"en": "orders and k?", "zh": "各级数和 k?"}[problem.language]
        assert problem.prompt == "A {}\nB {}\nr {}\n{}\n".format(*listed, question)


def test_three_orders_by_hand():
    problem = hard(
        "kinetics-three", A=[1, 2, 1, 1], B=[3, 3, 6, 3], C=[2, 2, 2, 4], r=[4, 4, 8, 16]
    )
    attempts = {attempt.text[:5]: attempt for attempt in kinetics.tries_rates(problem, Random(0))}
    assert len(attempts) == 27
    [right] = [attempt for attempt in attempts.values() if attempt.success]
    assert right.text == (
        "0 1 2 2/1=2 4 ?4 6/3=2 4*2=8 ?8 4/2=2 4*2=8 8*2=16 ?16 k 4/3=1 1/2=0 0/2=0"
    )
    assert attempts["0 1 0"].text == "0 1 0 2/1=2 4 ?4 6/3=2 4*2=8 ?8 4/2=2 4 ?16"


def test_table_of_three_reactants_and_its_checker():
    problem = hard(
        "kinetics-three", A=[1, 2, 1, 1], B=[3, 3, 6, 3], C=[2, 2, 2, 4], r=[12, 12, 24, 48]
    )
    assert tasks.find_error(problem, " 0 1 2  1 ") is None
    assert tasks.find_error(problem, "0 1 2") == "not 3 orders and a rate constant"
    assert tasks.find_error(problem, "1 1 2 1") == "rate 2: 24 ≠ 12"
    assert tasks.find_error(problem, "0 1 2 2") == "rate 1: 24 ≠ 12"
