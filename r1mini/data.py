"""Rows to train on: made by the embedded tasks, or read from a file and checked.

Nothing is left out silently: what is wrong with a row stops the run with its line, or under `--skip-bad` is counted and told;
so are rows that share ten words in a row with an evaluation set. Layouts are told apart by `formats.py`. Left out: folders and
several files (`cat` joins lines).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from r1mini import tasks
from r1mini.formats import PROMPTS, Format, Row, conversation, detect
from r1mini.tasks.corpus import completion
from r1mini.tasks.corpus import document as corpus_row
from r1mini.tasks.trace import Style

Made = TypeVar("Made")
BOM = b"\xef\xbb\xbf"
MALFORMED = (ValueError, LookupError, TypeError, AttributeError)  # a reader's: a column is missing, or of another type
HEAD = 100  # rows by which the layout of a file is told

# People who wrote the cold start were in a hurry: they stop early, slip, mix languages, forget tags. [R1 §2.3.1]
COLD_START = Style(give_up=1.0, slip=0.005, mix=0.33, broken=0.1)


def cold_start_row(task: str, seed: int | str, index: int, style: Style = COLD_START) -> dict[str, str]:
    problem = tasks.problem(task, f"cold start {seed}", index, "train")
    rng = Random(f"cold start {task} {seed} {index}")
    thinking, answer, _ = tasks.demonstrate(problem, style, rng)
    text = completion(thinking, answer, problem.language, True, True)
    if rng.random() < style.broken:
        text = text.replace(rng.choice([tag for tag in ("<think>", "</think>", "</answer>") if tag in text]), "", 1)
    return {"prompt": problem.prompt, "completion": text}


# -- files -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """Takes what is wrong with a row, with its place: an error, or with `skip` one to be counted in `found`."""

    skip: bool = False
    found: list[str] = field(default_factory=list)

    def __call__(self, why: str) -> None:
        if not self.skip:
            raise ValueError(why) from None
        self.found.append(" ".join(why.split())[:200])

    def told(self) -> str:
        """How many, and the first reasons, after a semicolon; nothing if there are none."""
        shown = "; ".join([*self.found[:3], *["…"] * (len(self.found) > 3)])
        return f"; {len(self.found)} left out by --skip-bad ({shown})" if self.found else ""


def entries(path: Path, bad: Bad = Bad()) -> Iterator[tuple[str, object]]:
    """(File and line, value) of each row of a .jsonl file, of a .json file that holds a list (or lines all the same), both
    also with .gz, or of a .csv or .parquet file. ValueError if it cannot be read; a line that is not JSON in UTF-8 goes to
    `bad`."""
    try:
        kinds = [suffix.lower() for suffix in path.suffixes]
        with (gzip.open if kinds[-1:] == [".gz"] else open)(path, "rb") as file:
            rows = (enumerate(parquet(path), 1) if kinds[-1:] == [".parquet"] else
                    table(path, bad) if kinds[-1:] == [".csv"] else None)
            if ".json" in kinds and file.read(1000).removeprefix(BOM).lstrip()[:1] == b"[":
                file.seek(0)
                rows = enumerate(parse(path, 1, file.read().removeprefix(BOM)), 1)
            if rows is not None:
                yield from ((f"{path}: row {number}", row) for number, row in rows)
                return
            file.seek(0)
            for number, line in enumerate(file, 1):
                line = (line.removeprefix(BOM) if number == 1 else line).strip()
                if line:
                    try:
                        row = parse(path, number, line)
                    except ValueError as error:
                        bad(str(error))
                        continue
                    yield f"{path}:{number}", row
    except FileNotFoundError:
        raise ValueError(f"--data {path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def parse(path: Path, number: int, text: bytes) -> Any:
    """The JSON value of a text that begins at a line of a file. ValueError with the line."""
    try:
        return STRICT.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        number += text.count(b"\n", 0, error.start)
        raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}: byte {text[error.start]:#x})") from None
    except json.JSONDecodeError as error:
        number += error.lineno - 1
        raise ValueError(f"{path}:{number}: not valid JSON (column {error.colno}: {error.msg})") from None
    except (ValueError, RecursionError) as error:  # integers too long, values too deep
        raise ValueError(f"{path}:{number}: not valid JSON ({error})") from None


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of JSON. ValueError for a key that is there twice, of which Python would take the last."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:60]!r} is there twice")
    return made


def finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:60]} is no finite number")
    return value


STRICT = json.JSONDecoder(object_pairs_hook=once, parse_constant=finite, parse_float=finite)  # json.loads would make one a row


def table(path: Path, bad: Bad) -> Iterator[tuple[int, dict]]:
    """The numbered rows of a CSV file whose first line names the columns. A byte that is not UTF-8 is half a character, which `text`
    finds."""
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file, strict=True), 1):
                if None in row or None in row.values():
                    bad(f"{path}: row {number}: not as many cells as the first line has")
                else:
                    yield number, row
        except csv.Error as error:
            raise ValueError(f"{path}: not CSV ({error})") from None


def parquet(path: Path) -> Iterator[dict]:
    """The rows of a Parquet file, a thousand at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{path}: Parquet is read by pyarrow, which is not installed: pip install pyarrow") from None
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=1000):
            yield from batch.to_pylist()
    except (ValueError, RuntimeError) as error:  # ArrowInvalid, ArrowNotImplementedError
        raise ValueError(f"{path}: not Parquet that pyarrow reads ({str(error)[:150]})") from None


def read(path: Path, prompt_key: str = "", answer_key: str = "", bad: Bad = Bad()) -> Iterator[tuple[str, Row, Format, dict]]:
    """(File and line, row, format, the row in TRL's columns) of each row. ValueError for columns of no known format; a row
    that is not as its format says goes to `bad`."""
    rows = entries(path, bad)
    head = list(islice(rows, HEAD))
    form = None
    for where, row in chain(head, rows):
        if not isinstance(row, dict):
            bad(f"{where}: no text in columns, but {row!r:.60}")
            continue
        try:
            form = form or detect([row for _, row in head if isinstance(row, dict)], prompt_key, answer_key)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        try:
            fields = form.read(row)
        except MALFORMED as error:
            bad(f"{where}: {error}" if isinstance(error, ValueError) else f"{where}: not a row of {form.name} ({error!r:.80})")
            continue
        yield where, row, form, fields


def whole_characters(value: Any) -> None:
    """ValueError for text in a JSON value that no UTF-8 can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"half a character, or a byte that is no UTF-8, in {error.object[max(0, error.start - 20):][:60]!r}") from None


def fingerprint(source: str) -> dict[str, str]:
    """What tells the content of a data file from another under its name; of no file, nothing."""
    path = Path(source)
    if not source or not path.is_file():
        return {}
    return {"data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


# -- which rows ----------------------------------------------------------------------------------------------------------


def ngrams(text: str, size: int = 10) -> set[str]:
    """Every `size` words in a row, in small letters without punctuation (a Chinese sign is a word); all of a shorter text.

    >>> sorted(ngrams("What is 2+2?", 3))
    ['is 2 2', 'what is 2']
    """
    words = re.findall(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])\w)+", text.lower())
    return {" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} - {""}


def spoken(fields: Row, *roles: str) -> set[str]:
    """The n-grams of a row's turns; of Countdown what differs between rows, the numbers. System prompts are shared by many."""
    if "numbers" in fields:
        return {f"{sorted(fields['numbers'])} {fields['target']}"}
    return set().union(*(ngrams(turn["content"]) for turn in conversation(fields) if turn["role"] in roles))


def shares(fields: Row, against: Set[str]) -> bool:
    """Is an n-gram of the row among these? A shorter text counts as a question alone: anybody may answer "Yes"."""
    return bool(spoken(fields, "user") & against) or any(
        ngram.count(" ") == 9 for ngram in spoken(fields, "assistant") & against)


def evaluation_ngrams(files: Sequence[str]) -> set[str]:
    """The n-grams of what evaluation files ask. Of rows in no known layout, the question is enough."""
    found: set[str] = set()
    for file in files:
        if not Path(file).is_file():
            raise ValueError(f"--decontaminate {file}: no such file")
        for where, row in entries(Path(file)):
            try:
                fields = detect([row]).read(row)
            except MALFORMED:
                asked = next((row[name] for name in PROMPTS if isinstance(row.get(name), str)), None) if isinstance(
                    row, dict) else None
                if asked is None:
                    raise ValueError(f"--decontaminate {where}: no question in columns {', '.join(PROMPTS)}") from None
                fields = {"prompt": asked}
            found |= spoken(fields, "user")
    return found


def select(path: Path, rows: Iterable[tuple[str, Row, Format, dict]], make: Callable[[str, Row, Format, dict], Made],
           bad: Bad = Bad(), against: Set[str] = frozenset()) -> dict[str, Made]:
    """What `make` makes of each row, by its place. Rows that share an n-gram with `against` are left out; those that `make`
    raises ValueError for go to `bad`. Prints what became of the rows."""
    made, shared, name = {}, 0, ""
    for where, row, form, fields in rows:
        name = form.name
        if against and shares(fields, against):
            shared += 1
            continue
        try:
            made[where] = make(where, row, form, fields)
        except ValueError as error:
            bad(f"{where}: {error}")
    left = (f"; {shared} left out for ten words in a row with --decontaminate" if shared else "") + bad.told()
    if not made:
        raise ValueError(f"{path}: no rows{left}")
    print(f"{path}: {name}, {len(made)} rows{left}", flush=True)
    return made


def learnable(path: Path, prompt_key: str = "", answer_key: str = "", bad: Bad = Bad(), against: Set[str] = frozenset()
              ) -> dict[str, Row]:
    """The rows of a file for SFT, by their places: prompt and completion (both text or both messages), messages, or text. A
    row that is there twice is learned twice, and told; under `--skip-bad` once."""
    first: dict[str, str] = {}
    again = []

    def make(where: str, row: Row, form: Format, fields: dict) -> Row:
        kept = {name: fields[name] for name in ("messages", "prompt", "completion", "text") if name in fields}
        reply = kept.get("completion") or kept.get("text") or [m for m in kept.get("messages", ()) if m["role"] == "assistant"]
        if not reply:
            raise ValueError(f"no {form.learned}")
        if isinstance(kept.get("prompt"), str) != isinstance(kept.get("completion"), str):
            raise ValueError("columns 'prompt' and 'completion': one is text, the other messages")
        whole_characters(kept)
        if (place := first.setdefault(repr(kept), where)) != where:
            again.append(where)
            if bad.skip:
                raise ValueError(f"{place} again")
        return kept

    rows = select(path, read(path, prompt_key, answer_key, bad), make, bad, against)
    if again and not bad.skip:
        print(f"{path}: {len(again)} rows are there before, the first one in {again[0]}", flush=True)
    return rows


def cold_start(names: tuple[str, ...], count: int, seed: int) -> list[Row]:
    """The rows of `cold-start`, of one task after another."""
    return [cold_start_row(names[index % len(names)], seed, index) for index in range(count)]
