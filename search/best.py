"""The best trials of a study, or any one: a table for people, a config for `vqsearch train`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from search import records, standing, units, yaml12
from search.catalog import trial_of
from search.errors import StudyError
from search.space import Space
from search.text import one_line
from vqvae import conversion
from vqvae.config import COSTS, ConfigError

GAP = 2
"""Characters between two columns."""

WIDEST = 24
"""Characters of a value that are shown at most."""

COUNTED = "val/codebook_usage", "val/perplexity", "val/entropy_bits_per_image"
"""What is too low where too few tokens were counted."""


def chosen(study: optuna.Study, number: int | None, top: int) -> list[FrozenTrial]:
    """One trial by its number, else the best complete ones that keep the limits, at most `top` of them.

    Raises:
        StudyError: no such trial.
    """
    return standing.ranking_of_models(study)[:top] if number is None else [trial_of(study, number)]


def config(trial: FrozenTrial, space: Space) -> dict[str, Any] | None:
    """The config that a trial trains, as JSON would have it; None where there is none yet, or its values don't hold."""
    try:
        of = space.wanted if records.is_at_target(trial) else space.config
        return conversion.to_dict(of(trial.params)) if trial.params else None
    except ConfigError:
        return None


def as_json(trial: FrozenTrial, space: Space) -> dict[str, Any]:
    """One trial for programs, with its config."""
    return standing.as_json(trial) | {"config": config(trial, space)}


def as_yaml(study: optuna.Study, space: Space, trial: FrozenTrial) -> str:
    """A config that `vqsearch train` takes: the trial's without its rungs, at which only a search compares.

    Raises:
        StudyError: the trial has no config.
    """
    values = config(trial, space)
    if values is None:
        raise StudyError(f"{study.study_name}: trial {trial.number} is {trial.state.name} and has no config")
    del values["rungs"]
    metric = space.objective.metric
    value = f"{metric} {units.text(metric, trial.value)}" if trial.state == TrialState.COMPLETE else trial.state.name
    whose = f", for {one_line(space.trainer)} in place of vqsearch's own trainer" if space.trainer else ""
    return f"# study {one_line(study.study_name)}, trial {trial.number}: {value}{whose}\n{yaml12.dump(values)}"


def table(
    study: optuna.Study, space: Space, trials: Sequence[FrozenTrial], width: int = 80
) -> Iterator[RenderableType]:
    """Trials as columns, as many side by side as fit into `width` characters; what to know of them below.

    Args:
        study: of the trials.
        space: its space.
        trials: at least one, the best first.
        width: characters.
    """
    groups = _rows(space, trials)
    rows = [row for _, group in groups for row in group]
    labels = max(len(label) for label, _, _ in rows)
    marks = max(1, *(len(unit) for _, unit, _ in rows))
    heads = [f"{trial.number}{' (copy)' if records.copied(trial) else ''}" for trial in trials]
    values = min(max(9, *(len(value) for cells in (heads, *(row[2] for row in rows)) for value in cells)), WIDEST)
    labels = min(labels, max(width - marks - values - 2 * GAP, 9))
    at_once = max((width - labels - marks - GAP) // (values + GAP), 1)
    yield Text(_title(study, space, trials), style="bold")
    for start in range(0, len(trials), at_once):
        part = slice(start, start + at_once)
        yield ""
        yield _grid([("trial", "", heads[part])], labels, marks, values, "bold")
        for heading, group in groups:
            if heading:
                yield Text(heading, style="dim")
            style = "" if heading else "bold"
            yield _grid([(label, unit, cells[part]) for label, unit, cells in group], labels, marks, values, style)
    notes = _notes(trials)
    if notes:
        yield ""
    yield from (Text(textwrap.fill(note, width)) for note in notes)


def _title(study: optuna.Study, space: Space, trials: Sequence[FrozenTrial]) -> str:
    first, ranked = trials[0], [trial.number for trial in standing.ranking_of_models(study)]
    name, by = one_line(study.study_name), f"by {units.label(space.objective.metric)}"
    if len(trials) > 1:
        return f"{name}: the best {len(trials)} of {len(ranked)} complete trials {by}"
    if first.number in ranked:
        place = ranked.index(first.number) + 1
        rank = "the best" if place == 1 else f"number {place}"
        return f"{name}: trial {first.number}, {rank} of {len(ranked)} complete trials {by}"
    if first.state == TrialState.COMPLETE:
        return f"{name}: trial {first.number}, complete, but outside {', '.join(sorted(_broken(first)))}"
    cause = standing.cause(first) if first.state in (TrialState.PRUNED, TrialState.FAIL) else ""
    state = standing.STATES[first.state.name] + (f" ({one_line(cause)})" if cause else "")
    at = "" if first.last_step is None else f", measured at step {first.last_step} of {space.budget.steps}"
    return f"{name}: trial {first.number}, {state}{at}"


def _broken(trial: FrozenTrial) -> list[str]:
    return [one_line(name) for name, value in trial.constraints.items() if value > 0]


_Row = tuple[str, str, list[str]]
"""Label, unit, and the value of each trial."""


def _rows(space: Space, trials: Sequence[FrozenTrial]) -> list[tuple[str, list[_Row]]]:
    metric = space.objective.metric
    better = {"maximize": "higher", "minimize": "lower"}[space.objective.direction]
    objective = [t.value if t.state == TrialState.COMPLETE else t.user_attrs.get(metric) for t in trials]
    names = {name for trial in trials for name in trial.user_attrs if standing.is_metric(name)}
    names -= {metric, "val/codebook_undersampled"}
    measured = sorted((name for name in names if name not in COSTS), key=_order)
    seconds = [units.text("seconds", records.seconds(trial)) for trial in trials]
    groups = [
        ("", [(f"{units.label(metric)} ({better} is better)", units.unit(metric), _figures(metric, objective))]),
        ("measured on held-out images", [_row(name, trials) for name in measured]),
        ("costs", [*(_row(name, trials) for name in COSTS if name in names), ("training time", "", seconds)]),
        ("settings", [(p.name, "", [_setting(trial.params, p.name) for trial in trials]) for p in space.parameters]),
    ]
    return [(heading, rows) for heading, rows in groups if rows]


def _order(name: str) -> tuple[bool, bool, str]:
    """How well it reconstructs, then how the codes are used, then of how many tokens that is known."""
    return not units.better(name), name == "val/codebook_tokens", name


def _row(name: str, trials: Sequence[FrozenTrial]) -> _Row:
    return one_line(units.label(name)), units.unit(name), _figures(name, [t.user_attrs.get(name) for t in trials])


def _figures(name: str, values: Sequence[Any]) -> list[str]:
    """Numbers as they are written; what else a storage holds in their place, as the text that it is."""
    known = [value is None or isinstance(value, (int, float)) for value in values]
    return [units.figure(name, v) if fine else one_line(str(v)) for v, fine in zip(values, known, strict=True)]


def _setting(params: Mapping[str, Any], name: str) -> str:
    return one_line(standing.shown(params[name])) if name in params else "-"


def _grid(rows: Sequence[_Row], labels: int, marks: int, values: int, style: str) -> Table:
    grid = Table.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    grid.add_column(width=labels, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=marks, no_wrap=True)
    for _ in rows[0][2]:
        grid.add_column(width=values, justify="right", no_wrap=True, overflow="ellipsis")
    for label, unit, cells in rows:
        grid.add_row(label, unit, *cells, style=style)
    return grid


def _notes(trials: Sequence[FrozenTrial]) -> list[str]:
    notes = []
    for trial in trials:
        if records.copied(trial) is not None:
            notes.append(f"Trial {standing.named(trial)}.")
    few = [str(trial.number) for trial in trials if trial.user_attrs.get("val/codebook_undersampled")]
    if few:
        low = ", ".join(units.label(name) for name in COUNTED)
        these = f"Trial{'s' if len(few) > 1 else ''} {', '.join(few)}"
        notes.append(f"{these}: too few tokens were counted to show every code; {low} are too low.")
    return notes
