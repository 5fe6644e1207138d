"""A storage that goes away in the middle of a search is waited for, while the trials go on training.

A driver's every call to its storage passes here; readers have no patience, and fail at once. Two things make waiting
more than a loop:

- **A write whose answer was lost may have been done.** Most writes can be repeated, since they set something to a
  value. For the others the storage is asked first, knowing that of all drivers only this one holds the lease.
- **While we were silent another driver may have taken over**, if it was our network that was away and not the
  server. So the lease is looked at before anything is written again (`Patient.returned`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search import mirror
from search.errors import SearchError, StorageError

WAIT_S = 600.0
FIRST_S = 0.5
LONGEST_S = 15.0

Answer = TypeVar("Answer")


def is_away(error: BaseException) -> bool:
    """Whether an error says that a storage does not answer, and nothing of what it was asked."""
    for found in (error, error.__cause__):
        if isinstance(found, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError | OSError):
            return True
        if isinstance(found, sqlalchemy.exc.DBAPIError) and found.connection_invalidated:
            return True
    return False


def _passed_on(name: str) -> Any:
    """A method that may be repeated: it reads, or sets something to a value."""

    def call(self: Patient, *arguments: Any, **options: Any) -> Any:
        method = getattr(self.inner, name)
        return self._ask(lambda: method(*arguments, **options))

    return call


class Patient(BaseStorage):
    """A storage that is waited for.

    Only the thread that made it waits: the ones that watch and the one that beats try again by themselves.

    Args:
        inner: the storage.
        tell: takes a line for people: when the storage goes away, and when it is back.
        wait_s: seconds of silence after which the search ends.

    Attributes:
        inner: the storage, with a cache of trials, see `search.mirror`.
        returned: each is called once the storage may be back, before anything is tried again.

    Every method raises:
        SearchError: the storage stayed away; from then on nothing is waited for any more.
        StorageError: it is away, and this thread is not the one that waits.
    """

    def __init__(self, inner: BaseStorage, tell: Callable[[str], None], wait_s: float = WAIT_S) -> None:
        self.inner = mirror.of(inner)
        self.returned: list[Callable[[], None]] = []
        self._tell = tell
        self._wait_s = wait_s
        self._waits = threading.get_ident()
        self._given_up = False
        self._taken: set[int] = set()

    set_study_user_attr = _passed_on("set_study_user_attr")
    set_study_system_attr = _passed_on("set_study_system_attr")
    get_study_id_from_name = _passed_on("get_study_id_from_name")
    get_study_name_from_id = _passed_on("get_study_name_from_id")
    get_study_directions = _passed_on("get_study_directions")
    get_study_user_attrs = _passed_on("get_study_user_attrs")
    get_study_system_attrs = _passed_on("get_study_system_attrs")
    get_all_studies = _passed_on("get_all_studies")
    set_trial_param = _passed_on("set_trial_param")
    set_trial_intermediate_value = _passed_on("set_trial_intermediate_value")
    set_trial_user_attr = _passed_on("set_trial_user_attr")
    set_trial_system_attr = _passed_on("set_trial_system_attr")
    get_trial = _passed_on("get_trial")
    get_all_trials = _passed_on("get_all_trials")
    get_best_trial = _passed_on("get_best_trial")
    get_trial_id_from_study_id_trial_number = _passed_on("get_trial_id_from_study_id_trial_number")
    remove_session = _passed_on("remove_session")

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """As Optuna's; of a name that a lost answer may have made ours, `DuplicatedStudyError` says it is taken."""
        return self._ask(lambda: self.inner.create_new_study(directions, study_name))

    def delete_study(self, study_id: int) -> None:
        """As Optuna's."""

        def again() -> None:
            try:
                self.inner.delete_study(study_id)
            except KeyError:
                return

        self._ask(lambda: self.inner.delete_study(study_id), again)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """As Optuna's; nobody but the driver makes trials that run, so one that it does not know is its own."""

        known: set[int] = set()
        if template_trial is not None:
            known = {trial._trial_id for trial in self.get_all_trials(study_id, deepcopy=False)}

        def stray() -> list[int]:
            running = self.inner.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
            return [trial._trial_id for trial in running if trial._trial_id not in self._taken]

        def again() -> int:
            if template_trial is None:
                found = stray()
            else:
                new = (t for t in self.inner.get_all_trials(study_id, deepcopy=False) if t._trial_id not in known)
                found = [t._trial_id for t in new if _alike(t, template_trial)]
            return found[0] if found else self.inner.create_new_trial(study_id, template_trial)

        made = self._ask(lambda: self.inner.create_new_trial(study_id, template_trial), again)
        if template_trial is None:
            self._taken.add(made)
            for trial in self._ask(stray):  # Optuna repeats by itself what failed, be it done or not.
                self.set_trial_state_values(trial, TrialState.WAITING)
        return made

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """As Optuna's; a trial that has the state already got it from the call that was not answered."""

        def again() -> bool:
            try:
                changed = self.inner.set_trial_state_values(trial_id, state, values)
            except UpdateFinishedTrialError:
                if self.inner.get_trial(trial_id).state != state:
                    raise
                return True
            return changed or self.inner.get_trial(trial_id).state == state

        changed = self._ask(lambda: self.inner.set_trial_state_values(trial_id, state, values), again)
        if state == TrialState.RUNNING and changed:
            self._taken.add(trial_id)
        elif state != TrialState.RUNNING:
            self._taken.discard(trial_id)
        return changed

    def _ask(self, first: Callable[[], Answer], again: Callable[[], Answer] | None = None) -> Answer:
        """Call `first`, and where the storage was away `again` (the same, unless given) until it answers."""
        try:
            return first()
        except Exception as error:
            if not is_away(error):
                raise
            cause = error
        if self._given_up or threading.get_ident() != self._waits:
            raise (SearchError if self._given_up else StorageError)(f"the storage does not answer: {words(cause)}")
        self._tell(
            f"the storage does not answer; it is waited for up to {self._wait_s / 60:g} min, "
            f"and trials go on training: {words(cause)}"
        )
        try:
            return self._wait(again or first, cause)
        except (SearchError, KeyboardInterrupt):
            self._given_up = True  # on the way out nothing is waited for once more
            raise

    def _wait(self, again: Callable[[], Answer], cause: Exception) -> Answer:
        since, pause = time.monotonic(), FIRST_S
        while (left := since + self._wait_s - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_S)
            try:
                for confirm in tuple(self.returned):
                    confirm()
                answer = again()
            except Exception as error:
                if not is_away(error):
                    raise
                cause = error
            else:
                self._tell(f"the storage is back after {time.monotonic() - since:.0f} s; nothing is lost")
                return answer
        raise SearchError(
            f"the storage has not answered for {self._wait_s / 60:g} min, so the search ends; nothing is lost, "
            f"and it goes on with: vqsearch resume ({words(cause)})"
        )


def _alike(trial: FrozenTrial, template: FrozenTrial) -> bool:
    parts = ("state", "params", "values", "system_attrs", "intermediate_values")
    return all(getattr(trial, part) == getattr(template, part) for part in parts)


def words(error: BaseException) -> str:
    """The first line of what a storage's driver said, without the statement that it was sent."""
    for found in (error.__cause__, error):
        if isinstance(found, sqlalchemy.exc.DBAPIError):
            error = found.orig or found
            break
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
