"""A launch that outlives its terminal: the same command again, in a session of its own, that writes to a log."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from search import lease, output, records
from search.catalog import load
from search.errors import OutputError, StorageError, StudyError
from search.storage import open_storage

LOG = "launch.log"
WAIT_S = 0.25


def log_of(url: str, name: str, root: str | None) -> Path:
    """Where the log of a detached launch is: in the study's folder below the output root.

    Args:
        url: storage URL.
        name: of the study, which may not be there yet.
        root: output root; None for that of the study, or the default one. A bucket has none to append to, so that the
            log lies below the default one.
    """
    if root is None:
        with contextlib.suppress(StorageError, StudyError):
            root = records.output(load(open_storage(url, create=False), name)[0])
    place = output.absolute(output.DEFAULT if root is None else root)
    return Path(output.absolute(output.DEFAULT) if "://" in place else place) / name / LOG


def start(arguments: Sequence[str], url: str, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a command of vqsearch that outlives this process.

    Args:
        arguments: of the command line, without the storage.
        url: storage URL; it travels in the environment, which other users can't read.
        log: file to append to.

    Returns:
        The process, and where in the log it begins.

    Raises:
        OutputError: the log can't be written.
    """
    environment: Mapping[str, str] = {**os.environ, "VQSEARCH_STORAGE": url, "PYTHONUNBUFFERED": "1"}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            began = file.tell()
            command = [sys.executable, "-P", "-m", "search", *arguments]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        raise OutputError(f"{log}: the log can't be written: {error.strerror or error}") from None
    return process, began


def wait_until_open(process: subprocess.Popen[bytes], url: str, names: Sequence[str]) -> bool:
    """Wait until a driver holds the lease of one of its studies; False if it ended before."""
    while process.poll() is None:
        with contextlib.suppress(StorageError):  # It is the driver that makes the database.
            store = open_storage(url, create=False)
            holders = [holder for name in names if (holder := lease.driver(store, name)) is not None]
            if any((holder.pid, holder.host) == (process.pid, socket.gethostname()) for holder in holders):
                return True
        time.sleep(WAIT_S)
    return False
