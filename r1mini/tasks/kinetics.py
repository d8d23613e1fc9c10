"""Chemistry: the order and the rate constant of a reaction, from a table.

Easy problems have the concentrations at three times. The search tests the three rate laws in random
order: equal differences of A (order 0), equal ratios of A (order 1), equal differences of 1/A,
shown as A0/A (order 2). Hard problems have the initial rates of three experiments; the search
tests the nine pairs of orders of A and B in random order, and computes what the rates would be.
"""

import math
import re
from collections.abc import Iterator
from fractions import Fraction
from random import Random

from r1mini.records import Problem
from r1mini.tasks.trace import Try

MAX_CONCENTRATION = 48
TABLE = {"en": "t {t}\nA {A}\norder and k?\n", "zh": "t {t}\nA {A}\n级数和 k?\n"}


def generate(rng: Random, language: str) -> Problem | None:
    order, step = rng.randrange(3), rng.randint(1, 10)
    if order == 0:
        drop = step * rng.randint(1, 9)
        start = rng.randint(2 * drop + 1, 2 * drop + 40)
        table = [start - i * drop for i in range(3)]
    elif order == 1:
        ratio = rng.choice((2, 2, 2, 3, 3, 4, 5))
        last = rng.randint(1, max(1, MAX_CONCENTRATION // ratio**2))
        table = [last * ratio**2, last * ratio, last]
    else:
        distance = rng.choice((1, 1, 2, 3))
        unit = math.lcm(1 + distance, 1 + 2 * distance)
        start = unit * rng.randint(1, max(1, MAX_CONCENTRATION // unit))
        table = [start // (1 + i * distance) for i in range(3)]
    if table[0] > MAX_CONCENTRATION or len(set(table)) < 3:
        return None
    return Problem(
        "kinetics",
        f"{order} {table} {step}",
        language,
        TABLE[language].format(t=f"0 {step} {2 * step}", A=" ".join(map(str, table))),
        {"table": table, "step": step},
    )


def quotient(a: int, b: int) -> str:
    """`a/b` rounded down, with a trailing + if there is a remainder."""
    return f"{a // b}{'+' if a % b else ''}"


def rate_law(table: list[int], step: int, order: int) -> tuple[str, bool, str]:
    """The test of one order: (its text, whether it holds, the rate constant as text)."""
    first, second, third = table
    if order == 0:
        a, b = first - second, second - third
        text = f"{first}-{second}={a} {second}-{third}={b} ?{a}"
        return text, a == b, f"{a}/{step}={Fraction(a, step)}"
    parts = ((first, second), (second if order == 1 else first, third))
    text = ""
    for a, b in parts:
        text += f"{a}/{b}={quotient(a, b)} "
        if a % b:
            return text.strip(), False, ""
    a, b = (a // b for a, b in parts)
    if order == 1:
        return f"{text}?{a}", a == b, f"ln {a}/{step}"
    x, y = a - 1, b - a
    return f"{text}{a}-1={x} {b}-{a}={y} ?{x}", x == y, f"{x}/{first}/{step}"


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    table, step = problem.columns["table"], problem.columns["step"]
    for order in rng.sample(range(3), 3):
        text, holds, constant = rate_law(table, step, order)
        answer = f"{order} {constant.rpartition('=')[2]}".strip()
        yield Try(f"{order} {text}" + f" k {constant}" * holds, holds, answer)


def find_error(problem: Problem, answer: str) -> str | None:
    """Expects the order and, within 2 %, the rate constant.

    The constant is a number, a quotient, or the logarithm of a number (`1 ln 2/5`).
    """
    number = r"[0-9]{1,4}(?:\.[0-9]{1,4})?"
    pattern = rf"\s*([012]) +(ln )?({number})((?:/{number})*)\s*"
    if len(answer) > 60 or not (match := re.fullmatch(pattern, answer, re.ASCII)):
        return "not an order and a rate constant"
    order, logarithm, constant = int(match[1]), match[2], float(match[3])
    divisors = [float(part) for part in match[4].split("/")[1:]]
    if 0.0 in divisors or logarithm and constant <= 0:
        return "not a number"
    constant = (math.log(constant) if logarithm else constant) / math.prod(divisors)
    table, step = problem.columns["table"], problem.columns["step"]
    true_order = next(o for o in range(3) if rate_law(table, step, o)[1])
    if order != true_order:
        return f"order {order} ≠ {true_order}"
    first, second, _ = table
    changes = (first - second, math.log(first / second), 1 / second - 1 / first)
    exact = changes[order] / step
    return None if abs(constant - exact) <= 0.02 * exact else f"k {constant:.3g} ≠ {exact:.3g}"


# -- hard: initial rates -------------------------------------------------------------------------

MAX_RATE = 99
RATES = {"en": "A {A}\nB {B}\nr {r}\norders and k?\n", "zh": "A {A}\nB {B}\nr {r}\n各级数和 k?\n"}


def generate_hard(rng: Random, language: str) -> Problem | None:
    """In the second experiment only A is another one, in the third only B."""
    orders = rng.randrange(3), rng.randrange(3)
    a, b, k = rng.randint(1, 5), rng.randint(1, 5), rng.randint(1, 9)
    table = [(a, b), (a * rng.choice((2, 2, 3)), b), (a, b * rng.choice((2, 2, 3)))]
    rates = [k * x ** orders[0] * y ** orders[1] for x, y in table]
    if max(rates) > MAX_RATE:
        return None
    columns = {"A": [x for x, _ in table], "B": [y for _, y in table], "r": rates}
    text = {name: " ".join(map(str, values)) for name, values in columns.items()}
    prompt = RATES[language].format(**text)
    return Problem("kinetics-hard", str(columns), language, prompt, columns)


def power_steps(rate: int, ratio: int, order: int) -> tuple[str, int]:
    """The rate after a concentration grew by a ratio: (its text, its value).

    >>> power_steps(3, 2, 2)
    ('3*2=6 6*2=12', 12)
    """
    steps = []
    for _ in range(order):
        steps.append(f"{rate}*{ratio}={rate * ratio}")
        rate *= ratio
    return " ".join(steps) or str(rate), rate


def tries_hard(problem: Problem, rng: Random) -> Iterator[Try]:
    A, B, rates = (problem.columns[name] for name in "ABr")
    pairs = [(x, y) for x in range(3) for y in range(3)]
    for orders in rng.sample(pairs, len(pairs)):
        text, holds = " ".join(map(str, orders)), True
        for order, (first, *others), rate in zip(orders, (A, B), rates[1:]):
            ratio = max(others) // first
            steps, value = power_steps(rates[0], ratio, order)
            text += f" {max(others)}/{first}={ratio} {steps} ?{rate}"
            holds = value == rate
            if not holds:
                break
        k = rates[0]
        if holds:
            text += " k"
            for divisor in [A[0]] * orders[0] + [B[0]] * orders[1]:
                text += f" {k}/{divisor}={k // divisor}"
                k //= divisor
        yield Try(text, holds, f"{orders[0]} {orders[1]} {k}")


def find_error_hard(problem: Problem, answer: str) -> str | None:
    """Expects both orders and the rate constant, a whole number."""
    match = re.fullmatch(r"\s*([0-9]) +([0-9]) +([0-9]{1,2})\s*", answer, re.ASCII)
    if not match:
        return "not two orders and a rate constant"
    *orders, k = map(int, match.groups())
    A, B, rates = (problem.columns[name] for name in "ABr")
    for number, (a, b, rate) in enumerate(zip(A, B, rates), 1):
        predicted = k * a ** orders[0] * b ** orders[1]
        if predicted != rate:
            return f"rate {number}: {predicted} ≠ {rate}"
    return None
