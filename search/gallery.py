"""All figures of a report: which there are, of which trials, and why one is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from matplotlib.figure import Figure

from search import figures, records
from search.findings import Findings
from search.text import printable

LoadPicture = Callable[[Findings, records.Picture], bytes | None]
"""The PNG of a picture; None where it can't be reached."""


CAPTIONS = {
    "history": "The objective of each complete trial, and the best so far. Trials that were stopped early have no "
    "final value and are marked at the edge, as are values far beyond the others.",
    "rungs": "The objective of each trial at the steps at which trials were compared, and at the last one.",
    "pareto": "Quality against entropy-coded size of the complete trials; filled: no other one is better in both.",
    "importances": "How much of the objective's variance over the complete trials each setting explains (fANOVA).",
    "finalists": "Means of the finalists on the test split with their 95% intervals over seeds and images; circles "
    "are single seeds, open squares tie with the best.",
    "reconstructions": "Held-out images above what the trials make of them.",
    "worst": "The held-out images with the largest error of the winner, the worst first, above what it makes of them.",
}
"""What a figure shows, by the first word of its name."""

OF_ONE = ("importances", "finalists", "reconstructions", "worst")
"""Those that show one study alone."""


def draw(found: Sequence[Findings], load_picture: LoadPicture) -> Iterator[tuple[str, Figure | None]]:
    """The figures of a report by name, None where there is nothing to draw.

    Those that show one study alone have, from the second study on, its place in their name.
    """
    yield "history", figures.history(found)
    yield "rungs", figures.rungs(found)
    yield "pareto", figures.pareto(found)
    for place, each in enumerate(found, 1):
        of = f"_{place}" if place > 1 else ""
        yield f"importances{of}", figures.importances(each)
        if each.verdict is not None:  # most studies have none, and say no word about it
            yield f"finalists{of}", figures.finalists(each)
        resolution = each.space.base.data.resolution
        yield f"reconstructions{of}", figures.reconstructions(_sheets(each, load_picture), resolution)
        yield f"worst{of}", figures.reconstructions(_worst(each, load_picture), resolution)


def _sheets(findings: Findings, load_picture: LoadPicture) -> list[tuple[str, bytes]]:
    """The last sheets of the best trial, the next best one and the baseline, as far as they can be reached."""
    wanted = {f"trial {t.number}\n(the winner)": t for t in (findings.best,) if t}
    wanted |= {f"trial {t.number}\n(runner-up)": t for t in (findings.runner_up,) if t}
    first = next((t for t in findings.baselines if t not in wanted.values() and t.picture("reconstructions")), None)
    wanted |= {f"trial {first.number}\n(baseline)": first} if first else {}
    shown = {name: trial.picture("reconstructions") for name, trial in wanted.items()}
    loaded = [(name, load_picture(findings, picture)) for name, picture in shown.items() if picture]
    return [(name, png) for name, png in loaded if png is not None]


def _worst(findings: Findings, load_picture: LoadPicture) -> list[tuple[str, bytes]]:
    picture = findings.best.picture("worst") if findings.best else None
    png = load_picture(findings, picture) if picture else None
    return [(f"trial {findings.best.number}\n(the winner)", png)] if findings.best and png is not None else []


def why_not(found: Sequence[Findings], name: str) -> str:
    """Why a figure is missing, in words."""
    kind, _, place = name.partition("_")
    findings = found[int(place or 1) - 1]
    return {
        "history": "no trial is complete",
        "rungs": "no trial was measured",
        "pareto": "fewer than two complete trials with an entropy-coded size besides the objective",
        "importances": findings.why_no_importances,
    }.get(kind, f"no such picture of the best trials can be read below {printable(findings.root)}")
