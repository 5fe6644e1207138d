"""The output root: where the checkpoints and pictures of trials lie, in a folder or a bucket.

Workers write, the driver records relative paths in the study, and whoever holds the study finds them
again. Paths below a root are POSIX and never leave it:

    ROOT/STUDY/trials/00007/step-00003333/{model.safetensors, state.json, reconstructions.png, ...}
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from pyarrow import fs

from search.errors import OutputError

DEFAULT = "./vqsearch-output"


def folder_of(study: str, number: int, step: int) -> str:
    """The folder of one checkpoint, relative to the root."""
    return f"{study}/trials/{number:05d}/step-{step:08d}"


def absolute(root: str) -> str:
    """A root that means the same from any working folder; URLs stay as they are."""
    return root if "://" in root else str(Path(root).expanduser().resolve())


def check(root: str, create: bool = True) -> None:
    """Write and remove a small file below `root`.

    Args:
        root: output root.
        create: make it where it is missing; else that is an error.

    Raises:
        OutputError: the root is not there, or can't be written.
    """
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
        part.mkdir(parents=True)
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


def delete(root: str, folder: str) -> None:
    """Remove `folder` below `root`; nothing happens where it is gone already."""
    system, base = filesystem(root)
    path = f"{base}/{_inside(root, folder)}"
    if system.get_file_info(path).type == fs.FileType.Directory:
        system.delete_dir(path)


def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """The file system of a root and the root's path in it.

    Raises:
        OutputError: neither a folder nor a URL that pyarrow knows.
    """
    if "://" not in root:
        return fs.LocalFileSystem(), absolute(root)
    try:
        system, path = fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:
        raise OutputError(f"{root}: this is no folder and no URL of a bucket: {error}") from None
    return system, path.rstrip("/")


def _inside(root: str, folder: str) -> str:
    path = PurePosixPath(folder)
    if path.is_absolute() or ".." in path.parts:
        raise OutputError(f"{root}: the study names {folder!r}, which lies outside the output root")
    return str(path)
