"""The base model's text: unformatted searches, facts and drills of the four domains in two languages.

A document is a function of (seed, index). Held-out problems are never in it. A few per cent of the documents carry
R1's tags: without them R1-Zero finds nothing to reinforce.
"""

from __future__ import annotations

from random import Random

from r1mini import tasks
from r1mini.tasks import chemistry, elements
from r1mini.tasks.trace import LANGUAGES, WORDS, Style

SHARES = {"countdown": 30, "countdown4": 1, "repair": 26, "balance": 22, "kinetics": 22, "elements": 20,
          "statement": 14, "drill": 10}  # of documents; the searches are the long ones
TAGGED = 0.04


def completion(thinking: str, answer: str, tagged: bool, language: str) -> str:
    if tagged:
        return (f"<think>{thinking}</think>" if thinking else "") + f"<answer>{answer}</answer>"
    return f"{thinking}{WORDS[language]['answer']} {answer}\n"


def drill(rng: Random) -> str:
    """Lines of arithmetic and of atom counts."""
    lines = []
    for _ in range(6):
        if rng.random() < 0.7:
            a, b = rng.choice([(rng.randint(0, 99), rng.randint(0, 99)), (rng.randint(1, 50), rng.randint(1, 12))])
            found = [(f"{a}+{b}", a + b), (f"{a}-{b}", a - b), (f"{a}*{b}", a * b)]
            found += [(f"{a}/{b}", a // b)] if b and a % b == 0 else []
            text, value = rng.choice([pair for pair in found if 0 <= pair[1] <= 99] or found[:1])
            lines.append(f"{text}={value}\n")
        else:
            species, count = rng.choice(rng.choice(rng.choice(chemistry.reactions()))), rng.randint(1, 9)
            counts = " ".join(f"{element} {count * n}" for element, n in chemistry.atoms(species).items())
            lines.append(f"{count} {species} {counts}\n")
    return "".join(lines)


def document(seed: int | str, index: int) -> dict[str, str]:
    """A row {"prompt", "completion"}; in pre-training both are text to learn."""
    rng = Random(f"corpus {seed} {index}")
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    language = rng.choice(LANGUAGES)
    if kind == "statement":
        return {"prompt": "", "completion": "".join(elements.statement(rng, language) for _ in range(3))}
    if kind == "drill":
        return {"prompt": "", "completion": drill(rng)}
    problem = tasks.problem(kind, f"corpus {seed}", index, "train")
    # Half of the writers finish their searches, half stop early; some mix their languages.
    style = Style(give_up=rng.choice((0.0, 0.5)), mix=rng.choice((0.0, 0.0, 0.5)))
    thinking, answer = tasks.demonstrate(problem, style, rng)
    return {"prompt": problem.prompt,
            "completion": completion(thinking, answer, rng.random() < TAGGED, problem.language)}
