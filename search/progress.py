"""What people see of a search while it runs, and what they are told of its pictures.

In a terminal the view is live (rich); elsewhere it is plain lines. It reads what the driver has in memory and,
every two seconds, the study.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from search import records, units
from search.errors import VqsearchError
from search.parameters import settings
from search.screen import Column, Screen, bar, quietly, sparkline, stamped, table, wrapped
from search.space import Space
from search.standing import News, Running, Standing, budget, finalists, left, named, refused, standing, states
from search.study import OpenStudy
from search.text import one_line
from search.units import duration
from vqvae.config import DataConfig

if TYPE_CHECKING:
    from vqvae.data import Decoding, Splits

READ_EVERY_S = 2.0
"""Wall seconds between two looks at the storage."""

PLAIN_EVERY_S = 30.0
"""Wall seconds between two lines where there is no terminal, if anything changed."""

PLAIN_AGAIN_S = 600.0
"""Wall seconds after which there is a line though nothing changed."""

ROWS_BESIDE = 9
"""Rows of the terminal that are kept for what is not a running trial."""

MEMORY = "peak_memory_gib"

NAMED = 10
"""Pictures left out that are told one by one."""


def images(splits: Splits, config: DataConfig) -> list[str]:
    """What was found in a set of pictures, and what was left out of it, in lines."""
    lines = [
        f"{len(splits.train):,} training and {len(splits.validation):,} validation images of {config.resolution} px"
    ]
    if splits.near_duplicates:
        together = ", and stay with them in one split" if config.group_by == "near-duplicates" else ""
        lines.append(f"near-duplicates of other pictures: {splits.near_duplicates:,}{together}")
    if splits.small:
        lines.append(f"left out, smaller than {config.resolution} px: {splits.small:,}")
    return lines + left_out(splits.skipped)


def decoding(how_far: Decoding) -> str:
    """How far the pictures are, which are decoded once."""
    of = f" of {how_far.total:,}" if how_far.total else ""
    by = f", by {how_far.waiting_for}" if how_far.waiting_for else ""
    return f"decoding the pictures: {how_far.done:,}{of}{by}"


def left_out(files: Sequence[str]) -> list[str]:
    """Pictures that could not be read, in a few lines."""
    if not files:
        return []
    more = [f"  and {len(files) - NAMED:,} more"] if len(files) > NAMED else []
    return [f"left out, could not be read: {len(files):,}", *(f"  {file}" for file in files[:NAMED]), *more]


class View:
    """What the user sees of a running search.

    Args:
        console: where it is shown.
        quiet: nothing, until the outcome is printed by others.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self._quiet = quiet
        self._screen: Screen | None = None
        self._last: list[_Last] = []
        self._over = threading.Event()

    def message(self, line: str) -> None:
        """A line above the live view, or a plain line with its time."""
        if self._quiet:
            return
        text = stamped(self.console, datetime.now().strftime("%H:%M:%S"), line)
        with quietly():  # The terminal may be gone; the search goes on.
            (self._screen or self.console).print(text, soft_wrap=True)

    @contextlib.contextmanager
    def watching(self, opened: Sequence[OpenStudy]) -> Iterator[None]:
        """Show a search, or the arms of a comparison, for as long as the context lasts."""
        for each in opened:
            each.notify = self.message if len(opened) == 1 else functools.partial(self._message_of, _arm(each))
        if self._quiet:
            yield
        elif self.console.is_terminal:
            with Screen(self.console, lambda: self.picture(opened)) as self._screen:
                yield
            self._screen = None
        else:
            thread = threading.Thread(target=self._plain, args=(opened,), name="view", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._over.set()
                thread.join(2.0)  # It may wait for a storage.

    def picture(self, opened: Sequence[OpenStudy]) -> RenderableType:
        """The live view: the budget, the running trials, and the best one."""
        return Group(
            *(Picture(now, each.space, _note(each)) for each, now in zip(opened, self._now(opened), strict=True))
        )

    def _message_of(self, arm: str, line: str) -> None:
        self.message(f"{arm}: {line}")

    def _plain(self, opened: Sequence[OpenStudy]) -> None:
        told, when = "", -math.inf
        while not self._over.wait(PLAIN_EVERY_S):
            with contextlib.suppress(Exception):  # As `Screen` does: no line about a search may end it.
                now = self._now(opened)[0]
                note = _note(opened[0])
                state = ", ".join(filter(None, (states(now), finalists(now), note)))
                if state != told or time.monotonic() - when > PLAIN_AGAIN_S:
                    told, when = state, time.monotonic()
                    self.message(", ".join(filter(None, (budget(now), state, "" if note else left(now)))))

    def _now(self, opened: Sequence[OpenStudy]) -> list[Standing]:
        while len(self._last) < len(opened):
            self._last.append(_Last())
        return [last.look(each) for each, last in zip(opened, self._last, strict=True)]


class _Last:
    """What the storage last said of a study that is driven here."""

    def __init__(self) -> None:
        self._standing: Standing | None = None
        self._read, self._flying = -math.inf, set[int]()

    def look(self, opened: OpenStudy) -> Standing:
        """Where the search stands: steps as of now, the rest as the storage said within the last two seconds."""
        flights = list(opened.flights.values())
        news = {
            flight.trial.number: News(
                step=flight.step, metrics=flight.metrics, spent_s=time.monotonic() - flight.started + flight.before
            )
            for flight in flights
        }
        if set(news) != self._flying or time.monotonic() - self._read > READ_EVERY_S:
            with contextlib.suppress(VqsearchError):  # The storage is away, which the driver tells and waits for.
                self._standing = standing(opened.study, opened.space, news, opened.hours())
            self._read, self._flying = time.monotonic(), set(news)
        return (self._standing or Standing(counts={}, total=opened.space.budget.trials)).with_news(news)


def _arm(opened: OpenStudy) -> str:
    """What a study is called among the arms of a comparison."""
    tie = records.tie(opened.study)
    return one_line(tie.arm if tie else opened.study.study_name)


def _note(opened: OpenStudy) -> str:
    """What keeps a search from starting trials."""
    if opened.draining:
        return "stopping: running trials save a checkpoint"
    return "paused; vqsearch resume goes on" if opened.paused is not None else ""


@dataclass(frozen=True)
class Picture:
    """Where a study stands, drawn into a terminal of any width and height.

    Args:
        now: where it stands.
        space: what is searched.
        note: stands in place of the time left.
        limited: leave out running trials that the terminal has no rows for.
    """

    now: Standing
    space: Space
    note: str = ""
    limited: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._budget(options)
        yield Text(
            ", ".join(filter(None, (states(self.now), refused(self.now), finalists(self.now)))) or "no trial yet",
            style="dim",
        )
        if self.now.running:
            yield from self._running(options)
        if self.now.best is not None:
            yield from self._best(options)

    def _budget(self, options: ConsoleOptions) -> Text:
        words = "  ".join(filter(None, (budget(self.now), self.note or left(self.now))))
        width = min(options.max_width - len(words) - 2, 30)
        if width < 5:
            return Text(words)
        return Text.assemble(bar(self.now.share, width, options.ascii_only), "  ", words)

    def _running(self, options: ConsoleOptions) -> Iterator[Text]:
        plain, steps, running = options.ascii_only, self.space.budget.steps, list(self.now.running)
        if self.limited:
            running = running[: max(options.size.height - ROWS_BESIDE, 1)]
        metric = self.space.objective.metric
        columns = [
            Column("trial", [str(each.number) for each in running], rank=0),
            Column("backbone", [each.backbone for each in running], rank=5, left=True),
            Column("", [bar(each.step / steps, 8, plain) for each in running], rank=6),
            Column("step", [f"{each.step}/{steps}" for each in running], rank=1),
            Column(_heading(metric), [_value(metric, each) for each in running], rank=2),
            Column("images/s", [_rate(each) for each in running], rank=3),
        ]
        if any(each.memory_gib is not None for each in running):
            columns.append(Column("GPU GiB", [units.figure(MEMORY, each.memory_gib) for each in running], rank=4))
        if any(each.heard is not None for each in running):
            columns.append(Column("heard of", [_age(each) for each in running], rank=2, left=True))
        others = [settings({k: v for k, v in each.labels.items() if k != "model.backbone"}) for each in running]
        yield from table(columns, Column("settings", others, rank=9, left=True), options.max_width, plain)
        if len(self.now.running) > len(running):
            yield Text(f"and {len(self.now.running) - len(running)} more", style="dim")

    def _best(self, options: ConsoleOptions) -> Iterator[Text]:
        best, metric = self.now.best, self.space.objective.metric
        assert best is not None
        sign = -1 if self.space.objective.direction == "minimize" else 1
        words = f"trial {named(best)}: {units.label(metric)} {units.text(metric, best.value)}"
        line = Text.assemble(("best ", "bold"), words)
        width = min(options.max_width - line.cell_len - 2, 30)
        history = self.now.history
        if width >= 8 and len(history) > 1:
            line.append(f"  {sparkline([sign * value for value in history], width, options.ascii_only)}", "cyan")
            came = f"  from {units.figure(metric, history[0])}"
            if history[0] != history[-1] and line.cell_len + len(came) <= options.max_width:
                line.append(came, "dim")
        yield line
        yield from (Text("     ", "dim").append(part) for part in wrapped(settings(best.params), options.max_width - 5))


def _heading(metric: str) -> str:
    return " ".join(filter(None, (units.label(metric), units.unit(metric))))


def _value(metric: str, trial: Running) -> str:
    return "-" if trial.value_at is None else f"{units.figure(metric, trial.value)} at {trial.value_at}"


def _rate(trial: Running) -> str:
    if trial.images_per_s is None:
        return "starting" if trial.heard is None else "-"
    return units.figure("images_per_s", trial.images_per_s)


def _age(trial: Running) -> str:
    return "" if trial.heard is None else f"{duration(max(time.time() - trial.heard, 0.0))} ago"
