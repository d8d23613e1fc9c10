"""The base model's text: searches, facts and drills of the four domains in two languages.

A document is a function of (seed, index). Held-out problems are never in it. Few documents have their answer in R1's
tags, without which R1-Zero finds nothing to reinforce. More have their thinking in them, and some more of the facts
their answer: what a small model knows in one place, it hardly knows behind a tag it has seldom seen.
"""

from __future__ import annotations

from random import Random

from r1mini import tasks
from r1mini.tasks import chemistry, elements
from r1mini.tasks.trace import LANGUAGES, WORDS, Style

SHARES = {"countdown": 34, "countdown4": 0.5, "repair": 34, "balance": 34, "kinetics": 24, "elements": 40,
          "statement": 16, "drill": 14}  # of documents; the searches are the long ones
TAGGED_THINKING, TAGGED_ANSWER = 0.24, 0.03  # of searches; the latter are among the former
TAGGED_FACT = 0.15  # of the answers to factual questions


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
    thinking, answer = tasks.demonstrate(problem, style, rng)
    rank = rng.random()
    tag_answer = rank < (TAGGED_ANSWER if tasks.TASKS[kind].reasoning else TAGGED_FACT)
    return {"prompt": problem.prompt,
            "completion": completion(thinking, answer, problem.language, rank < TAGGED_THINKING, tag_answer)}
