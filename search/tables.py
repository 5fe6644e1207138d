"""The table of a report: the best trials of each study and its baselines, with what they measured and their settings.

Rows are trials, columns are quantities; cells are plain text, which every format escapes in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from search import units
from search.findings import Findings, Trial
from search.standing import shown
from search.text import printable
from vqvae.config import METRICS

TOP = 5
"""Complete trials of each study that are shown, besides the baselines."""

COSTS = ("bits_per_image", "val/entropy_bits_per_image", "parameters", "images_per_s")
"""What is shown after the measures of quality."""

NUMBER = re.compile(r"-|[-+]?[\d.,]+(e[-+]?\d+)?( (±|to) [-+]?[\d.,]+(e[-+]?\d+)?)?( \(tie\))?")
"""A cell that belongs to the right."""

Row = tuple[Findings, Trial]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One quantity of all rows.

    Attributes:
        name: of the metric, or dotted field; "" for what is neither.
        heading: what it is called.
        unit: "" for pure numbers and words.
        better: higher or lower; "" where neither.
        cells: one for each row, a dash where there is nothing.
        best: rows that hold the best value; empty where neither direction is better or all are alike.
    """

    name: str
    heading: str
    unit: str = ""
    better: str = ""
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()

    @property
    def arrow(self) -> str:
        """Towards the better values; "" where there are none."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")

    @property
    def numeric(self) -> bool:
        """Whether its cells are numbers, intervals of numbers among them, or dashes."""
        return all(NUMBER.fullmatch(cell) for cell in self.cells)


def rows(found: Sequence[Findings]) -> list[Row]:
    """The best trials of each study in the order of rank, then its other complete baselines."""
    chosen: list[Row] = []
    for each in found:
        best = list(each.ranking[:TOP])
        others = [t.number for t in each.baselines if t.value is not None and t.number not in best]
        chosen += [(each, each.trials[number]) for number in (*best, *others)]
    return chosen


def names(chosen: Sequence[Row]) -> list[Column]:
    """Which trials the rows are: of which study, where there are several, and what they stand for."""
    several = len({id(each) for each, _ in chosen}) > 1
    studies = Column(name="", heading="study", cells=tuple(printable(each.study) for each, _ in chosen))
    trials = Column(name="", heading="trial", cells=tuple(_called(trial) for _, trial in chosen))
    return [studies, trials] if several else [trials]


def measured(chosen: Sequence[Row]) -> list[Column]:
    """The objective, the other metrics of quality, and what the trials cost."""
    if not chosen:
        return []
    first = chosen[0][0]
    known = {name for _, trial in chosen for name in trial.metrics}
    quality = [name for name in METRICS if name in known and name not in (first.metric, *COSTS)]
    wanted = [first.metric, *quality, *(name for name in COSTS if name in known and name != first.metric)]
    return [*(_quantity(name, chosen) for name in wanted), _hours(chosen)]


def settings(chosen: Sequence[Row]) -> list[Column]:
    """The searched fields; those of any study."""
    fields = list(dict.fromkeys(name for _, trial in chosen for name in trial.settings))
    return [
        Column(
            name=name,
            heading=printable(name),
            cells=tuple(printable(shown(trial.settings.get(name, "-"))) for _, trial in chosen),
        )
        for name in fields
    ]


def _called(trial: Trial) -> str:
    word = {"baseline": " (baseline)", "by hand": " (by hand)"}.get(trial.origin, "")
    return f"{trial.number}{word}{'' if trial.keeps_limits else ' (over a limit)'}"


def _quantity(name: str, chosen: Sequence[Row]) -> Column:
    values = [t.value if name == each.metric else t.metrics.get(name) for each, t in chosen]
    return Column(
        name=name,
        heading=units.label(name),
        unit=units.unit(name),
        better=units.better(name),
        cells=tuple(units.figure(name, value) for value in values),
        best=_best(values, [units.figure(name, value) for value in values], units.better(name)),
    )


def _hours(chosen: Sequence[Row]) -> Column:
    gpus = any(each.space.resources.gpus for each, _ in chosen)
    values = [trial.seconds / 3600 * (each.space.resources.gpus if gpus else 1.0) for each, trial in chosen]
    cells = tuple(f"{value:,.2f}" if max(values) >= 1 else f"{value:.4f}" for value in values)
    return Column(name="", heading="GPU-hours" if gpus else "training time", unit="" if gpus else "h", cells=cells)


def _best(values: Sequence[float | None], cells: Sequence[str], better: str) -> frozenset[int]:
    """Rows that read like the best value."""
    there = [value for value in values if value is not None]
    if not better or len(set(cells)) < 2 or not there:
        return frozenset()
    top = cells[values.index((max if better == "higher" else min)(there))]
    return frozenset(row for row, cell in enumerate(cells) if cell == top)
