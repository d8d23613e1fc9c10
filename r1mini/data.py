"""Rows to train on: read from a file, or made by the embedded tasks."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from r1mini import tasks
from r1mini.tasks.corpus import completion
from r1mini.tasks.corpus import document as corpus_row
from r1mini.tasks.trace import Style

__all__ = ["corpus_row", "cold_start_row", "read_rows", "sft_rows"]

# People who wrote the cold start were in a hurry: they stop early, slip, mix languages, forget tags. [R1 §2.3.1]
COLD_START = Style(give_up=1.0, slip=0.005, mix=0.33, broken=0.1)


def cold_start_row(task: str, seed: int | str, index: int, style: Style = COLD_START) -> dict[str, str]:
    problem = tasks.problem(task, f"cold start {seed}", index, "train")
    rng = Random(f"cold start {task} {seed} {index}")
    thinking, answer = tasks.demonstrate(problem, style, rng)
    text = completion(thinking, answer, problem.language, True, True)
    if rng.random() < style.broken:
        text = text.replace(rng.choice([tag for tag in ("<think>", "</think>", "</answer>") if tag in text]), "", 1)
    return {"prompt": problem.prompt, "completion": text}


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict]:
    """The rows of a JSONL file, each with the named columns as strings."""
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise ValueError(f"{path}:{number}: not valid JSON ({error})") from None
                for column in columns:
                    if not isinstance(row, dict) or not isinstance(row.get(column), str):
                        raise ValueError(f"{path}:{number}: no text in column {column!r}")
                rows.append(row)
    except FileNotFoundError:
        raise ValueError(f"--data {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def sft_rows(source: str, names: tuple[str, ...], count: int, seed: int) -> list[dict[str, str]]:
    if source != "cold-start":
        rows = read_rows(Path(source), ("prompt", "completion"))
        return rows[:count] if count else rows
    return [cold_start_row(names[index % len(names)], seed, index) for index in range(count)]
