"""A comparison and its finalists for people: tables, what was held equal, what is not shown, and pictures.

Cells are plain text, which every format escapes in its own way; words that come from a study are made printable.
"""

from __future__ import annotations

from collections.abc import Sequence

from search import answer, methods, ranking, units, verdict
from search.findings import Findings
from search.ranking import Ranking
from search.standing import shown
from search.statistics import Estimate
from search.tables import Column
from search.text import printable
from search.verdict import CONFIDENCE, Contender
from vqvae.config import METRICS

BITS = "entropy_bits_per_image"

ONE_PHOTOGRAPH = (
    "The test images are neighbouring crops of one photograph, not independent: intervals over them are too narrow "
    "even for it, and say nothing of another one."
)
"""What is to be said of the bundled photographs' test split."""

DROP = (
    "Behind the best is the difference of the means, paired by image; the drop is by how much the test mean is worse "
    "than the validation mean of the same seeds."
)
"""The same of what only arms have."""

SEARCHES = "One seed each, on the images that chose: this ranks nothing; see the arms."
"""What the searches of the arms are worth beside their finalists."""

HALF = f"± is half the {CONFIDENCE:.0%} interval over seeds and images."
"""How the figures of these tables are read."""


def arms(found: Ranking) -> list[Column]:
    """A row for each arm, the best first: what stands for it, its quality on the test split, and what it costs."""
    rows = [(each, each.representative if each.verdict else None) for each in found.arms]
    behind = found.behind if found.winner else {}
    judged = [one for _, one in rows if one]
    best = frozenset(row for row, (each, one) in enumerate(rows) if one and (row == 0 or behind[each.name].tie))
    return [
        _text("arm", [each.name for each, _ in rows]),
        _text("finalist", ["-" if one is None else _trial(one) for _, one in rows]),
        _estimates(found.metric, [_mean(one, found.metric) for _, one in rows], "test ", best),
        _leads(found.metric, [behind.get(each.name) for each, _ in rows]),
        *(_estimates(name, [_mean(one, name) for _, one in rows]) for name in _quality(found.metric, judged)),
        *_costs([one for _, one in rows]),
        _hours([each.hours for each, _ in rows], max(each.gpus for each in found.arms)),
        _plain("drop", found.metric, [each.drop if each.verdict else None for each, _ in rows]),
        _text("seeds", ["-" if one is None else str(len(one.seeds)) for _, one in rows]),
    ]


def arm_settings(found: Ranking) -> list[Column]:
    """The setting that stands for each ranked arm, a column for each field that any of them searched."""
    return _settings([("arm", each.name, each.representative) for each in found.ranked])


def contenders(found: Findings) -> list[Column]:
    """A row for each setting among a study's finalists, the best on the test split first."""
    judged = found.verdict
    if judged is None:
        return []
    rows, metric = list(judged.contenders), judged.metric
    chosen = ranking.representative(rows, judged.sign) if found.tie else None
    best = frozenset(row for row, each in enumerate(rows) if row == 0 or judged.behind[each.of].tie)
    gpus = found.space.resources.gpus
    return [
        _text("setting of", [f"trial {_trial(each)}{', stands for the arm' * (each is chosen)}" for each in rows]),
        _estimates(metric, [each.means[metric] for each in rows], "test ", best),
        _leads(metric, [judged.behind.get(each.of) for each in rows]),
        _plain("validation", metric, [each.validated for each in rows]),
        _plain("in the search", metric, [each.searched for each in rows]),
        *(_estimates(name, [each.means.get(name) for each in rows]) for name in _quality(metric, rows)),
        *_costs(rows),
        _hours([each.hours * len(each.seeds) for each in rows], gpus),
        _text("seeds", [str(len(each.seeds)) for each in rows]),
    ]


def contender_settings(found: Findings) -> list[Column]:
    """The settings among a study's finalists, a column for each searched field."""
    judged = found.verdict.contenders if found.verdict else ()
    return _settings([("setting of", f"trial {_trial(each)}", each) for each in judged])


def pairs(found: Ranking) -> list[Column]:
    """A row for each pair of ranked arms: by how much the first is ahead, and what a correction leaves of it."""
    rows = list(found.differences.items())
    unit = units.unit(found.metric)

    def ends(each: Estimate) -> str:
        low, high = (units.figure(found.metric, value) for value in (each.low, each.high))
        return f"{low} to {high}" if each.error == each.error else "-"

    return [
        _text("arm", [one for (one, _), _ in rows]),
        _text("ahead of", [other for (_, other), _ in rows]),
        Column(
            name="", heading="by", unit=unit, cells=tuple(units.figure(found.metric, each.value) for _, each in rows)
        ),
        Column(name="", heading=f"{CONFIDENCE:.0%} interval", unit=unit, cells=tuple(ends(each) for _, each in rows)),
        _text("so it is", ["a tie" if each.tie else "better" for _, each in rows]),
        _text("corrected", ["better" if found.shown(each) else "a tie" for _, each in rows]),
    ]


def seeds(found: Sequence[Findings]) -> list[Column]:
    """A row for each finalist that has ended with a value: its seed, and what it measured on both splits."""
    rows = [
        (each, one, place)
        for each in found
        for one in (each.verdict.contenders if each.verdict else ())
        for place in range(len(one.seeds))
    ]
    if not rows:
        return []
    metric = found[0].metric.removeprefix("val/")
    names = [metric, *_quality(metric, [one for _, one, _ in rows]), BITS]
    several = [_text("arm", [_called(each) for each, _, _ in rows])] if len(found) > 1 else []
    return [
        *several,
        _text("setting of", [f"trial {_trial(one)}" for _, one, _ in rows]),
        _text("seed", [str(one.seeds[place]) for _, one, place in rows]),
        _text("trial", [str(one.trials[place]) for _, one, place in rows]),
        _plain("validation", metric, [one.validation[place] for _, one, place in rows]),
        *(
            Column(
                name=name,
                heading=f"test {units.label(name)}",
                unit=units.unit(name),
                cells=tuple(
                    units.figure(name, float(one.values[name][place].mean()) if name in one.values else None)
                    for _, one, place in rows
                ),
            )
            for name in names
        ),
    ]


def equalities(found: Sequence[Findings], of: Ranking) -> list[tuple[str, str]]:
    """What was held equal between the arms, and what was not: term and text."""
    space = found[0].space
    budget, judged = space.budget, [one for each in of.ranked for one in each.contenders]
    proven = [(printable(units.label(name)), _where(of, name, *ends)) for name, ends in of.tie.equal.items()]
    used = sorted({seed for one in judged for seed in one.seeds})
    images = f"{budget.steps:,} steps of {space.base.batch_size:,} images, so {budget.steps * space.base.batch_size:,}"
    wanted = space.finalists
    rule = "" if wanted is None else f"the best {wanted.top} of each search"
    if wanted is not None and wanted.include == "baselines":
        rule += ", and its baselines"
    return [
        *proven,
        ("training images seen", f"{images} by each model that was trained to its end"),
        ("budget of each search", f"{budget.trials:,} trials{f', {budget.hours:g} h' if budget.hours else ''}"),
        ("sampler and pruner", f"{space.sampler.kind} and {space.pruner.kind}, seed {space.seed} in every arm"),
        ("images", answer.data(found[0])),
        ("finalists", rule),
        ("their seeds", answer.listed([str(seed) for seed in used])),
        ("judged on", f"the same {of.images:,} test images, paired" if of.images else "the test split"),
        ("free to differ", printable(answer.listed([_quantity(name) for name in of.tie.free]))),
    ]


def caveats(found: Sequence[Findings], of: Ranking) -> list[str]:
    """What the comparison does not show, for the reader who means to attack it."""
    space = found[0].space
    base, budget = space.base, space.budget
    lines = [answer.PLUMBING, ONE_PHOTOGRAPH] if base.data.source == "photographs" else []
    lines += [
        "One data set at one resolution: other images may rank the arms otherwise.",
        "Each arm was searched once. How much another search of the same budget would change the setting that stands "
        "for an arm is in no interval.",
        f"{answer.count(budget.trials, 'trial')} of {answer.count(budget.steps, 'step')} for each arm: with a larger "
        "budget another arm may win, and an arm with more to tune is searched less well by the same budget.",
        *_counts(found, of),
    ]
    few = min((len(each.representative.seeds) for each in of.ranked), default=0)
    if of.ranked:
        lines.append(
            f"{answer.count(few, 'seed')} of what stands for an arm: intervals over so few rest on Student's t, and on "
            "seeds that differ as if normally distributed."
        )
    if of.images and base.data.source != "photographs":
        lines.append(f"{answer.count(of.images, 'test image')}, taken as drawn independently from those of interest.")
    if of.ranked and not of.images:
        lines.append("The values of single test images could not be read, so intervals are over seeds alone.")
    if len(of.differences) > 1:
        lines.append(
            f"Intervals are not corrected for the {len(of.differences)} differences between arms; the column "
            "“corrected” is (Bonferroni)."
        )
    measured = {name for each in of.ranked for name in each.representative.means}
    missing = [units.label(name) for name in METRICS if METRICS[name] and name.removeprefix("val/") not in measured]
    lines += [f"Not measured on the test split: {answer.listed(missing)}."] if missing else []
    if not any("peak_memory_gib" in each.representative.costs for each in of.ranked):
        lines.append("Peak memory was not measured, which takes a GPU.")
    speeds = {each.name: each.representative.costs.get("images_per_s") for each in of.ranked}
    rates = sorted((speed, name) for name, speed in speeds.items() if speed)
    if len(rates) > 1:
        (slow, last), (fast, first) = rates[0], rates[-1]
        lines.append(
            f"Compute was not held equal: {first} trains at {units.text('images_per_s', fast)}, {last} at "
            f"{units.text('images_per_s', slow)}."
        )
    devices = list(dict.fromkeys(name for each in found for name in each.compute.devices))
    if len(devices) > 1:
        lines.append(f"Trials ran on {answer.listed(devices)}, so speeds do not compare.")
    lines += _undersampled(found, of)
    lines += [f"{each.name} is not ranked: {each.why_not}." for each in of.arms if not each.verdict]
    for each in of.arms:
        if each.lost:
            limits = answer.listed([f"{units.label(name)} {count:,}" for name, count in each.lost.items()])
            total = answer.count(sum(each.lost.values()), "trial")
            lines.append(f"{each.name} lost {total} of its search to limits: {limits}.")
        if each.verdict and len(each.verdict.openings) > 1:
            lines.append(f"The test split of {each.name} was opened {len(each.verdict.openings)} times.")
    return [printable(each) for each in lines]


def _counts(found: Sequence[Findings], of: Ranking) -> list[str]:
    """How much of each search there was: baselines that stand, trials that ended, settings judged, fields searched."""
    lines, ranked = [], of.ranked
    if baselines := sum(each.representative.baseline for each in ranked):
        lines.append(f"The baseline stands for {baselines} of {answer.count(len(ranked), 'ranked arm')}.")
    whole = [f"{len(each.ended('COMPLETE')):,} of {len(each.own):,} in {_called(each)}" for each in found]
    lines.append(f"Trials of the searches that were trained to their end: {answer.listed(whole)}.")
    if len({len(each.contenders) for each in ranked}) > 1:
        judged = [f"{len(each.contenders):,} of {each.name}" for each in ranked]
        lines.append(f"Settings judged on the test split: {answer.listed(judged)}.")
    fields = {_called(each): [parameter.name for parameter in each.space.parameters] for each in found}
    for name in dict.fromkeys(name for names in fields.values() for name in names):
        arms = [arm for arm, names in fields.items() if name in names]
        if len(arms) < len(fields):
            lines.append(f"{name} was searched in {answer.listed(arms)} alone.")
    return lines


def _undersampled(found: Sequence[Findings], of: Ranking) -> list[str]:
    """Where the test split has too few tokens to count the codes with."""
    spaces = {_called(each): each.space for each in found}
    lines: dict[str, list[str]] = {}
    for each in of.ranked:
        means = each.representative.means
        if "codebook_undersampled" in means and means["codebook_undersampled"].value > 0:
            codes = spaces[each.name].config(each.representative.settings).quantizer.codebook_size
            what = f"{means['codebook_tokens'].value:,.0f} tokens for {codes:,} codes"
            lines.setdefault(what, []).append(each.name)
    return [
        f"The entropy-coded size on the test split is too low where codes are counted on few tokens: {what} in "
        f"{answer.listed(arms)}."
        for what, arms in lines.items()
    ]


def said(of: Ranking) -> list[str]:
    """Which arm won, in sentences; those that begin with an arm's name keep it as it is."""
    names = tuple(each.name for each in of.arms)
    lines = [line if line.startswith(names) else f"{line[0].upper()}{line[1:]}" for line in ranking.lines(of)]
    return [f"{printable(line)}." for line in lines]


def _called(found: Findings) -> str:
    return found.tie.arm if found.tie else found.study


def _trial(one: Contender) -> str:
    return f"{one.of}{' (baseline)' if one.baseline else ''}"


def _where(of: Ranking, name: str, least: float, most: float) -> str:
    """What a quantity was in all models that were to be equal in it, and in those that stand for arms."""
    if least == most:
        return f"{methods.extent(name, least, most)} in every arm"
    known = [each.representative.costs.get(name) for each in of.ranked]
    costs = [cost for cost in known if cost is not None]
    have = f"; those that stand for arms have {methods.extent(name, min(costs), max(costs))}" if costs else ""
    return f"within {methods.extent(name, least, most)}{have}"


def _quantity(name: str) -> str:
    return f"{units.label(name)} ({units.unit(name)})" if units.unit(name) else units.label(name)


def _mean(one: Contender | None, name: str) -> Estimate | None:
    return one.means.get(name) if one else None


def _quality(metric: str, judged: Sequence[Contender]) -> list[str]:
    """What else was measured on the test split and is better or worse, in the order of the metrics."""
    known = {name for one in judged for name in one.means if units.better(name)}
    order = [name.removeprefix("val/") for name in METRICS]
    return [name for name in [*order, *sorted(known - set(order))] if name in known and name != metric]


def _text(heading: str, words: Sequence[str]) -> Column:
    return Column(name="", heading=heading, cells=tuple(printable(word) for word in words))


def _estimates(
    name: str, found: Sequence[Estimate | None], prefix: str = "", best: frozenset[int] = frozenset()
) -> Column:
    return Column(
        name=name,
        heading=f"{prefix}{units.label(name)}",
        unit=units.unit(name),
        better=units.better(name),
        cells=tuple("-" if each is None else verdict.with_half(name, each) for each in found),
        best=best,
    )


def _leads(metric: str, behind: Sequence[Estimate | None]) -> Column:
    cells = ["-" if each is None else verdict.with_half(metric, each) + " (tie)" * each.tie for each in behind]
    return Column(name="", heading="behind the best", unit=units.unit(metric), cells=tuple(cells))


def _plain(heading: str, metric: str, values: Sequence[float | None]) -> Column:
    cells = tuple(units.figure(metric, value) for value in values)
    return Column(name="", heading=heading, unit=units.unit(metric), cells=cells)


def _costs(rows: Sequence[Contender | None]) -> list[Column]:
    """The entropy-coded size on the test split, and what the models cost; what none tells is left out."""
    values: dict[str, list[float | None]] = {
        BITS: [one.means[BITS].value if one and BITS in one.means else None for one in rows]
    }
    for name in ("parameters", "images_per_s", "peak_memory_gib"):
        values[name] = [one.costs.get(name) if one else None for one in rows]
    return [
        Column(
            name=name,
            heading=units.label(name),
            unit=units.unit(name),
            better=units.better(name),
            cells=tuple(units.figure(name, value) for value in found),
        )
        for name, found in values.items()
        if name == "peak_memory_gib" or any(value is not None for value in found)
    ]


def _hours(hours: Sequence[float], gpus: float) -> Column:
    heading, unit = ("GPU-hours", "") if gpus else ("training time", "h")
    return Column(name="", heading=heading, unit=unit, cells=tuple(f"{each * (gpus or 1):,.3g}" for each in hours))


def _settings(rows: Sequence[tuple[str, str, Contender]]) -> list[Column]:
    fields = list(dict.fromkeys(name for _, _, one in rows for name in one.settings))
    if not fields:
        return []
    return [
        _text(rows[0][0], [called for _, called, _ in rows]),
        *(_text(name, [shown(one.settings.get(name, "-")) for _, _, one in rows]) for name in fields),
    ]
