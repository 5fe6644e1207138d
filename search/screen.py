"""The foot of a terminal: a picture that is drawn anew all the time, with lines above it that stay.

Rich's own live display loses its place when the terminal shrinks, since what it drew then fills more rows: copies of
the picture stay in the scrollback. `Screen` counts the rows anew, for terminals that reflow, as nearly all do. (What a
terminal itself has scrolled out of reach stays: tmux does so with the rows that are added to a screen not yet full.)
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType, Segment
from rich.text import Text

REFRESH_S = 0.25
"""Wall seconds between two pictures."""

WIDEST = 118
"""Columns that a picture takes at most: wider lines are hard to read, and fill many rows when the terminal shrinks."""

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-~=+*#"

LEAST_OF_LAST = 16
"""Columns below which the last column of a table is left out."""

NARROW = 30
"""Columns below which messages are not wrapped by us."""

_ANY = Console(width=80)  # Rich asks for one to wrap text, and takes nothing but the width of tabs from it.


class Screen(RenderHook):
    """Shows a picture at the foot of a terminal while its context lasts.

    Args:
        console: the terminal.
        picture: gives what is to be shown; called in a thread of its own, so it may take its time.

    Nothing that goes wrong in here ends the program: a terminal may be gone, and a picture may be missing.
    """

    def __init__(self, console: Console, picture: Callable[[], RenderableType]) -> None:
        self._console = console
        self._picture = picture
        self._shown: RenderableType | None = None
        self._drawn = _Lines([])
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._streams = (sys.stdout, sys.stderr)

    def __enter__(self) -> Screen:
        with quietly():
            self._console.show_cursor(False)
        self._console.push_render_hook(self)
        # What libraries print goes above the picture, too.
        sys.stdout, sys.stderr = (FileProxy(self._console, stream) for stream in self._streams)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(2.0)  # A picture that waits for a storage is not waited for.
        self._shown = None
        self._draw()
        for proxy in (sys.stdout, sys.stderr):
            with quietly():
                proxy.flush()
        sys.stdout, sys.stderr = self._streams
        self._console.pop_render_hook()
        with quietly():
            self._console.show_cursor(True)

    def print(self, line: RenderableType, soft_wrap: bool = False) -> None:
        """A line above the picture; `soft_wrap` leaves its wrapping to the terminal."""
        with self._lock:
            self._console.print(line, soft_wrap=soft_wrap)

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What Rich is about to print, with the picture taken away before it and drawn anew after it."""
        with self._lock:
            erased, self._drawn = self._erased(), _Lines(self._lines())
            return [erased, *renderables, self._drawn]

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                shown = self._picture()
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end a search of days
                shown = _fault(error)
            with self._lock:
                if not self._over.is_set():
                    self._shown = shown
                    # Some terminals reflow a moment before they tell their new width: the less is drawn, the better.
                    if self._drawn.lines != self._lines():
                        self._draw()
            self._over.wait(REFRESH_S)

    def _draw(self) -> None:
        with self._lock, quietly():
            self._console.print(Control())

    def _lines(self) -> list[list[Segment]]:
        """The picture, cut to the terminal as it is now."""
        console = self._console
        if self._shown is None:
            return []
        options = console.options.update_width(min(console.width, WIDEST))
        try:
            lines = console.render_lines(self._shown, options, pad=False)
        except Exception as error:  # noqa: BLE001 - as above
            lines = console.render_lines(_fault(error), options, pad=False)
        return lines[: max(console.height - 1, 1)]

    def _erased(self) -> Control:
        """Erases the last picture, however many rows it fills by now, and ends at the first of them."""
        width = max(self._console.width, 1)
        rows = sum(max(math.ceil(Segment.get_line_length(line) / width), 1) for line in self._drawn.lines)
        if not rows:
            return Control()
        erase = (ControlType.ERASE_IN_LINE, 2)
        return Control(ControlType.CARRIAGE_RETURN, erase, *[(ControlType.CURSOR_UP, 1), erase] * (rows - 1))


class _Lines:
    """Lines as drawn, without an end of line after the last."""

    def __init__(self, lines: list[list[Segment]]) -> None:
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for index, line in enumerate(self.lines):
            if index:
                yield Segment.line()
            yield from line


def _fault(error: Exception) -> Text:
    return Text(f"the view can't be drawn: {type(error).__name__}: {error}", style="dim")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """What can't be shown is not shown: the terminal is gone (OSError, ValueError), or a pipe is, where Rich exits."""
    with contextlib.suppress(OSError, ValueError, SystemExit):
        yield


def stamped(console: Console, stamp: str, line: str) -> Text:
    """A message after its time: in a terminal wrapped at words, below its beginning; elsewhere one line."""
    text = Text(line)
    width = console.width - len(stamp) - 1
    if console.is_terminal and width >= NARROW:
        text = Text("\n" + " " * (len(stamp) + 1)).join(wrapped(line, width))
    return Text.assemble((stamp, "dim"), " ", text)


def wrapped(text: str, width: int) -> list[Text]:
    """The text in lines of a width, broken at words, or within one that is wider."""
    lines = list(Text(text).wrap(_ANY, max(width, 1)))
    for line in lines:
        line.rstrip()
    return lines


def bar(share: float, width: int, plain: bool = False) -> Text:
    """A bar, filled to a share in [0, 1]; `plain` where the terminal has letters of ASCII alone."""
    done = round(width * min(max(share, 0.0), 1.0))
    full, empty = ("#", ".") if plain else ("━", "─")
    return Text.assemble((full * done, "green"), (empty * (width - done), "bright_black"))


def sparkline(values: Sequence[float], width: int, plain: bool = False) -> str:
    """How a quantity went, a letter for each value, taller for a larger one; the last of several that share a letter.

    >>> sparkline([1.0, 2.0, 3.0], 10)
    '▁▅█'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(len(finite), width)
    picked = [finite[(place + 1) * len(finite) // count - 1] for place in range(count)]
    blocks = ASCII_BLOCKS if plain else BLOCKS
    low, high = min(picked), max(picked)
    if low == high:
        return blocks[0] * count
    return "".join(blocks[round((value - low) / (high - low) * (len(blocks) - 1))] for value in picked)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: above it.
        cells: a line each.
        rank: columns of a lower rank stay when there is no room for all.
        left: aligned to the left, not to the right.
    """

    heading: str
    cells: Sequence[str | Text]
    rank: int
    left: bool = False

    @property
    def width(self) -> int:
        """Letters that its widest line takes."""
        return max(map(_width, (self.heading, *self.cells)))


def table(columns: Sequence[Column], last: Column, width: int, plain: bool = False) -> Iterator[Text]:
    """A table in lines no wider than `width`: of the columns those that fit, and the last one cut to what is left."""
    kept: list[Column] = []
    for column in sorted(columns, key=lambda column: column.rank):
        if sum(other.width + 2 for other in kept) + column.width <= width:
            kept.append(column)
    kept = [column for column in columns if column in kept]
    room = width - sum(column.width + 2 for column in kept)
    for row in range(-1, len(last.cells)):
        line = Text(style="dim" if row < 0 else "")
        for column in kept:
            cell = column.heading if row < 0 else column.cells[row]
            blank = " " * (column.width - _width(cell))
            line.append_text(Text.assemble(cell, blank) if column.left else Text.assemble(blank, cell)).append("  ")
        if room >= LEAST_OF_LAST:
            line.append(cut(last.heading if row < 0 else str(last.cells[row]), room, plain), "dim")
        line.rstrip()
        yield line


def _width(cell: str | Text) -> int:
    return cell.cell_len if isinstance(cell, Text) else cell_len(cell)


def cut(text: str, width: int, plain: bool = False) -> str:
    """The text, cut to a width in columns with an ellipsis."""
    if cell_len(text) <= width:
        return text
    mark = "..." if plain else "…"
    return set_cell_size(text, max(width - len(mark), 0)).rstrip() + mark if width > len(mark) else mark[:width]
