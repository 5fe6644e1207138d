"""Which checkpoints stay: those of the best complete trials, of finalists, and of every trial that may still go on.

The rest is removed as soon as that is decided, but after it is written: a kill in between leaves a checkpoint too many,
never one too few. What a kill left is removed when the study is opened again, or by `vqsearch clean`. Pictures stay,
those of earlier evaluations too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search import output, records
from search.errors import OutputError

_STEP = re.compile(r"trials/(?P<number>\d{5,})/(?P<step>step-\d+)(?P<part>\.part-[^/]*)?/(?P<file>.+)")


def ranked(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Complete trials of a search that keep the limits, the best first, and of two alike the earlier one."""
    return _sorted((trial for trial in trials if records.finalist(trial) is None), direction)


def ranked_at_target(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """The same of the trials at the target of a transfer."""
    return _sorted((trial for trial in trials if records.is_at_target(trial)), direction)


def _sorted(trials: Iterable[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    sign = 1 if direction == StudyDirection.MINIMIZE else -1
    complete = [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())
    ]
    return sorted(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))


def needed(trials: Sequence[FrozenTrial], direction: StudyDirection, best: int) -> dict[int, str]:
    """The checkpoints that stay, by trial number: folders below the output root.

    Args:
        trials: all of a study.
        direction: of its objective.
        best: how many complete trials keep theirs; those that equal the last of them keep it too.
    """
    own = ranked((trial for trial in trials if records.copied(trial) is None), direction)
    kept = own[:best] + [trial for trial in own[best:] if trial.value == own[best - 1].value]
    others = [trial for trial in trials if not trial.state.is_finished() or records.finalist(trial) is not None]
    found = ((trial.number, records.checkpoint(trial)) for trial in (*kept, *others))
    return {number: record.folder for number, record in found if record is not None}


@dataclass(frozen=True, kw_only=True)
class Rubbish:
    """What no trial needs, in one folder below an output root.

    Attributes:
        folder: relative to the root.
        why: in words.
        files: that are to go.
        whole: whether nothing else lies in the folder.
    """

    folder: str
    why: str
    files: tuple[output.Entry, ...]
    whole: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(entry.size for entry in self.files)

    def remove(self, root: str) -> None:
        """Remove it.

        Raises:
            OutputError: a link on the way leads out of the root.
            OSError: it can't be removed.
        """
        if self.whole:
            output.delete(root, self.folder)
        for entry in () if self.whole else self.files:
            output.delete_file(root, entry.path)


def rubbish(
    root: str, study: str, trials: Sequence[FrozenTrial], direction: StudyDirection, best: int
) -> list[Rubbish]:
    """What lies in the folders of a study's trials and no trial needs; no driver may be running.

    Args:
        root: output root.
        study: its name.
        trials: all of them.
        direction: of its objective.
        best: as in `needed`.

    Raises:
        OutputError: a link on the way leads out of the root.
        OSError: the root can't be read.
    """
    stay = set(needed(trials, direction, best).values())
    shown = {f"{each.folder}/{each.name}{output.PICTURES}" for trial in trials for each in records.pictures(trial)}
    last = {record.folder: trial for trial in trials if (record := records.checkpoint(trial)) is not None}
    folders: dict[str, list[output.Entry]] = {}
    partial = set()
    for entry in output.files(root, f"{study}/trials"):
        match = _STEP.fullmatch(entry.path.removeprefix(f"{study}/"))
        if match is None:
            continue  # not ours
        folder = entry.path[: -len(match["file"]) - 1]
        folders.setdefault(folder, []).append(entry)
        if match["part"]:
            partial.add(folder)
    found = []
    for folder, entries in folders.items():
        if folder in stay:
            continue
        if folder in partial:
            found.append(Rubbish(folder=folder, why="cut off in writing", files=tuple(entries), whole=True))
        elif folder in last:
            found.append(_without_pictures(folder, _worse(last[folder], best), entries))
        else:
            gone = tuple(entry for entry in entries if entry.path not in shown)
            whole = len(gone) == len(entries)
            found.append(Rubbish(folder=folder, why="no trial goes on from it", files=gone, whole=whole))
    return [each for each in found if each.files]


def _worse(trial: FrozenTrial, best: int) -> str:
    place = f", but not among the best {best}" if trial.state == TrialState.COMPLETE else ""
    return f"trial {trial.number} is {trial.state.name}{place}"


class Keeper:
    """Lets checkpoints go while a search runs.

    Args:
        root: output root.
        study: name of the study.
        direction: of its objective.
        best: as in `needed`.
        owned: whether the files there are this study's; else only what it has just replaced goes.
        notify: takes a line for people, where something can't be removed.
    """

    def __init__(
        self,
        *,
        root: str,
        study: str,
        direction: StudyDirection,
        best: int,
        owned: bool,
        notify: Callable[[str], None],
    ) -> None:
        self._root, self._study, self._direction, self._best = root, study, direction, best
        self._owned, self._notify = owned, notify
        self._gone: set[int] = set()

    def sweep(self, trials: Sequence[FrozenTrial]) -> None:
        """Remove all that a killed driver left; called once, before any trial runs."""
        self._gone = {trial.number for trial in self._dispensable(trials)}
        with self._telling():
            for each in rubbish(self._root, self._study, trials, self._direction, self._best) if self._owned else ():
                each.remove(self._root)

    def let_go(self, trials: Sequence[FrozenTrial]) -> None:
        """Remove the checkpoints that are not needed any more; called after a trial's state is written."""
        for trial in self._dispensable(trials):
            record = records.checkpoint(trial)
            if trial.number in self._gone or record is None:
                continue
            self._gone.add(trial.number)
            if self._owned and record.folder.startswith(f"{self._study}/trials/"):
                with self._telling():
                    _without_pictures(record.folder, "", output.files(self._root, record.folder)).remove(self._root)

    def replace(self, folder: str) -> None:
        """Remove a checkpoint that a later one of the same trial has replaced."""
        with self._telling():
            _without_pictures(folder, "", output.files(self._root, folder)).remove(self._root)

    def _dispensable(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        stay = needed(trials, self._direction, self._best)
        return [trial for trial in trials if trial.state.is_finished() and trial.number not in stay]

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """A search does not end because there is too much on the disk."""
        try:
            yield
        except (OSError, OutputError) as error:
            self._notify(f"a checkpoint that is not needed any more can't be removed: {error}")


def _without_pictures(folder: str, why: str, entries: Sequence[output.Entry]) -> Rubbish:
    gone = tuple(entry for entry in entries if not entry.path.endswith(output.PICTURES))
    return Rubbish(folder=folder, why=why, files=gone, whole=len(gone) == len(entries))
