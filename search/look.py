"""What a storage tells of a study, on any machine; what a driver has in memory is not known here.

Steps of running trials are those of their last checkpoints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.storages import BaseStorage
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from search import catalog, finalists, lease, records, standing
from search import study as studies
from search.lease import Holder
from search.picture import Picture
from search.space import Space
from search.standing import Standing
from search.units import duration


@dataclass(frozen=True, kw_only=True)
class Look:
    """A study as its storage tells of it.

    Attributes:
        name: of the study.
        space: its space.
        now: where it stands.
        driver: who drives it, or was the last to; None where nobody does.
        lives: whether that process runs; None where it has been silent on another machine.
        stopping: someone asked the driver to stop.
        spent: the budget is spent, nothing runs, and no finalist is left to be judged.
        trials: all, for programs.
        way_on: the command that goes on with it.
        tie: what makes it an arm of a comparison; None where it stands alone.
        away: what the storage says, while it does not answer; "" else.
    """

    name: str
    space: Space
    now: Standing
    driver: Holder | None
    lives: bool | None
    stopping: bool
    spent: bool
    trials: list[Any]
    way_on: str
    tie: records.Tie | None = None
    away: str = ""

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more."""
        return self.spent and self.driver is None

    @property
    def who(self) -> str:
        """Who drives it."""
        if self.driver is None:
            return "the budget is spent" if self.spent else "nobody drives it"
        process = f"process {self.driver.pid} on {self.driver.host}"
        age = duration(max(time.time() - self.driver.beat, 0.0))
        if self.lives is None:
            return f"{process} drives it, or has died: it was heard of {age} ago"
        return f"driven by {process}, heard of {age} ago"

    @property
    def note(self) -> str:
        """What keeps the driver from starting trials."""
        if self.stopping:
            return "stopping: running trials save a checkpoint"
        return "paused; vqsearch resume goes on" if self.driver is not None and self.driver.paused else ""

    @property
    def told(self) -> object:
        """What is worth a new line once it changes: not hours and ages, which do so by themselves."""
        return (
            self.now.counts,
            self.now.judged,
            self.now.best and self.now.best.number,
            self.note,
            self.lives,
            self.away,
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from head(self.name, self.who, self.away)
        yield Picture(self.now, self.space, self.note, limited=console.is_terminal)
        if self.driver is None and not self.spent:
            yield Text(f"go on with: {self.way_on}")

    def line(self) -> str:
        """The same in a line."""
        best = self.now.best
        metric = self.space.objective.metric
        leader = "" if best is None else f"best trial {standing.named(best)}: {metric} {best.value:.5g}"
        state = ", ".join(filter(None, (standing.budget(self.now), standing.states(self.now))))
        who = "" if self.lives else self.who
        return "; ".join(filter(None, (state, leader, self.note, who)))

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        driver = self.driver and {
            "host": self.driver.host,
            "pid": self.driver.pid,
            "heard_s": round(max(time.time() - self.driver.beat, 0.0), 1),
            "lives": self.lives,
            "paused": self.driver.paused,
            "stopping": self.stopping,
        }
        return {
            "study": self.name,
            "budget": self.space.source["budget"],
            "counts": {word: self.now.counts.get(state, 0) for state, word in standing.STATES.items()},
            "reasons": {standing.STATES[state]: dict(found) for state, found in self.now.causes.items()},
            "refused": self.now.invalid,
            "hours": round(self.now.hours, 4),
            "left_s": None if self.now.left_s is None else round(self.now.left_s, 1),
            "best": None if self.now.best is None else standing.as_json(self.now.best),
            "driver": driver,
            "over": self.over,
            "trials": [standing.as_json(trial) for trial in self.trials],
        }


def head(name: str, who: str, away: str) -> Iterator[Text]:
    """What is above a picture: who drives what it shows."""
    yield Text(f"{name}: {who}", style="bold")
    if away:
        yield Text(f"the storage does not answer; it is waited for: {away}", style="yellow")


def of_study(storage: BaseStorage, name: str | None, way_on: Callable[[str], str]) -> Look:
    """What a storage tells of a study.

    Args:
        storage: where it is.
        name: its name; None where the storage holds just one.
        way_on: the command that goes on with a study.

    Raises:
        StudyError: no such study.
    """
    study, space = catalog.load(storage, name)
    holder = lease.last(storage, study.study_name)
    lives = None if holder is None else lease.lives(holder)
    driver = None if lives is False else holder
    return Look(
        name=study.study_name,
        space=space,
        now=_now(study, space, driver),
        driver=driver,
        lives=lives,
        stopping=driver is not None and _is_stopping(storage, study.study_name, driver),
        spent=_is_spent(study, space),
        trials=study.get_trials(deepcopy=False),
        way_on=way_on(study.study_name),
        tie=records.tie(study),
    )


def _now(study: optuna.Study, space: Space, driver: Holder | None) -> Standing:
    now = standing.standing(study, space)
    if driver is not None:
        return replace(now, left_s=None, work=None) if driver.paused else now
    cut_off = now.counts.get("RUNNING", 0)  # by a driver that was killed: the next one takes them up
    counts = {**now.counts, "RUNNING": 0, "WAITING": now.counts.get("WAITING", 0) + cut_off}
    work = now.work and replace(now.work, running=0, spent_s=0.0)
    return replace(now, counts=counts, running=(), left_s=None, work=work)


def _is_stopping(storage: BaseStorage, name: str, driver: Holder) -> bool:
    try:
        attributes = storage.get_study_user_attrs(lease.study_of(storage, name, driver.number))
    except KeyError:  # given back in between
        return False
    return any(each.kind == "stop" and not each.refused for each in records.requests(attributes))


def _is_spent(study: optuna.Study, space: Space) -> bool:
    hours = space.budget.hours
    if not studies.spent(study, space.budget.trials) and (hours is None or records.hours(study) < hours):
        return False
    return not finalists.outstanding(space, study.get_trials(deepcopy=False), study.direction)
