"""Rows to train on: read from a file, or made by the embedded tasks."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from random import Random

from r1mini import tasks
from r1mini.tasks.corpus import completion
from r1mini.tasks.corpus import document as corpus_row
from r1mini.tasks.trace import Style

__all__ = ["corpus_row", "cold_start_row", "entries", "read_rows", "sft_rows"]

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


def entries(path: Path) -> Iterator[tuple[str, object]]:
    """(File and line, JSON value) of each row of a .jsonl or .jsonl.gz file, or of a .json file that holds a list.
    ValueError with file, line and column if it cannot be read."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            rows = file
            if path.suffix == ".json":  # some of these hold lines all the same
                listed = file.read(1) == "["
                file.seek(0)
                rows = json.load(file) if listed else file
            for number, row in enumerate(rows, 1):
                if rows is not file:
                    yield f"{path}: row {number}", row
                elif row.strip():
                    yield f"{path}:{number}", json.loads(row)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{number or error.lineno}: not valid JSON (column {error.colno}: {error.msg})") from None
    except FileNotFoundError:
        raise ValueError(f"--data {path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    except (ValueError, RecursionError) as error:  # integers too long, values too deep
        raise ValueError(f"{path}:{number}: not valid JSON ({error})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def read_rows(path: Path, columns: tuple[str, ...]) -> list[dict]:
    """The rows of a file, each with the named columns as strings."""
    rows = []
    for where, row in entries(path):
        for column in columns:
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                raise ValueError(f"{where}: no text in column {column!r}")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: no rows")
    return rows


def sft_rows(source: str, names: tuple[str, ...], count: int, seed: int) -> list[dict[str, str]]:
    if source != "cold-start":
        rows = read_rows(Path(source), ("prompt", "completion"))
        return rows[:count] if count else rows
    return [cold_start_row(names[index % len(names)], seed, index) for index in range(count)]
