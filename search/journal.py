"""Studies in a plain file, one line a write, for where there is no database: Optuna's journal, mended.

A writer that is killed in the middle of a line leaves it cut off, and Optuna would append the next one to it, after
which nothing behind it can be read. Readers may pass over such an end; a writer drops it. Nobody was told that
this write was done, and every writer holds the journal's lock, so that no line is dropped that is still being written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from search.errors import StorageError

RECORD = b'{"op_code":'
"""How every line of a journal begins; no other end of a file is ever dropped."""


def open_journal(path: Path, create: bool, tell: Callable[[str], None]) -> BaseStorage:
    """Open a journal.

    Args:
        path: of its file.
        create: for a driver: make it where there is none, and drop an end that was cut off.
        tell: takes a line for people.

    Raises:
        StorageError: no such file, or one that is no journal.
    """
    shown = f"journal://{path}"
    if not create and not path.exists():
        raise StorageError(f"{shown}: no such file")
    if path.is_dir():
        raise StorageError(f"{shown}: this is a folder; expected a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_kind(path, shown)
        lock = _MendingLock(path, tell)
        storage = JournalStorage(JournalFileBackend(str(path), lock))  # reads it to its end
        if create and _cut_off(path):
            lock.acquire()
            lock.release()
    except OSError as error:
        raise StorageError(f"{shown}: can't be opened: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # what Optuna raises on foreign lines
        raise StorageError(f"{shown}: damaged, or no journal of Optuna: {error}") from None
    return storage


class _MendingLock(JournalFileSymlinkLock):
    """Optuna's lock, whose holder finds whole lines only.

    Args:
        path: of the journal.
        tell: takes a line for people.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        super().__init__(str(path))
        self._path = path
        self._tell = tell

    def acquire(self) -> bool:
        super().acquire()
        try:
            end = _cut_off(self._path)
            if end:
                # Never in "ab" or "wb": a journal whose file system is gone must not begin anew below its mount point.
                with self._path.open("r+b") as file:
                    file.truncate(file.seek(0, 2) - len(end))
                    os.fsync(file.fileno())
                self._tell(f"journal://{self._path}: dropped {len(end)} bytes of a write that never ended")
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        # Optuna takes a lock by force from who held it for half a minute; what was written meanwhile stays written.
        with contextlib.suppress(RuntimeError):
            super().release()


def _check_kind(path: Path, shown: str) -> None:
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        start = file.read(1)
    end = _cut_off(path)
    if start != b"{" or end[: len(RECORD)] != RECORD[: len(end)]:
        raise StorageError(f"{shown}: this is no journal of Optuna")


def _cut_off(path: Path, block: int = 1 << 16) -> bytes:
    """What stands behind the last whole line of a file."""
    with path.open("rb") as file:
        left, end = file.seek(0, 2), b""
        while left:
            size = min(block, left)
            left -= size
            file.seek(left)
            end = file.read(size) + end
            _whole, newline, cut = end.rpartition(b"\n")
            if newline:
                return cut
        return end
