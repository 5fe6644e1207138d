"""Held-out images on which the arms of a comparison differ most, and least: the same images, all arms side by side.

Finalists leave a sheet of some test images, evenly spread, beside what every test image measured.
Axes: a arms, s seeds, i images of the test split, n pictures of a sheet, h, w pixels of a picture, c = 3 colors
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from einops import reduce
from matplotlib.figure import Figure
from numpy.typing import NDArray

from search import figures, records, strips, units
from search.findings import Findings
from search.ranking import Arm, Ranking
from search.text import printable
from vqvae.metrics import spread

LoadPicture = Callable[[Findings, records.Picture], bytes | None]
"""The PNG of a picture; None where it can't be reached."""

SHEET = "test"
"""Name of the finalists' sheets."""

MOST = 32
"""Test images that a sheet shows at most, see `vqvae.metrics.spread`."""

FOREST = (
    "Mean of each arm on the test split with its 95% interval over seeds and images; circles are single seeds, open "
    "squares tie with the best."
)
"""What the figure of the arms shows."""

BY = "by the mean over seeds; pictures of one seed each"
"""How images are chosen, and what is shown of them."""

SHOWN = 6
"""Images of each kind."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Some test images, and what each arm makes of them.

    Attributes:
        name: of its figure.
        title: which images these are.
        among: which they were chosen among, by what, and whose pictures are shown.
        images: their numbers in the test split.
        values: arm -> the metric that ranks of each of them, the mean over seeds; empty where it can't be read.
        sheets: what an arm is called, and the PNG of a sheet of one row: the originals above what it makes of them.
    """

    name: str
    title: str
    among: str
    images: Sequence[int]
    values: Sequence[tuple[str, Sequence[float]]]
    sheets: Sequence[tuple[str, bytes]]


def groups(found: Sequence[Findings], ranking: Ranking, load_picture: LoadPicture) -> tuple[list[Group], str]:
    """The images on which arms disagree most, those on which they agree, and those that are worst for all.

    Args:
        found: the arms' studies.
        ranking: what they came to.
        load_picture: the PNG of a picture; None where it can't be reached.

    Returns:
        The groups, and why there are none; "" where there are.
    """
    if not ranking.ranked:
        return [], "No arm has a finalist with a value, so there are no pictures to put side by side."
    by_name = {each.tie.arm: each for each in found if each.tie}
    sheets, missing = {}, []
    for arm in ranking.ranked:
        sheet = _sheet(by_name[arm.name], arm, ranking.metric, load_picture)
        if sheet is None:
            missing.append(printable(arm.name))
        else:
            sheets[f"{printable(arm.name)}, seed {sheet[0]}"] = (arm, sheet[1])
    if missing:
        whose = ", ".join(missing)
        return [], f"Pictures of test images of {whose} can't be reached from where this report was made."
    cut = [pairs for _, pairs in sheets.values()]
    if any(each.shape != cut[0].shape or not np.array_equal(each[:, 0], cut[0][:, 0]) for each in cut):
        return [], "The arms' pictures are not of the same test images, so they are not put side by side."
    total = ranking.images or found[0].sizes.get("test", len(cut[0]))
    numbers = spread(total, MOST)[: len(cut[0])]
    measured = {printable(arm.name): _by_image(arm, ranking)[numbers] for arm, _ in sheets.values() if ranking.images}
    made = []
    for name, title, places in _chosen(measured, ranking, len(numbers)):
        made.append(
            Group(
                name=name,
                title=title,
                among=f"chosen among the {len(numbers)} of {total:,} test images of which pictures were kept, {BY}",
                images=[int(numbers[place]) for place in places],
                values=[(arm, [float(each[place]) for place in places]) for arm, each in measured.items()],
                sheets=[(arm, strips.joined(pairs[places])) for arm, (_, pairs) in sheets.items()],
            )
        )
    return made, ""


def draw(
    found: Sequence[Findings], ranking: Ranking, load_picture: LoadPicture
) -> tuple[dict[str, Figure], dict[str, str], str]:
    """The figures of a comparison for print.

    Args:
        found, ranking, load_picture: as in `groups`.

    Returns:
        Figures by name, what each shows, and why there are no pictures; "" where there are.
    """
    forest = figures.arms(ranking)
    drawn, captions = ({"arms": forest}, {"arms": FOREST}) if forest else ({}, {})
    made, missing = groups(found, ranking, load_picture)
    for each in made:
        pictures = figures.reconstructions(each.sheets, found[0].space.base.data.resolution)
        if pictures:
            numbers = ", ".join(map(str, each.images))
            drawn[each.name] = pictures
            captions[each.name] = f"{each.title}, {each.among}; images {numbers} of the test split."
    return drawn, captions, missing


def _sheet(found: Findings, arm: Arm, metric: str, load_picture: LoadPicture) -> tuple[int, NDArray[np.uint8]] | None:
    """A seed of what stands for an arm, and its pictures (n, 2, h, w, c).

    Of those that can be read it is the one whose mean is nearest to the arm's.
    """
    best, side = arm.representative, found.space.base.data.resolution
    means = reduce(best.values[metric], "s i -> s", "mean")
    for place in np.argsort(np.abs(means - means.mean()), kind="stable"):
        picture = found.trials[best.trials[place]].picture(SHEET)
        png = None if picture is None else load_picture(found, picture)
        pairs = None if png is None else strips.pairs(png, side)
        if pairs is not None:
            return best.seeds[place], pairs
    return None


def _by_image(arm: Arm, ranking: Ranking) -> NDArray[np.float64]:
    means: NDArray[np.float64] = reduce(arm.representative.values[ranking.metric], "s i -> i", "mean")
    return means


def _chosen(measured: dict[str, NDArray[np.float64]], ranking: Ranking, count: int) -> list[tuple[str, str, list[int]]]:
    """Name, title and places of the images of each group; an image is in one of them alone."""
    if not measured:
        title = "Test images as they come: what they measured can't be read"
        return [("arms_first", title, list(range(min(SHOWN, count))))]
    values = np.stack(list(measured.values()))  # a i
    label = units.label(ranking.metric)
    apart = np.ptp(values, axis=0)
    worst = reduce(ranking.sign * values, "a i -> i", "mean")
    wanted = (
        ("arms_disagree", f"Where the arms disagree most in {label}", -apart),
        ("arms_worst", f"Worst for all: the worst mean {label} over the arms", -worst),
        ("arms_agree", f"Where the arms agree best in {label}", apart),
    )
    taken: set[int] = set()
    found = []
    for name, title, order in wanted:
        places = [int(place) for place in np.argsort(order, kind="stable") if int(place) not in taken][:SHOWN]
        taken.update(places)
        if places and (len(values) > 1 or name == "arms_worst"):
            found.append((name, title, places))
    return found
