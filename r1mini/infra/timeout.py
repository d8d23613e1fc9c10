"""A time limit on code that is not ours: a reward function, a chat template.

Left out: threads other than the main one, because Python delivers signals only to that one.
"""

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

REPEAT = 1.0  # seconds


class TimedOut(BaseException):
    """Time is up. It is not an Exception, because jinja2 and reward functions catch those."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimedOut in this block after `seconds`, and each second after that if it is caught.

    There is no limit off the main thread. A call into C that ignores signals ends the process after
    `2 * seconds + 60`, with a traceback. A block that sets SIGALRM itself, as Math-Verify does,
    replaces the limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(*_):
        raise TimedOut

    handler = signal.signal(signal.SIGALRM, on_alarm)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT)
    faulthandler.dump_traceback_later(2 * seconds + 60, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)
