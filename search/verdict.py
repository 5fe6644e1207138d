"""Which setting won: finalists held against each other on the test split, over seeds and images.

Read from the study and, image by image, from what the finalists left below the output root.
"""

from __future__ import annotations

import dataclasses
import io
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from search import output, records, retention, statistics, units
from search.errors import OutputError
from search.parameters import settings
from search.space import Space
from search.statistics import Estimate, Values
from vqvae.config import COSTS

TEST_VALUES = "test.npz"
"""As `vqvae.train` names it, which is not imported here since it brings torch."""

CONFIDENCE = 0.95

Read = Callable[[str], bytes]
"""A file below the output root, by its path there; raises OSError or OutputError."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One setting among the finalists.

    Attributes:
        of: number of the trial of the search whose settings these are.
        baseline: it was there to be beaten.
        settings: dotted field -> label.
        searched: the objective that the search saw; None where pruning stopped it.
        seeds: of its finished trials.
        trials: their numbers.
        validation: their objective on the images that choose, by seed.
        values: metric -> (s, i) on the test split; (s, 1) where it is no mean over images, or they can't be read.
        means: metric -> its mean, with its interval.
        costs: of `vqvae.config.COSTS` those that all of its trials tell -> the mean over them.
        hours: of training, one trial on the mean.
        failed: (number, reason) of trials that ended without a value.
    """

    of: int
    baseline: bool
    settings: Mapping[str, Any]
    searched: float | None
    seeds: tuple[int, ...]
    trials: tuple[int, ...]
    validation: tuple[float, ...]
    values: Mapping[str, Values]
    means: Mapping[str, Estimate]
    costs: Mapping[str, float]
    hours: float
    failed: tuple[tuple[int, str], ...]

    @property
    def validated(self) -> float:
        """The mean of its objective on the images that choose."""
        return sum(self.validation) / len(self.validation)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the finalists of a study came to.

    Attributes:
        metric: that ranks, without its split: ``psnr``.
        sign: 1 where less of it is better, -1 where more is.
        contenders: with a value at least, the best mean first.
        behind: number of a contender -> the winner's mean less its own, paired by image, positive where the winner is
            better.
        images: of the test split; 0 where their values can't be read.
        waiting: finalists that have not ended.
        openings: when the test split was opened.
        gpus: of one trial.
        seed: of the search.
        chosen: number of the trial that the search ranked first; None where it ranked none.
        measured_on: images, or data where a trainer of one's own says what it is.
    """

    metric: str
    sign: int
    contenders: Sequence[Contender]
    behind: Mapping[int, Estimate]
    images: int
    waiting: int
    openings: Sequence[records.Opening]
    gpus: float
    seed: int
    chosen: int | None
    measured_on: str

    @property
    def winner(self) -> Contender:
        """The one with the best mean."""
        return self.contenders[0]

    @property
    def tied(self) -> list[Contender]:
        """Those whose difference to the winner is not shown."""
        return [each for each in self.contenders[1:] if self.behind[each.of].tie]


def judge(study: optuna.Study, space: Space, read: Read | None = None) -> Verdict | None:
    """Hold the finalists of a study against each other.

    Args:
        study: as loaded.
        space: its space.
        read: files below the output root; None for those of the study's own.

    Returns:
        None where no finalist has ended with a value.
    """
    root = records.output(study)
    trials = study.get_trials(deepcopy=False)
    metric = space.objective.metric.removeprefix("val/")
    sign = 1 if space.objective.direction == "minimize" else -1
    groups: dict[int, list[FrozenTrial]] = {}
    for trial in trials:
        if (what := records.finalist(trial)) is not None and not what.at_target:
            groups.setdefault(what.of, []).append(trial)
    found = [
        contender
        for of, group in groups.items()
        if (contender := _contender(trials[of], group, space, read or (lambda path: output.read(root, path))))
        if metric in contender.means
    ]
    if not found:
        return None
    found.sort(key=lambda each: (sign * each.means[metric].value, each.of))
    first, *others = found
    return Verdict(
        metric=metric,
        sign=sign,
        contenders=found,
        behind={each.of: ahead(first, each, metric, sign) for each in others},
        images=max(each.values[metric].shape[1] for each in found) if by_image(found, metric) else 0,
        waiting=sum(not trial.state.is_finished() for group in groups.values() for trial in group),
        openings=records.openings(study),
        gpus=space.resources.gpus,
        seed=space.seed,
        chosen=next((trial.number for trial in retention.ranked(trials, study.direction)), None),
        measured_on="data" if space.trainer else "images",
    )


def lines(verdict: Verdict) -> list[str]:
    """What is to be said of it, in sentences: who won, by how much, what is a tie, what was flattered."""
    first, metric = verdict.winner, verdict.metric
    said = [f"{name(first)} is the best on the test split: {metric_text(verdict, first)}"]
    for other in verdict.contenders[1:]:
        led = lead(metric, verdict.behind[other.of], first, other, verdict.gpus)
        said.append(f"ahead of {name(other)} {led}")
    if first.searched is not None:
        chosen = "the search chose it: " if first.of == verdict.chosen else ""
        said.append(
            f"{chosen}in the search (seed {verdict.seed}) it had {units.text(metric, first.searched)}; fresh seeds "
            f"have {units.text(metric, first.validated)} on the same validation {verdict.measured_on} and "
            f"{units.text(metric, first.means[metric].value)} on the test {verdict.measured_on}"
        )
    if verdict.waiting:
        said.append(f"{verdict.waiting} finalists have not ended")
    said += [f"trial {n} ended without a value: {why}" for each in verdict.contenders for n, why in each.failed]
    return said


def table(verdict: Verdict) -> Table:
    """The contenders, the best first: their mean, their distance to the winner, and what the search had seen."""
    metric = verdict.metric
    unit = f", {units.unit(metric)}" if units.unit(metric) else ""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("setting of", f"test {units.label(metric)}{unit}", "behind the best", "in the search", "seeds"):
        made.add_column(heading, justify="left" if heading == "setting of" else "right", no_wrap=True)
    for place, each in enumerate(verdict.contenders):
        behind = verdict.behind.get(each.of)
        tie = " (tie)" if behind is not None and behind.tie else ""
        made.add_row(
            f"trial {each.of}{' (baseline)' if each.baseline else ''}",
            with_half(metric, each.means[metric]),
            "" if behind is None else with_half(metric, behind) + tie,
            units.figure(metric, each.searched),
            str(len(each.seeds)),
            style="bold" if place == 0 else "",
        )
    return made


def with_half(metric: str, found: Estimate) -> str:
    """A mean and half the width of its interval: ``24.13 ± 0.21``; of a single seed the mean alone."""
    value = units.figure(metric, found.value)
    return value if math.isnan(found.error) else f"{value} ± {units.figure(metric, found.high - found.value)}"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict for programs; what is unknown is null."""
    return {
        "metric": f"test/{verdict.metric}",
        "direction": "minimize" if verdict.sign > 0 else "maximize",
        "images": verdict.images,
        "confidence": CONFIDENCE,
        "openings": [dataclasses.asdict(each) for each in verdict.openings],
        "contenders": [
            contender_as_json(each)
            | {
                "behind": estimate_as_json(verdict.behind[each.of]) if each.of in verdict.behind else None,
                "tie": each.of in verdict.behind and verdict.behind[each.of].tie,
            }
            for each in verdict.contenders
        ],
    }


def contender_as_json(contender: Contender) -> dict[str, Any]:
    """What is known of one contender by itself."""
    return {
        "trial": contender.of,
        "baseline": contender.baseline,
        "settings": dict(contender.settings),
        "searched": contender.searched,
        "seeds": list(contender.seeds),
        "trials": list(contender.trials),
        "validation": list(contender.validation),
        "test": {metric: estimate_as_json(found) for metric, found in contender.means.items()},
        "by_seed": {metric: values.mean(axis=1).tolist() for metric, values in contender.values.items()},
        "costs": dict(contender.costs),
        "hours": contender.hours,
    }


def estimate_as_json(found: Estimate) -> dict[str, float | None]:
    """A mean with its interval; what a single seed can't tell is null."""
    values = {"value": found.value, "low": found.low, "high": found.high, "standard_error": found.error}
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def name(contender: Contender) -> str:
    """What a contender is called."""
    kind = "baseline " if contender.baseline else ""
    return f"{kind}trial {contender.of} ({settings(contender.settings)})"


def metric_text(verdict: Verdict, contender: Contender) -> str:
    """The mean of the metric that ranks, with its interval and what it is a mean of."""
    return mean_text(verdict.metric, contender, verdict.images)


def mean_text(metric: str, contender: Contender, images: int) -> str:
    """A mean of a contender, with its interval and what it is a mean of; 0 images leave them out."""
    found = contender.means[metric]
    seeds = len(contender.seeds)
    many = f"{seeds} seed{'' if seeds == 1 else 's'}"
    of = f"{many} and {images:,} images" if images else many
    if math.isnan(found.error):
        return f"{units.label(metric)} {units.text(metric, found.value)} over {of}"
    return f"{units.label(metric)} {interval(metric, found)} over {of}"


def lead(metric: str, ahead: Estimate, first: Contender, other: Contender, gpus: float) -> str:
    """By how much one contender is ahead of another one; of a tie, what would settle it.

    Args:
        metric: that ranks.
        ahead: the one's mean less the other's, positive where the one is better.
        first: the one.
        other: the other.
        gpus: of one trial.
    """
    if math.isnan(ahead.error):
        return f"by {units.text(metric, ahead.value)}, of one seed each, which shows nothing"
    tie = f": a tie{_settling(ahead, first, other, gpus)}" if ahead.tie else ""
    return f"by {interval(metric, ahead)}{tie}"


def interval(metric: str, found: Estimate) -> str:
    """A mean with its unit and its interval."""
    low, high = (units.figure(metric, value) for value in (found.low, found.high))
    return f"{units.text(metric, found.value)} ({CONFIDENCE:.0%} interval {low} to {high})"


def _settling(ahead: Estimate, first: Contender, other: Contender, gpus: float) -> str:
    """What would settle a tie, and its cost."""
    wanted = statistics.seeds_to_settle(ahead, min(len(first.seeds), len(other.seeds)), CONFIDENCE)
    if wanted is None and abs(ahead.value) <= ahead.half_over_images(CONFIDENCE):
        return "; no number of seeds would settle it on these images"
    if wanted is None:
        return f"; more than {statistics.MOST_SEEDS} seeds of each would be needed"
    more = [max(wanted - len(each.seeds), 0) for each in (first, other)]
    hours = sum(count * each.hours for count, each in zip(more, (first, other), strict=True))
    cost = f"{hours * gpus:.3g} GPU-hours more" if gpus else f"{units.duration(3600 * hours)} more"
    return (
        f"; if the difference and its spread stay as found, about {wanted} seeds of each would bring it to the edge, "
        f"{cost}"
    )


def _contender(of: FrozenTrial, group: Sequence[FrozenTrial], space: Space, read: Read) -> Contender | None:
    ended = [trial for trial in group if trial.state == TrialState.COMPLETE]
    failed = [(t.number, records.reason(t)) for t in group if t.state in (TrialState.FAIL, TrialState.PRUNED)]
    values = _values(ended, read)
    labels = [dict(each) for each in space.baselines]
    return Contender(
        of=of.number,
        baseline=of.system_attrs.get("fixed_params") in labels,
        settings=dict(of.params),
        searched=of.value if of.state == TrialState.COMPLETE else None,
        seeds=tuple(what.seed for trial in ended if (what := records.finalist(trial))),
        trials=tuple(trial.number for trial in ended),
        validation=tuple(float(trial.value or 0.0) for trial in ended),
        values=values,
        means={metric: statistics.mean(each, CONFIDENCE) for metric, each in values.items()},
        costs=_costs(ended),
        hours=sum(map(records.seconds, ended)) / 3600 / len(ended) if ended else 0.0,
        failed=tuple(failed),
    )


def _costs(ended: Sequence[FrozenTrial]) -> dict[str, float]:
    told = {name: [trial.user_attrs[name] for trial in ended if name in trial.user_attrs] for name in COSTS}
    return {name: float(np.mean(values)) for name, values in told.items() if values and len(values) == len(ended)}


def _values(ended: Sequence[FrozenTrial], read: Read) -> dict[str, Values]:
    """Metric -> (s, i) of the trials of one setting; (s, 1) of what is not measured image by image."""
    if not ended:
        return {}
    told = [{k.removeprefix("test/"): v for k, v in t.user_attrs.items() if k.startswith("test/")} for t in ended]
    values = {name: np.array([[each[name]] for each in told]) for name in told[0] if all(name in each for each in told)}
    files = [_by_images(trial, read) for trial in ended]
    for metric in files[0] or {}:
        rows = [each[metric] for each in files if each and metric in each]
        if len(rows) == len(ended) and len({len(row) for row in rows}) == 1:
            values[metric] = np.stack(rows)
    return values


def _by_images(trial: FrozenTrial, read: Read) -> dict[str, Values] | None:
    record = records.checkpoint(trial)
    if record is None:
        return None
    try:
        with np.load(io.BytesIO(read(f"{record.folder}/{TEST_VALUES}")), allow_pickle=False) as values:
            return dict(values)
    except (OSError, OutputError, ValueError, zipfile.BadZipFile):
        return None  # the means are in the study; without the images an interval is one over seeds alone


def by_image(contenders: Sequence[Contender], metric: str) -> bool:
    """Whether the values of every image are there."""
    return all(each.values[metric].shape[1] > 1 for each in contenders)


def ahead(first: Contender, other: Contender, metric: str, sign: int) -> Estimate:
    """By how much one contender is better than another one, paired by image where both have their images."""
    ours, theirs = first.values[metric], other.values[metric]
    if ours.shape[1] != theirs.shape[1]:  # one of them without its images
        ours, theirs = ours.mean(axis=1, keepdims=True), theirs.mean(axis=1, keepdims=True)
    return (
        statistics.difference(theirs, ours, CONFIDENCE) if sign > 0 else statistics.difference(ours, theirs, CONFIDENCE)
    )
