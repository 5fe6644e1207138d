"""The charts of the report's page: what the search did, and what it traded. Those over parameters: `search.landscape`.

A chart is data for plotly.js and nothing that draws. Colors are names of CSS (`var(--c0)`), which the page resolves in
its theme; what a point says on hover is looked up in the page by the number of its trial (`customdata`).
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from search import findings, units
from search.findings import Findings, Trial
from search.parameters import Parameter, logarithmic, settings
from search.standing import STATES
from search.text import printable

Trace = dict[str, Any]

DRAWN = 400
"""Trials that a chart draws at most, besides those that it marks: more can't be told apart and slow the page."""

COSTS = (
    ("val/entropy_bits_per_image", 1, "size", "a smaller entropy-coded size"),
    ("parameters", 1, "parameters", "fewer parameters"),
    ("decode_images_per_s", -1, "speed", "faster decoding"),
)
"""What quality is weighed against: the quantity, 1 where less of it is better, and the words for that."""

BASELINES = 3
"""Baselines that charts and tables name, at most."""

_ROLES = {
    "best": ("var(--c1)", "star"),
    "runner-up": ("var(--c2)", "triangle-up"),
    "baseline": ("var(--c3)", "diamond"),
}
"""How trials stand out that the report speaks of."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart and the words around it.

    Attributes:
        name: unique in a study's charts; letters and dashes.
        title: what it shows.
        caption: how to read it, and what is left out.
        alt: what can be seen in it, for whoever can't.
        data, layout: of plotly.js.
        height: pixels.
        width: pixels that it needs at least; narrower pages scroll it.
    """

    name: str
    title: str
    caption: str
    alt: str
    data: Sequence[Trace]
    layout: Mapping[str, Any]
    height: int = 360
    width: int = 0


def escape(text: object) -> str:
    """Text as plotly.js shows it as such: it takes tags and entities for its own."""
    return html.escape(printable(str(text)).replace("\n", " "), quote=False)


def hover(trial: Trial, of: Findings) -> str:
    """What a point of a trial says: number, value, settings."""
    value = trial.value if trial.value is not None else dict(trial.curve).get(trial.step)
    words = [f"trial {trial.number}, {STATES.get(trial.state, trial.state)}"]
    if trial.origin != "suggested":
        words[0] += f", {trial.origin}"
    if value is not None:
        words.append(f"{units.label(of.metric)} {units.text(of.metric, value)} at step {trial.step:,}")
    words += [settings({name: label}) for name, label in trial.settings.items()]
    return "<br>".join(escape(word) for word in words)


def axis(name: str, **more: Any) -> dict[str, Any]:
    """An axis that names a quantity with its unit."""
    unit = units.unit(name)
    return {"title": {"text": escape(f"{units.label(name)} ({unit})" if unit else units.label(name))}, **more}


def focus(of: Findings, trials: Sequence[Trial]) -> tuple[dict[str, Any], str]:
    """Where the values of trials lie, without those that are so much worse that the others would look alike.

    Returns:
        The range of an axis, and what a caption says of the trials outside; both empty where none is.
    """
    values = sorted(of.sign * t.value for t in trials if t.value is not None and math.isfinite(t.value))
    if len(values) < 8:
        return {}, ""
    low, middle, high = values[0], values[len(values) // 2], values[len(values) * 9 // 10]
    end = max(high, middle + 3 * (middle - low))
    outside = sum(value > end for value in values)
    if not outside or values[-1] - low < 2 * (end - low):
        return {}, ""
    pad = 0.06 * (end - low)
    ends = [low - 2 * pad, end + pad]
    span = ends if of.sign == 1 else [-end - pad, -low + 2 * pad]
    return {"range": span}, f" Far worse, and outside the axis: {outside:,} of {len(values):,}."


def thinned(trials: Sequence[Trial], most: int = DRAWN) -> list[Trial]:
    """At most so many trials, drawn evenly by number."""
    step = max(len(trials) / most, 1.0)
    return [trials[int(index * step)] for index in range(min(len(trials), most))]


def left_out(shown: int, all_of_them: int) -> str:
    """What a caption says of the trials that a chart does not draw; "" where it draws all."""
    return "" if shown >= all_of_them else f" Of {all_of_them:,} trials {shown:,} are drawn, evenly by number."


def ranked(of: Findings) -> list[Trial]:
    """Complete trials that keep the limits, the best first."""
    return [of.trials[number] for number in of.ranking]


def roles(of: Findings) -> dict[int, str]:
    """Numbers of the trials that the report speaks of -> what they are."""
    found = {trial.number: "baseline" for trial in of.baselines[:BASELINES]}
    if of.runner_up is not None:
        found.setdefault(of.runner_up.number, "runner-up")
    if of.best is not None:
        found[of.best.number] = "best"
    return found


def replica(of: Findings, trials: Iterable[Trial]) -> optuna.Study:
    """A study in memory for Optuna's figures: these trials by number, with names and labels that are safe to show.

    A trial that is not among the ranked is there by its number alone: it has no value that compares.
    """
    study = optuna.create_study(direction=of.space.objective.direction)
    trials, known = list(trials), {parameter.name: parameter for parameter in of.space.parameters}
    spans = {
        name: _distribution(known[name], [t.settings[name] for t in trials if name in t.settings]) for name in known
    }
    chosen = set(of.ranking)
    for trial in trials:
        if trial.number not in chosen:
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        kept = {name: _label(known[name], label) for name, label in trial.settings.items() if name in known}
        study.add_trial(
            create_trial(value=trial.value, params=kept, distributions={name: spans[name] for name in kept})
        )
    return study


def history(of: Findings) -> Chart:
    """The objective of each complete trial, and the best so far (Optuna's figure)."""
    best = of.best
    assert best is not None
    figure = optuna.visualization.plot_optimization_history(
        replica(of, [trial for trial in of.trials if not trial.origin.startswith("finalist")])
    ).to_plotly_json()
    complete, line = figure["data"][:2]
    complete |= {"name": "complete", "customdata": list(complete["x"]), "hoverinfo": "text"}
    complete["marker"] = {"color": "var(--c0)", "size": 7}
    line |= {"name": "best so far", "hoverinfo": "skip", "line": {"color": "var(--c0)", "width": 1.5, "shape": "hv"}}
    seen, outside = focus(of, ranked(of))
    first = next(trial for trial in of.trials if trial.number in set(of.ranking))
    return Chart(
        name="history",
        title="What was reached, trial by trial",
        caption=f"{units.label(of.metric)} of each complete trial by its number, and the best so far.{outside}",
        alt=f"The first complete trial, {first.number}, reached {units.text(of.metric, first.value)}; the best, "
        f"{best.number}, {units.text(of.metric, best.value)}; {len(of.ranking):,} trials are complete.",
        data=[complete, line, *marked(of, lambda t: (t.number, t.value))],
        layout={"xaxis": {"title": {"text": "trial"}}, "yaxis": axis(of.metric, **seen)},
    )


def curves(of: Findings) -> Chart:
    """The objective at each rung; one line of each kind for all of its trials, so that thousands stay quick."""
    measured = [trial for trial in of.own if trial.curve]
    special = roles(of)
    plain = thinned([trial for trial in measured if trial.number not in special])
    steps = sorted({*of.space.rungs, of.space.budget.steps})
    reached = Counter(step for trial in measured for step, _ in trial.curve)
    data = []
    for name, color, kept in (
        ("stopped or not over", "var(--faint)", [t for t in plain if t.value is None]),
        ("complete", "var(--c0)", [t for t in plain if t.value is not None]),
    ):
        data.append(_lines(kept, name, {"color": color, "width": 1}))
    for number, role in special.items():
        if (trial := of.trials[number]).curve:
            color = _ROLES[role][0]
            data.append(_lines([trial], f"{role}, trial {number}", {"color": color, "width": 2.5}))
    counts = [f"{reached[step]:,} at step {step:,}" for step in steps if reached[step]]
    return Chart(
        name="curves",
        title="How trials came along, rung by rung",
        caption=f"{units.label(of.metric)} at the steps where trials are compared. Measured: {', '.join(counts)}."
        + left_out(len(plain) + len(special), len(measured)),
        alt=f"Curves of {len(measured):,} trials over training. Measured: {', '.join(counts)}.",
        data=[trace for trace in data if trace["x"]],
        layout={
            "xaxis": {
                "title": {"text": "step"},
                "type": "log",
                "tickvals": steps,
                "ticktext": [f"{step:,}" for step in steps],
            },
            "yaxis": axis(of.metric),
        },
    )


def importances(of: Findings) -> Chart:
    """How much of the objective's variance each parameter explains."""
    names = list(of.importances)[::-1]
    shares = [of.importances[name] for name in names]
    words = [f"{name} {share:.0%}" for name, share in of.importances.items()]
    return Chart(
        name="importances",
        title="Which settings mattered",
        caption=f"Share of the variance of {units.label(of.metric)} that each setting explains alone (fANOVA), in the "
        f"{len(of.ranking):,} complete trials. A setting that only some trials have is left out. What was searched "
        "narrowly explains little, and stopped trials are not counted.",
        alt=f"Shares: {', '.join(words)}.",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "x": shares,
                "y": [escape(units.label(name)) for name in names],
                "text": [f"{share:.0%}" for share in shares],
                "textposition": "outside",
                "cliponaxis": False,
                "hoverinfo": "none",
                "marker": {"color": "var(--c0)"},
                "name": "share of the variance",
                "showlegend": False,
            }
        ],
        layout={
            "xaxis": {
                "title": {"text": "share of the variance"},
                "tickformat": ".0%",
                "range": [0, 1.12 * max(shares)],
            },
            "yaxis": {"automargin": True, "ticksuffix": "  ", "showgrid": False, "type": "category"},
            "bargap": 0.45,
        },
        height=90 + 28 * len(names),
    )


def fronts(found: Sequence[Findings]) -> list[Chart]:
    """Quality against bits, parameters and speed; the Pareto front of each study marked."""
    charts = []
    for name, sign, short, better in COSTS:
        data: list[Trace] = []
        words = []
        drawn = total = 0
        for index, of in enumerate(found):
            trials = [trial for trial in ranked(of) if _known(trial, name)]
            if len(trials) < 2:
                continue
            front = findings.front(trials, (name, sign), ("value", of.sign))
            on_it = [of.trials[number] for number in front]
            rest = thinned([trial for trial in trials if trial.number not in set(front)])
            drawn, total = drawn + len(rest) + len(front), total + len(trials)
            color = f"var(--c{index % 6})"
            whose = {"meta": of.study}
            of_it = f"{escape(of.study)}: " if len(found) > 1 else ""
            data += [
                points(
                    [(t, t.metrics[name], t.value) for t in rest],
                    f"{of_it}complete",
                    marker={"color": color, "opacity": 0.35, "size": 7},
                    **whose,
                ),
                points(
                    [(t, t.metrics[name], t.value) for t in on_it],
                    f"{of_it}on the front",
                    mode="markers+lines+text",
                    text=[str(number) for number in front] if len(front) <= 12 else None,
                    textposition="top center" if of.sign == -1 else "bottom center",
                    cliponaxis=False,
                    marker={"color": color, "size": 9},
                    line={"color": color, "width": 1.5, "shape": "hv" if sign == 1 else "vh"},
                    **whose,
                ),
            ]
            words.append(f"{of_it}{', '.join(str(number) for number in front)}")
        if not data:
            continue
        charts.append(
            Chart(
                name=f"front-{short}",
                title=f"Quality against {short}",
                caption=f"A trial is on the front, and named by its number, where no other one has both {better} and a "
                f"better {units.label(found[0].metric)}.{left_out(drawn, total)}",
                alt=f"Trials on the Pareto front: {'; '.join(words)}.",
                data=[trace for trace in data if trace["x"]],
                layout={"xaxis": axis(name), "yaxis": axis(found[0].metric)},
            )
        )
    return charts


def marked(of: Findings, place: Callable[[Trial], tuple[Any, Any]]) -> list[Trace]:
    """The trials that the report speaks of, each with a name in the legend.

    Args:
        of: the study.
        place: where a trial stands, x and y; None as one of them leaves it out.
    """
    traces = []
    for number, role in roles(of).items():
        x, y = place(of.trials[number])
        if x is not None and y is not None:
            color, symbol = _ROLES[role]
            marker = {"color": color, "symbol": symbol, "size": 12, "line": {"color": "var(--paper)", "width": 1}}
            traces.append(points([(of.trials[number], x, y)], f"{role}, trial {number}", marker=marker))
    return traces


def _known(trial: Trial, name: str) -> bool:
    value = trial.metrics.get(name)
    return value is not None and math.isfinite(value) and trial.value is not None and math.isfinite(trial.value)


def points(found: Sequence[tuple[Trial, Any, Any]], name: str, **style: Any) -> Trace:
    """A trace of trials, each with its x and y."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [x for _, x, _ in found],
        "y": [y for _, _, y in found],
        "customdata": [trial.number for trial, _, _ in found],
        "hoverinfo": "text",
        **style,
    }


def _lines(trials: Sequence[Trial], name: str, line: Mapping[str, Any]) -> Trace:
    """Curves of several trials in one trace, gaps between them."""
    x: list[Any] = []
    y: list[Any] = []
    numbers: list[int] = []
    for trial in trials:
        x += [*(step for step, _ in trial.curve), None]
        y += [*(value for _, value in trial.curve), None]
        numbers += [trial.number] * (len(trial.curve) + 1)
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": x[:-1],
        "y": y[:-1],
        "customdata": numbers[:-1],
        "hoverinfo": "text",
        "line": line,
        "marker": {"size": 5 if line["width"] < 2 else 8},
    }


def _distribution(parameter: Parameter, values: Sequence[Any]) -> BaseDistribution:
    """What Optuna's figures need to know of a parameter: its kind, its scale and the values that are there."""
    if parameter.kind == "choice" and not parameter.ordered:
        return CategoricalDistribution(list(dict.fromkeys(escape(value) for value in values)) or [""])
    numbers = [value for value in values if isinstance(value, (int, float))] or [1]
    low, high = min(numbers), max(numbers)
    log = bool(low > 0 and (logarithmic(parameter) if parameter.kind == "choice" else parameter.log))
    if all(isinstance(number, int) for number in numbers):
        return IntDistribution(int(low), int(high), log=log)
    return FloatDistribution(float(low), float(high), log=log)


def _label(parameter: Parameter, label: Any) -> Any:
    return escape(label) if parameter.kind == "choice" and not parameter.ordered else label
