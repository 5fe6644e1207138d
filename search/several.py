"""Where the arms of a comparison stand, all together and one by one: in a terminal of any size, and in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import optuna
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from search import records, remaining, units
from search.picture import Row, of_budget, of_history, of_running, of_states
from search.screen import Column, bar, cut, table
from search.space import Space
from search.standing import Standing, budget, finalists, left, states
from search.text import one_line

ROWS_BESIDE = 3
"""Rows of the terminal that are kept for the cursor and for a line above and below the picture."""

CURVE = 10
"""Columns in which the history of an arm is drawn."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of several studies.

    Attributes:
        name: of the arm, on one line.
        now: where its study stands.
        space: what it searches.
        note: what keeps trials of it from starting; "" else.
    """

    name: str
    now: Standing
    space: Space
    note: str = ""


def name_of(study: optuna.Study) -> str:
    """What a study is called among others: its arm of a comparison, else its own name."""
    tie = records.tie(study)
    return one_line(tie.arm if tie else study.study_name)


def whole(arms: Sequence[Standing]) -> Standing:
    """Where several studies stand together; the time left includes the finalists that are to come.

    There is no best trial among them: their searches chose on the same images, but which arm is better is for
    finalists to say.
    """
    hours = [each.total_hours for each in arms if each.total_hours is not None]
    works = [each.work for each in arms if each.work is not None]
    return Standing(
        counts=_sum(each.counts for each in arms),
        causes={state: _sum(each.causes.get(state, {}) for each in arms) for state in ("PRUNED", "FAIL")},
        invalid=sum(each.invalid for each in arms),
        total=sum(each.total for each in arms),
        hours=max(each.hours for each in arms),  # One driver spends them on all at once.
        total_hours=max(hours) if hours else None,
        running=[trial for each in arms for trial in each.running],
        trained_s=sum(each.trained_s for each in arms),
        left_s=remaining.left_s(works) if len(works) == len(arms) else None,
        at_most=all(each.at_most and each.work and each.work.trial_s is not None for each in arms),
        finalists=sum(each.finalists for each in arms),
        judged=sum(each.judged for each in arms),
    )


def _sum(counts: Iterator[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


def note_of(arms: Sequence[Arm]) -> str:
    """What keeps trials from starting in all arms alike."""
    notes = {arm.note for arm in arms}
    return notes.pop() if len(notes) == 1 else ""


def brief(arms: Sequence[Arm]) -> str:
    """Each arm in a few words: mamba 5/16, PSNR 21.50 dB; attention 4/16."""
    return "; ".join(", ".join((f"{arm.name} {_trials(arm)}", *_results(arm), *_own_note(arm, arms))) for arm in arms)


def line(arms: Sequence[Arm], steady: bool = False) -> str:
    """All of them together in a line, then each; `steady` without what changes by itself: hours and the time left."""
    now, note = whole([arm.now for arm in arms]), note_of(arms)
    spent, rest = ("", note) if steady else (budget(now), note or left(now))
    return "; ".join((", ".join(filter(None, (spent, states(now), finalists(now), rest))), brief(arms)))


def _trials(arm: Arm) -> str:
    return f"{arm.now.done}/{arm.now.total}"


def _judged(arm: Arm) -> str:
    return f"{arm.now.judged}/{arm.now.finalists}" if arm.now.finalists else ""


def _best(arm: Arm) -> str:
    best, metric = arm.now.best, arm.space.objective.metric
    return "-" if best is None else units.text(metric, best.value)


def _curve(arm: Arm, plain: bool) -> Text:
    return of_history(arm.now, arm.space, CURVE, plain) if len(arm.now.history) > 1 else Text()


def _results(arm: Arm) -> Iterator[str]:
    if arm.now.best is not None:
        yield f"{units.label(arm.space.objective.metric)} {_best(arm)}"
    if arm.now.finalists:
        yield f"finalists {_judged(arm)}"


def _own_note(arm: Arm, arms: Sequence[Arm]) -> list[str]:
    return [arm.note] if arm.note and not note_of(arms) else []


@dataclass(frozen=True)
class Several:
    """Several studies: all together, a row for each, and what runs of any.

    Args:
        arms: at least one.
        limited: leave out running trials that the terminal has no rows for, and then what became of the others.
    """

    arms: Sequence[Arm]
    limited: bool = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, now = options.max_width, whole([arm.now for arm in self.arms])
        lines = list(of_budget(now, note_of(self.arms), options).wrap(console, width))
        ended, rows = of_states(now).wrap(console, width), list(self._rows(options))
        room = max(options.size.height - ROWS_BESIDE, 1)
        if not self.limited or len(lines) + len(ended) + len(rows) <= room:
            lines += ended
        yield from lines
        yield from rows
        yield from self._running(room - len(lines) - len(rows) if self.limited else None, options)

    def _rows(self, options: ConsoleOptions) -> Iterator[Text]:
        plain, arms = options.ascii_only, self.arms
        columns = [
            Column("arm", self._names(options), rank=0, left=True),
            Column("", [bar(arm.now.share, 8, plain) for arm in arms], rank=6),
            Column("trials", [_trials(arm) for arm in arms], rank=1),
            Column(f"best {units.label(arms[0].space.objective.metric)}", [_best(arm) for arm in arms], rank=2),
            Column("", [_curve(arm, plain) for arm in arms], rank=7, left=True),
        ]
        for state, heading, rank in (("PRUNED", "pruned", 4), ("FAIL", "failed", 5)):
            counts = [arm.now.counts.get(state, 0) for arm in arms]
            if any(counts):
                columns.append(Column(heading, list(map(str, counts)), rank=rank))
        if any(arm.now.finalists for arm in arms):
            columns.append(Column("finalists", [_judged(arm) for arm in arms], rank=3))
        notes = [" ".join(_own_note(arm, arms)) for arm in arms]
        yield from table(columns, Column("", notes, rank=9, left=True), options.max_width, plain)

    def _running(self, room: int | None, options: ConsoleOptions) -> Iterator[Text]:
        names = self._names(options)
        rows = [
            Row(each, arm.space, name) for arm, name in zip(self.arms, names, strict=True) for each in arm.now.running
        ]
        limit = None if room is None or len(rows) < room else room - 2  # besides a heading, and a line that counts
        if rows and (limit is None or limit > 0):
            yield from of_running(rows, limit, options)

    def _names(self, options: ConsoleOptions) -> list[str]:
        plain, names = options.ascii_only, [arm.name for arm in self.arms]
        if plain:  # as the console will write them, so that their width is known
            names = [name.encode("ascii", "backslashreplace").decode() for name in names]
        return [cut(name, max(options.max_width // 4, 8), plain) for name in names]
