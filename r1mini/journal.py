"""The finished parts of a long sampling job, on disk: an interrupted job, started again, goes on behind the last of them.

A file beside the job's `--out`, of lines of JSON behind their checksum: its settings, then each part with its number. The
job deletes it when its result is written. Only one process at a time has it. Not on Windows.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO


def alone(path: Path, told: str) -> BinaryIO:
    """The file, open to read and append, while this process has it to itself. ValueError if another one has it, or where the
    file system has no locks."""
    file = open(path, "a+b")  # noqa: SIM115 (it is the caller's to close)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        taken = isinstance(error, BlockingIOError)
        raise ValueError(f"{told}: " + ("another process works on it" if taken else f"cannot be locked ({error.strerror})")) from None
    return file


class Journal:
    """`parts`, what is done, of `count` parts; `add(part)`, once another one is. Without a path, nothing is kept.

    ValueError for the journal of a job with other settings, of one that runs, and for a damaged one; a last line that was cut
    is dropped.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], count: int):
        self.path, self.parts, self.file = path, [], None
        if path is None:
            return
        self.file = alone(path, str(path))
        self.file.seek(0)
        lines = self.file.read().split(b"\n")
        self.file.truncate(sum(len(line) + 1 for line in lines[:-1]))
        if lines[:-1]:
            self.read(lines[:-1], json.loads(json.dumps(settings)), count)
        else:
            self.write(settings)

    def read(self, lines: list[bytes], settings: Mapping[str, Any], count: int) -> None:
        try:
            before, *numbered = map(checked, lines)
            self.parts = [part for _, part in numbered]
            whole = isinstance(before, dict) and [n for n, _ in numbered] == list(range(len(numbered))) and len(numbered) <= count
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: damaged ({error}); delete it to begin again") from None
        if not whole:
            raise ValueError(f"{self.path}: damaged; delete it to begin again")
        for name in sorted(settings.keys() | before.keys()):
            if before.get(name) != settings.get(name):
                raise ValueError(f"{self.path}: left by a job whose {name} was {before.get(name)!r}, now {settings.get(name)!r}; "
                                 "finish that one, or delete it")
        if self.parts:
            print(f"{self.path}: going on behind {len(self.parts)} of {count} parts", flush=True)

    def write(self, value: Any) -> None:
        content = json.dumps(value).encode()
        try:
            self.file.write(b"%08x %b\n" % (zlib.crc32(content), content))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written ({error.strerror})") from None

    def add(self, part: Any) -> None:
        if self.file:
            self.write([len(self.parts), part])
        self.parts.append(part)

    def close(self) -> None:
        """The job is done."""
        if self.file:
            self.path.unlink(missing_ok=True)
            self.file.close()


def checked(line: bytes) -> Any:
    checksum, _, content = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(content):
        raise ValueError(f"a line's checksum is not {checksum[:8]!r}")
    return json.loads(content)
