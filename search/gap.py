"""What a transfer came to: the trials at the target, how far they are from a direct search, and what that would cost.

A direct search searches the same space at the target itself. Where it has been made (`vqsearch transfer --direct`) it
is measured; else its cost is estimated, and its result is not known.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from search import catalog, finalists, records, retention, transfer, units
from search.parameters import settings
from search.space import Space

SAME = 5e-4
"""Loss gap below which two values are told to be the same: half of the last digit that is shown."""


@dataclass(frozen=True, kw_only=True)
class Landed:
    """A setting of the search, trained at the target.

    Attributes:
        of: number of the trial of the search whose setting it is.
        number: of the trial at the target.
        baseline: it was there to be beaten.
        settings: dotted field -> label.
        at_proxy: objective that the search saw; None where pruning stopped it.
        value: objective at the target; None where it has not ended with one.
        why: it has none, if it has ended.
    """

    of: int
    number: int
    baseline: bool
    settings: Mapping[str, Any]
    at_proxy: float | None
    value: float | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What some trials of one size were trained for.

    Attributes:
        trials: how many.
        whole: what they trained, in whole trials: of one that was pruned the part of its steps.
        hours: wall hours of training.
    """

    trials: int
    whole: float
    hours: float


@dataclass(frozen=True, kw_only=True)
class Direct:
    """A search at the target itself.

    Attributes:
        study: its name.
        number: of its best trial.
        value: of that.
        spent: by it.
    """

    study: str
    number: int
    value: float
    spent: Spent


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What a transfer came to.

    Attributes:
        study: its name.
        metric: of the objective.
        sign: 1 where less of it is better, -1 where more is.
        transfer: the two sizes.
        landed: settings at the target, the best first, those without a value last.
        waiting: settings that are still to be trained there.
        chosen: number of the trial that the proxies ranked first.
        proxies, targets: what was spent at either size.
        dearer: operations of a whole trial at the target / those of one at the proxy.
        direct: the search at the target, if it is over.
    """

    study: str
    metric: str
    sign: int
    transfer: transfer.Transfer
    landed: Sequence[Landed]
    waiting: int
    chosen: int | None
    proxies: Spent
    targets: Spent
    dearer: float
    direct: Direct | None

    @property
    def best(self) -> Landed | None:
        """The best setting at the target."""
        return self.landed[0] if self.landed and self.landed[0].value is not None else None

    def behind(self, value: float, better: float) -> float:
        """By how much one value is worse than another; negative where it is better."""
        return self.sign * (value - better)

    def loss_gap(self, value: float, better: float) -> float:
        """The same as a part of the better one's loss; of a PSNR, of its mean squared error."""
        if self.metric == "val/psnr":
            return float(10 ** (self.behind(value, better) / 10) - 1)
        return self.behind(value, better) / abs(better) if better else math.nan

    @property
    def share(self) -> float | None:
        """Operations of the transfer / those of a direct search: measured, or as it is expected to be."""
        direct = self.direct.spent.whole if self.direct else self.proxies.whole
        return (self.proxies.whole / self.dearer + self.targets.whole) / direct if direct else None

    @property
    def direct_hours(self) -> float | None:
        """Hours of a direct search that trains as many whole trials as the proxies; None before any target is there."""
        if not self.targets.whole:
            return None
        return self.proxies.whole * self.targets.hours / self.targets.whole

    @property
    def agreeing(self) -> tuple[int, int]:
        """Pairs of settings with values at both sizes that both order alike, and all such pairs."""
        seen = ((each.at_proxy, each.value) for each in self.landed)
        both = [(small, large) for small, large in seen if small is not None and large is not None]
        pairs = list(combinations(both, 2))
        return sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs), len(pairs)


def read(study: optuna.Study, space: Space, storage: BaseStorage) -> Gap | None:
    """What a study's transfer came to so far; None for a study without one.

    Args:
        study: as loaded.
        space: its space.
        storage: where a direct search may be.
    """
    carried = space.transfer
    if carried is None:
        return None
    trials = study.get_trials(deepcopy=False)
    sign = 1 if space.objective.direction == "minimize" else -1
    landed = [_landed(trial, trials, space) for trial in trials if records.is_at_target(trial)]
    landed.sort(key=lambda each: (each.value is None, sign * (each.value or 0.0), each.number))
    ranked = retention.ranked(trials, study.direction)
    own = [trial for trial in trials if records.counts(trial)]
    there = [trial for trial in trials if records.is_at_target(trial)]
    direct = _direct(storage, space)
    like = (landed[0].settings if landed else None) or (own[0].params if own else None)
    over = len(own) >= space.budget.trials
    waiting = len(finalists.missing(space, trials, study.direction)) if over else 0
    return Gap(
        study=study.study_name,
        metric=space.objective.metric,
        sign=sign,
        transfer=carried,
        landed=landed,
        waiting=waiting + sum(not trial.state.is_finished() for trial in there),
        chosen=ranked[0].number if ranked else None,
        proxies=_spent(own, carried.proxy.steps),
        targets=_spent([trial for trial in there if trial.state.is_finished()], carried.target.steps),
        dearer=_dearer(space, like) if like else 1.0,
        direct=direct,
    )


def _landed(trial: FrozenTrial, trials: Sequence[FrozenTrial], space: Space) -> Landed:
    of = records.finalist(trial)
    assert of is not None, "asked of a trial at the target"
    first = trials[of.of]
    ended = trial.state == TrialState.COMPLETE
    return Landed(
        of=of.of,
        number=trial.number,
        baseline=first.system_attrs.get("fixed_params") in [dict(each) for each in space.baselines],
        settings=trial.params,
        at_proxy=first.value if first.state == TrialState.COMPLETE else None,
        value=trial.value if ended else None,
        why="" if ended or not trial.state.is_finished() else records.reason(trial),
    )


def _spent(trials: Sequence[FrozenTrial], steps: int) -> Spent:
    reached = [steps if trial.state == TrialState.COMPLETE else trial.last_step or 0 for trial in trials]
    return Spent(
        trials=len(trials), whole=sum(reached) / steps, hours=sum(records.seconds(trial) for trial in trials) / 3600
    )


def _dearer(space: Space, labels: Mapping[str, Any]) -> float:
    carried = space.transfer
    assert carried is not None, "asked of a transfer"
    small, large = (_operations(config) for config in (space.config(labels), space.wanted(labels)))
    return large * carried.target.steps / (small * carried.proxy.steps)


@functools.lru_cache(maxsize=64)
def _operations(config: Any) -> float:
    from search.operations import operations

    return operations(config)


def _direct(storage: BaseStorage, space: Space) -> Direct | None:
    """The direct search, where the storage has one of the same space that is over."""
    name = transfer.direct_name(space.study)
    if name not in catalog.studies(storage):
        return None
    study, found = catalog.load(storage, name)
    expected = transfer.direct(space.source, space.transfer) if space.transfer else {}
    compared = ("objective", "train", "search", "sampler", "pruner", "seed", "constraints", "baselines")
    if any(found.source.get(key) != expected.get(key) for key in compared):
        return None
    if (found.budget.steps, found.budget.trials) != (expected["budget"]["steps"], space.budget.trials):
        return None  # lengthened, or a search of another size
    trials = study.get_trials(deepcopy=False)
    ranked = retention.ranked(trials, study.direction)
    own = [trial for trial in trials if records.counts(trial)]
    if not ranked or len(own) < found.budget.trials or any(t.state == TrialState.RUNNING for t in trials):
        return None
    best = ranked[0]
    return Direct(study=name, number=best.number, value=float(best.value or 0.0), spent=_spent(own, found.budget.steps))


def name(each: Landed) -> str:
    """Which setting: trial 7 (baseline)."""
    return f"trial {each.of}{' (baseline)' if each.baseline else ''}"


def table(gap: Gap) -> Table:
    """The settings at the target, the best first: what they had at the proxy, and how far they are behind."""
    unit = f", {units.unit(gap.metric)}" if units.unit(gap.metric) else ""
    label = f"{units.label(gap.metric)}{unit}"
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for heading in ("setting of", f"proxy {label}", "at the target", "behind", "as trial"):
        made.add_column(heading, justify="left" if heading == "setting of" else "right", no_wrap=True)
    for row in rows(gap):
        made.add_row(*row, style="bold" if gap.best and row[0] == name(gap.best) else "")
    return made


def rows(gap: Gap) -> list[list[str]]:
    """The cells of the table."""
    found = []
    for each in gap.landed:
        behind = None if each.value is None or gap.best is None or each is gap.best else each.value
        ahead = gap.best.value if gap.best else None
        found.append(
            [
                name(each),
                units.figure(gap.metric, each.at_proxy),
                units.figure(gap.metric, each.value),
                "" if behind is None or ahead is None else units.figure(gap.metric, gap.behind(behind, ahead)),
                str(each.number),
            ]
        )
    return found


def lines(gap: Gap) -> list[str]:
    """What is to be said of it, in sentences."""
    said = [f"{name(each)} has no value at the target: {each.why}" for each in gap.landed if each.why]
    if gap.waiting:
        said.append(f"{gap.waiting} settings are still to be trained at the target")
    best = gap.best
    if best is None or best.value is None:
        return [*said, "no setting has a value at the target yet"]
    words = f"{name(best)} is the best at the target, {units.text(gap.metric, best.value)}: {settings(best.settings)}"
    first = next((each for each in gap.landed if each.of == gap.chosen), None)
    if first is best:
        words += "; the proxies ranked it first"
    elif first is not None and first.value is not None:
        behind = _behind(gap, first.value, best.value)
        words += f"; {name(first)}, which the proxies ranked first, is behind it by {behind}"
    said.insert(0, words)
    for other in gap.landed:
        if other.baseline and other is not best and other.value is not None:
            said.append(f"{name(other)} is behind it by {_behind(gap, other.value, best.value)}")
    alike, pairs = gap.agreeing
    if pairs > 1:
        said.append(f"proxies and targets put {alike} of {pairs} pairs of settings in the same order")
    return [*said, *_saving(gap, best.value)]


def _behind(gap: Gap, value: float, better: float) -> str:
    what = " of its squared error" if gap.metric == "val/psnr" else ""
    return f"{units.text(gap.metric, gap.behind(value, better))} ({gap.loss_gap(value, better):.1%}{what})"


def _saving(gap: Gap, value: float) -> list[str]:
    proxies, targets, took = gap.proxies, gap.targets, gap.proxies.hours + gap.targets.hours
    many = "target" if targets.trials == 1 else "targets"
    cost = (
        f"{proxies.trials} proxies trained for {_hours(proxies.hours)}, the steps of {proxies.whole:.1f} whole ones, "
        f"and {targets.trials} {many} for {_hours(targets.hours)}; by operations a target is {gap.dearer:.3g} proxies"
    )
    if gap.direct is not None:
        spent, theirs = gap.direct.spent, gap.direct.value
        gap_to = gap.loss_gap(value, theirs)
        if abs(gap_to) < SAME:
            lost = "the transfer found as much"
        elif gap_to > 0:
            lost = f"the transfer is behind it by {_behind(gap, value, theirs)}"
        else:
            lost = f"the transfer is ahead of it by {_behind(gap, theirs, value)}"
        return [
            cost,
            f"{gap.direct.study}, the direct search at the target, found {units.text(gap.metric, theirs)} "
            f"(its trial {gap.direct.number}): {lost}",
            f"that search trained for {_hours(spent.hours)}, the steps of {spent.whole:.1f} whole trials: the "
            f"transfer took {_part(took, spent.hours)} of its time and {gap.share:.0%} of its operations",
        ]
    if gap.direct_hours is None or gap.share is None:
        return [cost]
    return [
        cost,
        f"estimate: a direct search that stops as many trials as early would train for {_hours(gap.direct_hours)} at "
        f"the target, of which the transfer took {_part(took, gap.direct_hours)} by time and {gap.share:.0%} by "
        "operations; what it would find is not known (--direct makes it)",
    ]


def _part(hours: float, of: float) -> str:
    return f"{hours / of:.0%}" if of else "an unknown part"


def _hours(hours: float) -> str:
    return units.duration(hours * 3600) if hours < 2 else f"{hours:,.1f} h"


def as_json(gap: Gap) -> dict[str, Any]:
    """The same for programs; what is unknown is null."""
    value = gap.best.value if gap.best else None
    direct = gap.direct
    return {
        "study": gap.study,
        "metric": gap.metric,
        "proxy": dataclasses.asdict(gap.transfer.proxy),
        "target": dataclasses.asdict(gap.transfer.target),
        "targets": [dataclasses.asdict(each) | {"settings": dict(each.settings)} for each in gap.landed],
        "waiting": gap.waiting,
        "chosen": gap.chosen,
        "spent": {"proxies": dataclasses.asdict(gap.proxies), "targets": dataclasses.asdict(gap.targets)},
        "dearer": gap.dearer,
        "share": gap.share,
        "estimated_direct_hours": gap.direct_hours,
        "direct": None
        if direct is None
        else dataclasses.asdict(direct) | {"loss_gap": None if value is None else gap.loss_gap(value, direct.value)},
    }
