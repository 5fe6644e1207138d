"""A database storage for the driver of many trials: those that it runs itself are not read again and again.

Optuna keeps finished trials in memory and reads all others for every question, since anyone might have written to them.
Of trials that run, only the driver that holds the lease writes; so what it has read stays true until it writes itself.
A thousand trials at once then cost what ten do.

It builds on the cache of Optuna 5, of which it replaces what is read from the database.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, RDBStorage, _CachedStorage
from optuna.storages._cached_storage import _StudyInfo
from optuna.storages._rdb.models import StudySystemAttributeModel
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

_ONLY: ContextVar[str | None] = ContextVar("_ONLY", default=None)


@contextlib.contextmanager
def only(prefix: str) -> Iterator[None]:
    """Let `Mirror.get_study_system_attrs` give only what begins with `prefix`.

    Optuna's dashboard keeps the notes of all trials in one dictionary, of which each one that is written reads all.
    """
    token = _ONLY.set(prefix)
    try:
        yield
    finally:
        _ONLY.reset(token)


def of(storage: BaseStorage) -> BaseStorage:
    """The same storage with a cache: a `Mirror` of a database, Optuna's own of others."""
    return Mirror(storage) if type(storage) is RDBStorage else optuna.storages.get_storage(storage)


class Mirror(_CachedStorage):
    """What a database holds, with the running trials that this process began or took up as last read or written.

    A write to one of them lets it be read anew, whether it was done or failed: so a lost answer leaves nothing untrue
    here. Trials of others are read each time. New trials of a study get ascending ids, one after the other, since
    Optuna locks the study for each.

    Args:
        backend: the database; other processes may read it, and add trials that wait.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._order = threading.RLock()  # taken before the one of the cache: no read overlaps a write
        self._ours: set[int] = set()
        self._known: set[int] = set()
        """Those of ours that have not been written to since they were read."""
        self._highest: dict[int, int] = {}
        """Study -> the highest id of its trials that was read."""

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """As Optuna's; SQLite gives the id of a study that someone has deleted, and those of its trials, once more."""
        with self._order:
            made = super().create_new_study(directions, study_name)
            self._highest.pop(made, None)
            self._known.clear()
        return made

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's."""
        made = super().create_new_trial(study_id, template_trial)
        if template_trial is None:
            with self._order:
                self._ours.add(made)
                self._known.discard(made)
        return made

    def delete_study(self, study_id: int) -> None:
        """As Optuna's."""
        with self._order:
            self._highest.pop(study_id, None)
            super().delete_study(study_id)

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """As Optuna's."""
        with self._writing(trial_id):
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's."""
        with self._writing(trial_id):
            changed = super().set_trial_state_values(trial_id, state, values)
            if state != TrialState.RUNNING:
                self._ours.discard(trial_id)
            elif changed:
                self._ours.add(trial_id)
        return changed

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """As Optuna's."""
        with self._writing(trial_id):
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._writing(trial_id):
            super().set_trial_user_attr(trial_id, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """As Optuna's."""
        with self._writing(trial_id):
            super().set_trial_system_attr(trial_id, key, value)

    @contextlib.contextmanager
    def _writing(self, trial_id: int) -> Iterator[None]:
        with self._order:
            self._known.discard(trial_id)
            yield

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """As Optuna's; a copy, since `optuna.Trial` writes into what it gets."""
        with self._order:
            if trial_id not in self._known:
                return super().get_trial(trial_id)
            study_id, number = self._trial_id_to_study_id_and_number[trial_id]
            return copy.deepcopy(self._studies[study_id].trials[number])

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """As Optuna's, or a part of it, see `only`."""
        prefix = _ONLY.get()
        if prefix is None:
            return super().get_study_system_attrs(study_id)
        model = StudySystemAttributeModel
        asked = sqlalchemy.select(model.key, model.value_json).where(
            model.study_id == study_id, model.key.startswith(prefix, autoescape=True)
        )
        with self._backend.engine.connect() as connection:
            return {key: json.loads(value) for key, value in connection.execute(asked)}

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        with self._order:
            study = self._studies.setdefault(study_id, _StudyInfo())
            trials = self._backend._get_trials(
                study_id,
                states=None,
                included_trial_ids=study.unfinished_trial_ids - self._known,
                trial_id_greater_than=self._highest.get(study_id, -1),
            )
            with self._lock:
                self._add_trials_to_cache(study_id, trials)
            for trial in trials:
                self._note(study, trial)
                self._highest[study_id] = max(trial._trial_id, self._highest.get(study_id, -1))

    def _note(self, study: _StudyInfo, trial: FrozenTrial) -> None:
        if trial.state.is_finished():
            study.unfinished_trial_ids.discard(trial._trial_id)
        else:
            study.unfinished_trial_ids.add(trial._trial_id)
        if trial.state == TrialState.RUNNING and trial._trial_id in self._ours:
            self._known.add(trial._trial_id)
