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
# Imperfect writers: a third of them ramble.
RAMBLE, LINES, RAMBLING = 0.35, (1, 5), (5, 9)
FLAW = 0.065  # chance of each of four flaws of a line


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
        flaw = int(rng.random() / (2 if rambles and len(lines) > 3 else 1) / FLAW)
        again = not new or flaw == 0  # any property, perhaps for the second time
        kind = rng.choice(list(elements.PROPERTIES)) if again else new.pop()
        about, language = element, problem.language
        if flaw in (0, 2):  # another element
            about = rng.choice(elements.FACTS)
        elif flaw == 1:  # a false value
            about = {**element, kind: rng.choice(elements.FACTS)[kind]}
        elif flaw == 3:
            language = OTHER[language]
        lines.append(elements.fact(about, kind, language, rng))
    return "".join(lines)
