"""Chemistry: balance a reaction; name the order and the rate constant of a concentration table.

Balancing tries multiples of one coefficient in turn and counts the atoms on both sides (`Al
4?2*2=4`). Kinetics tests the three rate laws in random order: equal differences of A (order 0),
equal ratios of A (order 1), equal differences of 1/A, shown as A0/A (order 2).
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from random import Random

from r1mini.records import Problem
from r1mini.tasks.trace import Try

METALS = {  # oxidation state in simple salts: symbols
    1: "Ag Cs Cu K Li Na Rb",
    2: "Ba Be Ca Cd Co Cr Cu Fe Mg Mn Ni Pb Sn Sr Zn",
    3: "Al Co Cr Fe Ga In Sc Ti V Y",
    4: "Mn Mo Pb Sn Ti Zr",
    5: "Nb V",
    6: "Mo W",
}
# The element itself: its charge in salts
NONMETALS = {"F2": 1, "Cl2": 1, "Br2": 1, "I2": 1, "O2": 2, "S": 2, "Se": 2, "N2": 3, "P": 3}
PROMPT = {"en": "Balance {left} -> {right}\n", "zh": "配平 {left} -> {right}\n"}
Species = tuple[str, ...]


def subscript(n: int) -> str:
    return "" if n == 1 else str(n)


def salt(metal: str, charge: int, anion: str, anion_charge: int) -> str:
    common = math.gcd(charge, anion_charge)
    return f"{metal}{subscript(anion_charge // common)}{anion}{subscript(charge // common)}"


def atoms(formula: str) -> Counter:
    """The atoms of a species, in which no element stands twice."""
    elements = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    return Counter({symbol: int(number or 1) for symbol, number in elements})


@cache
def reactions() -> tuple[tuple[Species, Species], ...]:
    """All reactions, as (left species, right species).

    Synthesis and decomposition, metals in acids, oxides with hydrogen and aluminium, combustion.
    """
    pairs = set()
    for charge, metals in METALS.items():
        for metal in metals.split():
            pairs.update(metal_reactions(metal, charge))
    for c in range(1, 7):
        for h in range(2, 2 * c + 3, 2):
            pairs.add(((f"C{subscript(c)}H{h}", "O2"), ("CO2", "H2O")))
    return tuple(sorted(pairs))


def metal_reactions(metal: str, charge: int) -> Iterator[tuple[Species, Species]]:
    for element, anion_charge in NONMETALS.items():
        symbol = element.rstrip("2")
        product = salt(metal, charge, symbol, anion_charge)
        yield (metal, element), (product,)
        yield (product,), (metal, element)
        if anion_charge == 1:
            yield (metal, f"H{symbol}"), (product, "H2")
    oxide = salt(metal, charge, "O", 2)
    yield (oxide, "H2"), (metal, "H2O")
    if metal != "Al":
        yield (oxide, "Al"), (metal, "Al2O3")


def balance(left: Species, right: Species, multiple: int) -> list[int]:
    """The coefficients that follow from `multiple` for the most complex species.

    Each of the others follows from atoms that are already counted, rounded down; so they are wrong
    unless the multiple is right.
    """
    counts = [atoms(species) for species in left + right]
    sign = [1] * len(left) + [-1] * len(right)
    pivot = max(range(len(counts)), key=lambda i: (len(counts[i]), sum(counts[i].values())))
    known = {pivot: multiple}
    rarest_first = sorted(set().union(*counts), key=lambda e: (sum(e in c for c in counts), e))
    while len(known) < len(counts):
        for element in rarest_first:
            unknown = [i for i, c in enumerate(counts) if element in c and i not in known]
            if len(unknown) == 1:
                [i] = unknown
                surplus = sum(sign[j] * known[j] * counts[j][element] for j in known)
                known[i] = max(1, -sign[i] * surplus // counts[i][element])
                break
    return [known[i] for i in range(len(counts))]


def count_atoms(element: str, side: Species, coefficients: list[int]) -> tuple[str, int]:
    """The atoms of an element on one side, as text and as a number: (`2*2+3=7`, 7)."""
    terms = [(c, atoms(species)[element]) for c, species in zip(coefficients, side)]
    total = sum(c * n for c, n in terms)
    text = "+".join(f"{c}*{n}" if n > 1 else str(c) for c, n in terms if n)
    return (text if text == str(total) else f"{text}={total}"), total


def tally(left: Species, right: Species, coefficients: list[int]) -> tuple[str, bool]:
    """The atoms of each element on both sides, up to the first element that differs."""
    text = ""
    for element in dict.fromkeys(e for species in left for e in atoms(species)):
        before, left_total = count_atoms(element, left, coefficients)
        after, right_total = count_atoms(element, right, coefficients[len(left) :])
        text += f" {element} {before}?{after}"
        if left_total != right_total:
            return text, False
    return text, True


def generate_balance(rng: Random, language: str) -> Problem | None:
    reaction = rng.choice(reactions())
    left, right = (tuple(rng.sample(side, len(side))) for side in reaction)
    # Not too many problems that the first try solves, and none whose search is long.
    multiples = (m for m in range(1, 13) if tally(left, right, balance(left, right, m))[1])
    first = next(multiples, None)
    if first is None or first > 6 or (first == 1 and rng.random() < 0.6):
        return None
    return Problem(
        "balance",
        # A reaction and its reverse have the same coefficients.
        str(sorted(map(sorted, reaction))),
        language,
        PROMPT[language].format(left=" + ".join(left), right=" + ".join(right)),
        {"left": left, "right": right},
    )


def tries_balance(problem: Problem, rng: Random) -> Iterator[Try]:
    left, right = problem.columns["left"], problem.columns["right"]
    for multiple in range(1, 13):
        coefficients = balance(left, right, multiple)
        answer = " ".join(map(str, coefficients))
        text, balanced = tally(left, right, coefficients)
        yield Try(answer + text, balanced, answer)


def find_error_balance(problem: Problem, answer: str) -> str | None:
    """Expects the coefficients in the order of the species, in lowest terms."""
    left, right = problem.columns["left"], problem.columns["right"]
    coefficients, count = [], len(left + right)
    if re.fullmatch(r"\s*[0-9]{1,2}( +[0-9]{1,2}){0,7}\s*", answer, re.ASCII):
        coefficients = [int(part) for part in answer.split()]
    if len(coefficients) != count or min(coefficients) < 1:
        return f"not {count} coefficients"
    if math.gcd(*coefficients) > 1:
        return "not in lowest terms"
    text, balanced = tally(left, right, coefficients)
    return None if balanced else f"not balanced:{text}"


MAX_CONCENTRATION = 48
TABLE = {"en": "t {t}\nA {A}\norder and k?\n", "zh": "t {t}\nA {A}\n级数和 k?\n"}


def generate_kinetics(rng: Random, language: str) -> Problem | None:
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


def tries_kinetics(problem: Problem, rng: Random) -> Iterator[Try]:
    table, step = problem.columns["table"], problem.columns["step"]
    for order in rng.sample(range(3), 3):
        text, holds, constant = rate_law(table, step, order)
        answer = f"{order} {constant.rpartition('=')[2]}".strip()
        yield Try(f"{order} {text}" + f" k {constant}" * holds, holds, answer)


def find_error_kinetics(problem: Problem, answer: str) -> str | None:
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
