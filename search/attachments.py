"""Pictures and notes of a study, attached for the Optuna dashboard; only the driver writes them.

A picture is an artifact of its trial, and nothing is copied: the artifact's id says which study, trial, step and
picture it is, so that attaching it twice is attaching it once, and `PictureStore` finds the file below the output root.
Notes are Markdown in which everything that comes from a study is escaped. What people write below a note's rule stays.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from typing import BinaryIO

import optuna
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from search import mirror, output, records, transfer, units
from search.errors import OutputError
from search.parameters import Parameter
from search.records import Picture
from search.space import Space
from search.storage import redact
from search.text import printable

ARTIFACT = "artifacts:"
"""How Optuna spells the system attributes in which a trial's artifacts are described."""

RULE = "\n\n---\n"
"""Ends our part of a note."""

LONGEST = 6000
"""Characters of a reason that a note shows, from its end, where tracebacks say what happened."""


def artifact_id(study: int, number: int, picture: Picture) -> str:
    """The id of a trial's picture, of hexadecimal digits and dashes, since the dashboard takes no other.

    Args:
        study: id of the study in its storage.
        number: of the trial.
        picture: its picture.
    """
    return f"{study:x}-{number:x}-{picture.step:x}-{picture.name.encode().hex()}"


def attach(study: optuna.Study, trial: optuna.Trial | FrozenTrial, pictures: Sequence[Picture]) -> None:
    """Write to a trial which pictures it has, as artifacts of Optuna; those that it has already are left alone."""
    storage = study._storage
    there = storage.get_trial_system_attrs(trial._trial_id) if pictures else {}
    for key, description in described(study._study_id, trial.number, pictures).items():
        if key not in there:
            storage.set_trial_system_attr(trial._trial_id, key, description)


def described(study: int, number: int, pictures: Iterable[Picture]) -> dict[str, str]:
    """The system attributes of a trial that describe its pictures as artifacts."""
    found = {}
    for picture in pictures:
        name = artifact_id(study, number, picture)
        description = {
            "artifact_id": name,
            # The dashboard sorts them as text.
            "filename": f"{picture.name} at step {picture.step:06}{output.PICTURES}",
            "mimetype": "image/png",
            "encoding": None,
        }
        found[f"{ARTIFACT}{name}"] = json.dumps(description)
    return found


class PictureStore:
    """The pictures of all studies of a storage, as a store of Optuna's artifacts that can only be read.

    Args:
        storage: where the studies are; each says where its output root is.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """A picture's bytes.

        Raises:
            ArtifactNotFound: no such study, trial or picture, or its file can't be had: the root is away, say.
        """
        try:
            study, number, step, name = artifact_id.split("-")
            wanted = int(step, 16), bytes.fromhex(name).decode()
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(int(study, 16), int(number, 16))
            trial = self._storage.get_trial(trial_id)
            loaded = optuna.load_study(
                study_name=self._storage.get_study_name_from_id(int(study, 16)), storage=self._storage
            )
            picture = next(each for each in records.pictures(trial) if (each.step, each.name) == wanted)
            return io.BytesIO(output.read(records.root(loaded, trial), path_of(picture)))
        except (ValueError, KeyError, OverflowError, StopIteration, OutputError, OSError) as error:
            raise ArtifactNotFound(f"{artifact_id}: {error or 'no such picture'}") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:  # noqa: ARG002
        """Refused.

        Raises:
            PermissionError: always; pictures come from trials alone.
        """
        raise PermissionError(f"{artifact_id}: pictures come from trials; expected no others")

    def remove(self, artifact_id: str) -> None:
        """Nothing: files below the output root go by `vqsearch delete` and `vqsearch clean` alone."""


def path_of(picture: Picture) -> str:
    """The file of a picture, relative to the output root."""
    return f"{picture.folder}/{picture.name}{output.PICTURES}"


def note_trial(study: optuna.Study, space: Space, trial: optuna.Trial, state: TrialState | None = None) -> None:
    """Write what people should know of a trial.

    Args:
        study: its study.
        space: what is searched.
        trial: all but its state is written.
        state: in which it is about to end; None when it starts.
    """
    frozen = study._storage.get_trial(trial._trial_id)
    _write(trial, trial_note(space, frozen, state))


def note_study(study: optuna.Study, space: Space) -> None:
    """Write what people should know of a study."""
    _write(study, study_note(study, space))


def trial_note(space: Space, trial: FrozenTrial, state: TrialState | None) -> str:
    """What people should know of a trial, in Markdown; see `note_trial`."""
    metric = space.objective.metric
    value = trial.user_attrs.get(metric)
    where = f" at step {trial.last_step:,}" if trial.last_step else ""
    words = [f"**{state.name.capitalize()}{where}**" if state else "**Started**; there is more here when it ends"]
    if state and isinstance(value, float):
        words.append(f"{_escaped(units.label(metric))} {units.text(metric, value)} ({_better(space)})")
    if state and records.seconds(trial):
        on = f" on {_escaped(records.device(trial))}" if records.device(trial) else ""
        words.append(f"trained for {units.duration(records.seconds(trial))}{on}")
    parts = [", ".join(words) + "."]
    if records.reason(trial) and state:
        parts.append(_verbatim(records.reason(trial)))
    broken = [name for name, excess in trial.constraints.items() if excess > 0 and name in space.constraints]
    if broken:
        parts.append("Limits broken:\n\n" + "\n".join(f"- {_limit(space, name, trial)}" for name in broken))
    parts.append(_table(("setting", "value"), [(name, _shown(value)) for name, value in trial.params.items()]))
    return "\n\n".join(parts)


def study_note(study: optuna.Study, space: Space) -> str:
    """What people should know of a study, in Markdown."""
    metric, budget, data = space.objective.metric, space.budget, space.base.data
    hours = f", at most {budget.hours:g} h" if budget.hours else ""
    held = records.versions(study)[-1]
    since = f" (from trial {held['from_trial']})" if held.get("from_trial") else ""
    versions = ", ".join(f"{k} {v}" for k, v in held.items() if k != "from_trial") + since
    source = f"{data.source} {data.path}" if data.path else data.source
    images = ", ".join(f"{count:,} {split}" for split, count in records.sizes(study).items())
    seen = f": {images} images" if images else ""
    held_out = "" if space.trainer else " on held-out images"
    rungs, carried = ", ".join(f"{rung:,}" for rung in space.rungs), space.transfer
    facts = [
        ("objective", f"{units.label(metric)} ({metric}){held_out}, {_better(space)}"),
        ("budget", f"{budget.trials:,} trials of {budget.steps:,} steps{hours}"),
        ("transfer", f"{transfer.words(carried)}, of which trials are the first" if carried else ""),
        ("sampler", space.sampler.kind),
        ("pruner", f"{space.pruner.kind}, after {rungs} steps" if rungs else space.pruner.kind),
        ("trainer", space.trainer or ""),
        ("data", images and f"{images} images" if space.trainer else f"{source}, {data.resolution} px{seen}"),
        ("limits", "; ".join(_limits(space, name) for name in space.constraints)),
        ("output", redact(records.output(study))),
        ("versions", versions),
    ]
    searched = [(parameter.name, _values(parameter)) for parameter in space.parameters]
    return "\n\n".join(
        [
            _table(("what", "is"), [(name, fact) for name, fact in facts if fact]),
            _table(("searched", "values"), searched),
            f"With `--storage` of this storage: `vqsearch resume --study {_name(study.study_name)}` goes on with it, "
            "`vqsearch status`, `best`, `report` and `export` tell of it.",
        ]
    )


def _write(about: optuna.Study | optuna.Trial, note: str) -> None:
    import optuna_dashboard  # Workers import what imports this, and need no web server.

    with mirror.only(f"dashboard:{about._trial_id}:" if isinstance(about, optuna.Trial) else "dashboard:note_"):
        before: str = optuna_dashboard.get_note(about)
        _, _, theirs = before.partition(RULE)
        whole = f"{note}{RULE}{theirs}"
        if whole != before:
            optuna_dashboard.save_note(about, whole)


def _better(space: Space) -> str:
    return "higher is better" if space.objective.direction == "maximize" else "lower is better"


def _limit(space: Space, name: str, trial: FrozenTrial) -> str:
    value = trial.user_attrs.get(name)
    measured = f"{units.text(name, float(value))}, " if isinstance(value, int | float) else ""
    return f"{_escaped(_limits(space, name))} ({measured}{trial.constraints[name]:.1%} beyond)"


def _limits(space: Space, name: str) -> str:
    limits = space.constraints[name]
    ends = [f"at least {units.text(name, limits.min)}"] if limits.min is not None else []
    ends += [f"at most {units.text(name, limits.max)}"] if limits.max is not None else []
    return f"{units.label(name)} {' and '.join(ends)}"


def _values(parameter: Parameter) -> str:
    if parameter.kind == "choice":
        words = ", ".join(_shown(label) for label in parameter.labels)
    else:
        words = f"{_shown(parameter.low)} to {_shown(parameter.high)}" + (", logarithmic" if parameter.log else "")
    when = [f"{name} is {' or '.join(map(_shown, allowed))}" for name, allowed in parameter.when]
    return f"{words}, where {' and '.join(when)}" if when else words


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _name(name: str) -> str:
    """A name between backquotes, where nothing can be escaped but a backquote would end it."""
    return printable(name).replace("`", "'").replace("\n", " ")


def _table(heads: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {heads[0]} | {heads[1]} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {_escaped(name)} | {_escaped(value)} |" for name, value in rows])


def _verbatim(text: str) -> str:
    """One line as text, several (a traceback) as a block of code."""
    text = printable(text.strip())
    if len(text) > LONGEST:
        text = f"...{text[-LONGEST:]}"
    if "\n" not in text:
        return _escaped(text)
    return "\n".join(f"    {line}" for line in text.splitlines())


def _escaped(text: str) -> str:
    """Text that Markdown, with its tables, formulas, links and HTML, shows as it is."""
    line = " ".join(printable(text).split())
    return re.sub(r"[]!#$&*:<>?@[\\^_`{|}~]|^[-+=]|(?<=www)\.", lambda found: f"\\{found[0]}", line, flags=re.I)
