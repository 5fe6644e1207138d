"""What a report shows of a transfer: its settings at both sizes, what the numbers are, and what they do not show."""

from __future__ import annotations

from search import transfer, units
from search.findings import Findings
from search.gap import rows
from search.standing import shown
from search.tables import Column

HOW = (
    "Each setting was trained once at either size, with the seed of the search. A whole trial is one of all its steps; "
    "of a trial that was stopped its part counts. Operations are those of matrix products and convolutions in training."
)


def settings(of: Findings) -> list[Column]:
    """The settings that were trained at the target, the best first."""
    assert of.gap is not None, "asked of a transfer"
    metric, cells = of.metric, rows(of.gap)
    label, unit = units.label(metric), units.unit(metric)
    headings = [("setting of", ""), (f"{label} at the proxy", unit), (f"{label} at the target", unit), ("behind", unit)]
    headings.append(("as trial", ""))
    found = [
        Column(
            name="",
            heading=heading,
            unit=unit,
            cells=tuple(row[place] or "-" for row in cells),
            best=frozenset({0}) if place in (0, 2) and of.gap.best else frozenset(),
        )
        for place, (heading, unit) in enumerate(headings)
    ]
    names = list(dict.fromkeys(key for each in of.gap.landed for key in each.settings))
    own = {each: [landed.settings.get(each) for landed in of.gap.landed] for each in names}
    searched = [
        Column(
            name=key,
            heading=key.rpartition(".")[2],
            cells=tuple("-" if value is None else shown(value) for value in values),
        )
        for key, values in own.items()
    ]
    return [*found, *searched]


def said(of: Findings) -> list[str]:
    """The two sizes, and what the numbers are."""
    assert of.gap is not None, "asked of a transfer"
    sizes = transfer.words(of.gap.transfer)
    return [
        f"The search trained small models, and its best settings were trained at the size that is wanted: {sizes}.",
        HOW,
    ]


def caveats(of: Findings) -> list[str]:
    """What the numbers do not show."""
    gap = of.gap
    assert gap is not None, "asked of a transfer"
    lines = ["One seed at either size: how much of a difference is chance was not measured."]
    if gap.direct is None:
        lines.append("No direct search was made at the target, so that what it would have found there is not known.")
    else:
        lines.append(f"{gap.direct.study} is one search: another seed of it would find something a little different.")
    if "steps" in gap.transfer.differing:
        lines.append("Proxies were trained for fewer steps; no parametrization says that settings hold over steps.")
    if of.space.base.gan.weight:
        lines.append("Operations leave out the discriminator, which costs the same at both sizes.")
    return lines
