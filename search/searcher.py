"""Ray's `Searcher` over the study: asks for the next trial, tells how each one ended.

Ray asks whenever it has a free slot; the answer counts the budget in the storage, so a search may stop and go
on at any point. Only this module and `pruning` write states of trials.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search import attachments, code, finalists, parameters, records, trainer
from search.errors import SearchError
from search.parameters import settings
from search.space import violations
from search.study import Flight, OpenStudy, Outcome
from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import to_dict
from vqvae.trainers import CostsError

INVALID_PER_TRIAL = 10
"""Trials refused before training, as a multiple of the budget, after which the search gives up."""

FAILURES = 5
"""Trials of a driver that all fail, before any other has ended, after which it spends no more of the budget."""


LOST_NODES = 20
"""Nodes that a trial may lose. It is no fault of the trial's, up to the one that takes every node down with it."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """What is known of the machines where trials run.

    Attributes:
        refused: identities of nodes where no trial can run; it may grow.
        admits: whether a node was found to be as trials need it.
        gone: whether a node, "" where it is not known which, is not there any more.
    """

    refused: Sequence[str] = ()
    admits: Callable[[str], bool] = lambda _node: True
    gone: Callable[[str], bool] = lambda _node: False


NOWHERE_ELSE = Nodes()
"""Those of a search on this machine."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a worker is told to do: text and numbers only, no storage, no secret.

    Attributes:
        number: of the trial.
        study: its name, and with `root` the place of checkpoints.
        root: output root.
        checkpoint: folder to go on from, relative to the root.
        config: a TrainConfig as JSON: Ray flattens dictionaries into every result.
        gpus: share of a GPU.
        control: name of the actor that tells workers to drain.
        trainer: hash of the file and name of the function that trains; "" is ours.
        avoided: identities of nodes where it can't run.
    """

    number: int
    study: str
    root: str
    checkpoint: str | None
    config: str
    gpus: float
    control: str
    trainer: str = ""
    avoided: tuple[str, ...] = ()


class StudySearcher(Searcher):
    """Hands out the trials of a study.

    Args:
        opened: the study; left out when Ray pickles its experiment, so that no URL gets into the output root.
        capacity: trials that the cluster can run at once, now.
        measure: quantities known before training (parameters, bits_per_image, tokens) of a config.
        control: name of the actor that tells workers to drain.
        nodes: where trials run.
    """

    def __init__(
        self,
        opened: OpenStudy,
        capacity: Callable[[], int],
        measure: Callable[[TrainConfig], Mapping[str, float]],
        control: str,
        nodes: Nodes = NOWHERE_ELSE,
    ) -> None:
        super().__init__(metric=None, mode=None)  # Ray would insist on the metric in every light report.
        self.opened = opened
        self._capacity = capacity
        self._measure = measure
        self._control = control
        self._nodes = nodes
        self._stop_asking = False
        self._failures: int | None = 0  # None once a trial has ended otherwise
        self.paused = False
        """Whether Ray was told that nothing will come because the driver pauses."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial, None while there is nothing to start now, FINISHED when nothing will come any more."""
        opened = self.opened
        self.require_sound()
        if self._failures is not None and self._failures >= FAILURES:
            raise SearchError(
                f"{opened.study.study_name}: the first {self._failures} trials of this run all failed, which is no "
                "matter of their settings; the other ones are left alone: status says why they failed, resume goes on "
                "when that is mended"
            )
        if opened.paused is not None and not opened.draining:
            self.paused = not opened.flights
            return None if opened.flights else self.FINISHED
        self.paused = False
        capacity = self._capacity()
        if opened.flights and len(opened.flights) >= capacity:
            return None  # Asked ten times a second: the storage is read only when there is room.
        over = self._over()
        waiting = self._next_finalist() if over else None
        if over and waiting is None:
            return None if opened.flights else self.FINISHED
        if len(opened.flights) >= capacity:
            return None
        flight = self._take_off() if waiting is None else self._take_up(waiting)
        if flight is None:
            self._stop_asking = True
            return None if opened.flights else self.FINISHED
        opened.flights[trial_id] = flight
        return asdict(self._assignment(flight))

    def require_sound(self) -> None:
        """Make sure that nothing has gone wrong, and that no other driver has taken over.

        Raises:
            VqsearchError: it has.
        """
        if self.opened.failure is not None:
            raise self.opened.failure
        self.opened.lease.check()

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Points are written by the scheduler, which Ray calls first."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002
        """Tell the study how the trial ended."""
        opened, flight = self.opened, self.opened.flights.get(trial_id)
        if flight is None:
            return
        try:
            opened.lease.check()
            outcome = flight.outcome or _lost(opened, flight, self._nodes)
            tell(opened, flight, outcome)
            opened.ended(flight, outcome)
        except Exception as error:  # noqa: BLE001 - Ray would swallow it: the trial would stay RUNNING for ever
            opened.failure = error
        else:
            del opened.flights[trial_id]
            self._learn(flight.outcome)

    def _learn(self, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.state == TrialState.FAIL and self._failures is not None:
            self._failures += 1
        elif outcome is not None and outcome.state != TrialState.WAITING:
            self._failures = None

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study in the storage is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the study in the storage is the only state."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def _over(self) -> bool:
        opened = self.opened
        if opened.draining or self._stop_asking:
            return True
        finished = sum(records.counts(trial) for trial in opened.trials())
        searching = sum(flight.finalist is None for flight in opened.flights.values())
        if finished + searching >= opened.space.budget.trials:
            return True
        hours = opened.space.budget.hours
        if hours is None or opened.hours() < hours:
            return False
        self._stop_asking = True
        opened.notify(f"the budget of {hours:g} h is spent: running trials finish, no other one starts")
        return True

    def _take_off(self) -> Flight | None:
        """The next trial that keeps the limits; None when too many did not."""
        opened = self.opened
        most = INVALID_PER_TRIAL * opened.space.budget.trials
        while sum(records.is_invalid(trial) for trial in opened.trials()) < most:
            flight = self._flight(opened.study.ask())
            violated = None if flight.finalist else self._violations(flight)
            if not violated:
                return flight
            records.set_invalid(flight.trial)
            tell(opened, flight, violated)
        opened.notify(f"{most} trials broke a limit before any training; the search ends: widen constraints or search")
        return None

    def _next_finalist(self) -> FrozenTrial | None:
        """A finalist that waits; None while trials of the search run, and where there is none."""
        opened = self.opened
        running = any(flight.finalist is None for flight in opened.flights.values())
        return None if finalists.wanted(opened.space) is None or opened.draining or running else finalists.begin(opened)

    def _take_up(self, waiting: FrozenTrial) -> Flight:
        """A waiting trial of one's choice, where `ask` would take the first one."""
        study = self.opened.study
        study._storage.set_trial_state_values(waiting._trial_id, state=TrialState.RUNNING)
        return self._flight(optuna.Trial(study, waiting._trial_id))

    def _flight(self, trial: optuna.Trial) -> Flight:
        known = self.opened.frozen(trial)
        return Flight(
            trial=trial,
            labels=parameters.suggest(self.opened.space.parameters, trial),
            started=time.monotonic(),
            before=records.seconds(known),
            finalist=records.finalist(known),
        )

    def _violations(self, flight: Flight) -> Outcome | None:
        try:
            self.opened.space.config(flight.labels)
            quantities = self._measure(self.opened.space.wanted(flight.labels))
        except (ConfigError, CostsError) as error:
            return Outcome(state=TrialState.PRUNED, reason=str(error), constraints={"valid": 1.0})
        broken = violations(self.opened.space.constraints, quantities)
        if not broken:
            return None
        return Outcome(state=TrialState.PRUNED, reason=_limits(broken, quantities), constraints=broken)

    def _assignment(self, flight: Flight) -> Assignment:
        opened = self.opened
        frozen: FrozenTrial = opened.frozen(flight.trial)
        checkpoint = records.checkpoint(frozen)
        flight.step = checkpoint.step if checkpoint else 0
        verb = f"goes on at step {flight.step}" if checkpoint else "starts"
        if flight.finalist is not None:
            whose = f"trial {flight.finalist.of}"
            verb += (
                f" as {whose} at the target"
                if flight.finalist.at_target
                else (f" as a finalist, {whose} with seed {flight.finalist.seed}")
            )
        opened.notify(f"trial {frozen.number} {verb}: {settings(flight.labels)}")
        attachments.note_trial(opened.study, opened.space, flight.trial)
        held = code.versions(opened.space.plugins)
        if records.code(frozen) != held:
            records.set_code(flight.trial, held)
        config = opened.space.config(flight.labels)
        if flight.finalist is not None:
            config = finalists.config(opened.space, flight.labels, flight.finalist)
        if not opened.space.resources.gpus and config.device == "auto":
            # A trial that asked for no GPU must not take one that Ray believes to be free.
            config = dataclasses.replace(config, device="cpu")
        return Assignment(
            number=frozen.number,
            study=opened.study.study_name,
            root=opened.output,
            checkpoint=checkpoint.folder if checkpoint else None,
            config=json.dumps(to_dict(config)),
            gpus=opened.space.resources.gpus,
            control=self._control,
            trainer=":".join(trainer.meaning(opened.space) or ()),
            avoided=tuple(self._nodes.refused),
        )


def tell(opened: OpenStudy, flight: Flight, outcome: Outcome) -> None:
    """Write how a trial ended: time, reason and note first, the state last."""
    trial, number = flight.trial, flight.trial.number
    opened.spend()
    records.set_seconds(trial, flight.before + time.monotonic() - flight.started)
    if outcome.state == TrialState.WAITING:
        opened.put_back(trial)
        opened.notify(f"trial {number} is handed back at step {flight.step}{_because(outcome)}")
        return
    written = opened.frozen(trial).constraints  # by a driver that died before the state
    for name, value in outcome.constraints.items():
        if name not in written:
            trial.set_constraint(name, value)
    records.set_metrics(trial, flight.metrics)
    if outcome.reason:
        records.set_reason(trial, outcome.reason)
    attachments.note_trial(opened.study, opened.space, trial, outcome.state)
    metric = opened.space.objective.metric
    if outcome.state == TrialState.COMPLETE:
        opened.study.tell(trial, flight.metrics[metric])
        opened.notify(f"trial {number} is complete: {metric} {flight.metrics[metric]:.5g}")
    else:
        opened.study.tell(trial, state=outcome.state)
        verb = "failed" if outcome.state == TrialState.FAIL else "is pruned"
        opened.notify(f"trial {number} {verb} at step {flight.step}{_because(outcome)}")
    opened.keeper.let_go(opened.trials())


def _lost(opened: OpenStudy, flight: Flight, nodes: Nodes) -> Outcome:
    """A trial whose worker ended without a word: it goes on elsewhere, up to `retries` times if its node is there."""
    known = opened.frozen(flight.trial)
    if nodes.gone(flight.node):
        lost = records.lost_nodes(known) + 1
        if lost > LOST_NODES:
            return Outcome(state=TrialState.FAIL, reason=f"lost its node {lost} times")
        records.set_lost_nodes(flight.trial, lost)
        return Outcome(state=TrialState.WAITING, reason="its node was lost")
    retries = records.retries(known)
    if retries >= opened.space.retries:
        return Outcome(state=TrialState.FAIL, reason=f"lost its worker {retries + 1} times")
    records.set_retries(flight.trial, retries + 1)
    return Outcome(state=TrialState.WAITING, reason="its worker was lost")


def _because(outcome: Outcome) -> str:
    lines = outcome.reason.strip().splitlines()
    return f": {lines[-1]}" if lines else ""


def _limits(broken: Mapping[str, float], quantities: Mapping[str, float]) -> str:
    return ", ".join(f"{name} is {quantities[name]:,.6g}" for name in broken) + ": outside constraints"
