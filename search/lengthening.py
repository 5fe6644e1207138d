"""Longer trials for a study that goes on: only where all that was measured so far means the same afterwards.

Under a constant learning rate, or under wsd before its decay begins, a run does not know its last step: every point
and checkpoint is one of the longer run too. So rungs stay where values were compared; the old last step, and multiples
of it by the reduction factor, become rungs where that leaves a factor to the end. A complete trial can't be made
longer, and its value is one of another length: with one of them it is too late.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from search import records
from search import space as spaces
from search.errors import StudyError
from search.space import Space


def lengthen(stored: Space, trials: Sequence[FrozenTrial], steps: int) -> Space:
    """The space of a study whose trials become longer.

    Args:
        stored: the space so far.
        trials: all trials of the study.
        steps: new number of optimizer steps of a trial that is not stopped.

    Raises:
        StudyError: what was measured would not mean the same.
    """
    now = stored.budget.steps
    if steps == now:
        return stored
    where = f"{stored.study}: --steps {steps}"
    if stored.transfer is not None:
        raise StudyError(f"{where}: proxies and targets of a transfer were compared at their steps; expected none")
    if steps < now:
        raise StudyError(f"{where}: trials can only become longer; expected more than {now}")
    _require_blind(stored, where)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if complete:
        many = "trial is" if len(complete) == 1 else "trials are"
        decays = "wsd" in _possible(stored, "optimizer.schedule")
        why = "the learning rate has decayed by then, and a finished trial" if decays else "a finished trial"
        raise StudyError(
            f"{where}: {len(complete)} {many} complete at {now} steps: {why} never changes, so that its value can't be "
            "compared with those of longer ones; expected none. vqsearch launch --study NAME --set budget.steps="
            f"{steps} starts a search of longer ones (--extend would take over trials of as many steps only); one by "
            f"itself trains longer by: vqsearch train --study {stored.study} --trial {complete[0].number} "
            f"--steps {steps} --to DIR"
        )
    begins = _decay_begins(stored)
    for trial in trials:
        checkpoint = records.checkpoint(trial)
        reached = max([*trial.intermediate_values, checkpoint.step if checkpoint else 0], default=0)
        if reached > begins:
            raise StudyError(
                f"{where}: trial {trial.number} is at step {reached}, in the decay of wsd that began at step "
                f"{begins:g}; a longer run would not have decayed there"
            )
    source: dict[str, Any] = {**stored.source, "budget": {**stored.source["budget"], "steps": steps}}
    if stored.rungs:
        source["pruner"] = {**stored.source["pruner"], "at": [*stored.rungs, *_added(stored, steps)]}
    return spaces.parse(source, f"study {stored.study}")


def _added(stored: Space, steps: int) -> list[int]:
    found, factor, rung = [], stored.pruner.reduction_factor, stored.budget.steps
    while rung <= steps // factor:
        found.append(rung)
        rung *= factor
    return found


def _require_blind(stored: Space, where: str) -> None:
    """No trial may know its last step before it comes; the trainer refuses the same when it resumes."""
    if stored.trainer:
        raise StudyError(
            f"{where}: whether the schedules of {stored.trainer} run over all steps is not known here, so that nothing "
            "measured so far may mean the same; expected vqsearch's own trainer"
        )
    if "cosine" in _possible(stored, "optimizer.schedule"):
        raise StudyError(
            f"{where}: under the cosine schedule each learning rate depends on the last step, so that nothing measured "
            "so far would mean the same; expected wsd or constant"
        )
    if any(_possible(stored, "gan.weight")):
        raise StudyError(
            f"{where}: the discriminator starts at a fraction of the steps, which would move; expected gan.weight: 0"
        )
    if "gumbel" in _possible(stored, "quantizer.kind"):
        raise StudyError(
            f"{where}: the temperature of gumbel falls over all steps, so that nothing measured so far would mean the "
            "same; expected another quantizer"
        )


def _decay_begins(stored: Space) -> float:
    """The last step before the learning rate of any trial decays; infinite where none does."""
    if "wsd" not in _possible(stored, "optimizer.schedule"):
        return float("inf")
    warmup = min(_possible(stored, "optimizer.warmup_steps"))
    return float(max(warmup, (1 - max(_possible(stored, "optimizer.decay_fraction"))) * stored.budget.steps))


def _possible(stored: Space, name: str) -> list[Any]:
    """The values a field can take: those it is searched over (the ends of a range), or the fixed one."""
    for parameter in stored.parameters:
        if parameter.name == name:
            searched = [value for _, value in parameter.choices]
            fixed = [operator.attrgetter(name)(stored.base)] if parameter.when else []
            return [*(searched or [parameter.low, parameter.high]), *fixed]
    return [operator.attrgetter(name)(stored.base)]
