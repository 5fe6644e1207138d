"""How long a search still takes, and how long several take that share their machines.

What is left is counted in seconds of training, study by study, and divided by the trials that train at once, whichever
studies those are of: a machine that one study leaves free goes to another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import FrozenTrial, TrialState

from search import finalists, records
from search.space import Space


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a study still has to train.

    Attributes:
        trials: of its search, those included that run.
        trial_s: seconds of training that one of them takes; None where nothing tells yet.
        finalists: that have not ended, those included that run or are no trials yet.
        finalist_s: seconds of training that one of them takes; None where nothing tells yet.
        spent_s: seconds of training that running trials have behind them, of each no more than it is to take.
        running: trials that train now.
        hours: wall hours of searching that the budget leaves; None where it sets no end.
    """

    trials: int
    trial_s: float | None
    finalists: int
    finalist_s: float | None
    spent_s: float
    running: int
    hours: float | None


def left_s(works: Sequence[Work]) -> float | None:
    """Wall seconds until all studies are over, if as many trials train at once as now.

    A study of which nothing tells yet how long its trials take is counted with the mean of the others.

    Returns:
        None where nothing trains, or nothing tells how long.
    """
    running = sum(work.running for work in works)
    if not running:
        return None
    trial_s = _mean([work.trial_s for work in works])
    finalist_s = _mean([work.finalist_s for work in works])
    searching, judging = 0.0, 0.0
    for work in works:
        if work.trials:
            searching += work.trials * (trial_s if work.trial_s is None else work.trial_s) - work.spent_s
        if work.finalists:
            judging += work.finalists * (finalist_s if work.finalist_s is None else work.finalist_s)
            judging -= 0.0 if work.trials else work.spent_s
    left = searching / running
    hours = [work.hours for work in works if work.trials]
    if hours and None not in hours:
        left = min(left, max(each for each in hours if each is not None) * 3600)
    left = max(left, 0.0) + max(judging / running, 0.0)
    return left if math.isfinite(left) else None


def searching(
    finished: Sequence[FrozenTrial],
    running: Sequence[tuple[int, float | None]],
    spent_s: Sequence[float],
    space: Space,
    hours: float,
) -> Work:
    """What is left of a search, if each trial takes as long as those before.

    Args:
        finished: trials that used up the budget.
        running: steps that each running trial has done, and images a second at which it trains.
        spent_s: seconds for which each has been trained.
        space: what is searched.
        hours: wall hours of drivers.
    """
    trial_s, finalist_s, behind_s = None, None, 0.0
    rates = [rate for _, rate in running if rate]
    if finished:
        trial_s, finalist_s = _mean_s(finished), _unpruned_s(finished, space)
        behind_s = sum(min(spent, trial_s) for spent in spent_s)
    elif rates and len(rates) == len(running) and not space.trainer:  # none is pruned, as far as anyone knows
        step_s = space.base.batch_size * len(rates) / sum(rates)
        trial_s = finalist_s = space.budget.steps * step_s
        behind_s = sum(step for step, _ in running) * step_s
    return Work(
        trials=max(space.budget.trials - len(finished), 0),
        trial_s=trial_s,
        finalists=0,
        finalist_s=finalist_s,
        spent_s=behind_s,
        running=len(running),
        hours=None if space.budget.hours is None else space.budget.hours - hours,
    )


def with_finalists(work: Work, study: optuna.Study, space: Space, trials: Sequence[FrozenTrial]) -> Work:
    """The same with the finalists to come: those chosen, or while the search goes on as many as may be chosen."""
    wanted = finalists.wanted(space)
    if wanted is None:
        return work
    if wanted.at_target:  # how long those take, no trial of the search tells
        work = replace(work, finalist_s=None)
    if not work.trials:
        return replace(work, finalists=len(finalists.missing(space, trials, study.direction)))
    baselines = len(space.baselines) if wanted.include == "baselines" else 0
    return replace(work, finalists=(wanted.top + baselines) * len(wanted.seeds))


def judging(
    total: int, judged: Sequence[FrozenTrial], complete: Sequence[FrozenTrial], spent_s: Sequence[float]
) -> Work:
    """What is left of the finalists, if each takes as long as those before, or as a complete trial.

    Args:
        total: how many there are.
        judged: those that have ended.
        complete: trials of the search.
        spent_s: seconds for which each running one has been trained.
    """
    like = judged or complete
    finalist_s = _mean_s(like) if like else None
    return Work(
        trials=0,
        trial_s=None,
        finalists=total - len(judged),
        finalist_s=finalist_s,
        spent_s=sum(min(spent, finalist_s or 0.0) for spent in spent_s),
        running=len(spent_s),
        hours=None,
    )


def _unpruned_s(finished: Sequence[FrozenTrial], space: Space) -> float | None:
    """Seconds that a trial takes which nothing prunes: as the complete ones, or at the pace of those that were."""
    if complete := [trial for trial in finished if trial.state == TrialState.COMPLETE]:
        return _mean_s(complete)
    steps = sum(trial.last_step or 0 for trial in finished)
    return space.budget.steps * sum(map(records.seconds, finished)) / steps if steps else None


def _mean_s(trials: Sequence[FrozenTrial]) -> float:
    return sum(map(records.seconds, trials)) / len(trials)


def _mean(seconds: Sequence[float | None]) -> float:
    known = [each for each in seconds if each is not None]
    return sum(known) / len(known) if known else math.inf
