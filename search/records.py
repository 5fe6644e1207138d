"""The one place where attributes of studies and trials are spelled.

A study carries its space, its output root and what was spent; a trial carries its last checkpoint, the
decisions made at its rungs, its last metrics and why it ended. Everything else is Optuna's own: states,
parameters, curves, constraints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial

SPACE = "vqsearch:space"
OUTPUT = "vqsearch:output"
STARTUP = "vqsearch:startup_trials"
VERSIONS = "vqsearch:versions"
HOURS = "vqsearch:hours"
LEASES = "vqsearch:leases"

CHECKPOINT = "checkpoint"
REASON = "reason"
INVALID = "invalid"
RETRIES = "retries"
SECONDS = "seconds"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """Where a trial can go on from.

    Attributes:
        step: optimizer steps done.
        folder: relative to the output root.
        metrics: as last measured.
    """

    step: int
    folder: str
    metrics: Mapping[str, float]


def create(
    study: optuna.Study, space: Mapping[str, Any], output: str, startup: int, versions: Mapping[str, str]
) -> None:
    """Write what a study keeps for ever; the space comes last, since a study with a space is whole."""
    study.set_user_attr(OUTPUT, output)
    study.set_user_attr(STARTUP, startup)
    study.set_user_attr(VERSIONS, dict(versions))
    study.set_user_attr(SPACE, json.dumps(space))


def set_space(study: optuna.Study, values: Mapping[str, Any]) -> None:
    """Replace the stored space file."""
    study.set_user_attr(SPACE, json.dumps(values))


def space(study: optuna.Study) -> dict[str, Any] | None:
    """The stored space file; None for a study that is not vqsearch's."""
    text = study.user_attrs.get(SPACE)
    return None if text is None else dict(json.loads(text))


def output(study: optuna.Study) -> str:
    """The output root."""
    return str(study.user_attrs[OUTPUT])


def set_output(study: optuna.Study, root: str) -> None:
    """Move the study to another output root."""
    study.set_user_attr(OUTPUT, root)


def startup(study: optuna.Study) -> int:
    """Number of quasi-random trials before the sampler takes over."""
    return int(study.user_attrs[STARTUP])


def hours(study: optuna.Study) -> float:
    """Wall hours of all drivers so far."""
    return float(study.user_attrs.get(HOURS, 0.0))


def set_hours(study: optuna.Study, value: float) -> None:
    """Write the wall hours of all drivers so far."""
    study.set_user_attr(HOURS, value)


def checkpoint(trial: FrozenTrial) -> CheckpointRecord | None:
    """Where the trial can go on from."""
    record = trial.user_attrs.get(CHECKPOINT)
    if record is None:
        return None
    return CheckpointRecord(step=int(record["step"]), folder=str(record["folder"]), metrics=dict(record["metrics"]))


def set_checkpoint(trial: optuna.Trial, record: CheckpointRecord) -> None:
    """Write where the trial can go on from."""
    trial.set_user_attr(CHECKPOINT, asdict(record))


def decision(trial: FrozenTrial, step: int) -> str | None:
    """What was decided at a rung: continue or prune; None where nothing was."""
    made = trial.user_attrs.get(f"decision at {step}")
    return None if made is None else str(made)


def set_decision(trial: optuna.Trial, step: int, made: str) -> None:
    """Write what was decided at a rung."""
    trial.set_user_attr(f"decision at {step}", made)


def set_metrics(trial: optuna.Trial, metrics: Mapping[str, float]) -> None:
    """Write the metrics of the last evaluation on held-out images, and the speed, each under its own name."""
    for name, value in metrics.items():
        if not name.startswith("train/"):
            trial.set_user_attr(name, value)


def reason(trial: FrozenTrial) -> str:
    """Why the trial ended, "" for one that just finished."""
    return str(trial.user_attrs.get(REASON, ""))


def set_reason(trial: optuna.Trial, text: str) -> None:
    """Write why the trial ended."""
    trial.set_user_attr(REASON, text)


def set_invalid(trial: optuna.Trial) -> None:
    """Mark a trial that broke a limit before any training; it does not count towards the budget."""
    trial.set_user_attr(INVALID, True)


def retries(trial: FrozenTrial) -> int:
    """How often the trial lost its worker."""
    return int(trial.user_attrs.get(RETRIES, 0))


def set_retries(trial: optuna.Trial, number: int) -> None:
    """Write how often the trial lost its worker."""
    trial.set_user_attr(RETRIES, number)


def seconds(trial: FrozenTrial) -> float:
    """Wall seconds the trial spent training, over all its workers."""
    return float(trial.user_attrs.get(SECONDS, 0.0))


def set_seconds(trial: optuna.Trial, value: float) -> None:
    """Write the wall seconds the trial spent training."""
    trial.set_user_attr(SECONDS, round(value, 2))


def counts(trial: FrozenTrial) -> bool:
    """Whether the trial uses up one of the budget: finished, and not refused before training."""
    return trial.state.is_finished() and not trial.user_attrs.get(INVALID, False)


def is_invalid(trial: FrozenTrial) -> bool:
    """Whether the trial broke a limit before any training."""
    return bool(trial.user_attrs.get(INVALID, False))
