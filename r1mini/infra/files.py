"""Atomic writes, reading with errors that name the file, JSON, and the logs of runs."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:
    sys.exit("r1mini runs on Linux and macOS; on Windows, run it in WSL")

MAX_BYTES = 2**26  # of a file read at once: a tokenizer of 260,000 tokens takes half of it
Content = bytes | Callable[[Path], None]  # of a file, or a function that writes it to a path


# -- atomic writes --------------------------------------------------------------------------------


def replace_files(
    folder: Path, files: Mapping[str, Content], obsolete: Iterable[Path] = ()
) -> None:
    """Write files atomically: each is complete at any moment, old or new, even after a power cut.

    If one of them cannot be written, none changes. While several are replaced, the last is missing,
    which marks the folder as incomplete. Deletes the `obsolete` files.
    """
    temporary = {name: folder / f"{name}.tmp" for name in files}
    try:
        for name, content in files.items():
            write_file(temporary[name], content, folder / name)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
    if len(files) > 1:
        (folder / name).unlink(missing_ok=True)
        for path in obsolete:
            path.unlink(missing_ok=True)
    for name, path in temporary.items():
        os.replace(path, folder / name)
    fsync(folder)


def write_file(path: Path, content: Content, shown_path: Path) -> None:
    """Write a new file and wait until it is on the disk. ValueErrors name `shown_path`."""
    try:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)
        fsync(path)
    except OSError as error:
        raise ValueError(f"{shown_path}: cannot be written ({error.strerror or error})") from None
    except ValueError as error:
        raise ValueError(f"{shown_path}: {error}") from None


def fsync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    content = lines.encode("utf-8", "backslashreplace")  # a lone surrogate becomes its JSON escape
    replace_files(path.parent, {path.name: content})


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    replace_files(path.parent, {path.name: text.encode()})


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json_text(value))


def prepare_folder(out: Path) -> None:
    """Create the folder of `--out`. ValueError if it cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may probe the folder at the same time
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from None


def lock_file(path: Path, name: str) -> BinaryIO:
    """Open a file to read and append, locked for this process until it is closed.

    ValueError with `name` if another process holds the lock, or the file system has no locks.
    """
    file = open(path, "a+b")  # noqa: SIM115 (the caller closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        busy = isinstance(error, BlockingIOError)
        reason = "in use by another process" if busy else f"cannot be locked ({error.strerror})"
        raise ValueError(f"{name}: {reason}") from None
    return file


# -- reading and JSON -----------------------------------------------------------------------------


def read_file(path: Path) -> bytes:
    """A file's content. ValueError if it cannot be read, or has more than MAX_BYTES."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"{path}: {size:,} bytes are too many (at most {MAX_BYTES:,})")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. ValueError for anything else."""
    return json_object(read_file(path), path)


def json_object(content: bytes, where: Any) -> dict[str, Any]:
    """Parse a JSON object. ValueError naming `where`, also for text that UTF-8 cannot encode."""
    try:
        value = json.loads(content.decode())
        if b"\\ud" in content.lower():  # possibly a lone surrogate, which cannot be encoded
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        line, reason = json_error(error)
        raise ValueError(f"{where}: not valid JSON (line {line}, {reason})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not a JSON object")
    return value


def json_error(error: Exception) -> tuple[int, str]:
    """(line, reason with the column) of an error of Python's JSON, worded alike on every Python.

    >>> json_error(json.JSONDecodeError("Illegal trailing comma before end of array", "[1, ]", 2))
    (1, "column 5: a comma before ']'")
    """
    if isinstance(error, RecursionError):
        return 1, "nested too deeply"
    if not isinstance(error, json.JSONDecodeError):
        too_long = "integer string conversion" in str(error)
        return 1, "an integer of more than 4300 digits" if too_long else str(error)
    text, position = error.doc, error.pos
    if error.msg.startswith("Illegal trailing comma"):  # older Pythons point behind the comma
        position = len(text) - len(text[position + 1 :].lstrip())
    character = text[position : position + 1]
    reason = f"unexpected {character!r}" if character else "the text ends too early"
    if character in ("]", "}") and text[:position].rstrip().endswith(","):
        reason = f"a comma before {character!r}"
    for beginning, known in JSON_ERRORS.items():
        if error.msg.startswith(beginning):
            reason = known
    line = text.count("\n", 0, position) + 1
    return line, f"column {position - text.rfind(chr(10), 0, position)}: {reason}"


JSON_ERRORS = {
    "Invalid control character": "a control character in a string",
    "Invalid \\": "an invalid escape in a string",
    "Unterminated string": "a string without an end",
    "Extra data": "more text after the value",
}


def json_text(value: Any) -> str:
    """JSON text in this project's layout; tensors of one number become numbers."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=float) + "\n"


# -- logs of a run --------------------------------------------------------------------------------


def is_finite_number(value: Any) -> bool:
    """False also for NaN and for integers too long for a float: Python's JSON accepts both."""
    return type(value) in (int, float) and -1e300 < value < 1e300


def read_log(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("file:line", object) for each line of a JSONL log; nothing if there is no file.

    Ignores a last line that an interruption cut off. ValueError for other lines without an object.
    """
    *lines, last = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    for number, line in enumerate(lines, 1):
        if line:
            yield f"{path}:{number}", json_object(line, f"{path}:{number}")
    if last:
        with suppress(ValueError):
            yield f"{path}:{len(lines) + 1}", json_object(last, path)


def read_metrics(path: Path, *required: str) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl. ValueError if a value is missing or not a finite number."""
    rows = []
    for where, row in read_log(path):
        for name in [*required, *row]:
            if not is_finite_number(row.get(name)):
                raise ValueError(
                    f"{where}: {name[:60]} {row.get(name)!r:.60} is not a finite number"
                )
        rows.append(row)
    return rows


def read_run_json(path: Path, *required: str) -> dict[str, Any]:
    """A run.json. ValueError unless these numbers are in it or in its configuration."""
    record = read_json(path)
    config = record.get("config")
    values = {**config, **record} if isinstance(config, dict) else {}
    invalid = [name for name in required if not is_finite_number(values.get(name))]
    if not is_finite_number(record.get("seconds", 0)):
        invalid.append("seconds")
    if not values or type(record.get("finished")) is not bool or invalid:
        fields = ", ".join(invalid) or "config, finished"
        raise ValueError(f"{path}: not the run.json of a run ({fields} missing or invalid)")
    return record
