"""What the tasks write for supervised training: the base model's text, and the cold start.

The base model's text has searches, facts and drills, in two languages. A document is a function of
(seed, index) and never contains a held-out problem. Few documents have their answer in R1's tags;
without them R1-Zero would find nothing to reinforce. Many of the tagged searches stop early with a
wrong answer. More documents have only their thinking in tags: a small model can hardly use what it
knows after a tag that it has rarely seen.
"""

from random import Random

from r1mini import tasks
from r1mini.tasks import balance, countdown, elements, kinetics
from r1mini.tasks.trace import LANGUAGES, WORDS, Style

WEIGHTS = {  # of the kinds of documents; the searches are the long ones
    "countdown": 34,
    "countdown-hard": 16,
    "repair": 46,
    "repair-hard": 16,
    "balance": 34,
    "balance-hard": 14,
    "kinetics": 26,
    "kinetics-hard": 14,
    "elements": 38,
    "describe": 16,
    "statement": 26,
    "drill": 30,
}
# Fractions of the documents with thinking in tags and, among the same ones, with the answer too.
TAGGED_THINKING = 0.24
TAGGED_RIGHT, TAGGED_WRONG, TAGGED_FACT = 0.03, 0.15, 0.22
# Cold-start demonstrations are imperfect on purpose: they stop early, make mistakes, mix languages
# and forget tags. [R1 §2.3.1]
COLD_START = Style(give_up=1.0, slip=0.005, mix=0.33, broken=0.1)


def completion(
    thinking: str, answer: str, language: str, tag_thinking: bool, tag_answer: bool
) -> str:
    if thinking and tag_thinking:
        thinking = f"<think>{thinking}</think>"
    if tag_answer:
        return f"{thinking}<answer>{answer}</answer>"
    return f"{thinking}{WORDS[language]['answer']} {answer}\n"


def drill(rng: Random) -> str:
    """Six lines of arithmetic and of atom counts."""
    return "".join(arithmetic(rng) if rng.random() < 0.7 else atom_counts(rng) for _ in range(6))


def arithmetic(rng: Random) -> str:
    a, b = sorted((rng.randint(1, 60), rng.randint(1, rng.choice((9, 60)))), reverse=True)
    results = [(text, value) for text, value in countdown.operations(a, b) if value <= 99]
    text, value = rng.choice([*results, (f"{a}/{b}", kinetics.quotient(a, b))])
    return f"{text}={value}\n"


def atom_counts(rng: Random) -> str:
    species = rng.choice(rng.choice(rng.choice(balance.reactions())))
    count = rng.randint(1, 9)
    atoms = balance.atoms(species)
    counts = " ".join(f"{element} {count * n}" for element, n in atoms.items())
    return f"{count} {species} {counts}\n"


def document(seed: int | str, index: int) -> dict[str, str]:
    """A row {"prompt", "completion"}. Pre-training learns both."""
    rng = Random(f"corpus {seed} {index}")
    kind = rng.choices(list(WEIGHTS), WEIGHTS.values())[0]
    language = rng.choice(LANGUAGES)
    if kind == "statement":
        text = "".join(elements.statement(rng, language) for _ in range(3))
        return {"prompt": "", "completion": text}
    if kind == "drill":
        return {"prompt": "", "completion": drill(rng)}
    problem = tasks.problem(kind, f"corpus {seed}", index, "train")
    # Half of the writers finish their searches, half stop early; a third mix their languages.
    style = Style(give_up=rng.choice((0.0, 0.5)), mix=rng.choice((0.0, 0.0, 0.5)))
    thinking, answer, is_right = tasks.demonstrate(problem, style, rng)
    tagged = TAGGED_RIGHT if is_right else TAGGED_WRONG
    if not tasks.TASKS[kind].reasoning:
        tagged = TAGGED_FACT
    rank = rng.random()
    text = completion(thinking, answer, problem.language, rank < TAGGED_THINKING, rank < tagged)
    return {"prompt": problem.prompt, "completion": text}


def cold_start_rows(names: tuple[str, ...], count: int, seed: int) -> list[dict[str, str]]:
    """The rows of `--data cold-start`, from each task in turn."""
    return [cold_start_row(names[index % len(names)], seed, index) for index in range(count)]


def cold_start_row(
    task: str, seed: int | str, index: int, style: Style = COLD_START
) -> dict[str, str]:
    problem = tasks.problem(task, f"cold start {seed}", index, "train")
    rng = Random(f"cold start {task} {seed} {index}")
    thinking, answer, _ = tasks.demonstrate(problem, style, rng)
    text = completion(thinking, answer, problem.language, True, True)
    if rng.random() < style.broken:
        tags = [tag for tag in ("<think>", "</think>", "</answer>") if tag in text]
        text = text.replace(rng.choice(tags), "", 1)
    return {"prompt": problem.prompt, "completion": text}
