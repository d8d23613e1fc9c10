"""Chemistry: balance a reaction.

The search tries multiples of one coefficient in turn and counts the atoms on both sides (`Al
4?2*2=4`). Hard problems have four or five species, and a larger multiple.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
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


@cache
def hard_reactions() -> tuple[tuple[Species, Species], ...]:
    """Reactions of four or five species, as (left species, right species).

    Salts with acids and halogens, sulfides in air, oxides with carbon, combustion of compounds with
    O, N or S.
    """
    pairs = set()
    for charge, metals in METALS.items():
        for metal in metals.split():
            pairs.update(exchanges(metal, charge))
    for c in range(1, 7):
        for h in range(1, 2 * c + 4):
            fuel = f"C{subscript(c)}H{subscript(h)}"
            burnt = ("CO2", "H2O")
            if h % 2 == 0:
                pairs.update(((f"{fuel}O{subscript(o)}", "O2"), burnt) for o in (1, 2, 3))
                pairs.add(((f"{fuel}S", "O2"), (*burnt, "SO2")))
            else:
                pairs.add(((f"{fuel}N", "O2"), (*burnt, "N2")))
    return tuple(sorted(pairs))


def exchanges(metal: str, charge: int) -> Iterator[tuple[Species, Species]]:
    halogens = [name.rstrip("2") for name, anion_charge in NONMETALS.items() if anion_charge == 1]
    for anion, anion_charge in (("O", 2), ("S", 2), ("Se", 2), ("N", 3), ("P", 3)):
        hydride = f"H{anion_charge}".replace("H3", "") + anion + "H3" * (anion_charge == 3)
        for halogen in halogens:
            halide = salt(metal, charge, halogen, 1)
            yield (salt(metal, charge, anion, anion_charge), f"H{halogen}"), (halide, hydride)
    for stronger, weaker in zip(halogens, halogens[1:]):
        before, after = salt(metal, charge, weaker, 1), salt(metal, charge, stronger, 1)
        yield (before, f"{stronger}2"), (after, f"{weaker}2")
    oxide = salt(metal, charge, "O", 2)
    yield (salt(metal, charge, "S", 2), "O2"), (oxide, "SO2")
    yield (oxide, "C"), (metal, "CO2")
    if charge == 4:
        yield (oxide, "HCl"), (salt(metal, 2, "Cl", 1), "H2O", "Cl2")


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


def generate(rng: Random, language: str) -> Problem | None:
    reaction = rng.choice(reactions())
    left, right = (tuple(rng.sample(side, len(side))) for side in reaction)
    # Not too many problems that the first try solves, and none whose search is long.
    first = smallest_multiple(left, right)
    if first is None or first > 6 or (first == 1 and rng.random() < 0.6):
        return None
    return make_problem("balance", reaction, left, right, language)


def generate_hard(rng: Random, language: str) -> Problem | None:
    reaction = rng.choice(hard_reactions())
    left, right = (tuple(rng.sample(side, len(side))) for side in reaction)
    first = smallest_multiple(left, right)
    if first is None or (first == 1 and rng.random() < 0.9):
        return None
    return make_problem("balance-hard", reaction, left, right, language)


def smallest_multiple(left: Species, right: Species) -> int | None:
    """The first multiple that balances the reaction; None if no tried one does."""
    multiples = (m for m in range(1, 13) if tally(left, right, balance(left, right, m))[1])
    return next(multiples, None)


def make_problem(
    task: str, reaction: tuple[Species, Species], left: Species, right: Species, language: str
) -> Problem:
    return Problem(
        task,
        # A reaction and its reverse have the same coefficients.
        str(sorted(map(sorted, reaction))),
        language,
        PROMPT[language].format(left=" + ".join(left), right=" + ".join(right)),
        {"left": left, "right": right},
    )


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    left, right = problem.columns["left"], problem.columns["right"]
    for multiple in range(1, 13):
        coefficients = balance(left, right, multiple)
        answer = " ".join(map(str, coefficients))
        text, balanced = tally(left, right, coefficients)
        yield Try(answer + text, balanced, answer)


def find_error(problem: Problem, answer: str) -> str | None:
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
