"""Chemistry: balance a reaction; and from a simulated concentration table name the order and the rate constant.

Balancing tries the multiples of one coefficient in turn and counts the atoms on both sides (`Al 4?2*2=4`).
Kinetics tests the three rate laws in random order: equal differences of A (order 0, k per unit of time), equal ratios
of A (order 1), equal differences of 1/A, shown as A0/A (order 2).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from random import Random

from r1mini.records import Problem
from r1mini.tasks.trace import Try

METALS = {  # symbol: oxidation states in simple salts
    "Li": (1,), "Na": (1,), "K": (1,), "Rb": (1,), "Cs": (1,), "Ag": (1,), "Be": (2,), "Mg": (2,), "Ca": (2,),
    "Sr": (2,), "Ba": (2,), "Zn": (2,), "Cd": (2,), "Ni": (2,), "Al": (3,), "Ga": (3,), "In": (3,), "Sc": (3,),
    "Y": (3,), "Cr": (2, 3), "Fe": (2, 3), "Co": (2, 3), "Cu": (1, 2), "Mn": (2, 4), "V": (3, 5), "Ti": (3, 4),
    "Zr": (4,), "Sn": (2, 4), "Pb": (2, 4), "Nb": (5,), "Mo": (4, 6), "W": (6,),
}
NONMETALS = {"F": (1, "F2"), "Cl": (1, "Cl2"), "Br": (1, "Br2"), "I": (1, "I2"), "O": (2, "O2"), "S": (2, "S"),
             "Se": (2, "Se"), "N": (3, "N2"), "P": (3, "P")}
PROMPT = {"en": "Balance {left} -> {right}\n", "zh": "配平 {left} -> {right}\n"}
Species = tuple[str, ...]


def salt(metal: str, charge: int, anion: str, other: int) -> str:
    common = math.gcd(charge, other)
    count = lambda n: "" if n == 1 else str(n)
    return f"{metal}{count(other // common)}{anion}{count(charge // common)}"


def atoms(formula: str) -> Counter:
    counts = Counter()
    for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        counts[symbol] += int(number or 1)
    return counts


@lru_cache(maxsize=1)
def reactions() -> tuple[tuple[Species, Species], ...]:
    """All reactions, as (left species, right species): synthesis and decomposition, metals in acids, combustion,
    oxides with hydrogen and aluminium."""
    found = []
    for metal, charges in METALS.items():
        for charge in charges:
            for symbol, (other, free) in NONMETALS.items():
                product = salt(metal, charge, symbol, other)
                found += [((metal, free), (product,)), ((product,), (metal, free))]
                if other == 1:
                    found.append(((metal, f"H{symbol}"), (product, "H2")))
            oxide = salt(metal, charge, "O", 2)
            found.append(((oxide, "H2"), (metal, "H2O")))
            if metal != "Al":
                found.append(((oxide, "Al"), (metal, "Al2O3")))
    count = lambda n: "" if n == 1 else str(n)
    for c in range(1, 7):
        for h in range(2, 2 * c + 3, 2):
            found.append(((f"C{count(c)}H{h}", "O2"), ("CO2", "H2O")))
    return tuple(sorted(set(found)))


def balance(left: Species, right: Species, multiple: int) -> list[int]:
    """Coefficients that a chemist would try with `multiple` on the most complex species: the others follow from the
    atoms it fixes, rounded down (and so wrong, unless the multiple is right)."""
    species = left + right
    sign = [1] * len(left) + [-1] * len(right)
    counts = [atoms(s) for s in species]
    pivot = max(range(len(species)), key=lambda i: (len(counts[i]), sum(counts[i].values())))
    known = {pivot: multiple}
    while len(known) < len(species):
        for element in sorted(set().union(*counts), key=lambda e: (sum(e in c for c in counts), e)):
            holders = [i for i in range(len(species)) if element in counts[i]]
            unknown = [i for i in holders if i not in known]
            if len(unknown) == 1:
                i = unknown[0]
                surplus = sum(sign[j] * known[j] * counts[j][element] for j in holders if j in known)
                known[i] = max(1, -sign[i] * surplus // counts[i][element])
                break
    return [known[i] for i in range(len(species))]


def count_atoms(element: str, side: Species, coefficients: list[int]) -> tuple[str, int]:
    """The atoms of an element on one side, written out and as a number: (`2*2+3=7`, 7)."""
    terms = [(c, atoms(species)[element]) for c, species in zip(coefficients, side) if element in atoms(species)]
    total = sum(c * n for c, n in terms)
    text = "+".join(f"{c}*{n}" if n > 1 else str(c) for c, n in terms)
    return (text if text == str(total) else f"{text}={total}"), total


def tally(left: Species, right: Species, coefficients: list[int]) -> tuple[str, bool]:
    """The atoms of each element on both sides, up to the first that does not agree."""
    text = ""
    for element in dict.fromkeys(e for s in left for e in atoms(s)):
        (before, x), (after, y) = (count_atoms(element, left, coefficients),
                                   count_atoms(element, right, coefficients[len(left):]))
        text += f" {element} {before}?{after}"
        if x != y:
            return text, False
    return text, True


def generate_balance(rng: Random, language: str) -> Problem | None:
    left, right = rng.choice(reactions())
    left, right = tuple(rng.sample(left, len(left))), tuple(rng.sample(right, len(right)))
    # No task worth setting is solved by the first try of every multiple; none worth reading goes past six.
    first = next((m for m in range(1, 13) if tally(left, right, balance(left, right, m))[1]), None)
    if first is None or first > 6 or (first == 1 and rng.random() < 0.6):
        return None
    return Problem(
        task="balance",
        key=str(sorted([sorted(left), sorted(right)])),  # a reaction and its reverse have the same coefficients
        language=language,
        prompt=PROMPT[language].format(left=" + ".join(left), right=" + ".join(right)),
        columns={"left": left, "right": right},
    )


def tries_balance(problem: Problem, rng: Random) -> Iterator[Try]:
    left, right = problem.columns["left"], problem.columns["right"]
    for multiple in range(1, 13):
        coefficients = balance(left, right, multiple)
        answer = " ".join(map(str, coefficients))
        text, good = tally(left, right, coefficients)
        yield Try(answer + text, good, answer)


def mistake_balance(problem: Problem, answer: str) -> str | None:
    """Coefficients in the order of the species, in lowest terms."""
    left, right = problem.columns["left"], problem.columns["right"]
    coefficients = [int(part) for part in answer.split()] if re.fullmatch(
        r"\s*[0-9]{1,2}( +[0-9]{1,2}){0,7}\s*", answer, re.ASCII) else []
    if len(coefficients) != len(left) + len(right) or min(coefficients) < 1:
        return f"not {len(left) + len(right)} coefficients"
    if math.gcd(*coefficients) > 1:
        return "not in lowest terms"
    text, balanced = tally(left, right, coefficients)
    return None if balanced else f"not balanced:{text}"


LARGEST = 48  # concentration of a table
TABLE = {"en": "t {t}\nA {A}\norder and k?\n", "zh": "t {t}\nA {A}\n级数和 k?\n"}


def generate_kinetics(rng: Random, language: str) -> Problem | None:
    order, step = rng.randrange(3), rng.randint(1, 10)
    if order == 0:
        drop = step * rng.randint(1, 9)
        start = rng.randint(2 * drop + 1, 2 * drop + 40)
        table = [start, start - drop, start - 2 * drop]
    elif order == 1:
        ratio = rng.choice((2, 2, 2, 3, 3, 4, 5))
        last = rng.randint(1, max(1, LARGEST // ratio**2))
        table = [last * ratio**2, last * ratio, last]
    else:
        distance = rng.choice((1, 1, 2, 3))
        unit = math.lcm(1 + distance, 1 + 2 * distance)
        start = unit * rng.randint(1, max(1, LARGEST // unit))
        table = [start, start // (1 + distance), start // (1 + 2 * distance)]
    if table[0] > LARGEST or len(set(table)) < 3:
        return None
    return Problem(
        task="kinetics",
        key=f"{order} {table} {step}",
        language=language,
        prompt=TABLE[language].format(t=f"0 {step} {2 * step}", A=" ".join(map(str, table))),
        columns={"table": table, "step": step},
    )


def quotient(a: int, b: int) -> str:
    """`a/b` in whole numbers, a trailing + where something is left over."""
    return f"{a // b}" + ("+" if a % b else "")


def rate_law(table: list[int], step: int, order: int) -> tuple[str, bool, str]:
    """(the test written out, whether it holds, the rate constant written out) of one order."""
    first, second, third = table
    if order == 0:
        a, b = first - second, second - third
        constant = Fraction(a, step)
        return f"{first}-{second}={a} {second}-{third}={b} ?{a}", a == b, f"{a}/{step}={constant}"
    parts = ((first, second), (second, third)) if order == 1 else ((first, second), (first, third))
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
    for order in rng.sample(range(3), 3):
        text, good, constant = rate_law(problem.columns["table"], problem.columns["step"], order)
        answer = f"{order} {constant.rpartition('=')[2]}".strip()
        yield Try(f"{order} {text}" + (f" k {constant}" if good else ""), good, answer)


def mistake_kinetics(problem: Problem, answer: str) -> str | None:
    """Order and rate constant, within 2 %: a number, a quotient, or the logarithm of a number (`1 ln 2/5`)."""
    number = r"[0-9]{1,4}(?:\.[0-9]{1,4})?"
    found = re.fullmatch(rf"\s*([012]) +(ln )?({number})((?:/{number})*)\s*", answer[:61], re.ASCII)
    if len(answer) > 60 or not found:
        return "not an order and a rate constant"
    order, logarithm, given = int(found[1]), found[2], float(found[3])
    divisors = [float(part) for part in found[4].split("/")[1:]]
    if 0.0 in divisors or logarithm and given <= 0:
        return "not a number"
    given = (math.log(given) if logarithm else given) / math.prod(divisors)
    table, step = problem.columns["table"], problem.columns["step"]
    right = next(o for o in range(3) if rate_law(table, step, o)[1])
    exact = ((table[0] - table[1]) / step, math.log(table[0] / table[1]) / step,
             (1 / table[1] - 1 / table[0]) / step)[right]
    if order != right:
        return f"order {order} ≠ {right}"
    return None if abs(given - exact) <= 0.02 * exact else f"k {given:.3g} ≠ {exact:.3g}"
