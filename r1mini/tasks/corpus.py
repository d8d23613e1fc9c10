"""The base model's text: searches, facts and drills of the four domains in two languages.

A document is a function of (seed, index). Held-out problems are never in it. Few documents have their answer in R1's
tags, without which R1-Zero finds nothing to reinforce; of the searches they are often those that were given up, with
a wrong answer. More have their thinking in tags: what a small model knows in one place, it hardly knows behind a tag
that it has seldom seen.
"""

from __future__ import annotations

from random import Random

from r1mini import tasks
from r1mini.tasks import chemistry, elements
from r1mini.tasks.trace import LANGUAGES, WORDS, Style

SHARES = {"countdown": 34, "countdown4": 0.5, "repair": 46, "balance": 34, "kinetics": 26, "elements": 38,
          "statement": 26, "drill": 30}  # of documents; the searches are the long ones
# Shares of the documents whose thinking is in tags, and among them those whose answer is.
TAGGED_THINKING = 0.24
TAGGED_RIGHT, TAGGED_WRONG, TAGGED_FACT = 0.03, 0.15, 0.22


def completion(thinking: str, answer: str, language: str, tag_thinking: bool, tag_answer: bool) -> str:
    if thinking and tag_thinking:
        thinking = f"<think>{thinking}</think>"
    return thinking + (f"<answer>{answer}</answer>" if tag_answer else f"{WORDS[language]['answer']} {answer}\n")


def drill(rng: Random) -> str:
    """Lines of arithmetic and of atom counts."""
    lines = []
    for _ in range(6):
        if rng.random() < 0.7:
            a, b = sorted((rng.randint(1, 60), rng.randint(1, rng.choice((9, 60)))), reverse=True)
            found = [(f"{a}+{b}", a + b), (f"{a}-{b}", a - b), (f"{a}*{b}", a * b)]
            text, value = rng.choice([pair for pair in found if pair[1] <= 99]
                                     + [(f"{a}/{b}", chemistry.quotient(a, b))])
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
    thinking, answer, right = tasks.demonstrate(problem, style, rng)
    if not tasks.TASKS[kind].reasoning:
        tagged = TAGGED_FACT
    else:
        tagged = TAGGED_RIGHT if right else TAGGED_WRONG
    rank = rng.random()
    return {"prompt": problem.prompt,
            "completion": completion(thinking, answer, problem.language, rank < TAGGED_THINKING, rank < tagged)}
