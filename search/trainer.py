"""The trainer that a space file names in the place of ours: ``trainer: ./my_train.py:train``.

Its file is one of those of `search.code`: kept by path and hash, run where it was named and on workers. What a space
keeps besides is this text, the path absolute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Protocol

from search import code, yaml12
from search.errors import UserError
from search.schema import CodeFile
from vqvae import plugins, trainers
from vqvae.plugins import PluginError
from vqvae.trainers import RECORD, Trainer


class Trained(Protocol):
    """A `search.space.Space`, which lies above."""

    @property
    def study(self) -> str: ...  # noqa: D102

    @property
    def plugins(self) -> tuple[CodeFile, ...]: ...  # noqa: D102

    @property
    def trainer(self) -> str | None: ...  # noqa: D102


def of_file(document: yaml12.Document, folder: Path, files: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Run the file of the trainer that a space file names, if it names one.

    Args:
        document: of the space file.
        folder: where its relative paths start; those of the command line start at the current one.
        files: what the space keeps of its other files of code.

    Returns:
        The keys `plugins` and `trainer` of the space.

    Raises:
        SpaceError: no such form, no such file, or no such function in it; with its place.
        PluginError: the file raises.
    """
    given = document.value.get("trainer")
    if given is None:
        return {"plugins": list(files)}
    place = ("trainer",)
    try:
        path, function = trainers.parts(given)
        ran = plugins.run(code.entry(path, document, place, Path.cwd() if place in document.flags else folder))
        trainers.find(ran, function)
    except PluginError as error:
        raise document.error(place, str(error)) from None
    kept = {file["sha256"]: file for file in files} | {ran.sha256: code.record(ran)}
    return {"plugins": list(kept.values()), "trainer": f"{ran.path}:{function}"}


def file_of(files: Sequence[CodeFile], trainer: str | None) -> CodeFile | None:
    """The file of code that holds the trainer; None where it is ours."""
    if trainer is None:
        return None
    path, _ = trainers.parts(trainer)
    found = next((file for file in files if file.path == path), None)
    if found is None:
        raise PluginError(f"{path}: must be one of plugins, which keep the hash of each file")
    return found


def of(files: Sequence[CodeFile], trainer: str | None) -> Trainer | None:
    """The trainer itself, where its file has run; None where it has not, or where it is ours.

    Raises:
        PluginError: it has run, and has no such function.
    """
    file = file_of(files, trainer)
    ran = None if file is None else plugins.ran(file.sha256)
    return None if ran is None or trainer is None else trainers.find(ran, trainers.parts(trainer)[1])


def moved(before: Sequence[CodeFile], now: Sequence[CodeFile], trainer: str | None) -> str | None:
    """The trainer's text where the files of a study lie elsewhere now; both in one order."""
    file = file_of(before, trainer)
    if file is None or trainer is None:
        return trainer
    return f"{now[list(before).index(file)].path}:{trainers.parts(trainer)[1]}"


def meaning(space: Trained) -> tuple[str, str] | None:
    """What tells one trainer from another, wherever its file lies: hash and function; None for ours."""
    file = file_of(space.plugins, space.trainer)
    return None if file is None or space.trainer is None else (file.sha256, trainers.parts(space.trainer)[1])


def on_worker(meaning: str) -> Trainer:
    """The trainer of an assignment, where its code has run.

    Raises:
        PluginError: there is no such function.
    """
    sha256, function = meaning.split(":")
    ran = plugins.ran(sha256)
    assert ran is not None, "a worker runs the code of its studies first"
    return trainers.find(ran, function)


def difference(before: Trained, now: Trained) -> list[str]:
    """A line where two spaces have different trainers; whether a file has changed is for `search.code` to say."""
    first, second = (PurePath(each.trainer or "").name for each in (before, now))  # with the function
    old, new = meaning(before), meaning(now)
    swapped = old is not None and old != new and old[0] in {file.sha256 for file in now.plugins}  # so no file changed
    if (first == second and not swapped) or (old is not None and old == new):
        return []
    return [f"trainer: {before.trainer or '(absent)'} -> {now.trainer or '(absent)'}"]


def require_ours(space: Trained, what: str) -> None:
    """Refuse what is only about models of our own trainer.

    Args:
        space: of a study or file.
        what: that does it, the subject of a sentence.

    Raises:
        UserError: the space has another trainer.
    """
    if space.trainer:
        raise UserError(f"{space.study}: its trainer is {space.trainer}; {what} models of vqsearch's own trainer only")


def require_our_model(folder: Path, what: str) -> None:
    """The same of a folder with a model.

    Raises:
        UserError: another trainer wrote it.
    """
    try:
        trainer = json.loads((folder / RECORD).read_text(encoding="utf-8"))["trainer"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # whoever reads it says what is wrong
    raise UserError(f"{folder}: its trainer is {trainer}; {what} models of vqsearch's own trainer only")
