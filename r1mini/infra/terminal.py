"""What a run shows in a terminal: lines of at most 100 columns, curves of one line, a progress bar.

Only the bar needs a terminal. Everything else is plain text, without control characters.
"""

import io
import sys
import time
import unicodedata
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, TextIO

from tqdm import tqdm

COLUMNS = 100
NAME_COLUMNS = 24  # of a run's name; a longer one is shortened
BLOCKS, ASCII = "▁▂▃▄▅▆▇█", ".:-=+*#@"  # from low to high


def width(text: str) -> int:
    """Columns of a text in a terminal.

    >>> width("length"), width("长度"), width("e\\u0301")
    (6, 4, 1)
    """
    hidden = sum(unicodedata.category(x) in ("Mn", "Me", "Cf") for x in text)
    return len(text) - hidden + sum(unicodedata.east_asian_width(x) in "WF" for x in text)


def shorten(text: str, columns: int = NAME_COLUMNS) -> str:
    """A text on one line of at most so many columns, without control characters.

    >>> shorten("a\\nb"), shorten("a-long-name", 8)
    ('a?b', 'a-lon...')
    """
    text = "".join(x if x.isprintable() else "?" for x in text)
    if width(text) <= columns:
        return text
    while width(text) > columns - 3:
        text = text[:-1]
    return f"{text}..."


def fit_line(head: str, parts: Sequence[tuple[int, str]], columns: int = COLUMNS) -> str:
    """The head, then the parts that fit, in the order given. Each part is (rank, text): rank 0 gets
    its place first, and of equal ranks the earlier part. A part for which no place is left is
    omitted.

    >>> fit_line("r1 4/22:", [(0, "accuracy 0.77"), (2, "format 0.96"), (1, "length 69")], 32)
    'r1 4/22: accuracy 0.77 length 69'
    """
    used, kept = width(head), []
    for i in sorted(range(len(parts)), key=lambda i: parts[i][0]):
        if used + 1 + width(parts[i][1]) <= columns:
            used += 1 + width(parts[i][1])
            kept.append(i)
    return " ".join([head, *(parts[i][1] for i in sorted(kept))])


def sparkline(values: Sequence[float], columns: int, levels: str = BLOCKS) -> str:
    """One character for each value, relative to the lowest and the highest. If there are more
    values than columns, each character is the mean of its share of them.

    >>> sparkline([1, 2, 3, 2], 8), sparkline([0, 0, 1, 1], 2, ASCII)
    ('▁▅█▅', '.@')
    """
    count = min(columns, len(values))
    edges = [i * len(values) // count for i in range(count + 1)]
    means = [fmean(values[start:end]) for start, end in zip(edges, edges[1:])]
    low, span = min(means), max(means) - min(means)
    places = [int((x - low) / span * len(levels)) if span else 0 for x in means]
    return "".join(levels[min(place, len(levels) - 1)] for place in places)


def curve_levels(stream: Any) -> str:
    """The characters of a curve: blocks, or ASCII if the stream's encoding has no blocks."""
    try:
        BLOCKS.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def escape_unencodable() -> None:
    """Print what standard output's encoding does not have as escapes: the model writes Chinese."""
    if isinstance(sys.stdout, io.TextIOWrapper) and curve_levels(sys.stdout) == ASCII:
        sys.stdout.reconfigure(errors="backslashreplace")


def curve_lines(
    name: str, curves: Mapping[str, tuple[Sequence[float], str]], levels: str = BLOCKS
) -> list[str]:
    """A line for each curve, which is (values, format of a value): the first value, the sparkline,
    the last value and the range. The sparklines begin and end in the same columns.

    >>> curves = {"accuracy": ([0.5, 0.2, 0.9], ".2f"), "length": ([48, 50, 69], ".0f")}
    >>> print("\\n".join(curve_lines("r1", curves)))
    r1: accuracy 0.50 ▄▁█ 0.90 (lowest 0.20, highest 0.90)
    r1: length     48 ▁▁█   69 (lowest 48, highest 69)
    """
    titles = max(map(width, curves))
    ends = [[format(x, spec) for x in (xs[0], xs[-1])] for xs, spec in curves.values()]
    numbers = max(map(len, sum(ends, [])))
    around = []
    for (title, (values, spec)), (first, last) in zip(curves.items(), ends):
        head = f"{shorten(name)}: {title.ljust(titles)} {first.rjust(numbers)} "
        low, high = (format(x, spec) for x in (min(values), max(values)))
        around.append((head, f" {last.rjust(numbers)} (lowest {low}, highest {high})"))
    columns = COLUMNS - max(width(head + tail) for head, tail in around)
    return [
        head + sparkline(values, columns, levels) + tail
        for (head, tail), (values, _) in zip(around, curves.values())
    ]


# -- the progress bar ------------------------------------------------------------------------------


class ProgressBar:
    """The share of a run that is done, from 0 to 1, and the time left, on a terminal's last line.

    The time left is estimated from what this process has done: `done` is where it began. While the
    bar is there, lines that are printed appear above it. Without `shown`, or if standard output or
    standard error is not a terminal, there is no bar.
    """

    def __init__(self, done: float, shown: bool):
        shown = shown and sys.stdout.isatty() and sys.stderr.isatty()
        self.first, self.started = done, time.monotonic()
        self.bar = tqdm(
            total=1,
            initial=done,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
            miniters=0,
            leave=False,
            dynamic_ncols=True,
            disable=not shown,
        )
        self.lines = LinesAbove(self.bar, sys.stdout)
        if shown:
            sys.stdout = self.lines

    def update(self, done: float, text: str) -> None:
        left = seconds_left(time.monotonic() - self.started, done - self.first, 1 - done)
        self.bar.set_description_str(text, refresh=False)
        if left is not None:
            self.bar.set_postfix_str(f"{tqdm.format_interval(left)} left", refresh=False)
        self.bar.update(done - self.bar.n)
        if done == self.first:  # tqdm has just drawn the bar without its text
            self.bar.refresh()

    def close(self) -> None:
        self.bar.close()
        self.lines.end()
        if sys.stdout is self.lines:  # a signal may have wrapped it
            sys.stdout = self.lines.stream


def seconds_left(seconds: float, done: float, rest: float) -> float | None:
    """The time for the rest of a run at the pace of the part that took `seconds`; None before it.

    >>> seconds_left(30, 0.25, 0.5), seconds_left(30, 0, 1)
    (60.0, None)
    """
    return seconds * rest / done if done > 0 else None


class LinesAbove:
    """Standard output while a progress bar is shown. Each line is written when it is complete, with
    all bars moved out of its way."""

    def __init__(self, bar: tqdm, stream: TextIO):
        self.bar, self.stream, self.unfinished = bar, stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        lines, newline, self.unfinished = (self.unfinished + text).rpartition("\n")
        if newline:
            with tqdm.external_write_mode(file=self.bar.fp):
                self.stream.write(lines + newline)
                self.stream.flush()
        return len(text)

    def end(self) -> None:
        """Write a line that has no end yet."""
        self.stream.write(self.unfinished)
        self.unfinished = ""
