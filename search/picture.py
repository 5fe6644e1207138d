"""Where a study stands, drawn into a terminal of any width and height."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from search import units
from search.parameters import settings
from search.screen import Column, bar, sparkline, table, wrapped
from search.space import Space
from search.standing import Running, Standing, budget, finalists, left, named, refused, states
from search.units import duration

ROWS_BESIDE = 9
"""Rows of the terminal that are kept for what is not a running trial."""

MEMORY = "peak_memory_gib"


@dataclass(frozen=True)
class Picture:
    """One study: its budget, its running trials, and the best one.

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
        yield of_budget(self.now, self.note, options)
        yield of_states(self.now)
        if self.now.running:
            shown = [Row(each, self.space) for each in self.now.running]
            yield from of_running(shown, max(options.size.height - ROWS_BESIDE, 1) if self.limited else None, options)
        if self.now.best is not None:
            yield from self._best(options)

    def _best(self, options: ConsoleOptions) -> Iterator[Text]:
        best, metric, history = self.now.best, self.space.objective.metric, self.now.history
        assert best is not None
        words = f"trial {named(best)}: {units.label(metric)} {units.text(metric, best.value)}"
        line = Text.assemble(("best ", "bold"), words)
        width = min(options.max_width - line.cell_len - 2, 30)
        if width >= 8 and len(history) > 1:
            line.append("  ").append_text(of_history(self.now, self.space, width, options.ascii_only))
            came = f"  from {units.figure(metric, history[0])}"
            if history[0] != history[-1] and line.cell_len + len(came) <= options.max_width:
                line.append(came, "dim")
        yield line
        yield from (Text("     ", "dim").append(part) for part in wrapped(settings(best.params), options.max_width - 5))


class Row(NamedTuple):
    """A running trial in a table, of one study or of the arm of a comparison."""

    trial: Running
    space: Space
    arm: str = ""


def of_budget(now: Standing, note: str, options: ConsoleOptions) -> Text:
    """How much of the budget is used up, and the time left, or a note in its place."""
    words = "  ".join(filter(None, (budget(now), note or left(now))))
    width = min(options.max_width - len(words) - 2, 30)
    if width < 5:
        return Text(words)
    return Text.assemble(bar(now.share, width, options.ascii_only), "  ", words)


def of_states(now: Standing) -> Text:
    """What became of the trials."""
    return Text(", ".join(filter(None, (states(now), refused(now), finalists(now)))) or "no trial yet", style="dim")


def of_history(now: Standing, space: Space, width: int, plain: bool) -> Text:
    """How the best value went, better ones taller."""
    sign = -1 if space.objective.direction == "minimize" else 1
    return Text(sparkline([sign * value for value in now.history], width, plain), "cyan")


def of_running(rows: Sequence[Row], limit: int | None, options: ConsoleOptions) -> Iterator[Text]:
    """The running trials in a table.

    Args:
        rows: at least one.
        limit: trials that there is room for; the others are counted.
        options: of the terminal.
    """
    plain, shown = options.ascii_only, rows[:limit]
    metric = shown[0].space.objective.metric
    steps = [(each.trial.step, each.space.budget.steps) for each in shown]
    trials = [each.trial for each in shown]
    columns = [
        Column("trial", [str(each.number) for each in trials], rank=0),
        Column("", [bar(done / total, 8, plain) for done, total in steps], rank=6),
        Column("step", [f"{done}/{total}" for done, total in steps], rank=1),
        Column(_heading(metric), [_value(each) for each in shown], rank=2),
        Column("images/s", [_rate(each) for each in trials], rank=3),
    ]
    if any(each.trial.backbone not in ("", each.arm) for each in shown):
        columns.insert(1, Column("backbone", [each.backbone for each in trials], rank=5, left=True))
    if any(each.arm for each in shown):
        columns.insert(0, Column("arm", [each.arm for each in shown], rank=0, left=True))
    if any(each.memory_gib is not None for each in trials):
        columns.append(Column("GPU GiB", [units.figure(MEMORY, each.memory_gib) for each in trials], rank=4))
    if any(each.heard is not None for each in trials):
        columns.append(Column("heard of", [_age(each) for each in trials], rank=2, left=True))
    others = [settings({k: v for k, v in each.labels.items() if k != "model.backbone"}) for each in trials]
    yield from table(columns, Column("settings", others, rank=9, left=True), options.max_width, plain)
    if len(rows) > len(shown):
        yield Text(f"and {len(rows) - len(shown)} more", style="dim")


def _heading(metric: str) -> str:
    return " ".join(filter(None, (units.label(metric), units.unit(metric))))


def _value(row: Row) -> str:
    value, at = row.trial.value, row.trial.value_at
    return "-" if at is None else f"{units.figure(row.space.objective.metric, value)} at {at}"


def _rate(trial: Running) -> str:
    if trial.images_per_s is None:
        return "starting" if trial.heard is None else "-"
    return units.figure("images_per_s", trial.images_per_s)


def _age(trial: Running) -> str:
    return "" if trial.heard is None else f"{duration(max(time.time() - trial.heard, 0.0))} ago"
