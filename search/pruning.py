"""Ray's `TrialScheduler` over the study: writes every point, and stops what is not worth going on.

The order of writes is checkpoint (with it what lies there), point, decision, state: after a kill between any two of
them the study still says where to go on. A rung's decision depends on the points in the storage alone, so it can be
made again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search import attachments, finalists, records
from search.errors import SearchError, UserError
from search.searcher import NOWHERE_ELSE, Nodes
from search.space import Space, violations
from search.study import Flight, OpenStudy, Outcome


class RungPruner(BasePruner):
    """Asynchronous successive halving (ASHA, Li et al. 2020) at fixed rungs.

    A trial goes on if its value at the rung is among the best 1 / reduction_factor of all values there so far
    (the best one always goes on). Optuna's SuccessiveHalvingPruner decides alike, but keeps its rungs in
    hidden attributes which it writes before anyone acts on them, so that a killed driver could not ask again.

    Args:
        rungs: steps at which trials are compared.
        reduction_factor: one trial in so many goes on.
    """

    def __init__(self, rungs: Sequence[int], reduction_factor: int) -> None:
        self._rungs = frozenset(rungs)
        self._reduction_factor = reduction_factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether the trial is to stop at the rung of its last point; False between rungs."""
        step = trial.last_step
        if step is None or step not in self._rungs:
            return False
        sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
        values = {
            other.number: sign * other.intermediate_values[step]
            for other in study.get_trials(deepcopy=False)
            if step in other.intermediate_values and records.finalist(other) is None
        } | {trial.number: sign * trial.intermediate_values[step]}
        ranked = sorted(values.values())
        last_to_go_on = max(len(ranked) // self._reduction_factor, 1) - 1
        return values[trial.number] > ranked[last_to_go_on]


def build(space: Space) -> BasePruner:
    """The pruner of a space."""
    if space.pruner.kind == "asha":
        return RungPruner(space.rungs, space.pruner.reduction_factor)
    return MedianPruner() if space.pruner.kind == "median" else NopPruner()


class StudyScheduler(FIFOScheduler):
    """Reports to the study of a trial and asks its pruner.

    Args:
        studies: left out when Ray pickles its experiment.
        nodes: where trials run.
    """

    def __init__(self, studies: Sequence[OpenStudy], nodes: Nodes = NOWHERE_ELSE) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._studies = studies
        self._nodes = nodes

    def on_trial_result(self, _controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Write what the worker reported; stop the trial once it is clear how it ends."""
        opened = next((each for each in self._studies if trial.trial_id in each.flights), None)
        if opened is None or (flight := opened.flights[trial.trial_id]).outcome is not None:
            return str(TrialScheduler.STOP)
        opened.lease.check()
        flight.node = result["node"]
        if result["ended"] == "unusable" and not self._nodes.admits(flight.node):
            # It came there before the node was looked at. Whatever is missing there, other nodes have it.
            flight.outcome = Outcome(state=TrialState.WAITING, reason=result["reason"])
        elif result["began"]:
            return str(TrialScheduler.CONTINUE)
        else:
            flight.outcome = take(opened, flight, result)
        return str(TrialScheduler.STOP if flight.outcome else TrialScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def take(opened: OpenStudy, flight: Flight, report: dict[str, Any]) -> Outcome | None:
    """Write one report of a worker.

    Args:
        opened: the study.
        flight: the trial.
        report: as `search.trainable.Reporter` sends it.

    Returns:
        How the trial ends, None if it goes on.

    Raises:
        UserError: the trial can't run here (images, weights or checkpoints are missing); no other one could.
        SearchError: the trainer skipped a rung, so that trials could not be compared.
    """
    if report["ended"] == "unusable":
        raise UserError(
            f"trial {flight.trial.number} can't run: {report['reason']}; once that is mended, vqsearch resume --study "
            f"{opened.study.study_name} goes on"
        )
    if report["ended"] not in ("", "stopped"):
        return _ended(report["ended"], report["reason"])
    trial, step = flight.trial, int(report["step"])
    metrics = {name: float(value) for name, value in report["metrics"]}
    flight.step, flight.metrics = step, flight.metrics | metrics
    opened.reported(flight, metrics)
    if report["checkpoint"]:
        held_out = {name: value for name, value in flight.metrics.items() if not name.startswith("train/")}
        known = opened.frozen(trial)
        before = records.checkpoint(known)
        record = records.CheckpointRecord(
            step=step, folder=report["checkpoint"], metrics=held_out, time=round(time.time(), 2)
        )
        records.set_checkpoint(trial, record)
        _write_what_lies_there(opened, trial, known, record, report)
        if before is not None and before.folder != record.folder:
            opened.keeper.replace(before.folder)
    outcome = _evaluated(opened, flight, step, metrics) if report["evaluated"] else None
    if outcome is None and flight.unwanted:
        return Outcome(state=TrialState.PRUNED, reason=records.BY_HAND)
    if outcome is None and report["ended"] == "stopped":
        return Outcome(state=TrialState.WAITING)
    return outcome


def _write_what_lies_there(
    opened: OpenStudy,
    trial: optuna.Trial,
    known: FrozenTrial,
    checkpoint: records.CheckpointRecord,
    report: dict[str, Any],
) -> None:
    """Write which pictures lie with a checkpoint, what trained it and on how many images, unless that is known.

    A resumed trial reports its last evaluation again.
    """
    step, folder, before = checkpoint.step, checkpoint.folder, records.pictures(known)
    here = [records.Picture(step=step, name=name, folder=folder) for name in report["pictures"]]
    if any(picture not in before for picture in here):
        records.set_pictures(trial, [picture for picture in before if picture.step != step] + here)
    attachments.attach(opened.study, trial, here)
    if report["device"] not in ("", records.device(known)):
        records.set_device(trial, report["device"])
    if report["sizes"] and not records.sizes(opened.study):
        records.set_sizes(opened.study, dict(report["sizes"]))
        attachments.note_study(opened.study, opened.space)


def _ended(how: str, reason: str) -> Outcome:
    if how == "diverged":
        # Without the constraint TPE takes a trial that diverged late for a good one: it got far.
        return Outcome(state=TrialState.PRUNED, reason=reason, constraints={"diverged": 1.0})
    if how == "out of memory":
        return Outcome(state=TrialState.PRUNED, reason=reason, constraints={"memory": 1.0})
    return Outcome(state=TrialState.FAIL, reason=reason)


def _evaluated(opened: OpenStudy, flight: Flight, step: int, metrics: dict[str, float]) -> Outcome | None:
    space, trial = opened.space, flight.trial
    metric = space.objective.metric
    if metric not in metrics:
        raise SearchError(f"trial {trial.number}: the trainer did not measure {metric}, the objective, at step {step}")
    if not math.isfinite(metrics[metric]):
        return _ended("diverged", f"{metric} became {metrics[metric]} at step {step}")
    known = opened.frozen(trial)
    if flight.finalist is not None:
        return _judged(opened, flight, flight.finalist, known, metrics)
    skipped = [rung for rung in space.rungs if rung < step and rung not in known.intermediate_values]
    if skipped:
        raise SearchError(f"trial {trial.number}: the trainer skipped the rung at step {skipped[0]} and is at {step}")
    if step not in known.intermediate_values:
        trial.report(metrics[metric], step)
    broken = violations(space.constraints, metrics)
    if broken:
        words = ", ".join(f"{name} is {metrics[name]:.6g}" for name in broken)
        return Outcome(state=TrialState.PRUNED, reason=f"{words}: outside constraints", constraints=broken)
    if step == space.budget.steps:
        return Outcome(state=TrialState.COMPLETE)
    if step in space.rungs and _decide(trial, known, step) == "prune":
        return Outcome(state=TrialState.PRUNED, reason=f"{metric} {metrics[metric]:.5g} is not among the best there")
    return None


def _judged(
    opened: OpenStudy, flight: Flight, finalist: records.Finalist, known: FrozenTrial, metrics: dict[str, float]
) -> Outcome | None:
    """A finalist is measured at its last step alone, and no rung or limit stops it."""
    step = flight.step
    if step != finalists.last_step(opened.space, finalist):
        return None
    tested = f"test/{opened.space.objective.metric.removeprefix('val/')}"
    if tested not in metrics and not finalist.at_target:
        raise SearchError(
            f"trial {flight.trial.number}: the trainer did not measure {tested}, by which finalists are judged, at "
            f"step {step}"
        )
    if step not in known.intermediate_values:
        flight.trial.report(metrics[opened.space.objective.metric], step)
    return Outcome(state=TrialState.COMPLETE)


def _decide(trial: optuna.Trial, known: FrozenTrial, step: int) -> str:
    made = records.decision(known, step)
    if made is None:
        made = "prune" if trial.should_prune() else "continue"
        records.set_decision(trial, step, made)
    return made
