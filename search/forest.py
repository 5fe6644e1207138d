"""Forest plots of a report's page: means with their intervals, each seed beside them, and differences to the best.

Data for plotly.js, as in `search.charts`; color never tells more than a place and a shape do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from search import units
from search.charts import Chart, axis, escape
from search.findings import Findings
from search.ranking import Ranking
from search.statistics import Estimate
from search.verdict import CONFIDENCE, Contender, interval


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the plots: what it is called, what was measured, and by how much the best is ahead of it."""

    name: str
    contender: Contender
    behind: Estimate | None


def of_arms(ranking: Ranking) -> list[Chart]:
    """Of the ranked arms of a comparison."""
    behind = ranking.behind if ranking.winner else {}
    lines = [
        Line(name=each.name, contender=each.representative, behind=behind.get(each.name)) for each in ranking.ranked
    ]
    return _charts(lines, ranking.metric, "arm")


def of_contenders(found: Findings) -> list[Chart]:
    """Of the settings among a study's finalists."""
    judged = found.verdict
    if judged is None:
        return []
    lines = [
        Line(
            name=f"trial {each.of}{' (baseline)' if each.baseline else ''}",
            contender=each,
            behind=judged.behind.get(each.of),
        )
        for each in judged.contenders
    ]
    return _charts(lines, judged.metric, "setting")


def _charts(lines: Sequence[Line], metric: str, what: str) -> list[Chart]:
    charts = [_means(lines, metric, what)] if lines else []
    return [*charts, _leads(lines, metric, what)] if len(lines) > 1 else charts


def _means(lines: Sequence[Line], metric: str, what: str) -> Chart:
    found = [each.contender.means[metric] for each in lines]
    by_seed = [each.contender.values[metric].mean(axis=1).tolist() for each in lines]
    names = [escape(each.name) for each in lines]
    seeds = [(name, value) for name, values in zip(names, by_seed, strict=True) for value in values]
    label = units.label(metric)
    words = [f"{name} {_said(metric, each)}" for name, each in zip(names, found, strict=True)]
    return Chart(
        name="forest-means",
        title=f"{label} on the test split",
        caption=f"Mean of each {what} with its {CONFIDENCE:.0%} interval over seeds and images; the open circles are "
        "single seeds.",
        alt="; ".join(words) + ".",
        data=[
            {
                "type": "scatter",
                "mode": "markers",
                "name": "a seed",
                "x": [value for _, value in seeds],
                "y": [name for name, _ in seeds],
                "hovertext": [f"{name}: {units.text(metric, value)}" for name, value in seeds],
                "hoverinfo": "text",
                "marker": {"color": "var(--muted)", "symbol": "circle-open", "size": 7},
            },
            _whiskers(names, found, metric, "mean", "var(--c0)"),
        ],
        layout={"xaxis": axis(metric), "yaxis": _names(names)},
        height=_height(lines),
    )


def _leads(lines: Sequence[Line], metric: str, what: str) -> Chart:
    found = [(escape(each.name), each.behind) for each in lines if each.behind is not None]
    best, unit = escape(lines[0].name), units.unit(metric)
    data = []
    for tie, name, color in ((False, "shown", "var(--c0)"), (True, "a tie", "var(--c1)")):
        some = [(called, each) for called, each in found if each.tie == tie]
        if some:
            symbol = "circle-open" if tie else "circle"
            data.append(
                _whiskers([called for called, _ in some], [each for _, each in some], metric, name, color, symbol)
            )
    words = [f"{called} {_said(metric, each)}{', a tie' * each.tie}" for called, each in found]
    return Chart(
        name="forest-leads",
        title=f"How far ahead {best} is",
        caption=f"Difference of the means to each other {what}, paired by image, with its {CONFIDENCE:.0%} interval. "
        "Where the interval crosses zero it is a tie.",
        alt="; ".join(words) + ".",
        data=data,
        layout={
            "xaxis": {
                "title": {"text": f"ahead by{f' ({unit})' if unit else ''}"},
                "zeroline": True,
                "zerolinecolor": "var(--ink)",
                "zerolinewidth": 1,
                "rangemode": "tozero",
            },
            "yaxis": _names([called for called, _ in found]),
        },
        height=_height(lines),
    )


def _whiskers(
    names: Sequence[str], found: Sequence[Estimate], metric: str, name: str, color: str, symbol: str = "circle"
) -> dict[str, Any]:
    """Estimates with their intervals; of a single seed the mean alone."""
    halves = [each.high - each.value if math.isfinite(each.error) else 0.0 for each in found]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [each.value for each in found],
        "y": list(names),
        "hovertext": [f"{called}: {_said(metric, each)}" for called, each in zip(names, found, strict=True)],
        "hoverinfo": "text",
        "error_x": {"type": "data", "array": halves, "color": color, "thickness": 1.5, "width": 6},
        "marker": {"color": color, "symbol": symbol, "size": 10},
    }


def _said(metric: str, found: Estimate) -> str:
    return interval(metric, found) if math.isfinite(found.error) else units.text(metric, found.value)


def _names(names: Sequence[str]) -> dict[str, Any]:
    """The axis of names, the first one on top."""
    unique = list(dict.fromkeys(names))
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": unique[::-1],
        "range": [-0.6, len(unique) - 0.4],
        "automargin": True,
        "ticksuffix": "  ",
        "showgrid": False,
    }


def _height(lines: Sequence[Line]) -> int:
    return 110 + 42 * len(lines)
