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
from datetime import datetime
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType

from search import several
from search.errors import VqsearchError
from search.picture import Picture
from search.screen import Screen, quietly, stamped
from search.several import Arm, Several, name_of
from search.standing import News, Standing, budget, finalists, left, standing, states
from search.study import OpenStudy
from vqvae.config import DataConfig

if TYPE_CHECKING:
    from vqvae.data import Decoding, Splits

READ_EVERY_S = 2.0
"""Wall seconds between two looks at the storage."""

PLAIN_EVERY_S = 30.0
"""Wall seconds between two lines where there is no terminal, if anything changed."""

PLAIN_AGAIN_S = 600.0
"""Wall seconds after which there is a line though nothing changed."""

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
        self._watched: list[_Watched] = []
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
            each.notify = self.message if len(opened) == 1 else functools.partial(self._message_of, name_of(each.study))
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
        """The live view: the budget, the running trials, and the best one; of several studies all of them."""
        arms = self._arms(opened)
        return Several(arms) if len(arms) > 1 else Picture(arms[0].now, arms[0].space, arms[0].note)

    def _message_of(self, arm: str, line: str) -> None:
        self.message(f"{arm}: {line}")

    def _plain(self, opened: Sequence[OpenStudy]) -> None:
        told, when = "", -math.inf
        while not self._over.wait(PLAIN_EVERY_S):
            with contextlib.suppress(Exception):  # As `Screen` does: no line about a search may end it.
                arms = self._arms(opened)
                state = _line(arms, steady=True)
                if state != told or time.monotonic() - when > PLAIN_AGAIN_S:
                    told, when = state, time.monotonic()
                    self.message(_line(arms))

    def _arms(self, opened: Sequence[OpenStudy]) -> list[Arm]:
        if len(self._watched) < len(opened):
            names = [name_of(each.study) for each in opened] if len(opened) > 1 else [""]
            self._watched = [_Watched(*each) for each in zip(opened, names, strict=True)]
        return [each.look() for each in self._watched]


def _line(arms: Sequence[Arm], steady: bool = False) -> str:
    """Where they stand; `steady` without what changes by itself: hours and the time left."""
    if len(arms) > 1:
        return several.line(arms, steady)
    now, note = arms[0].now, arms[0].note
    spent, rest = ("", note) if steady else (budget(now), note or left(now))
    return ", ".join(filter(None, (spent, states(now), finalists(now), rest)))


class _Watched:
    """A study that is driven here, and what the storage last said of it."""

    def __init__(self, opened: OpenStudy, name: str) -> None:
        self._opened, self._name = opened, name
        self._standing: Standing | None = None
        self._read, self._flying = -math.inf, set[int]()

    def look(self) -> Arm:
        """Where the search stands: steps as of now, the rest as the storage said within the last two seconds."""
        opened, flights = self._opened, list(self._opened.flights.values())
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
        known = self._standing or Standing(counts={}, total=opened.space.budget.trials)
        return Arm(name=self._name, now=known.with_news(news), space=opened.space, note=_note(opened))


def _note(opened: OpenStudy) -> str:
    """What keeps a search from starting trials."""
    if opened.draining:
        return "stopping: running trials save a checkpoint"
    return "paused; vqsearch resume goes on" if opened.paused is not None else ""
