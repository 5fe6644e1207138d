"""Storages: from a URL to an Optuna storage that is ready for one driver and many readers.

sqlite:///vqsearch.db                     one machine, local disk
postgresql://user@host/name               several people or machines
journal:///path/to/file                   no database at hand
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from search.errors import StorageError

DEFAULT = "sqlite:///vqsearch.db"


def open_storage(url: str, create: bool = True) -> BaseStorage:
    """Open a storage.

    Args:
        url: as in the module's docstring, or any other that SQLAlchemy and Optuna take.
        create: make the database or file where there is none; else its absence is an error, and one that can
            only be read is good enough.

    Raises:
        StorageError: no such storage, unreachable, or of another kind of file. The message hides a password.
    """
    kind, separator, rest = url.partition("://")
    if not separator:
        raise StorageError(f"{url}: a storage is a URL, such as {DEFAULT} or journal:///{url}")
    if kind == "journal":
        return _journal(Path(rest), create)
    return _relational(url, create)


def redact(url: str) -> str:
    """The URL without its passwords: that in the query, and that before the host as SQLAlchemy reads it.

    SQLAlchemy ends a password at the first @; whoever wrote one with an @ in it gets an error that shows the URL,
    so the last @ before the query ends what is hidden.
    """
    url = re.sub(r"([?&](?:ssl)?pass(?:word|wd)=)[^&]*", r"\1***", url)
    return re.sub(r"(://[^:/]*):[^@]*@(?:[^?]*@)?", r"\1:***@", url)


def _journal(path: Path, create: bool) -> BaseStorage:
    shown = f"journal://{path}"
    if not create and not path.exists():
        raise StorageError(f"{shown}: no such file")
    if path.is_dir():
        raise StorageError(f"{shown}: this is a folder; expected a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_lines(path, shown)
        return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise StorageError(f"{shown}: can't be opened: {error.strerror or error}") from None
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # what Optuna raises on foreign lines
        raise StorageError(f"{shown}: damaged, or no journal of Optuna: {error}") from None


def _check_lines(path: Path, shown: str, wait_s: float = 1.0) -> None:
    """Optuna appends to a line that was cut off, after which nothing behind it can be read: refuse it before."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        if file.read(1) != b"{":
            raise StorageError(f"{shown}: this is no journal of Optuna")
        deadline = time.monotonic() + wait_s
        while file.seek(-1, 2) and file.read() != b"\n":
            if time.monotonic() > deadline:  # or else another process was writing it
                raise StorageError(
                    f"{shown}: the last line is cut off, by a write that never ended; "
                    f"expected whole lines: sed -i '$d' '{path}' removes it"
                )
            time.sleep(0.05)


def _relational(url: str, create: bool) -> BaseStorage:
    shown = redact(url)
    try:
        address = sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise StorageError(f"{shown}: this is no storage URL") from None
    except ValueError:
        raise StorageError(f"{shown}: this is no storage URL: the port must be a number") from None
    if address.get_backend_name() == "sqlite":
        return _sqlite(address, shown, create)
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    with _told(shown):
        return _made(address, {"pool_pre_ping": True})  # a server closes connections that idle while models train


def _sqlite(address: sqlalchemy.URL, shown: str, create: bool) -> BaseStorage:
    database = address.database or ":memory:"
    if database.startswith((":memory:", "file::memory:")) or address.query.get("mode") == "memory":
        raise StorageError(f"{shown}: a database in memory is gone with this process; expected a file: {DEFAULT}")
    path = Path(database)
    if not create and not path.is_file():
        raise StorageError(f"{shown}: no such database file")
    if not path.parent.is_dir():
        raise StorageError(f"{shown}: no such folder {path.parent}")
    arguments = {"connect_args": {"timeout": 30}}
    with _told(shown):
        if create:
            return _tuned(_made(address, arguments))
        try:
            return _tuned(_made(address, arguments), reads=True)
        except sqlalchemy.exc.OperationalError:
            if os.access(path.parent, os.W_OK, effective_ids=True) or Path(f"{path}-wal").exists():
                raise
            # SQLite wants to write a log and an index beside any database in WAL mode, be it only to read it. Without
            # a log nobody is writing, so that the file alone is the whole and does not change.
            still = f"sqlite:///file:{quote(str(path.absolute()))}?immutable=1&uri=true"
            return _made(sqlalchemy.make_url(still), arguments)


@contextmanager
def _told(shown: str) -> Iterator[None]:
    """What can go wrong in opening a database, in one line."""
    try:
        yield
    except ImportError as error:
        extra = "; pip install 'vqsearch[postgres]'" if shown.startswith("postgresql") else ""
        raise StorageError(f"{shown}: the database driver is not installed: {error}{extra}") from None
    except sqlalchemy.exc.ArgumentError:
        raise StorageError(f"{shown}: this is no storage URL") from None
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        OSError,
        RuntimeError,  # Optuna's tables of another version
        TypeError,  # an option that the driver does not know
        ValueError,
    ) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        words = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise StorageError(f"{shown}: the storage can't be opened: {redact(words)}") from None


def _made(address: sqlalchemy.URL, arguments: dict[str, Any], tries: int = 5) -> RDBStorage:
    """Open or make a database; of two processes that make it at the same moment, one finds half of the tables."""
    url = address.render_as_string(hide_password=False)
    for left in reversed(range(tries)):
        try:
            return RDBStorage(url, engine_kwargs=arguments)
        except (
            sqlalchemy.exc.OperationalError,
            sqlalchemy.exc.ProgrammingError,
            sqlalchemy.exc.IntegrityError,
        ) as error:
            if not left or not re.search("already exists|UNIQUE constraint|duplicate key", str(error)):
                raise
            time.sleep(0.2)
    raise AssertionError("unreachable")


def _tuned(storage: RDBStorage, reads: bool = False) -> RDBStorage:
    """Readers beside the writer (WAL), and one flush to disk a checkpoint of the log instead of one a write.

    Raises:
        sqlalchemy.exc.OperationalError: the database can't be written, unless it is enough that it `reads`.
    """

    def pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    try:
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # stays with the file
            if not reads:
                connection.exec_driver_sql("DELETE FROM version_info WHERE 0")  # does nothing, if it may write
    except sqlalchemy.exc.OperationalError as error:
        if not (reads and re.search("readonly|locked", str(error))):
            raise
    storage.engine.dispose()
    sqlalchemy.event.listen(storage.engine, "connect", pragmas)
    return storage
