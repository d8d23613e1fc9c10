"""Progress of a long sampling job on disk, so that an interrupted job resumes after its last part.

The journal is next to the job's `--out`: JSON lines, each after its checksum. The first holds the
job's settings, the others a numbered part each. The job deletes it once its result is written.
Only one process at a time can hold it. Left out: Windows.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1mini.infra.files import lock_file


class Journal:
    """`parts` holds the finished ones of `count` parts; `add(part)` saves one more.

    Without a path, nothing is saved. ValueError for the journal of a job that has other settings or
    is still running, and for a damaged one. Drops a last line that was cut off.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], count: int):
        self.path, self.parts, self.file = path, [], None
        if path is None:
            return
        self.file = lock_file(path, str(path))
        self.file.seek(0)
        *lines, cut_off = self.file.read().split(b"\n")
        self.file.truncate(sum(len(line) + 1 for line in lines))
        if lines:
            self._read(lines, json.loads(json.dumps(settings)), count)
        else:
            self._write(settings)

    def _read(self, lines: list[bytes], settings: Mapping[str, Any], count: int) -> None:
        try:
            saved, *numbered = map(parse_line, lines)
            self.parts = [part for _, part in numbered]
            numbers = [number for number, _ in numbered]
            if not isinstance(saved, dict) or numbers != list(range(count))[: len(numbers)]:
                raise ValueError("its lines are not those of one job")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.path}: damaged ({error}); delete it to start over") from None
        for name in sorted(settings.keys() | saved.keys()):
            old, new = saved.get(name), settings.get(name)
            if old != new:
                raise ValueError(
                    f"{self.path}: left by a job with {name} {old!r}, not {new!r}; "
                    "finish that job, or delete the file"
                )
        if self.parts:
            print(f"{self.path}: resuming after {len(self.parts)} of {count} parts", flush=True)

    def _write(self, value: Any) -> None:
        content = json.dumps(value).encode()
        try:
            self.file.write(b"%08x %b\n" % (zlib.crc32(content), content))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written ({error.strerror})") from None

    def add(self, part: Any) -> None:
        """Save one more finished part."""
        if self.file:
            self._write([len(self.parts), part])
        self.parts.append(part)

    def close(self) -> None:
        """Delete the journal: the job's result is written."""
        if self.file:
            self.path.unlink(missing_ok=True)
            self.file.close()


def parse_line(line: bytes) -> Any:
    """The JSON value of a line. ValueError if its checksum is wrong."""
    checksum, _, content = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(content):
        raise ValueError(f"a line's checksum is not {checksum[:8]!r}")
    return json.loads(content)
