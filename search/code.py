"""Files of the user's own code in a search: named by a person, kept by path and hash, run here and on workers.

vqsearch launch mine.yaml                a file under `plugins`, or --plugin FILE, is named, read and run
the study                                keeps path and hash, never the code
the driver -> its workers                the content that ran here, through Ray
vqsearch resume --study mine             runs the same content again, if it was named on this machine
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search import trust, yaml12
from search.errors import StudyError
from search.schema import CodeFile
from vqvae import plugins
from vqvae.plugins import Plugin, PluginError, UnknownPartError

DIGITS = 12
"""Of a hash, where people read it."""

VERSION = "plug-in "
"""What stands before a file's name among the versions of packages."""

MISSED = "one of your own needs its file, under plugins of a space file or as --plugin FILE"


def hinted(problem: str, error: Exception) -> str:
    """The words for an error, with what brings the part in where a config asks for an unknown one."""
    return f"{problem}; {MISSED}" if isinstance(error, UnknownPartError) else problem


def name_all(paths: Iterable[str]) -> list[Plugin]:
    """Run files that the user has named on this machine, and remember that.

    Raises:
        PluginError: one can't be read, or it raises.
    """
    return [_run_named(plugins.read(path)) for path in paths]


def _run_named(plugin: Plugin) -> Plugin:
    trust.remember(plugin)
    plugins.run(plugin)
    return plugin


def of_file(document: yaml12.Document, folder: Path, given: Sequence[str] = ()) -> list[dict[str, str]]:
    """Run the files that a space file names under `plugins`, then those that the command line names.

    Args:
        document: of the space file. An entry is a path, or what a study keeps of one, whose hash must hold then.
        folder: where its relative paths start; those of the command line start at the current one.
        given: paths from the command line.

    Returns:
        What the space keeps of them, each content once: path and sha256.

    Raises:
        SpaceError: an entry of another kind, a file that can't be read, or one with another hash; with its place.
        PluginError: a file raises.
    """
    entries = document.value.get("plugins")
    if entries is None:
        entries = []
    if not isinstance(entries, list):
        raise document.error(("plugins",), f"must be a list of Python files, but got {entries!r}")
    start = Path.cwd() if ("plugins",) in document.flags else folder
    found = [entry(each, document, ("plugins", index), start) for index, each in enumerate(entries)]
    kept: dict[str, dict[str, str]] = {}
    for plugin in [*found, *name_all(given)]:
        kept.setdefault(plugin.sha256, record(plugin))
    return list(kept.values())


def record(plugin: Plugin) -> dict[str, str]:
    """What a study keeps of a file."""
    return {"path": plugin.path, "sha256": plugin.sha256}


def entry(entry: Any, document: yaml12.Document, place: yaml12.Path, folder: Path) -> Plugin:
    """Run one file that a space file names.

    Args:
        entry: its path, or what a study keeps of it, whose hash must hold then.
        document: of the space file.
        place: where it stands there.
        folder: where a relative path starts.

    Raises:
        SpaceError: an entry of another kind, a file that can't be read, or one with another hash.
        PluginError: it raises.
    """
    pinned = isinstance(entry, dict) and set(entry) == {"path", "sha256"}
    path = entry["path"] if pinned else entry
    if not isinstance(path, str) or not path:
        raise document.error(place, f"must be the path of a Python file, but got {entry!r}")
    try:
        plugin = plugins.read(folder / Path(path).expanduser())
    except (PluginError, RuntimeError) as error:  # RuntimeError: no such user behind the ~
        raise document.error(place, str(error)) from None
    if pinned and plugin.sha256 != entry["sha256"]:
        was, now = short(str(entry["sha256"])), short(plugin.sha256)
        raise document.error(place, f"{plugin.path} must have the sha256 {was}, but got {now}")
    return _run_named(plugin)


def short(sha256: str) -> str:
    """A hash as people read it."""
    return sha256[:DIGITS]


def require(
    study: str, kept: Sequence[CodeFile], given: Sequence[str] = (), accept: bool = False, others: bool = False
) -> list[CodeFile]:
    """Run the code of a study, as far as the user of this machine has named it.

    Args:
        study: its name, for messages.
        kept: what it keeps of its files.
        given: paths from the command line.
        accept: a file may have changed.
        others: what is given may be none of the study's, and runs too.

    Returns:
        The files that ran, where they are now; the others of `kept` are theirs.

    Raises:
        StudyError: a file that is not there, that has changed, that was never named here, that is none of the study, or
            that could be one or another of it.
        PluginError: a file of the command line can't be read, or one raises.
    """
    named, left = _matched(study, kept, [plugins.read(path) for path in given])
    if left and not others:
        raise StudyError(
            f"{study}: --plugin {left[0].path}: the study has no such file; expected one of its own, {_listed(kept)}; "
            "a search with another one is another study"
        )
    found = []
    for file in kept:
        plugin = named.get(file.sha256) or _read(study, file)
        if plugin.sha256 != file.sha256 and not accept:
            raise StudyError(
                f"{study}: {_changed(file, plugin.path, plugin.sha256)}; expected the same, or --accept-code, which "
                "takes what it is now"
            )
        if file.sha256 not in named and not (trust.knows(plugin.sha256) or (accept and trust.knows_place(plugin.path))):
            raise StudyError(
                f"{study}: {plugin.path} ({short(plugin.sha256)}) is code that was never named on this machine, and a "
                f"study alone runs none; look at it, then name it: the same command with --plugin {plugin.path}"
            )
        found.append(_run_named(plugin))
    for plugin in left:
        _run_named(plugin)
    return [CodeFile(**record(plugin)) for plugin in found]


def _matched(study: str, kept: Sequence[CodeFile], given: Sequence[Plugin]) -> tuple[dict[str, Plugin], list[Plugin]]:
    """Hash of a study's file -> what was given for it, as `_ALIKE` says; and what is left.

    Raises:
        StudyError: by its name alone, what was given could be any of several.
    """
    found: dict[str, Plugin] = {}
    left = list(given)
    for alike in _ALIKE[:-1]:
        for file in kept:
            plugin = next((p for p in left if alike((file.path, file.sha256), (p.path, p.sha256))), None)
            if plugin is not None and file.sha256 not in found:
                found[file.sha256] = plugin
                left.remove(plugin)
    gone = [file for file in kept if file.sha256 not in found and not _intact(file)]
    for plugin in tuple(left):
        name = Path(plugin.path).name
        fitting = [file for file in gone if Path(file.path).name == name]
        rivals = [each.path for each in left if Path(each.path).name == name]
        if fitting and len(rivals) > 1:
            raise StudyError(
                f"{study}: --plugin {', '.join(rivals)}: by their name each could be {_listed(fitting)}; expected one"
            )
        if len(fitting) > 1:
            raise StudyError(
                f"{study}: --plugin {plugin.path}: by its name it could be any of {_listed(fitting)}; expected each of "
                "them at its own place, or as it was"
            )
        if fitting:
            found[fitting[0].sha256] = plugin
            left.remove(plugin)
    return found, left


def _intact(file: CodeFile) -> bool:
    """Whether a file is as it was, at its own place."""
    try:
        return plugins.read(file.path).sha256 == file.sha256
    except PluginError:
        return False


_ALIKE: tuple[Callable[[tuple[str, str], tuple[str, str]], bool], ...] = (
    lambda one, other: one[1] == other[1],
    lambda one, other: one[0] == other[0],
    lambda one, other: Path(one[0]).name == Path(other[0]).name,
)
"""What makes two files, each of a path and a hash, the same one: rather their content than their path or their name."""


def missing(before: Sequence[CodeFile], now: Sequence[CodeFile]) -> list[str]:
    """Lines for the files that are not among others as they were: those have changed, or are not there."""
    hashes = {file.sha256 for file in now}
    lines = []
    for file in before:
        if file.sha256 not in hashes:
            others = [each for each in now if each.sha256 not in {one.sha256 for one in before}]
            alike = (e for like in _ALIKE for e in others if like((file.path, file.sha256), (e.path, e.sha256)))
            new = next(alike, None)
            lines.append(
                f"{_listed([file])} is not named here" if new is None else _changed(file, new.path, new.sha256)
            )
    return lines


def difference(before: Sequence[CodeFile], now: Sequence[CodeFile]) -> list[str]:
    """Lines that say what differs between the files of a study and those that were named now."""
    gone = missing(before, now)
    if gone or len(now) == len(before):
        return gone
    hashes = {file.sha256 for file in before}
    return [f"{_listed([file])} is new" for file in now if file.sha256 not in hashes]


def _changed(before: CodeFile, path: str, sha256: str) -> str:
    return f"{path} has changed: it was {short(before.sha256)}, and now is {short(sha256)}"


def _listed(files: Iterable[CodeFile]) -> str:
    return ", ".join(f"{file.path} ({short(file.sha256)})" for file in files) or "which has none"


def _read(study: str, file: CodeFile) -> Plugin:
    try:
        return plugins.read(file.path)
    except PluginError as error:
        why = str(error).removeprefix(f"{file.path}: ").partition(";")[0]
        raise StudyError(
            f"{study}: {file.path}: {why}; the study needs this file ({short(file.sha256)}): --plugin FILE says where "
            "it is now"
        ) from None


def versions(files: Iterable[CodeFile]) -> dict[str, str]:
    """The files beside the versions that a result depends on: ``plug-in my_model.py`` -> its hash as people read it."""
    files = list(files)
    names = [Path(file.path).name for file in files]
    return {
        f"{VERSION}{name if names.count(name) == 1 else file.path}": short(file.sha256)
        for file, name in zip(files, names, strict=True)
    }


def versions_of(held: Mapping[str, Any]) -> dict[str, str]:
    """Those among the versions of trials that are of files."""
    return {name: str(value) for name, value in held.items() if name.startswith(VERSION)}


def hashes_of(held: Mapping[str, Any]) -> list[str]:
    """Their hashes, sorted: what tells code from other code, wherever its files lie and whatever they are called."""
    return sorted(versions_of(held).values())


def words(held: Mapping[str, Any]) -> str:
    """Those in words, for a line."""
    return ", ".join(f"{name} {value}" for name, value in versions_of(held).items()) or "no plug-in"


def content(files: Iterable[CodeFile]) -> list[Plugin]:
    """What ran here of some files, for workers: each content once, in their order."""
    found = [plugins.ran(file.sha256) for file in {file.sha256: file for file in files}.values()]
    assert None not in found, "a driver has run the code of its studies"
    return [plugin for plugin in found if plugin is not None]


def run(content: Iterable[Plugin]) -> None:
    """Run on a worker what ran at the driver; what has run in this process does nothing.

    Raises:
        PluginError: it raises, such as for a package that is not installed there.
    """
    for plugin in content:
        plugins.run(plugin)
