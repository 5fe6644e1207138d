"""Where a study stands, or a comparison of several, for someone who only looks: from the storage alone, once or on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from optuna.storages import BaseStorage
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from search import catalog, several
from search.errors import StorageError
from search.look import Look, head, of_study
from search.patience import is_away, words
from search.progress import READ_EVERY_S
from search.screen import Screen, stamped
from search.several import Arm, Several
from search.text import one_line


@dataclass(frozen=True, kw_only=True)
class Looks:
    """The arms of a comparison as their storage tells of them.

    Attributes:
        name: of the comparison.
        arms: name of an arm -> its study, in the order of the comparison.
        way_on: the command that goes on with it.
        away: what the storage says, while it does not answer; "" else.
    """

    name: str
    arms: Mapping[str, Look]
    way_on: str
    away: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more."""
        return all(look.over for look in self.arms.values())

    @property
    def spent(self) -> bool:
        """Whether the budgets of all are spent, and nothing runs."""
        return all(look.spent for look in self.arms.values())

    @property
    def driver(self) -> Look | None:
        """The arm whose driver was heard of last; None where nobody drives any."""
        driven = [(look.driver.beat, look) for look in self.arms.values() if look.driver is not None]
        return max(driven, key=lambda each: each[0])[1] if driven else None

    @property
    def who(self) -> str:
        """Who drives it; whoever drives single arms is told with them."""
        if self.driver is None:
            return "the budget is spent" if self.spent else "nobody drives it"
        return self.driver.who

    @property
    def told(self) -> object:
        """What is worth a new line once it changes: not hours and ages, which do so by themselves."""
        return [(look.told, look.now.judged) for look in self.arms.values()], self.away

    def several(self) -> list[Arm]:
        """The arms, to be shown."""
        return [
            Arm(name=one_line(name), now=look.now, space=look.space, note=self._note(look))
            for name, look in self.arms.items()
        ]

    def _note(self, look: Look) -> str:
        of_all = self.driver
        if look.over or of_all is None or _process(look) == _process(of_all):
            return look.note
        return look.who if not look.note else f"{look.note}; {look.who}"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from head(self.name, self.who, self.away)
        yield Several(self.several(), limited=console.is_terminal)
        if self.driver is None and not self.spent:
            yield Text(f"go on with: {self.way_on}")

    def line(self) -> str:
        """The same in a line."""
        who = "" if self.driver is not None and self.driver.lives else self.who
        return "; ".join(filter(None, (several.line(self.several()), who)))

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        left_s = several.whole([look.now for look in self.arms.values()]).left_s
        return {
            "comparison": self.name,
            "left_s": None if left_s is None else round(left_s, 1),
            "over": self.over,
            "arms": [{"arm": name, **look.as_json()} for name, look in self.arms.items()],
        }


def _process(look: Look) -> tuple[str, int] | None:
    return None if look.driver is None else (look.driver.host, look.driver.pid)


def look(storage: BaseStorage, name: str | None, way_on: Callable[[str], str]) -> Look | Looks:
    """What a storage tells of a study, or of the arms of a comparison.

    Args:
        storage: where it is.
        name: its name; None where the storage holds just one.
        way_on: the command that goes on with it.

    Raises:
        StudyError: no such study.
    """
    found = catalog.expand(storage, [name])
    if found == [name]:
        return of_study(storage, name, way_on)
    known = catalog.studies(storage)  # An arm that is just being made is not among them.
    looks = [of_study(storage, arm, way_on) for arm in found if arm in known]
    arms = {look.tie.arm: look for look in looks if look.tie is not None}
    if not arms:  # made this very moment
        return of_study(storage, name, way_on)
    comparison = next(look.tie.comparison for look in looks if look.tie is not None)
    return Looks(name=comparison, arms=arms, way_on=way_on(comparison))


def watch(look: Callable[[], Look | Looks], console: Console, every_s: float = READ_EVERY_S) -> None:
    """Show a study until it is over: a live view in a terminal, elsewhere a line whenever something has changed.

    Args:
        look: reads the study.
        console: where it is shown.
        every_s: wall seconds between two looks.

    Raises:
        VqsearchError: the study can't be read; a storage that does not answer is waited for, once it has answered.
    """
    latest = look()
    if console.is_terminal:
        try:
            with Screen(console, lambda: latest):
                for each in _looks(latest, look, every_s):
                    latest = each
        finally:
            console.print(latest)
        return
    told: object = None
    for each in _looks(latest, look, every_s):
        line = f"the storage does not answer; it is waited for: {each.away}" if each.away else each.line()
        if told != (told := each.told):
            console.print(stamped(console, datetime.now().strftime("%H:%M:%S"), line), soft_wrap=True)


def _looks(latest: Look | Looks, look: Callable[[], Look | Looks], every_s: float) -> Iterator[Look | Looks]:
    """The study now and after each while, until it is over; the last look again where the storage is away."""
    yield latest
    while not latest.over:
        time.sleep(every_s)
        with contextlib.suppress(KeyError):  # what was just listed has gone: a lease given back, say
            try:
                latest = look()
            except Exception as error:
                if not (is_away(error) or isinstance(error, StorageError)):
                    raise
                latest = replace(latest, away=words(error))
        yield latest
