"""Pictures decoded once into a memory-mapped file that all processes of a machine share.

A cache is a folder named by the hash of what went in. It appears by one rename, and only the holder of a lock makes it:
so processes that start together, or one that is killed half way, never leave or read half a cache.

n pictures that could be used, h height, w width, c = 3 colors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import filelock
import numpy as np
from PIL import UnidentifiedImageError

from vqvae import duplicates, pictures
from vqvae.sources import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from vqvae.config import DataConfig
    from vqvae.sources import Source

VERSION = 2
"""Of the way from a file to pixels and groups; a change of it makes every cache anew."""

TELL_EVERY_S = 1.0
"""Wall seconds between two reports of progress."""

AHEAD = 8
"""Pictures a thread may be ahead of what is written, so that memory does not grow with their number."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Decoding(NamedTuple):
    """How far a cache is."""

    done: int
    """Pictures decoded or skipped."""
    total: int
    """Of how many; 0 where that is not known yet."""
    waiting_for: str = ""
    """Who makes it, where that is another process: "process 12 on HOST"."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a cache holds."""

    pixels: NDArray[np.uint8]
    """(n, h, w, c), on disk."""
    names: list[str]
    """(n) as the source gives them."""
    group: NDArray[np.int64]
    """(n) for each picture the first one of its near-duplicates."""
    unread: dict[str, str]
    """Name -> reason of each picture that could not be decoded."""
    small: list[str]
    """Names of the pictures that were left out for their size."""


def decoded(source: Source, config: DataConfig, tell: Callable[[Decoding], None] | None = None) -> Decoded:
    """The decoded pictures of a source, from the cache or into it.

    Args:
        source: what is decoded.
        config: resolution, fit, small and cache are read.
        tell: called about once a second while the cache is made, by this process or by another one.

    Raises:
        DataError: no room for the cache, or a file that is there but whose content cannot be had.
    """
    facts = [VERSION, source.identity, config.resolution, config.fit, config.small]
    home = Path(config.cache or "~/.cache/vqsearch").expanduser()
    place = home / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    size = source.total * config.resolution**2 * 3
    try:
        if not place.is_dir():
            home.mkdir(parents=True, exist_ok=True)
            with _locked(place, tell or _silent):
                if not place.is_dir():
                    if config.small == "upscale" and shutil.disk_usage(home).free < size:  # else it may well need less
                        raise OSError(f"only {shutil.disk_usage(home).free / 2**20:.0f} MiB are free")
                    _make(source, config, place, tell or _silent)
        return _open(place, config.resolution)
    except OSError as error:
        needed = f" ({size / 2**20:.0f} MiB)" if size else ""
        raise DataError(
            f"{home}: cannot hold the cache of decoded images{needed}: {error.strerror or error}; "
            f"expected a folder with room (data.cache)"
        ) from error


def _open(place: Path, resolution: int) -> Decoded:
    try:
        index = json.loads((place / "index.json").read_text())
        group = np.load(place / "groups.npy")
        shape = (len(group), resolution, resolution, 3)
        empty = np.zeros(shape, dtype=np.uint8)  # what is empty cannot be mapped
        pixels = np.memmap(place / "pixels.raw", np.uint8, "r", shape=shape) if len(group) else empty
        return Decoded(pixels=pixels, names=index["names"], group=group, unread=index["unread"], small=index["small"])
    except (FileNotFoundError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{place}: a damaged cache of decoded images ({error}); expected it whole: remove it"
        ) from error


def _silent(_: Decoding) -> None:
    pass


@contextmanager
def _locked(place: Path, tell: Callable[[Decoding], None]) -> Iterator[None]:
    """Holds the lock of a cache, which the system releases when its holder dies; tells while another one holds it."""
    lock = filelock.FileLock(place.with_suffix(".lock"))
    while True:
        try:
            lock.acquire(timeout=TELL_EVERY_S)
            break
        except filelock.Timeout:
            tell(_of_another(place.with_suffix(".partial") / "progress.json"))
    try:
        yield
    finally:
        lock.release()


def _of_another(progress: Path) -> Decoding:
    try:
        return Decoding(*json.loads(progress.read_text()))
    except (OSError, ValueError, TypeError):  # not written yet, or just being written
        return Decoding(0, 0, "another process")


def _make(source: Source, config: DataConfig, place: Path, tell: Callable[[Decoding], None]) -> None:
    making = place.with_suffix(".partial")
    shutil.rmtree(making, ignore_errors=True)  # of a process that was killed
    making.mkdir()
    try:
        _write(source, config, making, _Report(making / "progress.json", source.total, tell))
        (making / "progress.json").unlink()
        making.rename(place)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


@dataclass
class _Report:
    """Tells of progress, here and to processes that wait, at most once in `TELL_EVERY_S`."""

    file: Path
    total: int
    tell: Callable[[Decoding], None]
    who: str = field(default_factory=lambda: f"process {os.getpid()} on {socket.gethostname()}")
    told_at: float = -TELL_EVERY_S

    def __call__(self, done: int, *, last: bool = False) -> None:
        if last or time.monotonic() >= self.told_at + TELL_EVERY_S:
            self.told_at = time.monotonic()
            total = self.total or done * last
            self.file.write_text(json.dumps(Decoding(done, total, self.who)))
            self.tell(Decoding(done, total))


def _write(source: Source, config: DataConfig, folder: Path, report: _Report) -> None:
    names: list[str] = []
    hashes = bytearray()
    unread = {}
    small = []
    done = 0
    report(0)
    # Plain writes: a full disk is an error here, and a fatal signal when a mapped page is written.
    with (folder / "pixels.raw").open("wb") as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what could not be read is named in the end
        for done, (name, made) in enumerate(_in_order(partial(_prepared, config), source.pictures()), 1):
            if isinstance(made, str):
                unread[name] = made
            elif made is None:
                small.append(name)
            else:
                file.write(made.pixels.data)
                names.append(name)
                hashes += made.hash
            report(done)
        file.flush()
        os.fsync(file.fileno())
    np.save(
        folder / "groups.npy", duplicates.group(np.frombuffer(hashes, np.uint16).reshape(len(names), duplicates.WORDS))
    )
    (folder / "index.json").write_text(json.dumps({"names": names, "unread": unread, "small": small}))
    report(done, last=True)


class _Prepared(NamedTuple):
    pixels: NDArray[np.uint8]
    hash: bytes


def _prepared(config: DataConfig, picture: tuple[str, Path | bytes]) -> tuple[str, _Prepared | str | None]:
    """Name and pixels of a picture, or why it cannot be read, or None where it is too small.

    Raises:
        DataError: the content cannot be had. That may pass (a network, a permission), and the cache would keep it.
    """
    name, file = picture
    content = b""
    if isinstance(file, bytes):
        content = file
    else:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise DataError(f"{file}: {error.strerror or error}; expected a file that can be read") from error
    if not content:
        return name, "the file is empty"
    side = 0 if config.fit == "crop" else config.resolution
    try:
        opened = pictures.read(BytesIO(content), side)
        if config.small == "skip" and min(opened.size) < config.resolution:
            return name, None
        pixels = np.ascontiguousarray(pictures.fit(opened, config.resolution, config.fit))
    except UnidentifiedImageError:
        return name, "cannot identify image file"
    except pictures.UNREADABLE as error:
        return name, str(error) or type(error).__name__
    return name, _Prepared(pixels, duplicates.perceptual_hash(pixels).tobytes())


def _in_order(work: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """The results of `work`, done by as many threads as there are cores; Pillow decodes without the GIL."""
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        running: deque[Future[_Out]] = deque()
        for item in items:
            running.append(pool.submit(work, item))
            if len(running) > AHEAD * threads:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
