"""Steering by hand, the driver's side: it looks for what people ask of it, acts, and writes what came of it.

A request is an attribute of the study that the driver's lease is (`search.lease`), under a name of its own, so that two
people never overwrite one another. It goes when the lease goes: what was asked of a driver that died never reaches the
next one, and who still waits for the answer asks again (`search.asking`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search import lease, records
from search.catalog import trial_of
from search.cluster import Control
from search.lease import Lease
from search.records import Request
from search.study import OpenStudy

POLL_S = 1.0
"""Wall seconds between two looks at the requests."""


class Steering:
    """The driver's side: looks for requests when it is called, once a second at most, and acts.

    Who asks the driver of several studies to stop, to pause or to go on asks it for all of them.

    Args:
        studies: what the driver runs.
        control: tells workers to drain.
    """

    def __init__(self, studies: Sequence[OpenStudy], control: Control) -> None:
        self._studies = studies
        self._control = control
        self._looked = float("-inf")
        self._pausing: set[str] = set()
        self.stopped = False
        """Whether someone asked the driver to stop."""

    def __call__(self) -> None:
        """Act on what is asked; called in the thread that writes to the studies."""
        if time.monotonic() - self._looked < POLL_S:
            return
        if self._flying and (self._draining or self._paused):
            self._control.drain()  # An actor that was started again does not know that it was told before.
        for opened in self._studies:
            self._look(opened)
        self._looked = time.monotonic()

    def wait(self) -> bool:
        """Wait for the end of a pause.

        Returns:
            Whether the search goes on; else it ends.

        Raises:
            LeaseError: another driver has taken over.
        """
        while self._paused and not self._draining:
            for opened in self._studies:
                opened.lease.check()
            self()
            time.sleep(0.1)
        return not self._draining

    def drain(self) -> None:
        """No trial starts any more, and those that run are handed back."""
        for opened in self._studies:
            opened.draining = True
        self._control.drain()

    @property
    def _draining(self) -> bool:
        return any(opened.draining for opened in self._studies)

    @property
    def _paused(self) -> bool:
        return any(opened.paused is not None for opened in self._studies)

    @property
    def _flying(self) -> bool:
        return any(opened.flights for opened in self._studies)

    def _look(self, opened: OpenStudy) -> None:
        storage = opened.study._storage
        try:
            asked = lease.study_of(storage, opened.study.study_name, opened.lease.number)
            requests = records.requests(storage.get_study_user_attrs(asked))
        except KeyError:
            return  # Without its lease the driver ends by itself.
        for request in requests:
            if not request.answer and (answer := self._act(request, opened)):
                records.set_request(storage, asked, dataclasses.replace(request, **answer))

    def _act(self, request: Request, opened: OpenStudy) -> dict[str, Any]:
        """What came of a request; nothing while it is under way."""
        if request.kind == "prune":
            return _prune(opened, request.trial)
        if request.kind == "stop":
            return self._stop()
        if request.kind == "pause":
            return self._pause(request.key)
        if request.kind == "go on":
            return self._go_on()
        return _refused(f"this driver knows no request {request.kind!r}")

    def _stop(self) -> dict[str, Any]:
        self.stopped = True
        if not self._draining:
            self._studies[0].notify("vqsearch stop: running trials save a checkpoint and stop")
            self.drain()
        return _done("running trials save a checkpoint and stop")

    def _pause(self, key: str) -> dict[str, Any]:
        if self._draining:
            return _refused("the driver is stopping")
        if not self._paused:
            if key in self._pausing:
                return _refused("the search was told to go on before all of its trials were handed back")
            for opened in self._studies:
                opened.paused = time.monotonic()
            self._control.drain()
            self._tell_others(paused=True)
            self._studies[0].notify("vqsearch pause: running trials save a checkpoint; vqsearch resume goes on")
        self._pausing.add(key)
        return {} if self._flying else _done("paused: no trial runs, and those that ran wait with their checkpoints")

    def _go_on(self) -> dict[str, Any]:
        if self._draining:
            return _refused("the driver is stopping")
        if self._paused:
            self._control.go_on()
            self._tell_others(paused=False)
            for opened in self._studies:
                opened.go_on()
            self._studies[0].notify("vqsearch resume: the search goes on")
        return _done("the search goes on")

    def _tell_others(self, paused: bool) -> None:
        """Write to every lease whether its driver pauses, for those who look at its study."""
        for opened in self._studies:
            storage = opened.study._storage
            with contextlib.suppress(KeyError):  # Without its lease the driver ends by itself.
                held = lease.study_of(storage, opened.study.study_name, opened.lease.number)
                storage.set_study_user_attr(held, records.PAUSED, paused)


def _prune(opened: OpenStudy, number: int) -> dict[str, Any]:
    flight = next((f for f in opened.flights.values() if f.trial.number == number), None)
    if flight is not None:
        flight.unwanted = True
        return {}
    trial = trial_of(opened.study, number)
    if not trial.state.is_finished():
        prune_at_rest(opened.study, opened.lease, trial)
        opened.notify(f"trial {number} is pruned while it waits: {records.BY_HAND}")
        opened.keeper.let_go(opened.trials())
    elif records.reason(trial) != records.BY_HAND:
        return _refused(is_finished(trial))
    return _done(f"trial {number} is pruned at step {step_of(trial)}")


def prune_at_rest(study: optuna.Study, held: Lease, trial: FrozenTrial) -> None:
    """PRUNED for a trial that no worker trains: one that waits, or one that a killed driver left."""
    held.check()
    storage = study._storage
    if trial.state == TrialState.WAITING:
        storage.set_trial_state_values(trial._trial_id, state=TrialState.RUNNING)  # Only such a trial can be told.
    checkpoint = records.checkpoint(trial)
    for name, value in (checkpoint.metrics if checkpoint else {}).items():
        storage.set_trial_user_attr(trial._trial_id, name, value)
    storage.set_trial_user_attr(trial._trial_id, records.REASON, records.BY_HAND)
    study.tell(trial.number, state=TrialState.PRUNED)


def step_of(trial: FrozenTrial) -> int:
    """The last step that the study knows of."""
    checkpoint = records.checkpoint(trial)
    return max(trial.last_step or 0, checkpoint.step if checkpoint else 0)


def is_finished(trial: FrozenTrial) -> str:
    """Why a trial can't be pruned any more."""
    words = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    return f"trial {trial.number} is {words[trial.state]} already; only one that runs or waits can be pruned"


def _done(answer: str) -> dict[str, Any]:
    return {"answer": answer}


def _refused(answer: str) -> dict[str, Any]:
    return {"answer": answer, "refused": True}
