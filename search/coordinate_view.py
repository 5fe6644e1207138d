"""What a coordinate check found, as people look at it: a table, a verdict in words, and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator
from rich.table import Table
from rich.text import Text

from search import figures
from search.coordinate_check import DRAWN, Check, Measured
from search.errors import UserError, writing
from vqvae.coordinates import IMAGES, LIMITS, Trend

WIDTH = 7.0
"""Inches: the width of a README's text."""

PANEL = 2.0
"""Inches of height of a row of panels."""

COLUMNS = 3
"""Panels side by side."""

JUDGED, BESIDE = (figures.BLUE, "o", "-"), (figures.VERMILLION, "s", "--")
"""Color, marker and line."""

WRITERS: dict[str, Callable[[Figure], bytes]] = {".png": figures.png, ".svg": figures.svg, ".pdf": figures.pdf}
"""End of a file's name -> what writes it."""

NAMED = 3
"""Modules that a line names, at most."""


def heading(check: Check) -> str:
    """What was measured, in a line."""
    config, sizes = check.asked.config, ", ".join(map(str, check.sizes))
    setting = f" ({check.asked.setting})" if check.asked.setting else ""
    return (
        f"{check.asked.source}{setting}: {config.model.backbone}, {check.along} {sizes}, lr {config.optimizer.lr:g}, "
        f"{check.steps} steps on {IMAGES} bundled photographs, {check.seeds} seed{'s' * (check.seeds != 1)}"
    )


def table(check: Check) -> Table:
    """A row for each role."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    made.add_column("role", no_wrap=True)
    for name in ("slope", "limit"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("verdict", no_wrap=True)
    for name in ("modules", "initial slope", *(["slope, standard"] if check.beside else [])):
        made.add_column(name, justify="right", no_wrap=True)
    others = {trend.role: f"{trend.change:+.2f}" for trend in check.beside.trends} if check.beside else {}
    for trend in check.judged.trends:
        verdict = Text("holds", "green") if trend.holds else Text("does not hold", "bold red")
        cells = [Text(trend.role), Text(f"{trend.change:+.2f}"), Text(f"±{LIMITS[trend.role]:.2f}"), verdict]
        cells += [Text(str(trend.modules)), Text(f"{trend.before:+.2f}")]
        made.add_row(*cells, *([Text(others.get(trend.role, "-"))] if check.beside else []))
    return made


def lines(check: Check) -> list[str]:
    """The verdict, the worst modules, and what to do, in lines."""
    judged = check.judged
    said = [verdict(check)]
    said += [f"worst of {trend.role}: {_worst(trend)}" for trend in judged.broken if trend.each]
    said += [f"not judged: {role}, since none of its modules changes at every {check.along}" for role in judged.silent]
    return said + [f"mend: {hint}" for hint in _hints(check)]


def verdict(check: Check) -> str:
    """One sentence."""
    judged, first, last = check.judged, check.sizes[0], check.sizes[-1]
    if judged.holds:
        return (
            f"{judged.kind} holds: what {check.steps} steps change stays alike from {check.along} {first} to {last} "
            "in every role"
        )
    grown = [trend.role for trend in judged.broken if trend.change > 0]
    shrunk = [trend.role for trend in judged.broken if trend.change <= 0]
    of = f" with the {check.along}"
    parts = [
        f"{verb}{of if not place else ''} in {_listed(names)}"
        for place, (verb, names) in enumerate(
            (verb, names) for verb, names in (("grows", grown), ("shrinks", shrunk)) if names
        )
    ]
    return (
        f"{judged.kind} does not hold: what {check.steps} steps change {' and '.join(parts)}, so a rate found at "
        f"{first} is not the one for {last}"
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _worst(trend: Trend) -> str:
    named = [f"{each.module} ({each.change:+.2f})" for each in trend.each[:NAMED]]
    return ", ".join(named)


def _hints(check: Check) -> list[str]:
    """What mends what does not hold, and where modules are drawn at another size than is assumed."""
    chosen, judged, hints = check.asked.config.parametrization, check.judged, []
    if not judged.holds and check.along == "width" and judged.kind == "standard":
        hints.append(
            f"parametrization: {{kind: sp-full-align, base_width: {chosen.base_width or check.sizes[0]}}}; "
            "--kind sp-full-align tries it"
        )
    elif not judged.holds and check.along == "width":
        hints.append("a module that does not learn as its shape says declares parameter_roles (docs/transfer.md)")
    if not judged.holds and check.along == "depth" and _unscaled(check):
        hints.append(
            f"parametrization.base_depth: {check.sizes[0]} with a kind such as sp-full-align; blocks of your own take "
            "it by residual_scale; --kind sp-full-align tries it"
        )
    if check.along == "width" and (off := _drawn_otherwise(judged)):
        more = f" and {len(off) - NAMED} more" if len(off) > NAMED else ""
        hints.append(
            "draw at fan-in^-1/2 (docs/transfer.md) what grows with the width before any step: "
            f"{', '.join(off[:NAMED])}{more}"
        )
    return hints


def _unscaled(check: Check) -> bool:
    chosen = check.asked.config.parametrization
    return chosen.kind == "standard" or not chosen.base_depth


def _drawn_otherwise(judged: Measured) -> list[str]:
    return [
        f"{each.module} ({each.gain:+.2f})"
        for trend in judged.trends
        if trend.role != "trunk"
        for each in trend.each
        if each.gain > DRAWN
    ]


def require_target(target: Path) -> None:
    """Refuse a file that no picture can be written to, before anything is measured.

    Raises:
        UserError: another kind of file, or a folder that is not there.
    """
    if target.suffix.lower() not in WRITERS:
        raise UserError(f"--to {target}: must end with {', '.join(WRITERS)}")
    if not target.parent.is_dir():
        raise UserError(f"--to {target}: there is no folder {target.parent}")


def write(check: Check, target: Path) -> None:
    """Write the picture, in the format of the file's name.

    Raises:
        OutputError: it can't be written.
    """
    made = WRITERS[target.suffix.lower()](draw(check))
    with writing(target):
        target.write_bytes(made)


def draw(check: Check) -> Figure:
    """The change against the size, both on logarithmic axes: one panel for each role, level where it transfers."""
    trends = check.judged.trends
    columns = min(COLUMNS, len(trends))
    rows = math.ceil(len(trends) / columns)
    others = {trend.role: trend for trend in check.beside.trends} if check.beside else {}
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(WIDTH, 0.3 + PANEL * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for place, axes in enumerate(grid.flat):
            if place >= len(trends):
                axes.set_axis_off()
                continue
            _panel(axes, trends[place], others.get(trends[place].role), check)
            axes.set_xlabel(check.along if place + columns >= len(trends) else "")
        for row in grid:
            row[0].set_ylabel(f"change after {check.steps} steps")
        entries = [_entry(check.judged.kind, JUDGED)]
        entries += [_entry(check.beside.kind, BESIDE)] if check.beside else []
        figure.legend(handles=entries, loc="outside upper left", ncols=2, borderaxespad=0.2, columnspacing=1.2)
        return figure


def _panel(axes: Axes, trend: Trend, other: Trend | None, check: Check) -> None:
    heights: list[float] = []
    for each, (color, marker, line) in ((other, BESIDE), (trend, JUDGED)):
        if each is not None:
            sizes, means = zip(*each.means, strict=True)
            axes.plot(sizes, means, line, marker=marker, color=color, ms=3.5, lw=1.2)
            heights += means
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(check.sizes, labels=[f"{size:,}" for size in check.sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # powers would need math in texts
    axes.minorticks_off()
    middle = math.sqrt(min(heights) * max(heights))
    half = max(math.sqrt(max(heights) / min(heights)) * 1.25, 4.0)  # a level line is to look level
    axes.set_ylim(middle / half, middle * half)
    words = "" if other is None else f", standard {other.change:+.2f}"
    says = "holds" if trend.holds else "does not hold"
    axes.set_title(trend.role, loc="left", fontsize=8, fontweight="bold", pad=14)
    axes.text(0, 1.03, f"slope {trend.change:+.2f} {says}{words}", transform=axes.transAxes, fontsize=6.5, va="bottom",
              color=figures.BLACK if trend.holds else figures.VERMILLION)  # fmt: skip


def _entry(name: str, style: tuple[str, str, str]) -> Line2D:
    color, marker, line = style
    return Line2D([], [], label=name, color=color, marker=marker, ls=line, ms=3.5, lw=1.2)
