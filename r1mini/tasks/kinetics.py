"""Chemistry: the order and the rate constant of a reaction, from a table.

Easy problems have the concentrations at three times. The search tests the three rate laws in random
order: equal differences of A (order 0), equal ratios of A (order 1), equal differences of 1/A,
shown as A0/A (order 2). Hard problems have the initial rates of A and B in three experiments, and
harder ones those of A, B and C in four. The search tests all combinations of orders in random
order, and computes what the rates would be.
"""

import math
import re
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import product
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
QUESTION = {"en": "orders and k?\n", "zh": "各级数和 k?\n"}


def generate_rates(task: str, names: str, rng: Random, language: str) -> Problem | None:
    """Each experiment but the first changes the concentration of one reactant."""
    orders = [rng.randrange(3) for _ in names]
    first, k = [rng.randint(1, 5) for _ in names], rng.randint(1, 9)
    table = [first]
    for index in range(len(names)):
        table.append([*first])
        table[-1][index] *= rng.choice((2, 2, 3))
    rates = [rate(k, row, orders) for row in table]
    if max(rates) > MAX_RATE:
        return None
    columns = {name: [row[index] for row in table] for index, name in enumerate(names)}
    columns["r"] = rates
    lines = [f"{name} {' '.join(map(str, values))}\n" for name, values in columns.items()]
    prompt = "".join(lines) + QUESTION[language]
    return Problem(task, str(columns), language, prompt, columns)


def rate(k: int, concentrations: Iterable[int], orders: Iterable[int]) -> int:
    return k * math.prod(x**order for x, order in zip(concentrations, orders))


def reactants(problem: Problem) -> list[list[int]]:
    """The concentrations of each in all experiments."""
    return [values for name, values in problem.columns.items() if name != "r"]


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


def tries_rates(problem: Problem, rng: Random) -> Iterator[Try]:
    table, rates = reactants(problem), problem.columns["r"]
    combinations = list(product(range(3), repeat=len(table)))
    for orders in rng.sample(combinations, len(combinations)):
        text, holds, k = " ".join(map(str, orders)), True, rates[0]
        for order, (first, *others), changed in zip(orders, table, rates[1:]):
            ratio = max(others) // first
            steps, value = power_steps(rates[0], ratio, order)
            text += f" {max(others)}/{first}={ratio} {steps} ?{changed}"
            holds = value == changed
            if not holds:
                break
        if holds:
            text += " k"
            for divisor in [
                values[0] for values, order in zip(table, orders) for _ in range(order)
            ]:
                text += f" {k}/{divisor}={k // divisor}"
                k //= divisor
        yield Try(text, holds, " ".join(map(str, (*orders, k))))


def find_error_rates(problem: Problem, answer: str) -> str | None:
    """Expects the orders and the rate constant, a whole number."""
    table = reactants(problem)
    if not re.fullmatch(rf"\s*(?:[0-9] +){{{len(table)}}}[0-9]{{1,2}}\s*", answer, re.ASCII):
        return f"not {len(table)} orders and a rate constant"
    *orders, k = map(int, answer.split())
    for number, (*concentrations, actual) in enumerate(zip(*table, problem.columns["r"]), 1):
        predicted = rate(k, concentrations, orders)
        if predicted != actual:
            return f"rate {number}: {predicted} ≠ {actual}"
    return None
