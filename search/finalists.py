"""Finalists: the best settings and the baselines, trained again on fresh seeds and judged once on the test split.

A search ranks settings by one seed and by the images that chose them, so that its best value flatters itself. When it
is over, the first `finalists.top` settings of its ranking, and its baselines, become trials again, each with
`finalists.seeds` seeds of their own: at the full budget, never pruned, out of the sampler's sight, and measured on
images that no trial of the search has seen. Which settings these are is written to the study before the first one
starts; a driver that is killed leaves the same ones to the next.

Where the search was one over a smaller model (`search.transfer`), the same is done with the model that is wanted: the
best settings and the baselines are trained at the target, once, with the seed of the search, and see no test split.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search import records, retention, transfer
from search.errors import StudyError
from search.records import Finalist, Opening
from search.space import Space
from search.study import OpenStudy
from vqvae.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What follows a search.

    Attributes:
        top: settings of its ranking.
        include: what is trained beside them, baselines or nothing.
        seeds: of each.
        at_target: they are trained at the target of a transfer.
    """

    top: int
    include: str
    seeds: tuple[int, ...]
    at_target: bool


def wanted(space: Space) -> Wanted | None:
    """What follows the search of a space; None where nothing does."""
    if space.transfer is not None:
        return Wanted(top=space.transfer.top, include=space.transfer.include, seeds=(space.seed,), at_target=True)
    if space.finalists is None:
        return None
    seeds = tuple(space.seed + 1 + place for place in range(space.finalists.seeds))
    return Wanted(top=space.finalists.top, include=space.finalists.include, seeds=seeds, at_target=False)


def selected(space: Space, trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[int]:
    """Numbers of the trials whose settings are finalists: the best first, then baselines that are not among them.

    A baseline counts wherever pruning stopped it, since it is there to be beaten at the full budget; one that failed,
    diverged or broke a limit does not.
    """
    follow = wanted(space)
    assert follow is not None, "asked of a space with finalists"
    best = [trial.number for trial in retention.ranked(trials, direction)[: follow.top]]
    if follow.include != "baselines":
        return best
    labels = [dict(each) for each in space.baselines]
    usable = (TrialState.COMPLETE, TrialState.PRUNED)
    sound = [t for t in trials if t.state in usable and not any(value > 0 for value in t.constraints.values())]
    asked = [t.number for t in sound if records.finalist(t) is None and t.system_attrs.get("fixed_params") in labels]
    return best + [number for number in asked if number not in best]


def missing(space: Space, trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[Finalist]:
    """Finalists that are not trials yet, in the order in which they are to run: every setting's first seed first.

    Args:
        space: with finalists.
        trials: all of the study.
        direction: of its objective.
    """
    follow = wanted(space)
    assert follow is not None, "asked of a space with finalists"
    there = {found for trial in trials if (found := records.finalist(trial)) is not None}
    chosen = selected(space, trials, direction)
    due = [Finalist(of=of, seed=seed, at_target=follow.at_target) for seed in follow.seeds for of in chosen]
    return [each for each in due if each not in there]


def outstanding(space: Space, trials: Sequence[FrozenTrial], direction: StudyDirection) -> bool:
    """Whether finalists are still to be trained once the search itself is over."""
    if wanted(space) is None:
        return False
    unfinished = any(records.finalist(trial) and not trial.state.is_finished() for trial in trials)
    return unfinished or bool(missing(space, trials, direction))


def closing(study: optuna.Study, space: Space, now: bool) -> dict[str, Any]:
    """The change that ends a search before its finalists are judged.

    Args:
        study: as loaded.
        space: its space.
        now: whether a budget that is not spent ends with the trials there are.

    Raises:
        StudyError: it is not spent, and was not to end.
    """
    ended = sum(records.counts(trial) for trial in study.get_trials(deepcopy=False))
    if ended >= space.budget.trials:
        return {}
    if not now or not ended:
        raise StudyError(
            f"{study.study_name}: {ended} of {space.budget.trials} trials have ended; expected all of them, since "
            f"finalists are the best of a search: vqsearch resume goes on, --now takes the best of those there are"
        )
    return {"budget.trials": ended}


def begin(opened: OpenStudy) -> FrozenTrial | None:
    """Make trials of the finalists, once; called when the search itself is over and none of its trials runs.

    Returns:
        The next one that waits; None where none does.
    """
    study, space, trials = opened.study, opened.space, opened.trials()
    lacking = missing(space, trials, study.direction)
    if lacking and space.transfer is not None:
        opened.notify(
            f"the search is over: {len(lacking)} of its settings are trained at the target, "
            f"{transfer.words(space.transfer)}"
        )
    elif lacking:
        openings = records.openings(study)
        told = {Finalist(of=of, seed=seed) for each in openings for of in each.settings for seed in each.seeds}
        if new := [each for each in lacking if each not in told]:  # else by a driver that was killed below
            settings, seeds = (sorted({getattr(each, name) for each in new}) for name in ("of", "seed"))
            now = datetime.now(UTC).isoformat(timespec="seconds")
            records.add_opening(study, Opening(time=now, settings=settings, seeds=seeds))
            again = ", which was opened before" if openings else ""
            opened.notify(
                f"the search is over: {len(settings)} settings are trained again with {len(seeds)} seeds each and "
                f"judged on the test split{again}"
            )
    for each in lacking:
        study.enqueue_trial(dict(trials[each.of].params), user_attrs=records.finalist_attrs(each), skip_if_exists=False)
    trials = opened.trials() if lacking else trials
    waiting = (t for t in trials if t.state == TrialState.WAITING and records.finalist(t) is not None)
    return next(waiting, None)


def config(space: Space, labels: Mapping[str, Any], finalist: Finalist) -> TrainConfig:
    """The config of a finalist: its own seed, no rungs, and the test split measured at the last step, or the target's.

    Args:
        space: of its study.
        labels: of its parameters.
        finalist: what it is.
    """
    if finalist.at_target:
        return space.wanted(labels)
    of = space.config(labels)
    judged = dataclasses.replace(of.evaluation, test=True)
    return dataclasses.replace(of, seed=finalist.seed, rungs=(), evaluation=judged)


def last_step(space: Space, finalist: Finalist) -> int:
    """Steps of a finalist."""
    return space.transfer.target.steps if finalist.at_target and space.transfer else space.budget.steps
