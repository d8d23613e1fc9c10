"""General prompts: describe an element to somebody, perhaps to one who knows a property of it.

    Describe iron to somebody who knows its symbol.
    <answer>the period of iron is 4
    the group of Fe is 8
    element 26 is iron
    </answer>

Many answers are good and many are bad, so no rule scores them: in R1, a reward model does
[R1 §2.3.4]. They need no thinking. `annotator.py` says how good an answer is.
"""

from random import Random

from r1mini.records import Problem
from r1mini.tasks import elements
from r1mini.tasks.trace import OTHER

DESCRIBE = {"en": "Describe {name}.\n", "zh": "介绍{name}。\n"}
DESCRIBE_TO = {
    "en": "Describe {name} to somebody who knows its {property}.\n",
    "zh": "向知道{property}的人介绍{name}。\n",
}
# Imperfect writers: a third of them ramble, and any line may be of no use.
RAMBLE, LINES, RAMBLING = 0.35, (1, 5), (5, 9)
REPEAT = FALSE = STRAY = FOREIGN = 0.065


def generate(rng: Random, language: str) -> Problem:
    element, known = rng.choice(elements.FACTS), rng.choice(["", "", *elements.PROPERTIES])
    names = {"name": element[language]}
    if known:
        names["property"] = elements.PROPERTIES[known][language]
    prompt = (DESCRIBE_TO if known else DESCRIBE)[language].format(**names)
    symbol = element["symbol"]
    columns = {"symbol": symbol, "known": known}
    return Problem("describe", f"{symbol} {language} {known}".strip(), language, prompt, columns)


def write(problem: Problem, rng: Random) -> str:
    """An imperfect writer's answer: one fact a line."""
    symbol, known = problem.columns["symbol"], problem.columns["known"]
    element = next(fact for fact in elements.FACTS if fact["symbol"] == symbol)
    rambles = rng.random() < RAMBLE
    new = [kind for kind in elements.PROPERTIES if kind != known]
    rng.shuffle(new)
    lines = []
    for _ in range(rng.randint(*(RAMBLING if rambles else LINES))):
        flaw = rng.random() / (2 if rambles and len(lines) > 3 else 1)
        about, language = element, problem.language
        if not new or flaw < REPEAT:
            kind = rng.choice(list(elements.PROPERTIES))
        else:
            kind = new.pop()
        if REPEAT <= flaw < REPEAT + FALSE:
            about = {**element, kind: rng.choice(elements.FACTS)[kind]}
        elif flaw < REPEAT + FALSE + STRAY:
            about = rng.choice(elements.FACTS)
        elif flaw < REPEAT + FALSE + STRAY + FOREIGN:
            language = OTHER[language]
        lines.append(elements.fact(about, kind, language, rng))
    return "".join(lines)
