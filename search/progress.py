"""What people see of a search while it runs, and what they are told of its pictures.

In a terminal the view is live (rich); elsewhere it is plain lines. It reads what the driver has in memory and,
every two seconds, the study.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from optuna.trial import FrozenTrial
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from search.errors import VqsearchError
from search.parameters import settings
from search.space import Space
from search.standing import STATES, Standing, is_metric, number, shown, standing
from search.study import OpenStudy
from search.units import duration
from vqvae.config import COSTS, DataConfig

if TYPE_CHECKING:
    from vqvae.data import Decoding, Splits

PLAIN_EVERY_S = 30.0

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
        quiet: messages only at the end.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self.console = console
        self._quiet = quiet
        self._opened: OpenStudy | None = None
        self._capacity: Callable[[], int] = lambda: 0
        self._standing: Standing | None = None
        self._read = -math.inf
        self._started = time.monotonic()
        self._over = threading.Event()

    def message(self, line: str) -> None:
        """A line above the live view, or a plain line with its time."""
        if self._quiet:
            return
        with contextlib.suppress(OSError):  # The terminal may be gone; the search goes on.
            self._print(line)

    def _print(self, line: str) -> None:
        stamp = datetime.now().strftime("%H:%M:%S")
        self.console.print(Text(stamp, style="dim"), Text(line), soft_wrap=True)

    @contextlib.contextmanager
    def watching(self, opened: OpenStudy, capacity: Callable[[], int]) -> Iterator[None]:
        """Show a search for as long as the context lasts."""
        self._opened, self._capacity = opened, capacity
        opened.notify = self.message
        if self._quiet:
            yield
        elif self.console.is_terminal:
            with Live(get_renderable=self.render, console=self.console, refresh_per_second=4, transient=True):
                yield
        else:
            thread = threading.Thread(target=self._plain, name="view", daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._over.set()
                thread.join()

    def render(self) -> RenderableType:
        """The live view: one line for the search, one for each running trial, one for the best."""
        opened = self._opened
        if opened is None:
            return Text("")
        now = self._now(opened)
        return Group(self._bar(now), self._running(opened), self._best(opened, now))

    def _plain(self) -> None:
        while not self._over.wait(PLAIN_EVERY_S):
            if self._opened is not None:
                now = self._now(self._opened)
                words = (f"{now.done} of {now.total} trials", self._states(now), self._left(now))
                self.message(", ".join(filter(None, words)))

    def _now(self, opened: OpenStudy) -> Standing:
        if self._standing is None or time.monotonic() - self._read > 2.0:
            running = [time.monotonic() - f.started + f.before for f in list(opened.flights.values())]
            try:
                self._standing = standing(opened.study, opened.space, running)
            except VqsearchError:  # The storage is away, which the driver tells and waits for.
                self._standing = self._standing or Standing(
                    counts={}, invalid=0, total=opened.space.budget.trials, best=None, trained_s=0.0, left_s=None
                )
            self._read = time.monotonic()
        return self._standing

    def _bar(self, now: Standing) -> RenderableType:
        width = max(min(self.console.width - 60, 40), 10)
        filled = round(width * min(now.done / now.total, 1.0))
        bar = Text("━" * filled, style="green") + Text("━" * (width - filled), style="dim")
        return Text.assemble(
            bar, f" {now.done}/{now.total} trials  ", (self._states(now), "dim"), "  ", self._left(now)
        )

    def _states(self, now: Standing) -> str:
        words = [f"{now.counts[s]} {STATES[s]}" for s in ("COMPLETE", "PRUNED", "FAIL") if now.counts.get(s)]
        return ", ".join(words) or "none finished"

    def _left(self, now: Standing) -> str:
        if self._opened is not None and self._opened.draining:
            return "stopping"
        if self._opened is not None and self._opened.paused is not None:
            return "paused; vqsearch resume goes on"
        return "" if now.left_s is None else f"about {duration(now.left_s)} left"

    def _running(self, opened: OpenStudy) -> RenderableType:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        metric = opened.space.objective.metric
        for heading, least in (("trial", 5), ("step", 11), (metric, len(metric)), ("images/s", 8)):
            table.add_column(heading, justify="right", no_wrap=True, min_width=least)
        wide = self.console.width >= 70
        if wide:
            table.add_column("settings", no_wrap=True, overflow="ellipsis")
        for flight in list(opened.flights.values()):
            rate = flight.metrics.get("images_per_s")
            table.add_row(
                str(flight.trial.number),
                f"{flight.step}/{opened.space.budget.steps}",
                number(flight.metrics.get(metric)),
                "starting" if rate is None else f"{rate:.0f}",
                *([settings(flight.labels)] if wide else []),
            )
        return table

    def _best(self, opened: OpenStudy, now: Standing) -> RenderableType:
        if now.best is None:
            return Text("")
        value = f"{opened.space.objective.metric} {now.best.value:.5g}"
        return Text.assemble(
            ("best ", "bold"), f"trial {now.best.number}: {value}  ", (settings(now.best.params), "dim")
        )


def best_table(trials: list[FrozenTrial], space: Space, width: int = 80) -> list[Table]:
    """Trials as columns, as many side by side as fit into `width` characters; more in further tables."""
    metric = space.objective.metric
    measured = [name for name in _measured(trials) if name != metric]
    names = [parameter.name for parameter in space.parameters]
    first = max(len(name) for name in (metric, *measured, *names)) + 2
    at_once = max((width - first) // 13, 1)
    tables = []
    for start in range(0, len(trials), at_once):
        part = trials[start : start + at_once]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("trial", no_wrap=True)
        for trial in part:
            table.add_column(str(trial.number), justify="right", no_wrap=True)
        table.add_row(metric, *(number(trial.value) for trial in part), style="bold")
        for name in measured:
            table.add_row(name, *(number(trial.user_attrs.get(name)) for trial in part))
        for name in names:
            table.add_row(name, *(shown(trial.params.get(name, "-")) for trial in part))
        tables.append(table)
    return tables


def _measured(trials: list[FrozenTrial]) -> list[str]:
    """Names of what the trials measured: on held-out images first, then what they cost."""
    names = {name for trial in trials for name in trial.user_attrs if is_metric(name)}
    return sorted(names, key=lambda name: (name in COSTS, name))
