"""Factual questions on the first 36 elements: number, symbol, period, group, oxidation state.

Most are answered without thinking: they are the non-reasoning part of R1's second SFT. A few need a
step (the protons of two elements together). The base model's text states every fact in prose; only
questions are held out.
"""

from collections.abc import Iterator
from random import Random

from r1mini.records import Problem
from r1mini.tasks.trace import Try

# symbol, English name, Chinese name, common oxidation state, in the order of atomic numbers
TABLE = """
H hydrogen 氢 +1|He helium 氦 0|Li lithium 锂 +1|Be beryllium 铍 +2|B boron 硼 +3|C carbon 碳 +4
N nitrogen 氮 -3|O oxygen 氧 -2|F fluorine 氟 -1|Ne neon 氖 0|Na sodium 钠 +1|Mg magnesium 镁 +2
Al aluminium 铝 +3|Si silicon 硅 +4|P phosphorus 磷 +5|S sulfur 硫 -2|Cl chlorine 氯 -1
Ar argon 氩 0|K potassium 钾 +1|Ca calcium 钙 +2|Sc scandium 钪 +3|Ti titanium 钛 +4
V vanadium 钒 +5|Cr chromium 铬 +3|Mn manganese 锰 +2|Fe iron 铁 +3|Co cobalt 钴 +2
Ni nickel 镍 +2|Cu copper 铜 +2|Zn zinc 锌 +2|Ga gallium 镓 +3|Ge germanium 锗 +4|As arsenic 砷 +3
Se selenium 硒 -2|Br bromine 溴 -1|Kr krypton 氪 0
"""
ROWS = [row.split() for row in TABLE.strip().replace("\n", "|").split("|")]
NOBLE = (2, 10, 18, 36)


def period(number: int) -> int:
    return 1 + sum(number > noble for noble in NOBLE)


def group(number: int) -> int:
    before = max(noble for noble in (0, *NOBLE) if noble < number)
    place = number - before
    length = next(noble for noble in NOBLE if noble >= number) - before
    alkaline = min(2, length - 1)  # period 1 has no second group on the left
    return place if place <= alkaline else place + 18 - length


COLUMNS = "symbol en zh state number period group".split()
FACTS = [
    dict(zip(COLUMNS, (*row, str(number), str(period(number)), str(group(number)))))
    for number, row in enumerate(ROWS, 1)
]
PROPERTIES = {
    "symbol": {"en": "symbol", "zh": "符号"},
    "number": {"en": "atomic number", "zh": "序数"},
    "period": {"en": "period", "zh": "周期"},
    "group": {"en": "group", "zh": "族"},
    "state": {"en": "oxidation state", "zh": "化合价"},
}
ASK = {"en": "What is the {property} of {name}?\n", "zh": "{name}的{property}?\n"}
FACT = {"en": "the {property} of {name} is {value}\n", "zh": "{name}的{property}是 {value}\n"}
NUMBERED = {"en": "element {number} is {name}\n", "zh": "{number} 号元素是{name}\n"}
WHICH = {"en": "Which element has atomic number {number}?\n", "zh": "序数 {number} 的元素?\n"}
PROTONS = {"en": "How many protons have {a} and {b}?\n", "zh": "{a}和{b}共有质子?\n"}


def element_name(element: dict, language: str, rng: Random, *kinds: str) -> str:
    """The name or, half of the time, the symbol, unless the symbol is a fact to be stated."""
    return element[language] if "symbol" in kinds or rng.random() < 0.5 else element["symbol"]


def generate(rng: Random, language: str) -> Problem | None:
    element = rng.choice(FACTS)
    kind = rng.choice([*PROPERTIES, "which", "protons", "protons"])
    subject, terms = element["symbol"], []
    if kind == "protons":
        other = rng.choice(FACTS)
        total = int(element["number"]) + int(other["number"])
        if other is element or total > 99:
            return None
        subject, answer = sorted((element["symbol"], other["symbol"])), str(total)
        a, b = rng.sample((element, other), 2)
        prompt = PROTONS[language].format(a=a[language], b=b[language])
        terms = [(term["symbol"], term["number"]) for term in (a, b)]
    elif kind == "which":
        prompt = WHICH[language].format(**element)
        kind, answer = "number", element["symbol"]
    else:
        name = element_name(element, language, rng, kind)
        prompt = ASK[language].format(property=PROPERTIES[kind][language], name=name)
        answer = element[kind]
    columns = {"answer": answer, "terms": terms}
    return Problem("elements", f"{kind} {subject}", language, prompt, columns)


def tries(problem: Problem, rng: Random) -> Iterator[Try]:
    """One line if the question needs a step, otherwise none."""
    answer = problem.columns["answer"]
    if problem.columns["terms"]:
        (a, x), (b, y) = sorted(problem.columns["terms"], key=lambda term: -int(term[1]))
        yield Try(f"{a} {x} {b} {y} {x}+{y}={answer}", True, answer)


def find_error(problem: Problem, answer: str) -> str | None:
    right = problem.columns["answer"]
    return None if answer.strip() == right else f"{answer.strip()[:20]!r} ≠ {right!r}"


def fact(element: dict, kind: str, language: str, rng: Random) -> str:
    name = element_name(element, language, rng, kind)
    if kind == "number" and rng.random() < 0.5:
        return NUMBERED[language].format(**element, name=name)
    return FACT[language].format(
        property=PROPERTIES[kind][language], name=name, value=element[kind]
    )


def sentences(element: dict, kind: str, language: str) -> Iterator[str]:
    """All that `fact` may return."""
    names = [element[language]] if kind == "symbol" else [element[language], element["symbol"]]
    for name in names:
        yield FACT[language].format(
            property=PROPERTIES[kind][language], name=name, value=element[kind]
        )
        if kind == "number":
            yield NUMBERED[language].format(**element, name=name)


def statement(rng: Random, language: str) -> str:
    """Prose of the base model's text: one element with some of its facts, in any order, or fact by
    fact."""
    element = rng.choice(FACTS)
    kinds = rng.sample(sorted(PROPERTIES), rng.randint(2, 5))
    if rng.random() < 0.5:
        return "".join(fact(element, kind, language, rng) for kind in kinds)
    facts = ", ".join(f"{PROPERTIES[kind][language]} {element[kind]}" for kind in kinds)
    return f"{element_name(element, language, rng, *kinds)}: {facts}\n"
