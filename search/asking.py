"""Steering by hand, the people's side: ask the driver of a study, from any machine that reaches the storage.

The driver answers within a second or two (`search.steering`). What a driver is not needed for is done here: a trial can
wait for the next one, and where none runs it can be pruned.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage

from search import lease, parameters, records, space, yaml12
from search.catalog import trial_of
from search.errors import LeaseError, SpaceError, StudyError
from search.lease import Holder, Lease
from search.records import Request
from search.space import Space
from search.steering import is_finished, prune_at_rest, step_of

WAIT_S = 0.5
"""Wall seconds between two looks for an answer."""


def request(storage: BaseStorage, name: str, holder: Holder, kind: str, trial: int = -1) -> str:
    """Ask something of the driver of a study.

    Args:
        storage: where the study is.
        name: its name.
        holder: the driver.
        kind, trial: as in `records.Request`.

    Returns:
        The key of the request, for `answer`.

    Raises:
        KeyError: the driver has ended.
    """
    key = f"{records.REQUEST}{uuid.uuid4().hex}"
    asked = Request(key=key, kind=kind, trial=trial, time=time.time())
    records.set_request(storage, lease.study_of(storage, name, holder.number), asked)
    return key


def answer(storage: BaseStorage, name: str, holder: Holder, key: str) -> Request | None:
    """Wait for what came of a request.

    Returns:
        The request with its answer; None where the driver ended before it gave one.
    """
    while True:
        try:
            attributes = storage.get_study_user_attrs(lease.study_of(storage, name, holder.number))
        except KeyError:
            return None
        asked = next(r for r in records.requests(attributes) if r.key == key)
        if asked.answer:
            return asked
        if not runs(storage, name, holder):
            return None
        time.sleep(WAIT_S)


def ask(storage: BaseStorage, name: str, holder: Holder, kind: str, trial: int = -1) -> str | None:
    """Ask something of the driver of a study and wait for what came of it.

    Returns:
        What came of it, None where the driver ended before it said.

    Raises:
        StudyError: the driver could not do it.
    """
    try:
        key = request(storage, name, holder, kind, trial)
    except KeyError:
        return None
    answered = answer(storage, name, holder, key)
    if answered is not None and answered.refused:
        raise StudyError(f"{name}: {answered.answer}")
    return None if answered is None else answered.answer


def runs(storage: BaseStorage, name: str, holder: Holder) -> bool:
    """Whether a driver still runs its study."""
    now = lease.driver(storage, name)
    return now is not None and now.number == holder.number


def running(storage: BaseStorage, name: str, shown: str = "") -> Holder:
    """The driver that runs a study.

    Args:
        storage: where it is.
        name: its name.
        shown: that of the comparison, where people asked for one.

    Raises:
        StudyError: none does.
    """
    holder = lease.driver(storage, name)
    if holder is None:
        shown = shown or name
        raise StudyError(f"{shown}: no driver runs this study; vqsearch resume --study {shown} starts one")
    return holder


def prune(study: optuna.Study, number: int) -> str:
    """Prune a trial: the driver does, or this process where none runs, holding the lease meanwhile.

    Returns:
        What came of it.

    Raises:
        StudyError: no such trial, or it is finished.
    """
    storage, name = study._storage, study.study_name
    while True:
        trial = trial_of(study, number)
        if trial.state.is_finished():
            raise StudyError(f"{name}: {is_finished(trial)}")
        holder = lease.driver(storage, name)
        if holder is None:
            try:
                held = Lease(storage, name)
            except LeaseError:
                continue  # A driver has started in between; ask it.
            try:
                trial = trial_of(study, number)
                if not trial.state.is_finished():
                    prune_at_rest(study, held, trial)
                    return f"trial {number} is pruned at step {step_of(trial)}"
            finally:
                held.release()
        elif told := ask(storage, name, holder, "prune", number):
            return told


def go_on(storage: BaseStorage, name: str, changes: bool) -> str | None:
    """End the pause of a driver.

    Args:
        storage: where the study is.
        name: its name.
        changes: whether the study is to change on the way, which a driver that lives can't do.

    Returns:
        What came of it; None where no driver pauses.

    Raises:
        StudyError: changes are asked for.
    """
    holder = lease.driver(storage, name)
    if holder is None or not holder.paused:
        return None
    if changes:
        raise StudyError(
            f"{name}: process {holder.pid} on {holder.host} pauses, and goes on as it was started; to change the "
            f"search: vqsearch stop --study {name}, then resume"
        )
    return ask(storage, name, holder, "go on")


def settings(wanted: Space, assignments: Sequence[str]) -> dict[str, Any]:
    """Read FIELD=VALUE of a command line as a baseline of the space is read.

    Returns:
        Dotted field -> label, as the study stores it.

    Raises:
        SpaceError: no such form, a field that is not searched, or a value out of its range.
    """
    values: dict[str, Any] = {}
    flags: dict[yaml12.Path, str] = {}
    for text in assignments:
        name, value = space.assignment(text, "enqueue")
        if name in values:
            raise SpaceError(f"enqueue {text}", "", f"{name} is given twice")
        values[name], flags[(name,)] = value, f"enqueue {text}"
    document = yaml12.Document(name="enqueue", value=values, flags=flags)
    return parameters.parse_baseline(values, wanted.parameters, document)


def enqueue(study: optuna.Study, labels: dict[str, Any]) -> int:
    """Let a trial with some of its parameters given wait for the driver; the sampler chooses the others.

    Returns:
        The trial's number.
    """
    mark = uuid.uuid4().hex
    study.enqueue_trial(labels, user_attrs={records.ENQUEUED: mark}, skip_if_exists=False)
    waiting = reversed(study.get_trials(deepcopy=False))
    return next(trial.number for trial in waiting if trial.user_attrs.get(records.ENQUEUED) == mark)


def room(study: optuna.Study, wanted: Space) -> int:
    """Trials of the budget that are neither finished nor taken by those that run and wait; below 0 if too many are."""
    trials = study.get_trials(deepcopy=False)
    return wanted.budget.trials - sum(records.counts(t) or not t.state.is_finished() for t in trials)
