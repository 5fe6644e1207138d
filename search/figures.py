"""Figures for print: one column wide, 8 pt, colors and shapes that can be told apart in gray, and no title inside.

Nothing here keeps a state of pyplot's or opens a window, and the same findings give the same bytes. Each function gives
None where there is nothing to draw.

[1] Okabe and Ito 2008, "Color Universal Design": the colors.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from search import units
from search.findings import Findings, Trial, front
from search.ranking import Ranking
from search.text import printable
from search.verdict import Contender

WIDTH = 3.3
"""Inches: a column of most two-column layouts."""

HEIGHT = 2.2
"""Inches."""

DPI = 220
"""Pixels per inch of a PNG: a column is 726 pixels wide."""

COLUMNS = 6
"""Pictures side by side."""

NAME = 7
"""Points of the names beside them."""

OUTLIER = 3.0
"""Interquartile ranges beyond the third quartile after which a value is drawn at the edge."""

MANY = 8
"""Values from which on some of them may be outliers."""

BITS = "val/entropy_bits_per_image"

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE, GRAY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C",
)  # fmt: skip

STUDIES = (
    (BLUE, "o", "-"), (VERMILLION, "s", "--"), (GREEN, "^", "-."), (PURPLE, "D", ":"), (ORANGE, "v", "-"),
    (SKY, "<", "--"),
)  # fmt: skip
"""Color, marker and line of each of several studies."""

STYLE: dict[Any, Any] = {
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.h_pad": 0.02,
    "figure.constrained_layout.w_pad": 0.02,
    "figure.dpi": DPI,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure is the same everywhere
    "font.size": 8,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.0,
    "pdf.fonttype": 42,  # journals refuse Type 3
    "savefig.facecolor": "white",
    "svg.hashsalt": "vqsearch",  # else the names inside are drawn anew each time
    "text.parse_math": False,  # names are text, whatever they hold
    "text.usetex": False,
    "xtick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.labelsize": 7,
    "ytick.major.width": 0.6,
}
"""What matplotlib is set to while a figure is made and while it is saved."""


def history(found: Sequence[Findings]) -> Figure | None:
    """The objective of each trial in the order of their numbers, and the best so far."""
    with _axes() as (figure, axes):
        drawn = [t.value for each in found for t in _complete(each)]
        if not drawn:
            return None
        first = found[0]
        within = _Range([value for value in drawn if value is not None], first.sign)
        for each, (color, marker, line) in _styled(found):
            complete = _complete(each)
            values = [within.clip(t.value) for t in complete]
            best = list(np.minimum.accumulate([each.sign * (t.value or 0.0) for t in complete]))
            axes.plot([t.number for t in complete], values, marker, color=color, ms=3, mew=0, alpha=0.75)
            last = max(t.number for t in each.trials)
            axes.step(
                [*(t.number for t in complete), last],
                [within.clip(each.sign * value) for value in [*best, best[-1]]],
                line,
                where="post",
                color=color,
            )
        entries = _of_studies(found)
        if len(found) == 1:
            stopped = [t.number for t in first.trials if t.state == "PRUNED" and t.curve]
            axes.plot(stopped, [within.worst] * len(stopped), "|", clip_on=False, **_STOPPED)
            baselines = [t for t in first.baselines if t.value is not None]
            axes.plot([t.number for t in baselines], [within.clip(t.value) for t in baselines], "D", **_BASELINE)
            entries = [
                _entry("complete", marker="o", color=BLUE, lw=0, ms=3),
                _entry("best so far", color=BLUE),
                *([_entry("stopped early", marker="|", lw=0, **_STOPPED)] if stopped else []),
                *([_entry("baseline", marker="D", lw=0, **_BASELINE)] if baselines else []),
            ]
        axes.set_xlabel("trial")
        axes.set_ylabel(axis(first.metric))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        within.limit(axes)
        _legend(figure, entries)
        return figure


def rungs(found: Sequence[Findings]) -> Figure | None:
    """The objective of each trial at each rung and at its last step."""
    with _axes() as (figure, axes):
        curves = [(each, t) for each in found for t in each.own if t.curve]
        if not curves:
            return None
        first = found[0]
        within = _Range([value for _, t in curves for _, value in t.curve], first.sign)
        for each, (color, marker, line) in _styled(found):
            for trial in (t for t in each.own if t.curve):
                steps, values = zip(*trial.curve, strict=True)
                ended = trial.state == "COMPLETE" or len(found) > 1
                shade = color if ended else GRAY
                heights = [within.clip(value) for value in values]
                axes.plot(steps, heights, line if ended else "--", color=shade, lw=0.5, alpha=0.6)
                mark = marker if trial.state == "COMPLETE" else "x"
                axes.plot(steps[-1:], heights[-1:], mark, ms=3, mew=0.6, color=shade)
        entries = _of_studies(found)
        if len(found) == 1:
            entries = [
                _entry("complete", marker="o", color=BLUE, ms=3, lw=0.5),
                _entry("stopped or failed", marker="x", color=GRAY, ms=3, mew=0.6, lw=0.5, ls="--"),
            ]
            if first.best and first.best.curve:
                steps, values = zip(*first.best.curve, strict=True)
                axes.plot(steps, values, "-*", color=BLACK, lw=1.4, ms=5, zorder=4)
                entries.append(_entry("the winner", marker="*", color=BLACK, lw=1.4, ms=5))
        axes.set_xscale("log")
        ticks = sorted({step for each in found for step in (*each.space.rungs, each.space.budget.steps)})
        axes.set_xticks(ticks, labels=[f"{step:,}" for step in ticks])
        axes.minorticks_off()
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(axis(first.metric))
        within.limit(axes)
        _legend(figure, entries)
        return figure


def pareto(found: Sequence[Findings]) -> Figure | None:
    """Quality against entropy-coded bits of the complete trials that keep the limits, and the front of both."""
    with _axes() as (figure, axes):
        first = found[0]
        points = {id(each): [t for t in _complete(each) if t.keeps_limits and BITS in t.metrics] for each in found}
        if first.metric == BITS or not any(len(trials) > 1 for trials in points.values()):
            return None
        values = [t.value for trials in points.values() for t in trials if t.value is not None]
        within = _Range(values, first.sign)
        for each, (color, marker, line) in _styled(found):
            trials = {t.number: t for t in points[id(each)]}
            chosen = [trials[n] for n in front(list(trials.values()), (BITS, 1), ("value", each.sign))]
            for some, fill in ((list(trials.values()), "white"), (chosen, color)):
                sizes, heights = [t.metrics[BITS] for t in some], [within.clip(t.value) for t in some]
                axes.plot(sizes, heights, marker, color=color, mfc=fill, ms=3.5, mew=0.7, zorder=3)
            axes.step(sizes, heights, line, where="post", color=color)
        entries = _of_studies(found)
        if len(found) == 1:
            entries = [
                _entry("complete trial", marker="o", color=BLUE, mfc="white", lw=0, ms=3.5, mew=0.7),
                _entry("not beaten in both", marker="o", color=BLUE, ms=3.5),
            ]
        axes.set_xlabel(axis(BITS))
        axes.set_ylabel(axis(first.metric))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        within.limit(axes)
        _legend(figure, entries)
        return figure


def importances(findings: Findings) -> Figure | None:
    """The share of the objective's variance that each setting explains."""
    if not findings.importances:
        return None
    shares = list(findings.importances.items())[::-1]
    with _axes(height=0.55 + 0.19 * len(shares)) as (figure, axes):
        bars = axes.barh([printable(name) for name, _ in shares], [100 * share for _, share in shares], color=BLUE)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
        axes.set_xlim(0, max(100 * share for _, share in shares) * 1.12)
        axes.set_xlabel("share of variance (%)")
        axes.tick_params(left=False)
        return figure


def arms(ranking: Ranking) -> Figure | None:
    """The mean of each ranked arm on the test split with its interval, and single seeds as open circles."""
    lines = [(each.name, each.representative) for each in ranking.ranked]
    return _forest(lines, ranking.metric, {each.name for each in ranking.tied})


def finalists(findings: Findings) -> Figure | None:
    """The same of each setting among a study's finalists."""
    judged = findings.verdict
    if judged is None:
        return None
    named = {each.of: f"trial {each.of}{' (baseline)' if each.baseline else ''}" for each in judged.contenders}
    lines = [(named[each.of], each) for each in judged.contenders]
    return _forest(lines, judged.metric, {named[each.of] for each in judged.tied})


def _forest(lines: Sequence[tuple[str, Contender]], metric: str, tied: Collection[str]) -> Figure | None:
    """Means with their intervals, the first line on top; what ties with it is open."""
    if not lines:
        return None
    with _axes(height=0.75 + 0.24 * len(lines)) as (figure, axes):
        for place, (name, each) in enumerate(lines):
            found = each.means[metric]
            height = len(lines) - 1 - place
            seeds = each.values[metric].mean(axis=1)
            axes.plot(seeds, [height - 0.22] * len(seeds), "o", color=GRAY, mfc="none", ms=2.5, mew=0.6)
            half = found.high - found.value if math.isfinite(found.error) else 0.0
            fill = "white" if name in tied else BLUE
            axes.errorbar(found.value, height, xerr=half, fmt="s", color=BLUE, mfc=fill, ms=4, capsize=2.5, lw=1.0)
        axes.set_yticks(range(len(lines)), labels=[printable(name) for name, _ in lines[::-1]])
        axes.set_ylim(-0.6, len(lines) - 0.6)
        axes.tick_params(left=False)
        axes.set_xlabel(f"test {axis(metric)}")
        _legend(
            figure,
            [
                _entry("mean", marker="s", color=BLUE, lw=1.0, ms=4),
                _entry("single seeds", marker="o", color=GRAY, mfc="none", lw=0, ms=2.5, mew=0.6),
                *([_entry("ties with the best", marker="s", color=BLUE, mfc="white", lw=1.0, ms=4)] if tied else []),
            ],
        )
        return figure


def reconstructions(sheets: Sequence[tuple[str, bytes]], resolution: int) -> Figure | None:
    """Held-out images above what several trials make of them.

    Args:
        sheets: what a trial is called, and the PNG of its sheet, see `vqvae.pictures.sheet`; all of the same images.
        resolution: pixels along each side of an image.
    """
    rows: list[tuple[str, NDArray[np.uint8]]] = []
    for name, png_ in sheets:
        pixels = np.asarray(Image.open(io.BytesIO(png_)).convert("RGB"))
        if pixels.shape[0] < 2 * resolution or pixels.shape[1] < resolution:
            continue  # a trainer of one's own may draw something else
        width = min(pixels.shape[1], COLUMNS * resolution)
        originals, made = pixels[:resolution, :width], pixels[resolution : 2 * resolution, :width]
        rows += [] if rows else [("original", originals)]
        rows.append((name, made))
    if not rows:
        return None
    names = [_fitting(printable(name), 0.4 * WIDTH) for name, _ in rows]
    left = max(map(_inches, names)) + 0.1
    side = (WIDTH - left) / max(pixels.shape[1] / resolution for _, pixels in rows)
    height = len(rows) * (side + 0.03)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        for row, (name, (_, pixels)) in enumerate(zip(names, rows, strict=True)):
            place = ((left / WIDTH), 1 - (row + 1) * (side + 0.03) / height, 1 - left / WIDTH, side / height)
            axes = figure.add_axes(place)
            axes.imshow(pixels, interpolation="none", aspect="equal")
            axes.set_axis_off()
            figure.text((left - 0.06) / WIDTH, place[1] + place[3] / 2, name, ha="right", va="center", fontsize=NAME)
        return figure


def _inches(name: str) -> float:
    """How wide a name is beside a strip."""
    with matplotlib.rc_context(STYLE):
        return float(TextPath((0, 0), name, size=NAME).get_extents().width) / 72


def _fitting(name: str, inches: float) -> str:
    """The name, with as much of its middle left out as has to be."""
    kept = len(name)
    short = name
    while _inches(short) > inches and kept > 2:
        kept -= 1
        short = f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}"
    return short


def pdf(figure: Figure) -> bytes:
    """The figure as a PDF with its fonts in it."""
    return _saved(figure, format="pdf", metadata={"CreationDate": None})


def png(figure: Figure) -> bytes:
    """The figure as a PNG."""
    return _saved(figure, format="png", dpi=DPI)


def svg(figure: Figure) -> bytes:
    """The figure as an SVG."""
    return _saved(figure, format="svg", metadata={"Date": None})


def axis(metric: str) -> str:
    """What is written along an axis: name, unit, and an arrow towards the better values."""
    unit = units.unit(metric)
    arrow = {"higher": " ↑", "lower": " ↓"}.get(units.better(metric), "")
    return f"{units.label(metric)}{f' ({unit})' if unit else ''}{arrow}"


_STOPPED: dict[str, Any] = {"color": GRAY, "ms": 4, "mew": 0.5}
_BASELINE: dict[str, Any] = {"color": VERMILLION, "ms": 4, "mec": BLACK, "mew": 0.6, "zorder": 3}


class _Range:
    """The values that an axis shows: all, but for far outliers on the worse side, which would flatten the rest.

    Args:
        values: at least one.
        sign: 1 where less is better, else -1.
    """

    def __init__(self, values: Sequence[float], sign: int) -> None:
        ranked = np.sort(sign * np.array(values))
        near, far = np.quantile(ranked, (0.25, 0.75))
        best = float(ranked[0])
        worst = float(ranked[ranked <= far + OUTLIER * (far - near)][-1]) if len(ranked) >= MANY else float(ranked[-1])
        margin = 0.06 * (worst - best) or 0.05 * abs(best) or 1.0
        self.worst = sign * (worst + margin)
        self._ends = sorted((sign * (best - margin), self.worst))

    def clip(self, value: float | None) -> float:
        """The value, or the end of the axis beyond which it lies."""
        return math.nan if value is None else min(max(value, self._ends[0]), self._ends[1])

    def limit(self, axes: Axes) -> None:
        """Let the axis show these values."""
        axes.set_ylim(*self._ends)


@contextmanager
def _axes(height: float = HEIGHT) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def _complete(findings: Findings) -> list[Trial]:
    return [trial for trial in findings.trials if trial.value is not None]


def _styled(found: Sequence[Findings]) -> Iterator[tuple[Findings, tuple[str, str, str]]]:
    for place, each in enumerate(found):
        yield each, STUDIES[place % len(STUDIES)]


def _of_studies(found: Sequence[Findings]) -> list[Line2D]:
    return [
        _entry(each.study, color=color, marker=marker, ls=line, ms=3) for each, (color, marker, line) in _styled(found)
    ]


def _entry(name: str, **style: Any) -> Line2D:
    return Line2D([], [], label=printable(name), **style)


def _legend(figure: Figure, entries: Sequence[Line2D]) -> None:
    """Above the axes, where it hides nothing."""
    figure.legend(handles=entries, loc="outside upper left", ncols=2, borderaxespad=0.2, columnspacing=1.2)


def _saved(figure: Figure, **options: Any) -> bytes:
    held = io.BytesIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # shown as a box
        figure.savefig(held, **options)
    return held.getvalue()
