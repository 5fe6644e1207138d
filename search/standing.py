"""A study at rest: where it stands, who leads, and how numbers are said to people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search import records, retention
from search.parameters import settings
from search.space import Space
from search.text import printable
from vqvae.config import COSTS

STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
"""The states of trials, as people say them."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a study stands.

    Attributes:
        counts: state -> number of trials, those refused before training aside.
        invalid: trials refused before training.
        total: trials of the budget.
        best: the best complete trial that keeps the limits.
        trained_s: wall seconds of training of all trials together.
        left_s: estimated wall seconds until the budget is spent; None before anything finished.
    """

    counts: dict[str, int]
    invalid: int
    total: int
    best: FrozenTrial | None
    trained_s: float
    left_s: float | None

    @property
    def done(self) -> int:
        """Trials that used up the budget."""
        return sum(self.counts.get(state, 0) for state in ("COMPLETE", "PRUNED", "FAIL"))


def standing(study: optuna.Study, space: Space, running: Sequence[float] = ()) -> Standing:
    """Where a study stands, from its storage.

    Args:
        study: what is asked.
        space: its space.
        running: seconds for which each running trial has been trained.
    """
    trials = study.get_trials(deepcopy=False)
    own = [trial for trial in trials if records.copied(trial) is None]
    valid = [trial for trial in own if not records.is_invalid(trial)]
    counts = Counter(trial.state.name for trial in valid)
    finished = [trial for trial in valid if trial.state.is_finished()]
    trained = sum(records.seconds(trial) for trial in trials)
    left = None
    if finished:
        rest = max(space.budget.trials - len(finished), 0)
        each = sum(records.seconds(trial) for trial in finished) / len(finished)
        left = max(rest * each - sum(min(spent, each) for spent in running), 0.0) / max(len(running), 1)
    ranked = ranking(study)
    return Standing(
        counts=dict(counts),
        invalid=len(own) - len(valid),
        total=space.budget.trials,
        best=ranked[0] if ranked else None,
        trained_s=trained,
        left_s=left,
    )


def ranking(study: optuna.Study) -> list[FrozenTrial]:
    """Complete trials that keep the limits, the best first."""
    return retention.ranked(study.get_trials(deepcopy=False), study.direction)


def summary(study: optuna.Study, space: Space) -> list[str]:
    """What a study came to, in lines."""
    now = standing(study, space)
    states = [f"{now.counts.get(s, 0)} {w}" for s, w in STATES.items() if now.counts.get(s, 0)]
    lines = [f"{study.study_name}: {now.done} of {now.total} trials ({', '.join(states) or 'none yet'})"]
    if now.invalid:
        lines.append(f"{now.invalid} {'trial' if now.invalid == 1 else 'trials'} broke a limit before training")
    if now.best:
        lines.append(f"best: trial {now.best.number}, {space.objective.metric} {now.best.value:.5g}")
        lines.append(f"      {settings(now.best.params)}")
    return [printable(line) for line in lines]


def shown(value: Any) -> str:
    """A parameter for people: four significant digits of a fraction."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def number(value: float | None) -> str:
    """Five significant digits, a dash for what is not there."""
    return "-" if value is None else f"{value:.5g}"


def is_metric(name: str) -> bool:
    """Whether an attribute of a trial is something that an evaluation measured."""
    return name.startswith("val/") or name in COSTS


def as_json(trial: FrozenTrial) -> dict[str, Any]:
    """One trial for programs."""
    checkpoint = records.checkpoint(trial)
    return {
        "number": trial.number,
        "state": trial.state.name,
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "params": trial.params,
        "metrics": {name: value for name, value in trial.user_attrs.items() if is_metric(name)},
        "curve": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
        "constraints": trial.constraints,
        "reason": records.reason(trial),
        "checkpoint": None if checkpoint is None else {"step": checkpoint.step, "folder": checkpoint.folder},
        "seconds": records.seconds(trial),
    }
