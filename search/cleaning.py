"""What a study has on the disk, and getting rid of it: of what no trial needs, or of all of it.

Nothing is removed beside a running driver (whoever removes holds the study's lease), nor outside the study's folder
below its output root, nor through a symbolic link, nor where another study of the same name has its files.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage

from search import lease, output, records, retention
from search.catalog import load, studies
from search.errors import OutputError, StudyError
from search.lease import Lease
from search.retention import Rubbish


@dataclass(frozen=True, kw_only=True)
class Found:
    """What may go.

    Attributes:
        study: its name.
        root: output root.
        trials: how many the study has.
        rubbish: what lies in its folder below the root and may go.
    """

    study: str
    root: str
    trials: int
    rubbish: Sequence[Rubbish]

    @property
    def files(self) -> int:
        """How many."""
        return sum(len(each.files) for each in self.rubbish)

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(each.size for each in self.rubbish)


def find(storage: BaseStorage, name: str | None) -> Found:
    """What lies in a study's folder and no trial of it needs, see `search.retention`.

    Args:
        storage: where the study is.
        name: of it; None where the storage holds just one.

    Raises:
        StudyError: no such study.
        LeaseError: a driver runs it.
        OutputError: the output root can't be read, or the files there are not this study's.
    """
    study, _ = load(storage, name)
    lease.refuse_if_held(storage, study.study_name)
    return _find(storage, study.study_name)


def clean(storage: BaseStorage, name: str) -> Found:
    """Remove what `find` finds; a second call goes on where a killed one stopped.

    Args:
        storage: where the study is.
        name: of it.

    Returns:
        What was removed.

    Raises:
        UserError: as in `find`, or something can't be removed.
    """
    with _leased(storage, name):
        found = _find(storage, name)
        with _told(found.root):
            for each in found.rubbish:
                each.remove(found.root)
    return found


def whole(storage: BaseStorage, name: str, keep_files: bool) -> Found:
    """All that a study has: its trials, and unless `keep_files` its folder below the output root.

    Raises:
        StudyError: no such study; the message names those there are.
        LeaseError: a driver runs it.
        OutputError: the output root can't be read, or the files there are not this study's.
    """
    study = _known(storage, name)
    lease.refuse_if_held(storage, name)
    trials, root = len(study.get_trials(deepcopy=False)), records.output(study)
    if keep_files:
        return Found(study=name, root=root, trials=trials, rubbish=())
    _require_own(study, root)
    with _told(root):
        entries = output.files(root, name)
    everything = (Rubbish(folder=name, why="all of the study", files=tuple(entries), whole=True),) if entries else ()
    return Found(study=name, root=root, trials=trials, rubbish=everything)


def delete(storage: BaseStorage, name: str, keep_files: bool) -> None:
    """Remove a study, and its files before it: a second call finishes what a killed one began.

    Raises:
        UserError: as in `whole`, or something can't be removed.
    """
    study = _known(storage, name)
    with _leased(storage, name):
        if not keep_files:
            root = records.output(study)
            _require_own(study, root)
            with _told(root):
                output.delete(root, name)
        storage.delete_study(study._study_id)


@contextlib.contextmanager
def _leased(storage: BaseStorage, name: str) -> Iterator[None]:
    held = Lease(storage, name)
    try:
        yield
    finally:
        held.release()


def _find(storage: BaseStorage, name: str) -> Found:
    study, space = load(storage, name)
    root, trials = records.output(study), study.get_trials(deepcopy=False)
    _require_own(study, root)
    with _told(root):
        found = retention.rubbish(root, name, trials, study.direction, space.keep.best)
    return Found(study=name, root=root, trials=len(trials), rubbish=found)


def _known(storage: BaseStorage, name: str) -> optuna.Study:
    """A study of vqsearch, though this version may not understand its space."""
    known = studies(storage)
    if name not in known:
        there = f"it holds {', '.join(known)}" if known else "it holds no search of vqsearch"
        raise StudyError(f"{name}: no such study in the storage; {there}")
    return optuna.load_study(study_name=name, storage=storage)


def _require_own(study: optuna.Study, root: str) -> None:
    with _told(root):
        owner = output.owner(root, study.study_name)
    if owner not in ("", records.identity(study)):
        raise OutputError(
            f"{root}: the folder {study.study_name} holds files of another study of this name; expected those of this "
            "one, so nothing is removed"
        )


@contextlib.contextmanager
def _told(root: str) -> Iterator[None]:
    """What can go wrong in an output root, in one line."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{root}: files of the study can't be listed or removed: {error}") from None
