"""Where pictures come from: a folder, a Hugging Face data set or WebDataset tars.

A source says which pictures it has and what they are known by; nothing is decoded here.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import importlib
import json
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NoReturn

from vqvae import plugins
from vqvae.config import VqvaeError
from vqvae.pictures import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vqvae.config import DataConfig


class DataError(VqvaeError):
    """Images that are missing, too few, or cannot be cached."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures by name, not yet decoded."""

    place: str
    """What errors call it."""
    identity: str
    """Hash of all that tells whether the pictures are still the same: where they lie, names, sizes, times."""
    total: int
    """Number of pictures, broken ones included; 0 where that is not known before they are read."""
    pictures: Callable[[], Iterator[tuple[str, Path | bytes]]]
    """Gives the name of each picture and its file or content, always in the same order."""


def find(config: DataConfig) -> Source:
    """The pictures of a config whose source is not photographs.

    Raises:
        DataError: nothing there, or the package that reads it is not installed.
        ConfigError: as `require`.
    """
    read: Callable[[DataConfig], Source] = plugins.find("data", SOURCES, config.source, PHOTOGRAPHS)
    return read(plugins.settled("data", config))


def require(config: DataConfig) -> None:
    """Makes sure that a config names a source that there is, with options that it takes.

    Raises:
        ConfigError: an unknown name, or such an option.
    """
    if config.source not in PHOTOGRAPHS:
        plugins.find("data", SOURCES, config.source, PHOTOGRAPHS)
    plugins.settled("data", config)


def admit(part: Any) -> Callable[[DataConfig], Source]:
    """What a plug-in may enter in `SOURCES`.

    Raises:
        TypeError: anything else.
    """
    if isinstance(part, FunctionType):
        return part
    raise TypeError(f"must be a function from a DataConfig to a vqvae.sources.Source, but got {part!r}")


def folder(config: DataConfig) -> Source:
    """The picture files below a folder, named by their path in it.

    Links are followed, but no folder is entered twice, so loops of links end. Files and folders whose name starts with
    a dot are left out: they are what systems and tools keep beside the pictures.
    """
    root = Path(config.path).expanduser()
    kinds = ", ".join(SUFFIXES)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected one with pictures ({kinds})")
    found = sorted(_files(root))
    if not found:
        raise DataError(f"{root}: no pictures in it; expected files ending in {kinds}")
    names = [name for name, _, _ in found]
    return Source(
        place=str(root),
        identity=_identity([str(root.resolve())], found),
        total=len(names),
        pictures=lambda: ((name, root / name) for name in names),
    )


def _files(root: Path) -> Iterator[tuple[str, int, int]]:
    """Name, size in bytes and time of change in nanoseconds of each picture file."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: {error.strerror}; expected a folder that can be read") from error

    entered = set()
    for place, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in entered:
            folders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        within = os.path.relpath(place, root)
        for name in files:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                try:
                    status = os.stat(os.path.join(place, name))
                except OSError as error:
                    if error.errno in (errno.ENOENT, errno.ELOOP):  # a link that leads nowhere
                        continue
                    refuse(error)
                if stat.S_ISREG(status.st_mode):
                    path = name if within == "." else os.path.join(within, name)
                    yield path, status.st_size, status.st_mtime_ns


def huggingface(config: DataConfig) -> Source:
    """A data set by the name or folder that `load_dataset` takes, or written by `save_to_disk`; named by row number.

    A folder that holds one data set without splits is read whole, whatever `subset` says.
    """
    datasets = _extra("huggingface", "datasets")
    place = f"data set {config.path}"
    path = Path(config.path).expanduser()
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path) if path.exists() else config.path)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:  # OSError: no network, no such data set
        raise DataError(
            f"{place}: {_line(error)}; expected a name or folder that load_dataset of Hugging Face datasets takes, "
            f"or a folder written by save_to_disk"
        ) from error
    if isinstance(found, dict):
        if config.subset not in found:
            raise DataError(f"{place}: no subset {config.subset!r} (data.subset); expected one of {', '.join(found)}")
        found = found[config.subset]
    if config.column not in found.column_names:
        there = ", ".join(found.column_names)
        raise DataError(f"{place}: no column {config.column!r} (data.column); expected one of {there}")
    try:
        images = found.select_columns([config.column]).cast_column(config.column, datasets.Image(decode=False))
    except (TypeError, ValueError, RuntimeError) as error:  # the last one: what Arrow cannot cast
        kind = found.features[config.column]
        raise DataError(f"{place}: column {config.column!r} (data.column) holds {kind}; expected images") from error
    stats = [(each["filename"], *_size_and_time(each["filename"])) for each in found.cache_files]

    def pictures() -> Iterator[tuple[str, Path | bytes]]:
        for row, entry in enumerate(images):
            yield str(row), _content(entry[config.column] or {}, f"{place}, row {row}")

    return Source(
        place=place,
        identity=_identity([config.column, str(found.features), str(len(images))], stats),
        total=len(images),
        pictures=pictures,
    )


def _content(entry: dict[str, Any], where: str) -> Path | bytes:
    """What an undecoded image of `datasets` holds: bytes, or else a path, which may lie inside an archive."""
    if entry.get("bytes") is not None:
        return bytes(entry["bytes"])
    path = entry.get("path")
    if not path:
        return b""
    if "://" not in path:
        return Path(path)
    try:
        with importlib.import_module("fsspec").open(path, "rb") as file:
            return bytes(file.read())
    except OSError as error:
        raise DataError(f"{where}: {path}: {_line(error)}; expected a picture that can be read") from error


def webdataset(config: DataConfig) -> Source:
    """Local tars by a glob or brace pattern; names are TAR/KEY.SUFFIX, TAR as seen from the tars' common folder."""
    webdataset = _extra("webdataset", "webdataset")
    patterns = importlib.import_module("braceexpand").braceexpand(os.path.expanduser(config.path))
    tars = sorted({os.path.abspath(tar) for pattern in patterns for tar in glob.glob(pattern, recursive=True)})
    if not tars:
        raise DataError(
            f"{config.path}: no such tars; expected a glob or brace pattern, such as shards/{{000..012}}.tar"
        )
    common = os.path.commonpath([os.path.dirname(tar) for tar in tars])

    def pictures() -> Iterator[tuple[str, bytes]]:
        for tar in tars:
            name = os.path.relpath(tar, common)
            samples = webdataset.WebDataset(
                [tar], shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False
            )
            try:
                for sample in samples:
                    for kind in sorted(sample):
                        if f".{kind.lower()}".endswith(SUFFIXES):
                            yield f"{name}/{sample['__key__']}.{kind}", sample[kind]
            except (OSError, ValueError, EOFError, tarfile.TarError) as error:
                raise DataError(f"{tar}: {_line(error)}; expected a whole tar of samples") from error

    stats = [(tar, *_size_and_time(tar)) for tar in tars]
    return Source(place=config.path, identity=_identity([], stats), total=0, pictures=pictures)


SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "folder": folder,
    "huggingface": huggingface,
    "webdataset": webdataset,
}
"""Sources by the name that `data.source` gives, the bundled photographs aside; a plug-in adds its own."""

PHOTOGRAPHS = RESERVED = ("photographs",)


def _extra(extra: str, package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"data.source {extra}: the package {package} cannot be imported ({error}); "
            f"expected it installed, as by: pip install 'vqsearch[{extra}]'"
        ) from error


def _size_and_time(file: str) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; expected a file that can be read") from error
    return status.st_size, status.st_mtime_ns


def _identity(facts: Iterable[str], files: Iterable[tuple[str, int, int]]) -> str:
    digest = hashlib.sha256(json.dumps(list(facts)).encode())
    for file in files:
        digest.update(json.dumps(file).encode())
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    """The first line of a message, without a stop at its end."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
