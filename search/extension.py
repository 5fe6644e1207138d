"""A changed space that goes on from an old study's trials: which of them lie in it, and their copies.

Values may be taken over where they mean the same: same objective, images, batches and steps. A trial lies in the new
space if some of its settings there make the very config that was trained, whether a field was searched or fixed, then
or now. Widened ranges, added choices, parameters that come or go are all cases of this.

A copy keeps the curve, the decisions and the limits it broke; it stands beside new trials where a rung compares values
at a step. It does not count towards the budget, and its checkpoint stays where the original's is.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from search import code, parameters, records, trainer
from search.catalog import load, studies
from search.errors import StudyError
from search.parameters import UNSEARCHABLE
from search.records import Original
from search.space import Space, violations
from vqvae import conversion
from vqvae.config import COSTS, METRICS, ConfigError, TrainConfig
from vqvae.trainers import CostsError

INDIFFERENT = (
    "rungs", "seed", "device", "compile", "checkpoint_every", "micro_batch", "data.cache", "loss.lpips_trunk",
)  # fmt: skip
"""Fields in which trials may differ and still be compared."""

OF_TRAINING = ("diverged", "memory")
"""Constraints that no limit of a space file makes."""


@dataclass(frozen=True, kw_only=True)
class Extension:
    """What a new study takes over.

    Attributes:
        copies: finished trials, in the order of their originals.
        line: how many there are, and why the others are not among them.
    """

    copies: tuple[FrozenTrial, ...]
    line: str


def extend(
    storage: BaseStorage,
    wanted: Space,
    name: str,
    measure: Callable[[TrainConfig], Mapping[str, float]],
    accept_code: bool = False,
) -> Extension:
    """What a new study of a space takes over from an old one, which is only read.

    Args:
        storage: where both are.
        wanted: the new space, with the name of the new study.
        name: of the old one.
        measure: quantities of a config that are known before training.
        accept_code: files of its code may be others in the new one.

    Raises:
        StudyError: the new one exists, the old one does not; its values mean something else; or not one trial of it
            lies in the new space.
    """
    if wanted.study in studies(storage):
        raise StudyError(
            f"{wanted.study}: --extend opens a new study, but the storage holds one of this name; --study NAME gives "
            f"another one, vqsearch resume --study {wanted.study} goes on"
        )
    study, old = load(storage, name)
    _require_same_meaning(name, old, wanted)
    other = code.missing(old.plugins, wanted.plugins)
    if other and not accept_code:
        raise StudyError(
            f"{wanted.study}: values of {name} might not mean the same: {'; '.join(other)}; expected the same code, or "
            "--accept-code where they do"
        )
    copies, left = [], Counter[str]()
    for trial in study.get_trials(deepcopy=False):
        try:
            copies.append(_copy(trial, study, old, wanted, measure))
        except _Left as reason:
            left[str(reason)] += 1
    why = "; ".join(f"{count} {reason}" for reason, count in left.most_common())
    if not copies:
        raise StudyError(
            f"{wanted.study}: no trial of {name} can be taken over: {why or 'it has none'}; without --extend it starts "
            "from nothing"
        )
    line = f"{len(copies)} of {len(copies) + left.total()} trials of {name} are taken over"
    line += f"; left out: {why}" if why else ""
    return Extension(copies=tuple(copies), line=f"{line}; other code made them: {'; '.join(other)}" if other else line)


class _Left(Exception):  # noqa: N818
    """Why a trial is not taken over."""


def _require_same_meaning(name: str, old: Space, wanted: Space) -> None:
    pairs: dict[str, tuple[Any, Any]] = {
        "objective.metric": (old.objective.metric, wanted.objective.metric),
        "objective.direction": (old.objective.direction, wanted.objective.direction),
    }
    for key in UNSEARCHABLE.keys() - set(INDIFFERENT):
        get = operator.attrgetter(key)
        pairs["budget.steps" if key == "steps" else f"train.{key}"] = (get(old.base), get(wanted.base))
    differing = [f"{key} was {before!r}, is {now!r}" for key, (before, now) in sorted(pairs.items()) if before != now]
    differing += trainer.difference(old, wanted)
    if differing:
        raise StudyError(
            f"{wanted.study}: values of {name} would not mean the same: {'; '.join(differing)}; expected the same, or "
            "a launch without --extend"
        )


def _copy(
    trial: FrozenTrial,
    study: optuna.Study,
    old: Space,
    wanted: Space,
    measure: Callable[[TrainConfig], Mapping[str, float]],
) -> FrozenTrial:
    if not trial.state.is_finished():
        raise _Left("not finished")
    if trial.state == TrialState.FAIL:
        raise _Left("failed")
    try:
        config = old.config(trial.params)
        quantities = dict(measure(config))
    except (ConfigError, CostsError):
        raise _Left("of settings that can't be built") from None
    labels = _labels(config, wanted)
    quantities |= {name: float(trial.user_attrs[name]) for name in (*COSTS, *METRICS) if name in trial.user_attrs}
    broken = violations(wanted.constraints, quantities)
    if not broken and trial.constraints.keys() - set(OF_TRAINING):
        raise _Left("ended by limits that no longer end it")
    fixed = FixedTrial(labels)
    parameters.suggest(wanted.parameters, fixed)  # type: ignore[arg-type]
    kept = {name: value for name, value in trial.constraints.items() if name in OF_TRAINING}
    original = Original(study=study.study_name, number=trial.number, output=records.output(study))
    copy = optuna.trial.create_trial(
        state=trial.state,
        values=trial.values,
        params=labels,
        distributions=fixed.distributions,
        user_attrs=records.copy_of(trial, records.copied(trial) or original),
        intermediate_values=trial.intermediate_values,
        constraints=kept | broken,
    )
    copy.datetime_start, copy.datetime_complete = trial.datetime_start, trial.datetime_complete
    return copy


def _labels(config: TrainConfig, wanted: Space) -> dict[str, Any]:
    """The settings of the new space that make a config."""
    labels: dict[str, Any] = {}
    for parameter in wanted.parameters:
        if not all(labels.get(parent) in allowed for parent, allowed in parameter.when):
            continue
        try:
            value = operator.attrgetter(parameter.name)(config)
        except AttributeError:  # an option of a plug-in that was not given
            raise _Left(f"outside {parameter.name}") from None
        if parameter.kind == "choice":
            fitting = [label for label, known in parameter.choices if known == value and type(known) is type(value)]
        else:
            fitting = [value] if parameter.holds(value) else []
        if not fitting:
            raise _Left(f"outside {parameter.name}")
        labels[parameter.name] = fitting[0]
    made = wanted.config(labels)
    for key in conversion.fields():
        get = operator.attrgetter(key)
        if key not in INDIFFERENT and get(config) != get(made):
            raise _Left(f"of another {key}")
    return labels
