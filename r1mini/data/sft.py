"""Rows for supervised fine-tuning: from a file, or cold-start rows of the embedded tasks."""

from collections.abc import Set
from pathlib import Path
from random import Random

from r1mini import tasks
from r1mini.data.files import RowErrors
from r1mini.data.formats import TEXT_FIELDS, Row
from r1mini.data.rows import Example, check_unicode, convert_examples, read_examples
from r1mini.tasks.corpus import completion
from r1mini.tasks.trace import Style

# Cold-start demonstrations are imperfect on purpose: they stop early, make mistakes, mix languages
# and forget tags. [R1 §2.3.1]
COLD_START = Style(give_up=1.0, slip=0.005, mix=0.33, broken=0.1)


def cold_start_rows(names: tuple[str, ...], count: int, seed: int) -> list[Row]:
    """The rows of `--data cold-start`, from each task in turn."""
    return [cold_start_row(names[index % len(names)], seed, index) for index in range(count)]


def cold_start_row(task: str, seed: int | str, index: int, style: Style = COLD_START) -> Row:
    problem = tasks.problem(task, f"cold start {seed}", index, "train")
    rng = Random(f"cold start {task} {seed} {index}")
    thinking, answer, _ = tasks.demonstrate(problem, style, rng)
    text = completion(thinking, answer, problem.language, True, True)
    if rng.random() < style.broken:
        tags = [tag for tag in ("<think>", "</think>", "</answer>") if tag in text]
        text = text.replace(rng.choice(tags), "", 1)
    return {"prompt": problem.prompt, "completion": text}


def sft_rows(
    path: Path,
    prompt_key: str = "",
    answer_key: str = "",
    errors: RowErrors = RowErrors(),
    eval_ngrams: Set[str] = frozenset(),
) -> dict[str, Row]:
    """{file and line: row}; a row is prompt and completion (text or messages), messages, or text.

    Duplicates are kept and counted, or skipped with `--skip-bad`.
    """
    first_place = {}
    duplicates = []

    def convert(example: Example) -> Row:
        row = sft_row(example)
        first = first_place.setdefault(repr(row), example.place)
        if first != example.place:
            duplicates.append(example.place)
            if errors.skip:
                raise ValueError(f"duplicate of {first}")
        return row

    examples = read_examples(path, prompt_key, answer_key, errors)
    rows = convert_examples(path, examples, convert, errors, eval_ngrams)
    if duplicates and not errors.skip:
        print(f"{path}: {len(duplicates)} duplicate rows, the first at {duplicates[0]}", flush=True)
    return rows


def sft_row(example: Example) -> Row:
    """The text or messages of an example. ValueError if it has nothing to learn."""
    row = {name: value for name, value in example.fields.items() if name in TEXT_FIELDS}
    replies = [m for m in row.get("messages", ()) if m["role"] == "assistant"]
    if not (row.get("completion") or row.get("text") or replies):
        raise ValueError(f"no {example.format.target}")
    if isinstance(row.get("prompt"), str) != isinstance(row.get("completion"), str):
        raise ValueError("columns 'prompt' and 'completion': one is text, the other messages")
    check_unicode(row)
    return row
