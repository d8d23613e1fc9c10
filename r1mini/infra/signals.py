"""SIGTERM and Ctrl-C: a job saves its work and exits with code 75; the same command resumes it.

The first signal raises KeyboardInterrupt: at once or, while the job defers signals (half-updated
weights), as soon as it allows them again. Another signal over a second later ends the process at
once; some launchers send each signal twice.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

EXIT_CODE = 75  # EX_TEMPFAIL
SIGNALS = (signal.SIGINT, signal.SIGTERM)
DUPLICATE_SECONDS = 1.0

first_time: float | None = None  # of the first signal
deferred = False


def requested() -> bool:
    """Has a signal asked this process to stop?"""
    return first_time is not None


def defer() -> None:
    """From here on, the first signal waits for `allow`."""
    global deferred
    deferred = True


def allow() -> None:
    """From here on, the first signal raises at once; one that is waiting raises here."""
    global deferred
    deferred = False
    if requested():
        raise KeyboardInterrupt


def ignore() -> None:
    """Ignore signals before exit: one during Python's shutdown would change the exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    ignore_broken_pipes()


class IgnoreBrokenPipe:
    """A stream that discards its output once its reader is gone.

    In `… | tee log` the same Ctrl-C ends tee; the job must still be able to save.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._discarding():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._discarding():
            self.stream.flush()

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), self.stream.fileno())


def ignore_broken_pipes() -> None:
    """Wrap standard output and standard error."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and IgnoreBrokenPipe(stream) for stream in streams)


def on_first_signal(*_: Any) -> None:
    """The first signal interrupts the job; later ones do nothing here (see `on_signal`)."""
    global first_time
    if first_time is None:
        first_time = time.monotonic()
        ignore_broken_pipes()
        if not deferred:
            raise KeyboardInterrupt


def on_signal(number: int, *_: Any) -> None:
    """Handler: the first signal interrupts the job; one over a second later ends the process."""
    if first_time is not None and time.monotonic() - first_time > DUPLICATE_SECONDS:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    on_first_signal()


@contextmanager
def listening() -> Iterator[None]:
    """Handle signals by `on_signal` within this block of the main thread.

    A signal that was ignored before (by nohup, or a script's `&`) stays ignored.
    """
    global first_time, deferred
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    streams = sys.stdout, sys.stderr
    try:
        for number, old_handler in previous.items():
            if old_handler != signal.SIG_IGN:
                signal.signal(number, on_signal)
        yield
    finally:
        for number, old_handler in previous.items():
            signal.signal(number, old_handler)
        first_time, deferred = None, False
        sys.stdout, sys.stderr = streams
