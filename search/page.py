"""The report as one page: a file that opens offline, without anything beside it.

Nothing in it is loaded from elsewhere, and its policy (CSP) lets no script run but the two that stand here. Text of a
study is escaped by the template, once it is printable; in charts by `search.charts.escape`; in JSON by `_json`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from search import (
    answer,
    charts,
    contest,
    disagreement,
    findings,
    forest,
    landing,
    landscape,
    overview,
    records,
    strips,
    units,
)
from search.charts import Chart
from search.disagreement import Group
from search.findings import Findings, Trial
from search.ranking import Ranking
from search.text import printable

LoadPicture = Callable[[Findings, records.Picture], bytes | None]

_TEMPLATES = Path(__file__).parent / "templates"

_AXIS = {
    "automargin": True,
    "gridcolor": "var(--line)",
    "linecolor": "var(--line)",
    "zeroline": False,
    "title": {"standoff": 10},
}

TEMPLATE = {
    "font": {"size": 12, "color": "var(--muted)"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
    "hovermode": "closest",
    "hoverlabel": {
        "bgcolor": "var(--raised)",
        "bordercolor": "var(--line)",
        "font": {"color": "var(--ink)"},
        "align": "left",
    },
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemsizing": "constant"},
    "xaxis": _AXIS,
    "yaxis": _AXIS,
    "dragmode": False,
}
"""What all charts look like; colors as in `search.charts`."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """What the page shows of one study.

    Attributes:
        of: what it found.
        key: unique on the page.
        progress: charts of what the search did.
        mattered: charts of what mattered, over the whole width.
        pair: charts over the two settings that mattered most.
        slices: the objective over each parameter.
        fronts: quality against what it costs.
        finalists: charts of its finalists.
        compared: strips of best, runner-up and baselines.
        by_rung: strips of the best trial at each of its evaluations.
        sheets: the same as whole sheets, where they can't be put side by side.
        worst: the worst held-out pictures of each.
        no_pictures: why there are none; "" where there are.
    """

    of: Findings
    key: str
    progress: Sequence[Chart]
    mattered: Sequence[Chart]
    pair: Sequence[Chart]
    slices: Sequence[Chart]
    fronts: Sequence[Chart]
    finalists: Sequence[Chart]
    compared: Sequence[Sequence[strips.Picture]]
    by_rung: Sequence[Sequence[strips.Picture]]
    sheets: Sequence[strips.Picture]
    worst: Sequence[strips.Picture]
    no_pictures: str

    @property
    def charts(self) -> list[Chart]:
        """All of its charts."""
        return [*self.progress, *self.mattered, *self.pair, *self.slices, *self.fronts, *self.finalists]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """What the page shows of a comparison.

    Attributes:
        of: what it came to.
        charts: its forest plots.
        groups: test images, and for each a strip of the originals and of every arm.
        no_pictures: why there are none; "" where there are.
    """

    of: Ranking
    charts: Sequence[Chart]
    groups: Sequence[tuple[Group, Sequence[Sequence[strips.Picture]]]]
    no_pictures: str


def write(found: Sequence[Findings], file: Path, load_picture: LoadPicture) -> list[str]:
    """Write the page.

    Args:
        found: what each study found; the first one leads.
        file: where it goes.
        load_picture: the PNG of a picture; None where it can't be reached.

    Returns:
        Lines that say what was written.

    Raises:
        OSError: it can't be written.
    """
    text = render(found, load_picture, datetime.now(UTC))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return [f"{file}: {file.stat().st_size / 1e6:.1f} MB, opens offline in any browser"]


def render(found: Sequence[Findings], load_picture: LoadPicture, now: datetime) -> str:
    """The page as text.

    Args:
        found: as in `write`, and `load_picture`.
        now: when the studies were read.
    """
    from plotly.offline import get_plotlyjs

    studies = [_study(of, f"s{index}", load_picture) for index, of in enumerate(found)]
    together = charts.fronts(found) if len(found) > 1 else []
    contested = _contest(found, load_picture)
    plotly, own = get_plotlyjs(), (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    data = {
        "template": TEMPLATE,
        "charts": {f"{s.key}-{c.name}": _chart(c, s.of.study) for s in studies for c in s.charts}
        | {f"all-{c.name}": _chart(c, found[0].study) for c in [*together, *(contested.charts if contested else [])]},
        "hover": {s.of.study: [charts.hover(trial, s.of) for trial in s.of.trials] for s in studies},
        "trials": {s.key: overview.everything(s.of) for s in studies},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    return environment.get_template("report.html.j2").render(
        studies=studies,
        found=found,
        together=together,
        contested=contested,
        now=now,
        answer=answer,
        contest=contest,
        landing=landing,
        units=units,
        overview=overview,
        css=Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8")),
        scripts=[Markup(plotly), Markup(own)],
        hashes=" ".join(_hash(script) for script in (plotly, own)),
        data=Markup(_json(data)),
    )


def _study(of: Findings, key: str, load_picture: LoadPicture) -> Study:
    has_best = of.best is not None
    progress = [charts.history(of)] if has_best else []
    if any(trial.curve for trial in of.own):
        progress.append(charts.curves(of))
    mattered = [charts.importances(of)] if of.importances else []
    lines = landscape.parallel(of)
    return Study(
        of=of,
        key=key,
        progress=progress,
        mattered=[*mattered, *([lines] if lines else [])],
        pair=landscape.pair(of),
        slices=landscape.slices(of) if has_best else [],
        fronts=charts.fronts([of]),
        finalists=forest.of_contenders(of),
        **_pictures(of, load_picture),
    )


def _contest(found: Sequence[Findings], load_picture: LoadPicture) -> Contest | None:
    ranking = findings.ranked(found)
    if ranking is None:
        return None
    groups, missing = disagreement.groups(found, ranking, load_picture)
    side = found[0].space.base.data.resolution
    return Contest(
        of=ranking,
        charts=forest.of_arms(ranking),
        groups=[(group, strips.strips(group.sheets, side)) for group in groups],
        no_pictures=missing,
    )


def _pictures(of: Findings, load_picture: LoadPicture) -> dict[str, Any]:
    """The pictures of a study, or why there are none."""
    shown = _of_interest(of)
    side = of.space.base.data.resolution

    def loaded(name: str) -> list[tuple[str, bytes]]:
        found = [(label, picture) for label, trial in shown if (picture := trial.picture(name)) is not None]
        read = [(f"{label}, step {picture.step:,}", load_picture(of, picture)) for label, picture in found]
        return [(label, png) for label, png in read if png is not None]

    last, worst = loaded("reconstructions"), loaded("worst")
    steps = []
    if of.best is not None:
        sheets = [picture for picture in of.best.pictures if picture.name == "reconstructions"]
        each = [(f"step {p.step:,}", load_picture(of, p)) for p in sorted(sheets, key=lambda p: p.step)]
        steps = [(label, png) for label, png in each if png is not None]
    compared = strips.strips(last, side)
    missing = ""
    if not shown:
        missing = "No trial has come far enough to have pictures."
    elif not last:
        named = any(trial.pictures for _, trial in shown)
        missing = (
            f"The pictures can't be reached from where this report was made; they lie below {of.root}."
            if named
            else "The trials shown here left no pictures."
        )
    return {
        "compared": compared,
        "by_rung": strips.strips(steps, side)[:1] if len(steps) > 1 else [],
        "sheets": [] if compared else _whole(last),
        "worst": _whole(worst),
        "no_pictures": missing,
    }


def _of_interest(of: Findings) -> list[tuple[str, Trial]]:
    """The trials whose pictures are shown, and what they are; without a winner, the one that leads."""
    found = [(f"{role}, trial {number}", of.trials[number]) for number, role in charts.roles(of).items()]
    order = {"best": 0, "runner-up": 1, "baseline": 2}
    return sorted(found, key=lambda each: order[each[0].partition(",")[0]])[:4]


def _whole(sheets: Sequence[tuple[str, bytes]]) -> list[strips.Picture]:
    return [picture for label, png in sheets if (picture := strips.whole(label, png)) is not None]


def _chart(chart: Chart, study: str) -> dict[str, Any]:
    return {"study": study, "data": chart.data, "layout": chart.layout, "height": chart.height}


def _json(value: Any) -> str:
    """JSON that can stand in a script element: no tag, comment or line separator is left in it."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _plain(value: Any) -> Any:
    """Values as JSON knows them: arrays as lists, six digits of a number, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"
