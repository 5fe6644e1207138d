"""The charts of the report's page that show the objective over the searched parameters; complete trials alone.

Slices and the contour are Optuna's own figures. The parallel coordinates are drawn here: Optuna's leave out whatever
lacks a conditional parameter, and plotly's need WebGL and `eval`, which the page does not allow.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from search import charts, units
from search.charts import Chart, Trace, escape
from search.findings import LEAST_FOR_IMPORTANCES, Findings, Trial
from search.parameters import Parameter, logarithmic
from search.standing import shown

SLICES = 12
"""Parameters with a slice of their own, at most: the most important ones."""

CONTOUR = 120
"""Trials that a contour interpolates between, at most: its grid grows with their square."""

_BANDS = (
    ("best tenth", 0.1, "var(--c1)", 1.6),
    ("next quarter", 0.35, "var(--c0)", 1.0),
    ("others", 1.0, "var(--faint)", 0.7),
)
"""Trials by rank: name, share of the trials down to which it goes, color and width of a line."""

_SCALE = [[0, "var(--scale-0)"], [0.5, "var(--scale-1)"], [1, "var(--scale-2)"]]


def slices(of: Findings) -> list[Chart]:
    """The objective over each parameter (Optuna's figure), the most important first; none of too few trials."""
    trials = _drawn(of)
    if len(trials) < LEAST_FOR_IMPORTANCES:
        return []
    copy = charts.replica(of, trials)
    seen, _ = charts.focus(of, trials)
    found: list[Chart] = []
    for parameter in by_importance(of):
        if len({trial.settings[parameter.name] for trial in trials if parameter.name in trial.settings}) < 2:
            continue
        trace = optuna.visualization.plot_slice(copy, params=[parameter.name]).to_plotly_json()["data"][0]
        # Optuna colors its points by the number in the copy, which tells whose they are.
        points = [trials[index] for index in trace["marker"]["color"]]
        trace |= {
            "x": [_at(of, trial, parameter.name) for trial in points],  # as they are, where Optuna writes 'labels'
            "customdata": [trial.number for trial in points],
            "hoverinfo": "text",
            "marker": {"color": "var(--c0)", "size": 6, "opacity": 0.55},
        }
        own = charts.marked(of, lambda trial, name=parameter.name: (_at(of, trial, name), trial.value))  # type: ignore[misc]
        best = of.best.settings.get(parameter.name, "none") if of.best else "none"
        found.append(
            Chart(
                name=f"slice-{len(found)}",
                title=parameter.name,
                caption="",
                alt=f"{units.label(of.metric)} over {parameter.name}; the best trial has {shown(best)}.",
                data=[trace, *own],
                layout={"xaxis": _axis(of, parameter), "yaxis": charts.axis(of.metric, **seen), "showlegend": False},
                height=260,
            )
        )
        if len(found) == SLICES:
            break
    return found


def pair(of: Findings) -> list[Chart]:
    """The objective over the two most important parameters: interpolated (Optuna's figure), and as its ranks."""
    names = sorted(list(of.importances)[:2])  # as Optuna's contour has them
    if len(names) < 2:
        return []
    across, up = (next(p for p in of.space.parameters if p.name == name) for name in names)
    trials = [trial for trial in _drawn(of) if all(name in trial.settings for name in names)]
    axes = {"xaxis": _axis(of, across, titled=True), "yaxis": _axis(of, up, titled=True)}
    found = [_ranks(of, trials, across, up, axes)]
    if all(p.kind != "choice" for p in (across, up)) and len(trials) >= LEAST_FOR_IMPORTANCES:
        found.insert(0, _contour(of, trials[:CONTOUR], across, up, axes))
    return found


def parallel(of: Findings) -> Chart | None:
    """A line for each trial across all parameters, in three bands by rank."""
    trials = _drawn(of)
    columns = [p for p in by_importance(of) if len({shown(t.settings.get(p.name)) for t in trials}) > 1][:SLICES]
    if len(trials) < LEAST_FOR_IMPORTANCES or len(columns) < 2:
        return None
    place = {trial.number: index / len(trials) for index, trial in enumerate(trials)}
    heights = {p.name: _heights(p, trials) for p in columns}
    lines: list[Trace] = []
    above = 0.0
    for name, share, color, width in _BANDS:
        band = [trial for trial in trials if above <= place[trial.number] < share]
        above = share
        x: list[Any] = []
        y: list[Any] = []
        numbers: list[int] = []
        for trial in band:
            x += [*range(len(columns)), None]
            y += [*(heights[p.name].get(trial.number, -0.12) for p in columns), None]
            numbers += [trial.number] * (len(columns) + 1)
        line = {"color": color, "width": width}
        lines.append(
            {
                "type": "scatter", "mode": "lines+markers", "name": f"{name} ({len(band)})", "x": x, "y": y,
                "customdata": numbers, "hoverinfo": "text", "line": line, "marker": {"size": 3}, "opacity": 0.7,
            }
        )  # fmt: skip
    ends = [note for index, p in enumerate(columns) for note in _ends(index, p)]
    return Chart(
        name="parallel",
        title="All settings at once",
        caption=f"A line is a complete trial, colored by its rank in {units.label(of.metric)}; a click on the legend "
        "hides a band. At the bottom, below the lowest value: trials that have no such setting."
        + charts.left_out(len(trials), len(of.ranking)),
        alt=f"Settings of {len(trials):,} trials over {len(columns)} axes. "
        f"The best: {', '.join(f'{n} {shown(v)}' for n, v in (of.best.settings if of.best else {}).items())}.",
        data=lines[::-1],
        layout={
            "xaxis": {
                "tickvals": list(range(len(columns))),
                "ticktext": [escape(p.name.rpartition(".")[2]) for p in columns],
                "range": [-0.4, len(columns) - 0.6],
                "gridcolor": "var(--line)",
            },
            "yaxis": {"visible": False, "range": [-0.2, 1.12]},
            "legend": {"traceorder": "reversed"},
            "annotations": ends,
        },
        height=420,
        width=90 * len(columns),
    )


def by_importance(of: Findings) -> list[Parameter]:
    """The searched parameters: the most important first, then those without an importance as in the space file."""
    rank = {name: index for index, name in enumerate(of.importances)}
    return sorted(of.space.parameters, key=lambda parameter: rank.get(parameter.name, len(rank)))


def _drawn(of: Findings) -> list[Trial]:
    """The best first; of too many the best quarter of what is drawn, and of the rest an even choice by rank."""
    trials = [trial for trial in charts.ranked(of) if trial.value is not None and math.isfinite(trial.value)]
    head = charts.DRAWN // 4
    return trials[:head] + charts.thinned(trials[head:], charts.DRAWN - head)


def _contour(of: Findings, trials: Sequence[Trial], across: Parameter, up: Parameter, axes: Mapping[str, Any]) -> Chart:
    copy = charts.replica(of, trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        figure = optuna.visualization.plot_contour(copy, params=[across.name, up.name]).to_plotly_json()
    surface, points = figure["data"][:2]
    surface |= {
        "colorscale": _SCALE
        if of.sign == -1
        else [[place, color] for (place, _), (_, color) in zip(_SCALE, _SCALE[::-1], strict=True)],
        "reversescale": False,
        "colorbar": _colorbar(of),
        "line": {"width": 0.5, "color": "var(--paper)", "smoothing": 0.8},
    }
    numbers = {(t.settings[across.name], t.settings[up.name]): t.number for t in trials}
    points |= {
        "customdata": [numbers.get(each) for each in zip(points["x"], points["y"], strict=True)],
        "hoverinfo": "text",
        "marker": {"color": "var(--ink)", "size": 4},
        "name": "complete",
        "showlegend": False,
    }
    best = charts.marked(of, lambda t: (_at(of, t, across.name), _at(of, t, up.name)))[:1]
    ranges = {key: dict(axes[key]) | {"range": figure["layout"][key].get("range")} for key in axes}
    return Chart(
        name="contour",
        title=f"{units.label(of.metric)} over the two settings that mattered most",
        caption="Interpolated between the complete trials (dots), all other settings as they happened to be: a hint "
        f"where to look, not a measurement.{charts.left_out(len(trials), len(of.ranking))}",
        alt=_where_the_best_is(of, across, up),
        data=[surface, points, *best],
        layout={**ranges, "showlegend": False},
        height=400,
    )


def _ranks(of: Findings, trials: Sequence[Trial], across: Parameter, up: Parameter, axes: Mapping[str, Any]) -> Chart:
    last = max(len(trials) - 1, 1)
    trace = charts.points(
        [(trial, _at(of, trial, across.name), _at(of, trial, up.name)) for trial in trials[::-1]],
        "complete",
        marker={
            "size": 9,
            "color": [index / last for index in range(len(trials))],
            "colorscale": _SCALE,
            "cmin": 0,
            "cmax": 1,
            "line": {"width": 0.5, "color": "var(--muted)"},
            "colorbar": _colorbar(of) | {"tickvals": [0, 1], "ticktext": ["worst", "best"], "title": {"text": ""}},
        },
    )
    return Chart(
        name="rank",
        title="Ranks over the two settings that mattered most",
        caption="Each complete trial by its rank, without interpolation.",
        alt=_where_the_best_is(of, across, up),
        data=[trace],
        layout={**axes, "showlegend": False},
        height=400,
    )


def _where_the_best_is(of: Findings, across: Parameter, up: Parameter) -> str:
    settings = of.best.settings if of.best else {}
    return f"The best trial has {', '.join(f'{p.name} {shown(settings.get(p.name))}' for p in (across, up))}."


def _colorbar(of: Findings) -> dict[str, Any]:
    return {"thickness": 10, "outlinewidth": 0, "title": {"text": escape(units.unit(of.metric)), "side": "top"}}


def _axis(of: Findings, parameter: Parameter, titled: bool = False) -> dict[str, Any]:
    """A parameter's axis: its scale, and the labels of a choice where they are numbers."""
    found: dict[str, Any] = {"title": {"text": escape(parameter.name)}} if titled else {}
    values = sorted({t.settings[parameter.name] for t in charts.ranked(of) if parameter.name in t.settings}, key=str)
    if parameter.kind == "choice" and not parameter.ordered:
        return found | {"type": "category"}
    ticks: Sequence[Any] = sorted(parameter.labels) if parameter.kind == "choice" else []
    if _logarithmic(parameter):
        found["type"] = "log"
        ticks = ticks or _decades(min(values, default=1.0), max(values, default=1.0))
    return found | ({"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks], "tickangle": 0} if ticks else {})


def _decades(low: float, high: float) -> list[float]:
    """A few round numbers on a logarithmic axis: 1, 2 and 5 times a power of ten, or fewer where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 6:
            break
    return ticks


def _logarithmic(parameter: Parameter) -> bool:
    return parameter.ordered and logarithmic(parameter) if parameter.kind == "choice" else parameter.log


def _at(of: Findings, trial: Trial, name: str) -> Any:
    """Where a trial stands on a parameter's axis; None where it does not have it."""
    label = trial.settings.get(name)
    parameter = next(p for p in of.space.parameters if p.name == name)
    return escape(label) if label is not None and parameter.kind == "choice" and not parameter.ordered else label


def _heights(parameter: Parameter, trials: Sequence[Trial]) -> dict[int, float]:
    """Trial -> its value of a parameter, from 0 (lowest) to 1; trials without it are left out."""
    there = {t.number: t.settings[parameter.name] for t in trials if parameter.name in t.settings}
    if parameter.kind == "choice":
        order = _labels(parameter)
        height = {label: place / max(len(order) - 1, 1) for place, label in enumerate(order)}
        return {number: height[label] for number, label in there.items() if label in height}
    scale = math.log if _logarithmic(parameter) else float
    low, high = (scale(bound) for bound in (parameter.low, parameter.high))
    return {number: (scale(value) - low) / (high - low or 1) for number, value in there.items()}


def _labels(parameter: Parameter) -> list[Any]:
    """The labels of a choice: numbers rising, others as in the space file."""
    return sorted(parameter.labels) if parameter.ordered else list(parameter.labels)


def _ends(index: int, parameter: Parameter) -> list[dict[str, Any]]:
    """What stands at an axis: its ends, or the labels of a choice."""
    if parameter.kind == "choice":
        labels = _labels(parameter)
        at = [(label, place / max(len(labels) - 1, 1)) for place, label in enumerate(labels)]
    else:
        at = [(parameter.low, 0.0), (parameter.high, 1.0)]
    return [
        {
            "x": index, "y": height, "text": escape(shown(label)), "showarrow": False, "xanchor": "left", "xshift": 5,
            "yshift": 8 if height == 1 else -8 if height == 0 else 0, "font": {"size": 11, "color": "var(--muted)"},
            "bgcolor": "var(--paper)",
        }
        for label, height in at
    ]  # fmt: skip
