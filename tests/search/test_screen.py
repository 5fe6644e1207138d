"""The foot of a terminal, held to a model of one that reflows what was written when its width changes."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.console import Console
from rich.text import Text

from search.screen import Column, Screen, bar, cut, sparkline, stamped, table, wrapped
from search.text import PlainConsole


class Terminal:
    """Long lines that rows are made of at any width; what a real terminal keeps, the scrollback included."""

    def __init__(self, width):
        self.width, self.lines = width, [""]
        self.line, self.offset = 0, 0  # of the cursor, in letters of a long line
        self.full = False  # The cursor stands behind a full row; the next letter goes to the next one.

    def feed(self, text):
        for code, letter in re.findall(r"(\x1b\[[?\d;]*[A-Za-z])|(.)", text, re.DOTALL):
            if letter not in ("", "\r", "\n"):
                old = self.lines[self.line].ljust(self.offset)
                self.lines[self.line] = old[: self.offset] + letter + old[self.offset + 1 :]
                self.offset += 1
                self.full = self.offset % self.width == 0
                continue
            row = self._row()
            if letter == "\r":
                self.offset = row * self.width
            elif letter == "\n":
                self.line, self.offset = self.line + 1, 0
                self.lines += [""] * (self.line == len(self.lines))
            elif code == "\x1b[2K":
                self.lines[self.line] = self.lines[self.line][: row * self.width]
            elif code.endswith("A"):
                for _ in range(int(code[2:-1])):
                    self._up()
            else:
                assert code.endswith(("m", "h", "l")), code
            self.full = False

    def rows(self):
        return [line.rstrip() for line in self.lines if line.strip()]

    def _row(self):
        """Of its long line, in which the cursor stands."""
        return (self.offset - self.full) // self.width

    def _up(self):
        row = self._row()
        if not row and self.line:
            self.line -= 1
            row = max(len(self.lines[self.line]) - 1, 0) // self.width + 1
        self.offset, self.full = max(row - 1, 0) * self.width, False


class Shown:
    """A screen without its thread, on a terminal whose width can be set."""

    def __init__(self, width):
        self.console = Console(file=io.StringIO(), force_terminal=True, width=width, height=30)
        self.terminal = Terminal(width)
        self.picture = ["a" * 70, "b" * 50, "best"]
        self.screen = Screen(self.console, lambda: Text("\n".join(self.picture)))

    def resize(self, width):
        self.console.width = self.terminal.width = width

    def draw(self):
        self.screen._shown = self.screen._picture()
        self.screen._draw()
        self._take()

    def say(self, line):
        self.screen.print(Text(line), soft_wrap=True)
        self._take()

    def _take(self):
        self.terminal.feed(self.console.file.getvalue())
        self.console.file.seek(0)
        self.console.file.truncate()


@pytest.fixture
def shown():
    made = Shown(100)
    made.console.push_render_hook(made.screen)
    return made


@pytest.mark.parametrize("widths", [(60,), (60, 40), (40, 200, 50), (33, 34, 35)])
def test_no_copy_of_the_picture_stays_when_the_terminal_shrinks_and_grows(shown, widths):
    shown.say("trial 0 starts")
    shown.draw()
    for number, width in enumerate(widths, 1):
        shown.resize(width)
        shown.draw()
        shown.say(f"trial {number} starts")
    rows = "".join(shown.terminal.rows())
    said = "".join(f"trial {number} starts" for number in range(len(widths) + 1))
    assert rows == said + "a" * 70 + "b" * 50 + "best"


def test_the_picture_is_drawn_again_only_when_it_has_changed(shown):
    shown.draw()
    assert shown.screen._drawn.lines == shown.screen._lines()
    shown.picture[0] = "other"
    shown.draw()
    assert shown.terminal.rows() == ["other", "b" * 50, "best"]


def test_a_picture_that_can_not_be_made_or_drawn_says_so_in_its_place(shown):
    class Broken:
        def __rich_console__(self, console, options):
            raise ZeroDivisionError("division by zero")

    shown.screen._picture = Broken
    shown.draw()
    assert shown.terminal.rows() == ["the view can't be drawn: ZeroDivisionError: division by zero"]

    def broken():
        raise KeyError("lost")

    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Screen(console, broken):
        time.sleep(0.1)
    assert "the view can't be drawn: KeyError: 'lost'" in console.file.getvalue()


@pytest.mark.parametrize("error", [OSError(5, "gone"), BrokenPipeError(), ValueError("I/O operation on closed file")])
def test_a_terminal_that_is_gone_ends_nothing(error):
    class Gone(io.StringIO):
        def write(self, text):
            raise error

    with Screen(Console(file=Gone(), force_terminal=True), lambda: Text("picture")):
        time.sleep(0.1)
    assert sys.stdout is not None


def test_what_libraries_print_goes_above_the_picture(capsys):
    console = Console(file=io.StringIO(), force_terminal=True, width=40)
    with Screen(console, lambda: Text("picture")):
        time.sleep(0.1)
        print("a warning")  # noqa: T201
    terminal = Terminal(40)
    terminal.feed(console.file.getvalue())
    assert terminal.rows() == ["a warning"]
    assert capsys.readouterr().out == ""


def test_messages_wrap_at_words_in_a_terminal_and_stay_one_line_elsewhere():
    line = "trial 12 starts: optimizer.lr 0.0012, quantizer.codebook_size 1024"
    terminal = Console(width=50, file=io.StringIO(), force_terminal=True)
    assert stamped(terminal, "12:00:00", line).plain == (
        "12:00:00 trial 12 starts: optimizer.lr 0.0012,\n         quantizer.codebook_size 1024"
    )
    assert stamped(Console(width=50, file=io.StringIO()), "12:00:00", line).plain == f"12:00:00 {line}"


def test_a_word_wider_than_the_terminal_is_broken():
    assert [part.plain for part in wrapped("a " + "b" * 12, 8)] == ["a", "b" * 8, "b" * 4]


@pytest.mark.parametrize(
    ("values", "width", "letters"),
    [
        ([1.0, 2.0, 3.0], 10, "▁▅█"),
        ([1.0, 1.0], 10, "▁▁"),
        ([0.0, 7.0, 1.0, 2.0], 2, "█▁"),
        ([float("nan"), 1.0, float("inf"), 2.0], 10, "▁█"),
        ([float("nan")], 10, ""),
        ([], 10, ""),
    ],
)
def test_a_sparkline_has_a_letter_for_each_value_as_far_as_there_is_room(values, width, letters):
    assert sparkline(values, width) == letters


def test_where_letters_of_ascii_are_all_there_is_no_other_one_is_drawn():
    drawn = [bar(0.5, 4, plain=True).plain, sparkline([1.0, 2.0], 4, plain=True), cut("too long a text", 9, plain=True)]
    assert drawn == ["##..", "_#", "too lo..."]
    console = PlainConsole()
    console.file = io.TextIOWrapper(io.BytesIO(), "ascii")
    console.print("größe 1")
    console.file.flush()
    assert console.file.buffer.getvalue() == b"gr\\xf6\\xdfe 1\n"


@pytest.mark.parametrize(("width", "heading"), [(60, "trial  name  note of all"), (14, "trial  name"), (8, "trial")])
def test_a_table_leaves_out_the_columns_of_the_highest_rank(width, heading):
    columns = [Column("trial", ["1", "22"], rank=0), Column("name", ["a", "b"], rank=1, left=True)]
    lines = [line.plain for line in table(columns, Column("note of all", ["x" * 90, "y"], rank=9), width)]
    assert lines[0] == heading
    assert [line.split()[0] for line in lines[1:]] == ["1", "22"]
    assert max(map(len, lines)) <= width


CHILD = """
import sys, time
from rich.text import Text
from search.screen import Screen, stamped
from search.text import PlainConsole
console = PlainConsole()
with Screen(console, lambda: Text("picture " + "x" * (console.width - 20) + "\\nbelow")) as screen:
    for number in range(3):
        time.sleep(0.4)
        screen.print(stamped(console, "12:00:00", f"message {number}"), soft_wrap=True)
        sys.stdin.readline()
print("over")
"""


def test_in_a_real_terminal_that_is_resized_each_message_is_there_once_and_the_picture_goes_at_the_end():
    leader, follower = pty.openpty()
    terminal = Terminal(120)

    def resize(width):
        terminal.width = width
        fcntl.ioctl(leader, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))

    def read_until(words):
        deadline, text = time.monotonic() + 20, ""
        while words not in text and time.monotonic() < deadline:
            if select.select([leader], [], [], 0.1)[0]:
                got = os.read(leader, 65536).decode()
                terminal.feed(got)
                text += got
        assert words in text

    attributes = termios.tcgetattr(follower)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(follower, termios.TCSANOW, attributes)
    resize(120)
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=follower, stdout=follower, stderr=follower,
        env=environment | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    os.close(follower)
    try:
        for number, width in enumerate((50, 90, 40)):
            read_until(f"message {number}")
            resize(width)
            os.write(leader, b"\n")
        read_until("over")
        assert child.wait(10) == 0
    finally:
        child.kill()
        os.close(leader)
    assert terminal.rows() == ["12:00:00 message 0", "12:00:00 message 1", "12:00:00 message 2", "over"]
