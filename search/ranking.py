"""Which arm of a comparison won: its best settings held against each other on the test split, over seeds and images.

What stands for an arm is the finalist with the best mean objective on the validation images, over its fresh seeds:
never the best on the test split, which chooses none of them. Arms are ordered by the test mean of what stands
for them; differences pair by image.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table
from rich.text import Text

from search import records, units, verdict
from search.parameters import settings
from search.records import Tie
from search.space import Space
from search.statistics import Estimate
from search.text import printable
from search.verdict import CONFIDENCE, Contender, Verdict


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm of a comparison.

    Attributes:
        name: in the comparison.
        study: its name; "" where there is none yet.
        verdict: what its finalists came to; None where none has ended with a value.
        why_not: why it can't be ranked; "" where it can.
        direction: 1 where less of the objective is better, -1 where more is.
        ended: trials of its search that count towards its budget.
        budget: trials of its search.
        lost: limit, or "diverged" or "memory" -> trials of its search that broke it.
        search_hours: of training, over the trials of its search.
        finalist_hours: the same of its finalists.
        gpus: of one trial.
    """

    name: str
    study: str
    verdict: Verdict | None
    why_not: str
    direction: int = 1
    ended: int = 0
    budget: int = 0
    lost: Mapping[str, int]
    search_hours: float = 0.0
    finalist_hours: float = 0.0
    gpus: float = 0.0

    @property
    def contenders(self) -> Sequence[Contender]:
        """Its finalists, the best on the test split first."""
        return self.verdict.contenders if self.verdict else ()

    @property
    def representative(self) -> Contender:
        """What stands for it: the best mean of the objective on the images that choose, and of two alike the first."""
        assert self.verdict is not None, "asked of an arm that is ranked"
        return representative(self.contenders, self.direction)

    @property
    def mean(self) -> Estimate:
        """Its mean of the metric that ranks, on the test split."""
        assert self.verdict is not None, "asked of an arm that is ranked"
        return self.representative.means[self.verdict.metric]

    @property
    def drop(self) -> float:
        """By how much the test mean of what stands for it is worse than its validation mean over the same seeds."""
        return self.direction * (self.mean.value - self.representative.validated)

    @property
    def hours(self) -> float:
        """Of training, search and finalists together."""
        return self.search_hours + self.finalist_hours


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """What a comparison came to.

    Attributes:
        tie: what makes it one.
        metric: that ranks, without its split: ``psnr``.
        sign: 1 where less of it is better, -1 where more is.
        arms: the ranked ones, the best test mean first; then the others, in the order of the comparison.
        differences: (name of an arm, name of one after it) -> by how much the first is ahead, of all ranked ones.
        images: of the test split; 0 where their values can't be read.
    """

    tie: Tie
    metric: str
    sign: int
    arms: Sequence[Arm]
    differences: Mapping[tuple[str, str], Estimate]
    images: int

    @property
    def ranked(self) -> list[Arm]:
        """Arms with a judged finalist, the best first."""
        return [each for each in self.arms if each.verdict]

    @property
    def winner(self) -> Arm | None:
        """The arm with the best mean; None where none is ranked."""
        return next(iter(self.ranked), None)

    @property
    def behind(self) -> dict[str, Estimate]:
        """Name of an arm -> by how much the winner is ahead of it."""
        return {other: found for (first, other), found in self.differences.items() if first == self.ranked[0].name}

    @property
    def tied(self) -> list[Arm]:
        """Arms whose difference to the winner is not shown."""
        behind = self.behind
        return [each for each in self.ranked[1:] if behind[each.name].tie]

    @property
    def corrected(self) -> float:
        """The confidence of each interval at which all of them hold together at `CONFIDENCE` (Bonferroni)."""
        return 1 - (1 - CONFIDENCE) / max(len(self.differences), 1)

    def shown(self, found: Estimate) -> bool:
        """Whether a difference is also shown by an interval corrected for the number of differences."""
        return abs(found.value) > found.half(self.corrected)


def representative(contenders: Sequence[Contender], direction: int) -> Contender:
    """What stands for an arm with these finalists.

    Args:
        contenders: at least one.
        direction: 1 where less of the objective is better, -1 where more is.
    """
    return min(contenders, key=lambda each: (direction * each.validated, each.of))


def rank(studies: Sequence[tuple[optuna.Study, Space]], read: verdict.Read | None = None) -> Ranking | None:
    """Hold the arms of a comparison against each other.

    Args:
        studies: of its arms, as loaded; one that is missing is ranked as an arm without finalists.
        read: files below the output root; None for those of each study's own.

    Returns:
        None where they are not all arms of one comparison.
    """
    ties = [records.tie(study) for study, _ in studies]
    first = same(ties)
    if first is None:
        return None
    return among(first, [arm(study, space, verdict.judge(study, space, read)) for study, space in studies])


def same(ties: Sequence[Tie | None]) -> Tie | None:
    """The comparison that all of some studies are arms of; None where there is none."""
    known = [each for each in ties if each is not None]
    alike = known and all((each.comparison, each.arms) == (known[0].comparison, known[0].arms) for each in known)
    return known[0] if alike and len(known) == len(ties) else None


def arm(study: optuna.Study, space: Space, found: Verdict | None) -> Arm:
    """What a study is as an arm.

    Args:
        study: as loaded, tied to others.
        space: its space.
        found: what its finalists came to.
    """
    tie = records.tie(study)
    assert tie is not None, "asked of an arm"
    trials = study.get_trials(deepcopy=False)
    searched = [trial for trial in trials if records.searched(trial)]
    judged = [trial for trial in trials if records.finalist(trial) is not None]
    return Arm(
        name=tie.arm,
        study=study.study_name,
        verdict=found,
        why_not="" if found else _why_not(study, space, searched, judged),
        direction=1 if space.objective.direction == "minimize" else -1,
        ended=sum(map(records.counts, searched)),
        budget=space.budget.trials,
        lost=Counter(name for trial in searched for name, value in trial.constraints.items() if value > 0),
        search_hours=sum(map(records.seconds, searched)) / 3600,
        finalist_hours=sum(map(records.seconds, judged)) / 3600,
        gpus=space.resources.gpus,
    )


def among(tie: Tie, arms: Sequence[Arm]) -> Ranking:
    """Rank the arms of a comparison.

    Args:
        tie: what makes it one.
        arms: those that are there, in any order.
    """
    there = {each.name: each for each in arms}
    whole = [there.get(name) or _missing(name, study) for name, study in tie.arms.items()]
    judged = [(each, each.verdict) for each in whole if each.verdict]
    metric, sign = (judged[0][1].metric, judged[0][1].sign) if judged else ("", 1)
    ranked = sorted((each for each, _ in judged), key=lambda each: sign * each.mean.value)
    chosen = [each.representative for each in ranked]
    return Ranking(
        tie=tie,
        metric=metric,
        sign=sign,
        arms=[*ranked, *(each for each in whole if not each.verdict)],
        differences={
            (one.name, other.name): verdict.ahead(one.representative, other.representative, metric, sign)
            for one, other in itertools.combinations(ranked, 2)
        },
        images=chosen[0].values[metric].shape[1] if chosen and verdict.by_image(chosen, metric) else 0,
    )


def lines(ranking: Ranking) -> list[str]:
    """What is to be said of it, in sentences: which arm won, by how much, what is a tie, what was not shown."""
    first = ranking.winner
    missing = [f"{each.name} is not ranked: {each.why_not}" for each in ranking.arms if not each.verdict]
    if first is None:
        return ["no arm has a finalist with a value on the test split, so none won", *missing]
    best, tied = first.representative, ranking.tied
    found = verdict.mean_text(ranking.metric, best, ranking.images)
    if len(ranking.ranked) == 1:
        said = [f"{_called(first)} alone is ranked, which compares nothing: {found}"]
    elif tied:
        others = ", ".join(each.name for each in tied)
        said = [
            f"no arm is shown to be the best: {_called(first)} has the best mean on the test split, {found}, and ties "
            f"with {others}"
        ]
    else:
        said = [f"{_called(first)} is the best on the test split: {found}"]
    for each in ranking.ranked[1:]:
        ahead = verdict.lead(ranking.metric, ranking.behind[each.name], best, each.representative, first.gpus)
        said.append(f"{first.name} is ahead of {_called(each)} {ahead}")
    return [*said, *missing, *_cautions(ranking)]


def _called(arm: Arm) -> str:
    """An arm and what stands for it."""
    best = arm.representative
    return f"{arm.name} ({'baseline ' if best.baseline else ''}trial {best.of}: {settings(best.settings)})"


def _cautions(ranking: Ranking) -> list[str]:
    """What the sentences about who won leave out."""
    said = [
        "what stands for an arm is the finalist with the best mean on the validation images over fresh seeds: "
        "validation images chose the setting of each arm; the test split chose none of them, but it orders the arms, "
        "so that the mean of the first is flattered"
    ]
    if ranking.differences:
        said.append(_correction(ranking))
    for each in ranking.ranked:
        assert each.verdict is not None
        if each.verdict.waiting:
            said.append(f"{each.name}: {each.verdict.waiting} of its finalists have not ended, so this may change")
        elif each.ended < each.budget:
            said.append(f"{each.name}: {each.ended} of {each.budget} trials of its search have ended")
        failed = [found for contender in each.contenders for found in contender.failed]
        said += [f"{each.name}: finalist {number} ended without a value: {why}" for number, why in failed]
    return said


def _correction(ranking: Ranking) -> str:
    """How many differences were looked at, and what a correction for their number changes."""
    count = len(ranking.differences)
    if count == 1:
        return f"of arms that are alike, one pair in {1 / (1 - CONFIDENCE):.0f} shows a difference by chance"
    lost = [names for names, each in ranking.differences.items() if not each.tie and not ranking.shown(each)]
    said = (
        f"{count} differences between arms were looked at, and their {CONFIDENCE:.0%} intervals are not corrected for "
        f"that; corrected (Bonferroni, {100 * ranking.corrected:.4g}% each) "
    )
    if not lost:
        return f"{said}they say the same of every pair"
    return f"{said}it is no longer shown that {', '.join(f'{one} is better than {other}' for one, other in lost)}"


def table(ranking: Ranking) -> Table:
    """The arms, the best first: their mean, their distance to the winner, and what they cost."""
    metric = ranking.metric
    unit = f" ({units.unit(metric)})" if units.unit(metric) else ""
    gpus = any(each.gpus for each in ranking.arms)
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    made.add_column("\narm", overflow="fold")
    measured = f"test\n{units.label(metric)}{unit}" if metric else "test\n"
    for heading in (measured, "behind\nthe best", "coded\nbits", "\nparameters", "GPU-\nhours" if gpus else "\nhours"):
        made.add_column(heading, justify="right", no_wrap=True)
    behind = ranking.behind if ranking.winner else {}
    for place, each in enumerate(ranking.arms):
        hours = f"{each.hours * (each.gpus if gpus else 1):,.3g}"
        if not each.verdict:
            made.add_row(Text(printable(each.name)), "-", "-", "-", "-", hours, style="dim")
            continue
        best = each.representative
        found = behind.get(each.name)
        bits = best.means.get("entropy_bits_per_image")
        made.add_row(
            Text(printable(each.name)),
            verdict.with_half(metric, each.mean),
            "" if found is None else verdict.with_half(metric, found) + (" tie" if found.tie else ""),
            units.figure("entropy_bits_per_image", bits.value if bits else None),
            units.figure("parameters", best.costs.get("parameters")),
            hours,
            style="" if place else "bold",
        )
    return made


def as_json(ranking: Ranking) -> dict[str, Any]:
    """The ranking for programs; what is unknown is null."""
    behind = ranking.behind if ranking.winner else {}
    return {
        "comparison": ranking.tie.comparison,
        "metric": f"test/{ranking.metric}" if ranking.metric else None,
        "direction": "minimize" if ranking.sign > 0 else "maximize",
        "images": ranking.images,
        "confidence": CONFIDENCE,
        "corrected_confidence": ranking.corrected,
        "equal": {name: list(ends) for name, ends in ranking.tie.equal.items()},
        "free": list(ranking.tie.free),
        "arms": [
            {
                "arm": each.name,
                "study": each.study or None,
                "why_not": each.why_not or None,
                "chosen": verdict.contender_as_json(each.representative) if each.verdict else None,
                "behind": verdict.estimate_as_json(behind[each.name]) if each.name in behind else None,
                "tie": each.name in behind and behind[each.name].tie,
                "drop": each.drop if each.verdict else None,
                "finalists": [verdict.contender_as_json(contender) for contender in each.contenders],
                "trials": each.ended,
                "budget": each.budget,
                "lost": dict(each.lost),
                "search_hours": each.search_hours,
                "finalist_hours": each.finalist_hours,
                "gpus": each.gpus,
            }
            for each in ranking.arms
        ],
        "differences": [
            {
                "better": one,
                "worse": other,
                "by": verdict.estimate_as_json(found),
                "tie": found.tie,
                "shown_corrected": ranking.shown(found),
            }
            for (one, other), found in ranking.differences.items()
        ],
    }


def _missing(name: str, study: str) -> Arm:
    return Arm(name=name, study="", verdict=None, why_not=f"its study {study} is not there", lost={})


def _why_not(study: optuna.Study, space: Space, searched: Sequence[FrozenTrial], judged: Sequence[FrozenTrial]) -> str:
    """Why an arm has no finalist with a value."""
    ended = sum(map(records.counts, searched))
    if waiting := sum(not trial.state.is_finished() for trial in judged):
        return f"none of its finalists has a value yet, {waiting} of {len(judged)} have not ended"
    if judged:
        reasons = [f"{trial.number}, {why}" for trial in judged if (why := records.reason(trial))]
        first = f"; trial {reasons[0].strip()}" if reasons else ""
        return f"all {len(judged)} of its finalists ended without a value{first}"
    if ended < space.budget.trials:
        return f"its search is not over, {ended} of {space.budget.trials} trials have ended"
    if not any(trial.state == TrialState.COMPLETE for trial in searched):
        return f"none of the {ended} trials of its search is complete"
    if space.finalists is None:
        return f"it has no finalists; vqsearch finalists --study {study.study_name} trains them"
    return "its finalists have not begun"
