"""SIGTERM and Ctrl-C: a job keeps what it has and leaves with exit code 75 (EX_TEMPFAIL); the same command goes on.

The first signal raises KeyboardInterrupt: at once, or where a job holds it back (weights are half updated), as soon as it
lets go. Another one, over a second later, ends the process at once: some launchers send each signal twice.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

EXIT = 75
SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE = 1.0  # seconds

since: float | None = None  # the time of the first signal
held = False


def asked() -> bool:
    return since is not None


def hold() -> None:
    """From here on the first signal waits."""
    global held
    held = True


def let_go() -> None:
    """From here on the first signal does not wait; nor does one that came before."""
    global held
    held = False
    if asked():
        raise KeyboardInterrupt


def ignore() -> None:
    """For a process that ends: while Python takes leave, a signal would change its exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    unread()


class Unread:
    """A stream whose reader the same Ctrl-C may have ended, as of `… | tee log`: that is no reason not to save. What is
    written from then on goes nowhere."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self.to_nowhere():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self.to_nowhere():
            self.stream.flush()

    @contextmanager
    def to_nowhere(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


def unread() -> None:
    sys.stdout, sys.stderr = (stream and Unread(stream) for stream in (sys.stdout, sys.stderr))


def first(number: int, frame: FrameType | None) -> None:
    global since
    if since is None:
        since = time.monotonic()
        unread()
        if not held:
            raise KeyboardInterrupt


def first_then_end(number: int, frame: FrameType | None) -> None:
    if since is not None and time.monotonic() - since > TWICE:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    first(number, frame)


@contextmanager
def listening(handler=first_then_end) -> Iterator[None]:
    """Signals are as above within this block, of the main thread. One that is ignored (nohup, a script's `&`) stays so."""
    global since, held
    before = {number: signal.getsignal(number) for number in SIGNALS}
    streams = sys.stdout, sys.stderr
    try:
        for number, theirs in before.items():
            if theirs != signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, theirs in before.items():
            signal.signal(number, theirs)
        since, held = None, False
        sys.stdout, sys.stderr = streams
