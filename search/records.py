"""The one place where attributes of studies and trials are spelled.

A study carries its space, its output root and what was spent; a trial carries its last checkpoint, the
decisions made at its rungs, its last metrics and why it ended. Everything else is Optuna's own: states,
parameters, curves, constraints.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search.errors import StudyError

SPACE = "vqsearch:space"
OUTPUT = "vqsearch:output"
STARTUP = "vqsearch:startup_trials"
VERSIONS = "vqsearch:versions"
HOURS = "vqsearch:hours"
LEASES = "vqsearch:leases"

PAUSED = "paused"
REQUEST = "request:"
"""Of the study that a lease is, so that they go with their driver."""
IDENTITY = "vqsearch:identity"
LENGTHS = "vqsearch:lengths"
SIZES = "vqsearch:sizes"

CHECKPOINT = "checkpoint"
PICTURES = "pictures"
DEVICE = "device"
REASON = "reason"
INVALID = "invalid"
RETRIES = "retries"
LOST_NODES = "lost_nodes"
SECONDS = "seconds"
ENQUEUED = "enqueued"
CODE = "plug-ins"

BY_HAND = "pruned by hand"
"""The reason of a trial that someone asked to prune."""
COPIED = "copied"
FINALIST = "finalist"
OPENINGS = "vqsearch:test_openings"
TIE = "vqsearch:comparison"


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """Where a trial can go on from.

    Attributes:
        step: optimizer steps done.
        folder: relative to the output root.
        metrics: as last measured.
        time: seconds since the epoch at which the driver heard of it; 0 where it did not write that down.
    """

    step: int
    folder: str
    metrics: Mapping[str, float]
    time: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of what a trial had learned, in the file `FOLDER/NAME.png`; it stays when the checkpoint goes.

    Attributes:
        step: optimizer steps done.
        name: "reconstructions" (held-out originals above what became of them) or "worst" (those with the largest
            error).
        folder: relative to the output root, see `root`.
    """

    step: int
    name: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class Original:
    """What a trial is a copy of.

    Attributes:
        study: its name, in the same storage.
        number: of the trial there.
        output: output root of its checkpoint.
    """

    study: str
    number: int
    output: str


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """What a trial judges again.

    Attributes:
        of: number of the trial whose settings it has.
        seed: its own.
        at_target: it trains them at the target of a transfer, and sees no test split.
    """

    of: int
    seed: int
    at_target: bool = False


@dataclass(frozen=True, kw_only=True)
class Opening:
    """That the test split was opened, and for whom.

    Attributes:
        time: of its decision, ISO 8601 in UTC.
        settings: numbers of the trials whose settings are judged.
        seeds: that each of them is trained with.
    """

    time: str
    settings: Sequence[int]
    seeds: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Tie:
    """What makes a study an arm of a comparison.

    Attributes:
        comparison: its name.
        arm: which of its arms the study is.
        arms: every arm, in the order of the comparison -> its study.
        equal: quantity -> (least, most) that any model of any arm has; equal where it is one number.
        free: quantities that differ between arms because the comparison says that they may.
    """

    comparison: str
    arm: str
    arms: Mapping[str, str]
    equal: Mapping[str, tuple[float, float]]
    free: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """What someone asks of a driver.

    Attributes:
        key: unique name of the attribute that holds it.
        kind: stop, pause, "go on" or prune.
        trial: number of the trial that is meant, -1 where none is.
        time: seconds since the epoch.
        answer: what came of it, "" until the driver has said.
        refused: the driver could not do it.
    """

    key: str
    kind: str
    trial: int
    time: float
    answer: str = ""
    refused: bool = False


def requests(attributes: Mapping[str, Any]) -> list[Request]:
    """The requests among a lease's attributes, the first one first."""
    found = [Request(**{**v, "key": key}) for key, v in attributes.items() if key.startswith(REQUEST)]
    return sorted(found, key=lambda request: (request.time, request.key))


def set_request(storage: BaseStorage, lease: int, request: Request) -> None:
    """Write a request, or the answer to it, to the study that a lease is."""
    values = asdict(request)
    storage.set_study_user_attr(lease, values.pop("key"), values)


def create(
    study: optuna.Study, space: Mapping[str, Any], output: str, startup: int, versions: Mapping[str, str]
) -> None:
    """Write what a study keeps for ever; the space comes last, since a study with a space is whole."""
    study.set_user_attr(OUTPUT, output)
    study.set_user_attr(STARTUP, startup)
    study.set_user_attr(VERSIONS, [{"from_trial": 0, **versions}])
    study.set_user_attr(SPACE, json.dumps(space))


def set_space(study: optuna.Study, values: Mapping[str, Any]) -> None:
    """Replace the stored space file."""
    study.set_user_attr(SPACE, json.dumps(values))


def space(study: optuna.Study) -> dict[str, Any] | None:
    """The stored space file; None for a study that is not vqsearch's.

    Raises:
        StudyError: it is damaged.
    """
    text = study.user_attrs.get(SPACE)
    try:
        return None if text is None else dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise StudyError(f"{study.study_name}: its stored space is damaged: {error}; expected a JSON mapping") from None


def output(study: optuna.Study) -> str:
    """The output root."""
    return str(study.user_attrs[OUTPUT])


def set_output(study: optuna.Study, root: str) -> None:
    """Move the study to another output root."""
    study.set_user_attr(OUTPUT, root)


def startup(study: optuna.Study) -> int:
    """Number of quasi-random trials before the sampler takes over."""
    return int(study.user_attrs[STARTUP])


def versions(study: optuna.Study) -> list[dict[str, Any]]:
    """The versions that trials were made with: package -> version, and the trial number from_trial which they hold."""
    kept = study.user_attrs.get(VERSIONS, [])
    return [{"from_trial": 0, **kept}] if isinstance(kept, dict) else [dict(each) for each in kept]


def add_versions(study: optuna.Study, from_trial: int, held: Mapping[str, str]) -> None:
    """Write with which versions the trials to come are made."""
    study.set_user_attr(VERSIONS, [*versions(study), {"from_trial": from_trial, **held}])


def add_length(study: optuna.Study, from_trial: int, before: int, steps: int) -> None:
    """Write that trials became longer; those from a number on never were shorter."""
    kept = study.user_attrs.get(LENGTHS, [{"from_trial": 0, "steps": before}])
    if kept[-1]["steps"] != steps:  # else by a driver that was killed before it wrote the space
        study.set_user_attr(LENGTHS, [*kept, {"from_trial": from_trial, "steps": steps}])


def identity(study: optuna.Study) -> str:
    """What tells this study from others of its name in other storages; "" where it was not given one yet."""
    return str(study.user_attrs.get(IDENTITY, ""))


def set_identity(study: optuna.Study, value: str) -> None:
    """Give the study what tells it from others of its name."""
    study.set_user_attr(IDENTITY, value)


def sizes(study: optuna.Study) -> dict[str, int]:
    """Images of each split (train, validation, test); empty before the first evaluation."""
    return {str(split): int(count) for split, count in study.user_attrs.get(SIZES, {}).items()}


def set_sizes(study: optuna.Study, images: Mapping[str, int]) -> None:
    """Write how many images each split has."""
    study.set_user_attr(SIZES, dict(images))


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
    return CheckpointRecord(
        step=int(record["step"]),
        folder=str(record["folder"]),
        metrics=dict(record["metrics"]),
        time=float(record.get("time", 0.0)),
    )


def set_checkpoint(trial: optuna.Trial, record: CheckpointRecord) -> None:
    """Write where the trial can go on from."""
    trial.set_user_attr(CHECKPOINT, asdict(record))


def pictures(trial: FrozenTrial) -> list[Picture]:
    """The pictures of a trial, by step and name."""
    return [Picture(**picture) for picture in trial.user_attrs.get(PICTURES, [])]


def set_pictures(trial: optuna.Trial, shown: Sequence[Picture]) -> None:
    """Write all pictures of a trial."""
    ordered = sorted(shown, key=lambda picture: (picture.step, picture.name))
    trial.set_user_attr(PICTURES, [asdict(picture) for picture in ordered])


def root(study: optuna.Study, trial: FrozenTrial) -> str:
    """The output root of a trial's pictures: the study's, or for a copy the one of its original."""
    original = copied(trial)
    return output(study) if original is None else original.output


def device(trial: FrozenTrial) -> str:
    """Model of the GPU, or of the CPU, that last trained the trial; "" where that is not known."""
    return str(trial.user_attrs.get(DEVICE, ""))


def set_device(trial: optuna.Trial, model: str) -> None:
    """Write what trains the trial."""
    trial.set_user_attr(DEVICE, model)


def code(trial: FrozenTrial) -> dict[str, str]:
    """The user's own code that last made the trial, as among the versions of packages; empty where none is known."""
    return {str(name): str(sha256) for name, sha256 in trial.user_attrs.get(CODE, {}).items()}


def set_code(trial: optuna.Trial, held: Mapping[str, str]) -> None:
    """Write which of the user's own code makes the trial from now on."""
    trial.set_user_attr(CODE, dict(held))


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


def readable(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a trial, or of a study, without those that only a search reads."""
    own = {CHECKPOINT, PICTURES, INVALID, ENQUEUED, COPIED}
    prefixes = ("vqsearch:", "decision at ")
    return {name: value for name, value in attributes.items() if name not in own and not name.startswith(prefixes)}


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


def lost_nodes(trial: FrozenTrial) -> int:
    """How often the trial lost the machine on which it ran."""
    return int(trial.user_attrs.get(LOST_NODES, 0))


def set_lost_nodes(trial: optuna.Trial, number: int) -> None:
    """Write how often the trial lost the machine on which it ran."""
    trial.set_user_attr(LOST_NODES, number)


def seconds(trial: FrozenTrial) -> float:
    """Wall seconds the trial spent training, over all its workers."""
    return float(trial.user_attrs.get(SECONDS, 0.0))


def set_seconds(trial: optuna.Trial, value: float) -> None:
    """Write the wall seconds the trial spent training."""
    trial.set_user_attr(SECONDS, round(value, 2))


def copied(trial: FrozenTrial) -> Original | None:
    """What the trial is a copy of; None for a trial of this study's own."""
    original = trial.user_attrs.get(COPIED)
    return None if original is None else Original(**original)


def copy_of(trial: FrozenTrial, original: Original) -> dict[str, Any]:
    """The attributes of a trial's copy: its decisions, metrics and reason, but no checkpoint, time or retries."""
    left_out = (CHECKPOINT, SECONDS, RETRIES, LOST_NODES, INVALID)
    kept = {name: value for name, value in trial.user_attrs.items() if name not in left_out}
    return kept | {COPIED: asdict(original)}


def finalist(trial: FrozenTrial) -> Finalist | None:
    """What the trial judges again; None for a trial of the search itself."""
    found = trial.user_attrs.get(FINALIST)
    return None if found is None else Finalist(**found)


def is_at_target(trial: FrozenTrial) -> bool:
    """Whether the trial trains a setting at the target of a transfer."""
    found = finalist(trial)
    return found is not None and found.at_target


def finalist_attrs(what: Finalist) -> dict[str, Any]:
    """The attributes of a trial that is to be a finalist."""
    return {FINALIST: {name: value for name, value in asdict(what).items() if value is not False}}


def openings(study: optuna.Study) -> list[Opening]:
    """When the test split was opened, the first time first."""
    return [Opening(**each) for each in study.user_attrs.get(OPENINGS, [])]


def add_opening(study: optuna.Study, opening: Opening) -> None:
    """Write that the test split is opened, before it is."""
    study.set_user_attr(OPENINGS, [*study.user_attrs.get(OPENINGS, []), asdict(opening)])


def tie(study: optuna.Study) -> Tie | None:
    """What makes a study an arm of a comparison; None for one that stands alone."""
    return tie_of(study.user_attrs)


def tie_of(attributes: Mapping[str, Any]) -> Tie | None:
    """The same, of a study's attributes."""
    found = attributes.get(TIE)
    if found is None:
        return None
    return Tie(**{**found, "equal": {name: (low, high) for name, (low, high) in found["equal"].items()}})


def set_tie(study: optuna.Study, what: Tie) -> None:
    """Write it, once, when the study is made."""
    study.set_user_attr(TIE, asdict(what))


def searched(trial: FrozenTrial) -> bool:
    """Whether the trial is one of this study's search: neither a copy nor a finalist."""
    return COPIED not in trial.user_attrs and FINALIST not in trial.user_attrs


def counts(trial: FrozenTrial) -> bool:
    """Whether the trial uses up one of the budget: finished here, and not refused before training."""
    return trial.state.is_finished() and not trial.user_attrs.get(INVALID, False) and searched(trial)


def is_invalid(trial: FrozenTrial) -> bool:
    """Whether the trial broke a limit before any training."""
    return bool(trial.user_attrs.get(INVALID, False))
