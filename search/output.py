"""The output root: where the checkpoints and pictures of trials lie, in a folder or a bucket.

Workers write, the driver records relative paths in the study, and whoever holds the study finds them
again. Paths below a root are POSIX and never leave it:

    ROOT/STUDY/.vqsearch                      whose files these are
    ROOT/STUDY/trials/00007/step-00003333/    {model.safetensors, state.json, reconstructions.png, ...}
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyarrow import fs

from search.errors import OutputError

DEFAULT = "./vqsearch-output"

ANSWER_S = 30.0
"""Wall seconds after which a root that has not answered is called unreachable; clients of buckets try for minutes."""

PICTURES = ".png"
"""How files end that stay when a checkpoint goes."""

OWNER = ".vqsearch"
"""File in a study's folder that says whose it is."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file below an output root.

    Attributes:
        path: relative to the root.
        size: bytes.
    """

    path: str
    size: int


def folder_of(study: str, number: int, step: int) -> str:
    """The folder of one checkpoint, relative to the root."""
    return f"{study}/trials/{number:05d}/step-{step:08d}"


def absolute(root: str) -> str:
    """A root that means the same from any working folder; URLs stay as they are.

    Raises:
        OutputError: a URL that holds keys.
    """
    _refuse_keys(root)
    return root if "://" in root else str(Path(root).expanduser().resolve())


def shown(root: str) -> str:
    """A root without the keys that a URL may hold: before the host, or in the query."""
    root = re.sub(r"(://[^:/]*):[^@]+@(?:[^?]*@)?", r"\1:***@", root)
    return re.sub(r"([?&][^=&]*(?:key|password|secret|sig|token)=)[^&]+", r"\1***", root, flags=re.IGNORECASE)


def _refuse_keys(root: str) -> None:
    if "://" in root and shown(root) != root:
        raise OutputError(
            f"{shown(root)}: an output root is kept in the study and shown, and with it the keys in its URL; expected "
            "a URL without them, and keys where each node's client of the bucket looks for them, such as "
            "$AWS_SECRET_ACCESS_KEY or ~/.aws/credentials"
        )


def check(root: str, create: bool = True, timeout_s: float = ANSWER_S) -> None:
    """Write and remove a small file below `root`.

    Args:
        root: output root.
        create: make it where it is missing; else that is an error.
        timeout_s: how long an answer may take.

    Raises:
        OutputError: the root is not there, does not answer, or can't be written.
    """
    if "://" not in root or root.startswith("file://"):
        _probe(root, create)
        return
    # Clients of buckets can't be interrupted, and keep a process from ending: so another one asks. The root goes
    # through a pipe, since it may hold keys and everybody sees command lines.
    command = [sys.executable, "-P", "-c", "from search import output; output.answer()"]
    try:
        asked = subprocess.run(
            command, input=json.dumps([root, create]), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        raise OutputError(f"{root}: the output root does not answer within {timeout_s:g} s") from None
    if asked.returncode:
        words = asked.stdout.strip() or asked.stderr.strip().rpartition("\n")[2]
        raise OutputError(words or f"{root}: the output root can't be written")


@contextlib.contextmanager
def reached(root: str, create: bool) -> Iterator[None]:
    """As `check`, before work that is for nothing without the root; a folder made for that goes if it stays empty.

    Raises:
        OutputError: as `check`.
    """
    place = Path(absolute(root))
    new = [path for path in (place, *place.parents) if not path.exists()] if create and "://" not in root else []
    check(root, create)
    try:
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()


def answer() -> None:
    """Check the root that standard input names, in a process of its own; exit 1 with the error's text."""
    root, create = json.load(sys.stdin)
    try:
        _probe(root, create)
    except OutputError as error:
        sys.stdout.write(str(error))
        sys.exit(1)


def _probe(root: str, create: bool) -> None:
    try:
        system, base = filesystem(root)
        if create:
            system.create_dir(base, recursive=True)
        elif system.get_file_info(base).type != fs.FileType.Directory:
            raise OutputError(f"{root}: the output root of the study is not there; --output says where it has moved")
        probe = f"{base}/.vqsearch-{uuid.uuid4().hex}"
        with system.open_output_stream(probe) as stream:
            stream.write(b"vqsearch")
        system.delete_file(probe)
    except OutputError:
        raise
    except (OSError, ValueError) as error:
        raise OutputError(f"{root}: the output root can't be written: {error}") from None


def save(root: str, folder: str, write: Callable[[Path], None]) -> None:
    """Let `write` fill `folder` below `root`; it appears there as a whole or not at all.

    In a bucket, which knows no renaming, files appear one by one: the folder counts once the study names it.

    Raises:
        OSError: the root can't be written.
    """
    system, base = filesystem(root)
    target = f"{base}/{_inside(root, folder)}"
    if isinstance(system, fs.LocalFileSystem):
        part = Path(f"{target}.part-{uuid.uuid4().hex[:8]}")
        for path in [*reversed(part.relative_to(base).parents[:-1]), part.relative_to(base)]:
            (Path(base) / path).mkdir(exist_ok=True)  # not parents=True, which would make a vanished root anew
        try:
            write(part)
            if Path(target).exists():
                os.rename(target, old := f"{part}.old")
                os.rename(part, target)
                shutil.rmtree(old)
            else:
                os.rename(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    else:
        with tempfile.TemporaryDirectory() as local:
            write(Path(local))
            system.create_dir(target, recursive=True)
            fs.copy_files(local, target, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)


@contextlib.contextmanager
def fetched(root: str, folder: str) -> Iterator[Path]:
    """A local folder with the files of `folder` below `root`, for as long as the context lasts.

    Raises:
        OutputError: it is not there.
    """
    try:
        system, base = filesystem(root)
        source = f"{base}/{_inside(root, folder)}"
        there = system.get_file_info(source).type == fs.FileType.Directory
    except OSError as error:
        raise OutputError(f"{root}: the output root can't be read: {error}") from None
    if not there:
        raise OutputError(f"{root}: no folder {folder} in the output root, though the study names it")
    if isinstance(system, fs.LocalFileSystem):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as local:
        fs.copy_files(source, local, source_filesystem=system, destination_filesystem=fs.LocalFileSystem())
        yield Path(local)


def read(root: str, path: str) -> bytes:
    """One file below `root`.

    Raises:
        FileNotFoundError: it is not there.
        OutputError: a link on the way leads out of the root.
        OSError: the root can't be read.
    """
    system, base = filesystem(root)
    local = isinstance(system, fs.LocalFileSystem)
    name = str(_unlinked(root, base, path)) if local else f"{base}/{_inside(root, path)}"
    with system.open_input_stream(name, compression=None) as stream:
        return bytes(stream.read())


def delete(root: str, folder: str) -> None:
    """Remove `folder` below `root`; nothing happens where it is gone already.

    Raises:
        OutputError: a link on the way leads out of the root.
        OSError: it can't be removed.
    """
    system, base = filesystem(root)
    if isinstance(system, fs.LocalFileSystem):
        path = _unlinked(root, base, folder)
        if path.is_dir():
            shutil.rmtree(path)
        return
    name = f"{base}/{_inside(root, folder)}"
    if system.get_file_info(name).type == fs.FileType.Directory:
        system.delete_dir(name)


def delete_file(root: str, path: str) -> None:
    """Remove one file below `root`; nothing happens where it is gone already.

    Raises:
        OutputError: a link on the way leads out of the root.
        OSError: it can't be removed.
    """
    system, base = filesystem(root)
    if isinstance(system, fs.LocalFileSystem):
        _unlinked(root, base, path).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        system.delete_file(f"{base}/{_inside(root, path)}")


def has_gone(root: str, folder: str) -> bool:
    """Whether a checkpoint was removed: nothing but pictures lies in `folder`, though the study's folder is there.

    Raises:
        OutputError: the root can't be read.
    """
    try:
        study = PurePosixPath(_inside(root, folder)).parts[0]
        there = any(not entry.path.endswith(PICTURES) for entry in files(root, folder))
        return not there and owner(root, study) != ""
    except OSError as error:
        raise OutputError(f"{root}: the output root can't be read: {error}") from None


def files(root: str, folder: str) -> list[Entry]:
    """All files below `folder` below `root`, by path; no link is followed, and none is a file.

    Raises:
        OutputError: a link on the way to the folder leads out of the root.
        OSError: the root can't be read.
    """
    system, base = filesystem(root)
    if isinstance(system, fs.LocalFileSystem):
        top, found = _unlinked(root, base, folder), []
        for place, _, names in os.walk(top):
            for name in names:
                path = Path(place, name)
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    if not path.is_symlink():
                        relative = path.relative_to(top).as_posix()
                        found.append(Entry(path=f"{folder}/{relative}", size=path.stat().st_size))
        return sorted(found, key=lambda entry: entry.path)
    selector = fs.FileSelector(f"{base}/{_inside(root, folder)}", recursive=True, allow_not_found=True)
    there = [info for info in system.get_file_info(selector) if info.type == fs.FileType.File]
    prefix = f"{base}/" if base else ""
    return sorted(
        (Entry(path=info.path.removeprefix(prefix), size=info.size or 0) for info in there),
        key=lambda entry: entry.path,
    )


def claim(root: str, study: str, identity: str) -> bool:
    """Write down whose the files of a study are, unless that is written there already.

    Two storages may hold a study of one name over one output root; neither may take the other's files for rubbish.

    Args:
        root: output root.
        study: name of the study.
        identity: of this very study.

    Returns:
        Whether they are this study's.

    Raises:
        OSError: the root can't be read or written.
    """
    found = owner(root, study)
    if not found:
        system, base = filesystem(root)
        system.create_dir(f"{base}/{study}", recursive=True)
        with system.open_output_stream(f"{base}/{study}/{OWNER}") as stream:
            stream.write(identity.encode())
    return found in ("", identity)


def owner(root: str, study: str) -> str:
    """The identity of the study whose files these are; "" where nobody has claimed them.

    Raises:
        OSError: the root can't be read.
    """
    system, base = filesystem(root)
    try:
        with system.open_input_stream(f"{base}/{_inside(root, study)}/{OWNER}") as stream:
            return bytes(stream.read(64)).decode(errors="replace")
    except FileNotFoundError:
        return ""


def require_unclaimed(root: str, study: str) -> None:
    """Make sure that a new study finds no files of another one of its name.

    Raises:
        OutputError: it would; the message names the ways out.
    """
    try:
        claimed = owner(root, study) != ""
    except OSError as error:
        raise OutputError(f"{root}: the output root can't be read: {error}") from None
    if claimed:
        raise OutputError(
            f"{root}: the folder {study} holds files of another study of this name, whose checkpoints a new one would "
            "overwrite; expected --study with another name, --output with another root, or the folder removed if that "
            "study is no more"
        )


def require(root: str, study: str) -> None:
    """Make sure that a root still is the one where a study has its files.

    One that was renamed, or whose disk was unmounted, would be made anew by the next write, and half of the checkpoints
    would lie there.

    Raises:
        OutputError: the study's folder is not there.
        OSError: the root can't be read.
    """
    if not owner(root, study):
        raise OutputError(
            f"{root}: the folder {study}, where the study has its files, is not there any more; --output says where it "
            "has moved"
        )


def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of a root and the root's path in it.

    Raises:
        OutputError: neither a folder nor a URL that pyarrow knows, or one with keys.
    """
    if "://" not in root:
        return fs.LocalFileSystem(), absolute(root)
    _refuse_keys(root)
    try:
        system, path = fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:
        raise OutputError(f"{root}: this is no folder and no URL of a bucket: {error}") from None
    return system, path.rstrip("/")


def _inside(root: str, folder: str) -> str:
    path = PurePosixPath(folder)
    if path.is_absolute() or not path.parts or ".." in path.parts:
        raise OutputError(f"{root}: the study names {folder!r}, which lies outside the output root")
    return str(path)


def _unlinked(root: str, base: str, folder: str) -> Path:
    """The path of a local folder or file, to which no symbolic link leads from the root."""
    real = Path(os.path.realpath(base)) / _inside(root, folder)
    if Path(os.path.realpath(real)) != real:
        raise OutputError(f"{root}: {folder} is behind a symbolic link; expected a path within the output root")
    return real
