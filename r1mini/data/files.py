"""Data files: JSON lines, JSON, CSV and Parquet.

A bad row stops the run with an error that names file and line. With `--skip-bad` it is skipped,
counted and reported. Left out: folders and several files (`cat` joins lines).
"""

import csv
import gzip
import hashlib
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r1mini.data.formats import detect
from r1mini.infra.files import json_error

VALUES = re.compile(  # and the place, in the message of a bad row
    r"^.*?:( row )?\d+: |(?<!column )(?<!\w)(['\"]).*?(\2(?!\w)|$)|\d+|(?<=found ).*|[\[{].*"
)
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RowErrors:
    """Collects the errors of bad rows: raises the first or, with `skip`, stores the messages."""

    skip: bool = False
    messages: list[str] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)  # of a code dataset's rows and tests

    def report(self, message: str) -> None:
        if not self.skip:
            raise ValueError(message) from None
        self.messages.append(" ".join(message.split())[:200])

    def kinds(self) -> str:
        """How many rows were refused for what: the messages without places and values.

        >>> RowErrors(True, ["a.csv: row 1: no text in column 'q', found 3"] * 2).kinds()
        "refused: 2 no text in column 'q', found …"
        """
        counts = Counter(VALUES.sub("…", message).lstrip("…") for message in self.messages)
        return "refused: " + "; ".join(f"{n} {kind}" for kind, n in counts.most_common())

    def summary(self) -> str:
        """The number of skipped rows and the first reasons, after a semicolon; "" without any."""
        if not self.messages:
            return ""
        shown = self.messages[:3] + ["…"] * (len(self.messages) > 3)
        return f"; {len(self.messages)} skipped by --skip-bad ({'; '.join(shown)})"


def read_rows(path: Path, errors: RowErrors = RowErrors()) -> Iterator[tuple[str, Any]]:
    """Yields (file and line, value) of each row of a .jsonl, .json, .csv or .parquet file.

    A .json file holds a list, an object with one list of rows (`{"data": […]}`), or JSON lines.
    JSON may be compressed (.gz). ValueError for a file that cannot be read; a bad row is reported
    to `errors`.
    """
    suffix = path.suffix.lower()
    open_file = gzip.open if suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            if suffix == ".parquet":
                yield from read_parquet(path)
            elif suffix == ".csv":
                yield from read_csv(path, errors)
            elif ".json" in map(str.lower, path.suffixes):
                yield from read_json(path, file.read().removeprefix(BOM), errors)
            else:
                yield from read_json_lines(path, file, errors)
    except FileNotFoundError:
        raise ValueError(f"--data {path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None


def read_json(path: Path, content: bytes, errors: RowErrors) -> Iterator[tuple[str, Any]]:
    """Reads a list of rows, an object that holds one and is no row itself, or JSON lines."""
    is_lines = re.match(rb"\s*(\{.*\}[ \t\r]*\n\s*\S|$)", content)
    rows = None if is_lines else parse_json(path, 1, content)
    if isinstance(rows, dict):
        lists = [
            value
            for value in rows.values()
            if isinstance(value, list) and set(map(type, value)) == {dict}
        ]
        try:
            detect([rows])
        except ValueError:
            rows = lists[0] if len(lists) == 1 else None
    if isinstance(rows, list):
        for number, row in enumerate(rows, 1):
            yield f"{path}: row {number}", row
    else:
        yield from read_json_lines(path, content.split(b"\n"), errors)


def read_json_lines(
    path: Path, file: Iterable[bytes], errors: RowErrors
) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, 1):
        line = (line.removeprefix(BOM) if number == 1 else line).strip()
        if not line:
            continue
        try:
            yield f"{path}:{number}", parse_json(path, number, line)
        except ValueError as error:
            errors.report(str(error))


def read_csv(path: Path, errors: RowErrors) -> Iterator[tuple[str, dict]]:
    """The rows of a CSV file whose first line names the columns.

    A byte that is not UTF-8 becomes a lone surrogate, which `formats.text` reports.
    """
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            for number, row in enumerate(csv.DictReader(file, strict=True), 1):
                place = f"{path}: row {number}"
                if None in row or None in row.values():
                    errors.report(f"{place}: a different number of cells than the first line")
                else:
                    yield place, row
        except csv.Error as error:
            raise ValueError(f"{path}: not valid CSV ({error})") from None


def read_parquet(path: Path) -> Iterator[tuple[str, dict]]:
    """The rows of a Parquet file, which is read a thousand rows at a time."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from None
    count = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                count += 1
                yield f"{path}: row {count}", row
    except (ValueError, RuntimeError) as error:  # ArrowInvalid, ArrowNotImplementedError
        raise ValueError(f"{path}: pyarrow cannot read this file ({str(error)[:150]})") from None


def parse_json(path: Path, number: int, text: bytes) -> Any:
    """The JSON value of a text that begins at line `number`. ValueError naming the line."""
    try:
        return STRICT_JSON.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        number += text.count(b"\n", 0, error.start)
        reason = f"not UTF-8 ({error.reason}: byte {text[error.start]:#x})"
    except (ValueError, RecursionError) as error:
        line, reason = json_error(error)
        number += line - 1
        reason = f"not valid JSON ({reason})"
    raise ValueError(f"{path}:{number}: {reason}")


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. ValueError for a duplicate key, where Python would keep the last."""
    values = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"duplicate key {key[:60]!r}")
        values[key] = value
    return values


def finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:60]} is not a finite number")
    return value


STRICT_JSON = json.JSONDecoder(
    object_pairs_hook=reject_duplicate_keys, parse_constant=finite, parse_float=finite
)


def fingerprint(source: str) -> dict[str, str]:
    """The hash of a data file, so that a resumed run can check its data; {} without a file."""
    path = Path(source)
    if not path.is_file():
        return {}
    return {"data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
