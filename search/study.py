"""The study in the storage: opened, created, resumed; what it still owes; what it left behind.

Everything a search needs to go on is here and nowhere else. A driver holds an `OpenStudy`; readers use
`search.catalog`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search import attachments, catalog, code, output, records, sampling, space, trainer
from search.errors import OutputError, StudyError, VqsearchError
from search.lease import Lease
from search.lengthening import lengthen
from search.retention import Keeper
from search.schema import CodeFile
from search.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)  # The search speaks for itself.

OPERATIONAL = (
    "budget.trials", "budget.hours", "parallel", "resources.gpus", "resources.cpus",
    "resources.accelerator_type", "resources.labels", "keep.best", "finalists.top",
    "finalists.seeds", "finalists.include", "transfer.top", "transfer.include", "log.tensorboard", "log.wandb",
)  # fmt: skip
"""Keys that change how long and where a search runs and what it keeps, but no trial: they may change later."""


@dataclass(kw_only=True)
class Flight:
    """A trial that is running now.

    Attributes:
        trial: Optuna's handle.
        labels: its parameters as stored.
        started: `time.monotonic()` when this driver took it up.
        before: wall seconds it had trained before that.
        step: optimizer steps done, as last reported.
        metrics: as last reported.
        outcome: how it ends, once that is known.
        unwanted: someone asked to prune it.
        finalist: what it judges again; None for a trial of the search itself.
        node: identity of the node on which it runs, once its worker has told.
    """

    trial: optuna.Trial
    labels: Mapping[str, Any]
    started: float
    before: float
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    outcome: Outcome | None = None
    unwanted: bool = False
    finalist: records.Finalist | None = None
    node: str = ""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a trial ends.

    Attributes:
        state: COMPLETE, PRUNED, FAIL, or WAITING for one that will go on later.
        reason: one line (or a traceback), "" for COMPLETE.
        constraints: violated constraint -> by how much, above 0.
    """

    state: TrialState
    reason: str = ""
    constraints: Mapping[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class OpenStudy:
    """A study with its driver's lease, and what is in flight.

    Attributes:
        study: Optuna's study, with our sampler.
        space: what is searched.
        output: output root.
        lease: proof that this driver is the only one.
        keeper: lets checkpoints go that no trial needs.
        flights: Ray's trial id -> what is running.
        draining: no trial starts any more, and those that run are handed back.
        paused: `time.monotonic()` since when no trial starts, until someone says go on; None while they do.
        notify: takes a line for people, about one trial or the search as a whole.
        reported: takes what a running trial has just reported.
        ended: takes how a trial ends, or that it is handed back.
        notes: lines for people about the opening.
        failure: what went wrong where Ray would have swallowed it; the search ends with it.
    """

    study: optuna.Study
    space: Space
    output: str
    lease: Lease
    keeper: Keeper
    flights: dict[str, Flight] = field(default_factory=dict)
    draining: bool = False
    paused: float | None = None
    notify: Callable[[str], None] = lambda _line: None
    reported: Callable[[Flight, Mapping[str, float]], None] = lambda _flight, _metrics: None
    ended: Callable[[Flight, Outcome], None] = lambda _flight, _outcome: None
    notes: list[str] = field(default_factory=list)
    failure: Exception | None = None
    opened: float = field(default_factory=time.monotonic)
    hours_before: float = 0.0

    def trials(self) -> list[FrozenTrial]:
        """All trials as the storage has them now; not to be changed."""
        return self.study.get_trials(deepcopy=False)

    def frozen(self, trial: optuna.Trial) -> FrozenTrial:
        """One trial as the storage has it now."""
        return self.study._storage.get_trial(trial._trial_id)

    def hours(self) -> float:
        """Wall hours of all drivers, this one included, without those in which it paused."""
        now = time.monotonic() if self.paused is None else self.paused
        return self.hours_before + (now - self.opened) / 3600

    def go_on(self) -> None:
        """End a pause."""
        if self.paused is not None:
            self.opened += time.monotonic() - self.paused
            self.paused = None

    def put_back(self, trial: optuna.Trial | FrozenTrial) -> None:
        """RUNNING to WAITING: the same number goes on later, with its parameters, curve and checkpoint."""
        self.lease.check()
        self.study._storage.set_trial_state_values(trial._trial_id, state=TrialState.WAITING)

    def spend(self) -> None:
        """Write the hours of drivers, for a budget of hours that outlives a killed driver."""
        if self.space.budget.hours is not None:
            records.set_hours(self.study, self.hours())

    def close(self) -> None:
        """Hand back what still runs (it was cut off), write what was spent and give the lease back.

        What a storage that stays away does not let us do, the next driver does for us.
        """
        with contextlib.suppress(VqsearchError):
            if self.lease.held:
                for flight in self.flights.values():
                    self.put_back(flight.trial)
                records.set_hours(self.study, self.hours())
            self.lease.release()


def existing(storage: BaseStorage, wanted: Space, root: str | None, accept_code: bool = False) -> optuna.Study | None:
    """The study of a space file, if there is one.

    Args:
        storage: where it may be.
        wanted: the space.
        root: output root, absolute; None for that of the study.
        accept_code: its files of code may be others.

    Raises:
        StudyError: it searches something else, or keeps its checkpoints elsewhere; the message shows the difference
            and the ways on.
    """
    if wanted.study not in catalog.studies(storage):
        return None
    study, stored = catalog.load(storage, wanted.study)
    _refuse_a_change(stored, wanted, records.tie(study), accept_code)
    there = records.output(study)
    if root not in (None, there):
        raise StudyError(
            f"{wanted.study}: its checkpoints lie in {there}, not in {root}; if they have moved: "
            f"vqsearch resume --study {wanted.study} --output {root}"
        )
    return study


def spent(study: optuna.Study, budget: int) -> bool:
    """Whether a study has finished as many trials as its budget allows, and none runs; one that waits has no room."""
    trials = study.get_trials(deepcopy=False)
    return sum(records.counts(t) for t in trials) >= budget and all(t.state != TrialState.RUNNING for t in trials)


def create(
    storage: BaseStorage,
    wanted: Space,
    root: str | None,
    parallel: int,
    copies: Sequence[FrozenTrial] = (),
    tie: records.Tie | None = None,
    accept_code: bool = False,
) -> OpenStudy:
    """Open the study of a space file: a new one, or the one of this name if it searches the same.

    Args:
        storage: where it is to be.
        wanted: the space.
        root: output root, absolute; None for that of the study, or the default one.
        parallel: trials that can run at once, for the number of quasi-random trials of a new study.
        copies: trials of an old study that a new one takes over, see `search.extension`.
        tie: which arm of which comparison a new study is.
        accept_code: the files of code of one that is there may be others.

    Raises:
        StudyError: the name is taken by another search; the message shows the difference and the ways on.
        LeaseError: another driver runs it.
        OutputError: the output root can't be written, or a new study would find files of another one there.
    """
    study = existing(storage, wanted, root, accept_code)
    if study is None:
        root = root or output.absolute(output.DEFAULT)
        with contextlib.suppress(KeyError):  # Refused before an output root is made for it.
            _refuse_a_foreign_one(optuna.load_study(study_name=wanted.study, storage=storage), wanted, copies)
        output.check(root)
        output.require_unclaimed(root, wanted.study)
        with contextlib.suppress(optuna.exceptions.DuplicatedStudyError):  # The lease decides between two drivers.
            storage.create_new_study([_direction(wanted)], wanted.study)
        study = optuna.load_study(study_name=wanted.study, storage=storage)
        _refuse_a_foreign_one(study, wanted, copies)
    lease = Lease(storage, wanted.study)
    with _given_back_on_error(lease):
        # Another driver may have made it in between.
        if existing(storage, wanted, root, accept_code) is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna calls the names of objectives experimental.
                study.set_metric_names([wanted.objective.metric])
            assert root is not None
            there = _originals(study.get_trials(deepcopy=False))  # by a launch that was killed here
            study.add_trials(copy for copy in copies if not _originals([copy]) <= there)
            if tie is not None:
                records.set_tie(study, tie)
            held = versions() | code.versions(wanted.plugins)
            records.create(study, wanted.source, root, sampling.startup_trials(wanted, parallel), held)
        return _enter(study, wanted, records.output(study), lease)


def resume(
    storage: BaseStorage,
    name: str | None,
    changes: Mapping[str, Any] | None = None,
    root: str | None = None,
    steps: int | None = None,
    plugins: Sequence[CodeFile] = (),
) -> OpenStudy:
    """Open a study to go on with it, from the storage alone.

    Args:
        storage: where it is.
        name: its name; None where the storage holds just one.
        changes: `OPERATIONAL` keys -> new values.
        root: a new place of the output root, where it has moved.
        steps: of a trial, where they become longer, see `search.lengthening`.
        plugins: its files of code, as they ran here.

    Raises:
        StudyError: no such study, or a change of what its trials are.
        LeaseError: another driver runs it.
        OutputError: the output root is not there, or can't be written.
    """
    study, stored = catalog.load(storage, name)
    changed = operational(stored, changes or {}, plugins)
    output.check(root or records.output(study), create=False)
    require_files(study, root or records.output(study))
    lease = Lease(storage, study.study_name)
    with _given_back_on_error(lease):
        if steps is not None:
            trials = study.get_trials(deepcopy=False)
            changed = lengthen(changed, trials, steps)
            records.add_length(study, len(trials), stored.budget.steps, steps)
        return _enter(study, changed, root or records.output(study), lease)


def require_files(study: optuna.Study, root: str) -> None:
    """Make sure that a root has the files of a study that has any; the place where a disk was mounted has none.

    Raises:
        OutputError: it has not.
    """
    trials = study.get_trials(deepcopy=False)
    if any(records.checkpoint(trial) is not None and records.copied(trial) is None for trial in trials):
        try:
            output.require(root, study.study_name)
        except OSError as error:
            raise OutputError(f"{root}: the output root can't be read: {error}") from None


def operational(stored: Space, changes: Mapping[str, Any], plugins: Sequence[CodeFile] = ()) -> Space:
    """A stored space with some of its `OPERATIONAL` keys changed.

    Args:
        stored: the space.
        changes: key -> new value.
        plugins: its files of code, as they ran here; none leaves what the study keeps of them.

    Raises:
        SpaceError: a value that does not hold.
        StudyError: another key, which would make the trials to come others than those before.
    """
    values = json.loads(json.dumps(stored.source))
    for key, value in changes.items():
        if key not in OPERATIONAL:
            raise StudyError(f"--set {key}: a study that goes on can change {', '.join(OPERATIONAL)}; nothing else")
        parent, _, last = key.rpartition(".")
        (values.setdefault(parent, {}) if parent else values)[last] = value
    if plugins:
        values["plugins"] = [file.model_dump() for file in plugins]
        if stored.trainer:
            values["trainer"] = trainer.moved(stored.plugins, plugins, stored.trainer)
    return space.parse(values, f"study {stored.study}")


@contextlib.contextmanager
def _given_back_on_error(lease: Lease) -> Iterator[None]:
    try:
        yield
    except BaseException:
        lease.release()
        raise


def _enter(study: optuna.Study, stored: Space, root: str, lease: Lease) -> OpenStudy:
    """Make a study ready for a driver that holds its lease."""
    study.sampler = sampling.build(stored, records.startup(study))
    if root != records.output(study):
        records.set_output(study, root)
    if records.space(study) != stored.source:
        records.set_space(study, stored.source)
    if not records.identity(study):
        records.set_identity(study, uuid.uuid4().hex)
    owned = _claimed(study, root)
    keeper = Keeper(
        root=root,
        study=study.study_name,
        direction=study.direction,
        best=stored.keep.best,
        owned=owned,
        notify=lambda line: opened.notify(line),
    )
    opened = OpenStudy(
        study=study, space=stored, output=root, lease=lease, keeper=keeper, hours_before=records.hours(study)
    )
    opened.notes += _other_versions(study, stored)
    if not owned:
        opened.notes.append(
            f"{root}: the folder {study.study_name} holds files of another study of this name, so that nothing is "
            "cleaned up there; --output gives this one a root of its own"
        )
    attachments.note_study(study, stored)
    for baseline in stored.baselines:
        study.enqueue_trial(dict(baseline), skip_if_exists=True)
    # A killed driver's trials go on from their checkpoints; one that only lacked its state comes to the same end again.
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        opened.put_back(trial)
    keeper.sweep(opened.trials())
    return opened


def _claimed(study: optuna.Study, root: str) -> bool:
    try:
        return output.claim(root, study.study_name, records.identity(study))
    except OSError as error:
        raise OutputError(f"{root}: the output root can't be written: {error}") from None


def _other_versions(study: optuna.Study, stored: Space) -> list[str]:
    """Write with which versions the search goes on, where they are others; lines that say so."""
    now, last = versions() | code.versions(stored.plugins), records.versions(study)[-1]
    changed = [f"{name} {last[name]}, this is {v}" for name, v in versions().items() if last.get(name, v) != v]
    code_changed = code.hashes_of(now) != code.hashes_of(last)
    if not changed and not code_changed:
        return []
    trials = study.get_trials(deepcopy=False)
    records.add_versions(study, len(trials), now)
    lines = []
    if changed:
        lines.append(f"made with {'; '.join(changed)}: curves of the trials to come may differ in the last digits")
    if code_changed:
        ahead = [trial for trial in trials if not trial.state.is_finished()]
        begun = [str(t.number) for t in ahead if records.code(t) or records.checkpoint(t)]
        waiting = [str(t.number) for t in ahead if str(t.number) not in begun]
        rest = f", in trial {', '.join(waiting)} that waits" if waiting else ""
        rest += f", and trial {', '.join(begun)} that was begun before" if begun else ""
        lines.append(f"other code from trial {len(trials)} on{rest}: {code.words(last)} before, {code.words(now)} now")
    return lines


def _originals(trials: Iterable[FrozenTrial]) -> set[records.Original | None]:
    return {records.copied(trial) for trial in trials}


def _direction(wanted: Space) -> StudyDirection:
    return StudyDirection[wanted.objective.direction.upper()]


def _refuse_a_foreign_one(study: optuna.Study, wanted: Space, copies: Sequence[FrozenTrial]) -> None:
    begun = _originals(study.get_trials(deepcopy=False))
    if study.direction != _direction(wanted) or not begun <= _originals(copies):
        raise StudyError(
            f"{wanted.study}: the storage holds a study of this name that vqsearch did not make; choose another "
            "name with --study"
        )


def _refuse_a_change(stored: Space, wanted: Space, tie: records.Tie | None, accept_code: bool) -> None:
    free = (*OPERATIONAL, "plugins", "trainer")
    lines = [
        line
        for line in space.difference(stored.source, wanted.source)
        if line.split(":")[0] not in free and not line.startswith("resources.labels.")
    ]
    lines += trainer.difference(stored, wanted)
    other = [] if accept_code else code.difference(stored.plugins, wanted.plugins)
    if other and not lines:
        raise StudyError(
            f"{wanted.study}: {'; '.join(other)}; expected the same code, or --accept-code, which goes on with the new "
            "one and notes in the study from which trial on, or a study of its own: --study NAME"
        )
    lines += other
    if not lines:
        return
    ways = (
        f"The same command with --study {wanted.study}-2 --extend {wanted.study} opens a new study that takes over "
        "what trials of this one lie in the new space; with --study NAME alone it starts from nothing; vqsearch resume "
        f"--study {wanted.study} goes on with the old one."
    )
    if tie is not None:
        ways = (
            "Another name under comparison starts a new comparison; vqsearch resume --study "
            f"{tie.comparison} goes on with the old one."
        )
    raise StudyError(
        f"{wanted.study}: the storage holds a study of this name that searches something else:\n  "
        + "\n  ".join(lines)
        + f"\n{ways}"
    )


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    return {name: importlib.metadata.version(name) for name in ("vqsearch", "torch", "optuna", "ray")}
