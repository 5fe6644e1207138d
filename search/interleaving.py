"""Several studies in one run of Ray: the one that is furthest behind gets the next trial.

So arms of a comparison advance together: when the run is cut off, or its hours are spent, each has had its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optuna.trial import TrialState
from ray.tune.search import Searcher

from search import records
from search.searcher import StudySearcher


class Interleaved(Searcher):
    """Hands out the trials of several studies.

    Args:
        arms: a searcher for each; their capacities are what the other ones leave, see `left_by`.
        capacity: trials that the cluster can run at once, now.
        steer: does what people ask of this driver; called whenever Ray asks for a trial, ten times a second or so.
    """

    def __init__(
        self, arms: Sequence[StudySearcher], capacity: Callable[[], int], steer: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(metric=None, mode=None)  # Ray would insist on the metric in every light report.
        self._going = list(arms)
        self._arms = tuple(arms)
        self._capacity = capacity
        self._steer = steer
        self._of: dict[str, StudySearcher] = {}

    @property
    def paused(self) -> bool:
        """Whether Ray was told that nothing will come because the driver pauses."""
        return any(arm.paused for arm in self._going)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial, None while there is nothing to start now, FINISHED when nothing will come any more."""
        for arm in self._arms:
            arm.require_sound()
        self._steer()
        flying = sum(len(arm.opened.flights) for arm in self._arms)
        if flying and flying >= self._capacity():
            return None  # Asked ten times a second: the storage is read only when there is room.
        ended = []
        for arm in sorted(self._going, key=_progress) if len(self._going) > 1 else self._going:
            answer = arm.suggest(trial_id)
            if isinstance(answer, dict):
                self._of[trial_id] = arm
                return answer
            ended += [arm] if answer == self.FINISHED else []
        if len(ended) == len(self._going):
            return self.FINISHED
        self._going = [arm for arm in self._going if arm not in ended or arm.paused]
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Points are written by the scheduler, which Ray calls first."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study of the trial how it ended."""
        if (arm := self._of.pop(trial_id, None)) is not None:
            arm.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the studies in the storage are the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the studies in the storage are the only state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _progress(arm: StudySearcher) -> tuple[float, int]:
    """The part of its budget that an arm has spent or is spending, and of how many finalists."""
    opened, trials = arm.opened, arm.opened.trials()
    searching = sum(flight.finalist is None for flight in opened.flights.values())
    judged = sum(t.state != TrialState.WAITING and records.finalist(t) is not None for t in trials)
    return (sum(map(records.counts, trials)) + searching) / opened.space.budget.trials, judged
