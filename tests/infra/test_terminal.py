import io
import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mini.infra import terminal
from r1mini.infra.terminal import ProgressBar, curve_lines, fit_line, shorten, sparkline, width


class Terminal(io.StringIO):
    """Standard output and standard error of one terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self):
        """The lines that a terminal shows, without the white space at their ends."""
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[A|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if part == "\x1b[A":
                row -= 1
            elif part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            else:
                line = lines[row].ljust(column)
                lines[row] = line[:column] + part + line[column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in lines]


def on_terminal(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_width_counts_wide_characters_twice_and_combining_ones_not_at_all():
    texts = {
        "a": 1,
        "长": 2,
        "한": 2,
        "ｗ": 2,
        "é": 1,
        "e\u0301": 1,
        "a\u200db": 2,
        "🙂": 2,
        "▁": 1,
    }
    assert {text: width(text) for text in texts} == texts


def test_line_is_filled_up_to_the_last_column():
    for limit in range(7, 30):
        line = fit_line("r1 1/2:", [(0, "长度 1"), (2, "a 0.50"), (1, "b 0.25")], limit)
        assert width(line) <= limit
        parts = [(15, "长度 1"), (29, "a 0.50"), (22, "b 0.25")]  # columns from which each has room
        assert line == " ".join(["r1 1/2:", *(text for size, text in parts if limit >= size - 1)])


def test_part_without_place_does_not_keep_out_less_important_ones():
    parts = [(0, "x" * 200), (1, "length 5"), (2, "y" * 90), (3, "1 s")]
    assert fit_line("r1 1/2:", parts) == "r1 1/2: length 5 1 s"


@given(st.text(), st.integers(3, 40))
def test_shortened_text_is_one_printable_line_that_fits(text, columns):
    short = shorten(text, columns)
    assert short.isprintable() and width(short) <= columns
    assert short == text or not text.isprintable() or width(text) > columns


def test_sparkline_keeps_one_character_for_each_value_and_averages_more():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([-1, -1], 8) == "▁▁" and sparkline([3], 8, terminal.ASCII) == "."
    assert sparkline([0, 4, 2, 2, 8, 8], 3) == "▁▁█"
    line = sparkline(range(1000), 70)
    assert len(line) == 70 and list(line) == sorted(line)


@pytest.mark.parametrize("name", ["r1", "a" * 300, "长" * 300, "a\nb\x1b[31m"])
def test_curves_fit_the_line_and_each_other(name):
    curves = {"accuracy": ([x / 999 for x in range(1000)], ".2f"), "length": (range(32_768), ".0f")}
    lines = curve_lines(name, curves)
    assert all(line.isprintable() and width(line) <= 100 for line in lines)
    marks = [[i for i, x in enumerate(line) if x in terminal.BLOCKS] for line in lines]
    assert marks[0] == marks[1] and len(marks[0]) > 20


@pytest.mark.parametrize(
    "encoding, blocks",
    [("utf-8", True), ("ascii", False), ("latin-1", False), (None, False), ("no-such", False)],
)
def test_curves_are_ascii_where_the_encoding_has_no_blocks(encoding, blocks):
    levels = terminal.curve_levels(SimpleNamespace(encoding=encoding))
    assert levels == (terminal.BLOCKS if blocks else terminal.ASCII)
    assert blocks or "".join(curve_lines("r1", {"length": ([1, 2], ".0f")}, levels)).isascii()


# -- the progress bar -------------------------------------------------------------------------------------------------


def test_time_left_is_that_of_this_process(monkeypatch):
    tty = on_terminal(monkeypatch)
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(terminal, "time", clock)
    bar = ProgressBar(0.5, True)  # a resumed run
    bar.update(0.5, "r1 5/10")
    assert tty.screen()[-1].startswith("r1 5/10  50%|") and "left" not in tty.screen()[-1]
    print("before the first step")
    clock.now += 10
    bar.update(0.6, "r1 6/10")
    print("a step")
    assert tty.screen()[-1].startswith("r1 6/10  60%|") and "00:40 left" in tty.screen()[-1]
    clock.now += 20
    bar.update(0.7, "r1 7/10")
    print("another step")
    assert "00:45 left" in tty.screen()[-1]
    bar.close()
    assert tty.screen() == ["before the first step", "a step", "another step", ""]


def test_lines_stay_whole_above_the_bars(monkeypatch):
    tty = on_terminal(monkeypatch)
    bar = ProgressBar(0.0, True)
    print("two", "words", end="")
    print(" and\na", "half", end="")
    assert tty.screen()[0] == "two words and" and "half" not in tty.getvalue()
    with terminal.tqdm(total=3, desc="inner", leave=False) as inner:
        inner.update()
        print(" line")
        assert "  0%|" in tty.screen()[2] and tty.screen()[3].startswith("inner:  33%")
    print("without an end", end="")
    bar.close()
    assert tty.screen() == ["two words and", "a half line", "without an end", ""]
    assert sys.stdout is tty


@pytest.mark.parametrize("shown, out, err", [(False, True, True), (1, False, True), (1, True, 0)])
def test_without_a_terminal_or_with_no_progress_nothing_changes(monkeypatch, shown, out, err):
    streams = [Terminal() if is_terminal else io.StringIO() for is_terminal in (out, err)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    bar = ProgressBar(0.0, bool(shown))
    bar.update(0.5, "r1")
    assert sys.stdout is streams[0]
    print("a line")
    bar.close()
    assert [stream.getvalue() for stream in streams] == ["a line\n", ""]


def test_output_without_chinese_prints_escapes(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    terminal.escape_unencodable()
    print("é 错", flush=True)
    assert stream.buffer.getvalue() == b"\xe9 \\u9519\n"
