"""Storages: from a URL to an Optuna storage that is ready for one driver and many readers.

sqlite:///vqsearch.db                     one machine, local disk
postgresql://user@host/name               several people or machines
journal:///path/to/file                   no database at hand
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage

from search.errors import StorageError
from search.journal import open_journal
from search.mounts import shared

DEFAULT = "sqlite:///vqsearch.db"

SECRETS = ("VQSEARCH_STORAGE", "PGPASSWORD")
"""Variables that may hold a password; only the driver talks to the storage."""

_GIVES_UP = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Options of libpq: a network that swallows packets is noticed within half a minute, not after a quarter of an hour."""


def open_storage(url: str, create: bool = True, tell: Callable[[str], None] = lambda _line: None) -> BaseStorage:
    """Open a storage.

    Args:
        url: as in the module's docstring, or any other that SQLAlchemy and Optuna take.
        create: make the database or file where there is none; else its absence is an error, and one that can
            only be read is good enough.
        tell: takes a line for people, should the storage need mending.

    Raises:
        StorageError: no such storage, unreachable, or of another kind of file. The message hides a password.
    """
    kind, separator, rest = url.partition("://")
    if not separator:
        raise StorageError(f"{url}: a storage is a URL, such as {DEFAULT} or journal:///{url}")
    if kind == "journal":
        return open_journal(Path(rest), create, tell)
    return _relational(url, create)


def redact(url: str) -> str:
    """The URL without its passwords: that in the query, and that before the host as SQLAlchemy reads it.

    SQLAlchemy ends a password at the first @; whoever wrote one with an @ in it gets an error that shows the URL,
    so the last @ before the query ends what is hidden.
    """
    url = re.sub(r"([?&](?:ssl)?pass(?:word|wd)=)[^&]*", r"\1***", url)
    return re.sub(r"(://[^:/]*):[^@]*@(?:[^?]*@)?", r"\1:***@", url)


def holds_password(url: str) -> bool:
    """Whether who reads a URL learns a password; an empty one is none."""
    return redact(url) not in (url, url.replace(":@", ":***@", 1))


@contextlib.contextmanager
def secrets_aside() -> Iterator[None]:
    """Keep what opens a storage out of the environment of processes that start meanwhile: Ray's hand theirs on."""
    aside = {name: os.environ.pop(name) for name in SECRETS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(aside)


@contextlib.contextmanager
def asked(url: str) -> Iterator[sqlalchemy.Connection | None]:
    """A connection to the server of a storage, for questions; None where there is no server. No table is made.

    Raises:
        StorageError: the server does not answer, or refuses.
    """
    if url.startswith("journal://") or (address := _address(url)).get_backend_name() == "sqlite":
        yield None
        return
    address, arguments = _connecting(address)
    with _told(redact(url)):
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool, **arguments)
        connection = engine.connect()
    with connection:
        yield connection


def _relational(url: str, create: bool) -> BaseStorage:
    shown = redact(url)
    address = _address(url)
    if address.get_backend_name() == "sqlite":
        return _sqlite(address, shown, create)
    address, arguments = _connecting(address)
    with _told(shown):
        # A server closes connections that idle while models train.
        return _made(address, {"pool_pre_ping": True, **arguments})


def _address(url: str) -> sqlalchemy.URL:
    shown = redact(url)
    try:
        return sqlalchemy.make_url(url)
    except sqlalchemy.exc.ArgumentError:
        raise StorageError(f"{shown}: this is no storage URL") from None
    except ValueError:
        raise StorageError(f"{shown}: this is no storage URL: the port must be a number") from None


def _connecting(address: sqlalchemy.URL) -> tuple[sqlalchemy.URL, dict[str, Any]]:
    """The address of a server with its driver, and what its engine takes."""
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    connecting = {key: value for key, value in _GIVES_UP.items() if key not in address.query}
    return address, {"connect_args": connecting} if address.drivername == "postgresql+psycopg" else {}


def _sqlite(address: sqlalchemy.URL, shown: str, create: bool) -> BaseStorage:
    database = address.database or ":memory:"
    if database.startswith((":memory:", "file::memory:")) or address.query.get("mode") == "memory":
        raise StorageError(f"{shown}: a database in memory is gone with this process; expected a file: {DEFAULT}")
    path = Path(database)
    if not create and not path.is_file():
        raise StorageError(f"{shown}: no such database file")
    if not path.parent.is_dir():
        raise StorageError(f"{shown}: no such folder {path.parent}")
    if create and (network := shared(path)):
        raise StorageError(
            f"{shown}: {path.parent} lies on {network}, which machines share and where SQLite loses writes; "
            f"expected a local disk, journal://{path.absolute()} or a PostgreSQL server"
        )
    _refuse_foreign(path, shown)
    arguments = {"connect_args": {} if "timeout" in address.query else {"timeout": 30}}
    with _told(shown):
        if create:
            return _watched(_tuned(_made(address, arguments)), path.absolute())
        try:
            return _tuned(_made(address, arguments), reads=True)
        except sqlalchemy.exc.OperationalError:
            if os.access(path.parent, os.W_OK, effective_ids=True) or Path(f"{path}-wal").exists():
                raise
            # SQLite wants to write a log and an index beside any database in WAL mode, be it only to read it. Without
            # a log nobody is writing, so that the file alone is the whole and does not change.
            still = f"sqlite:///file:{quote(str(path.absolute()))}?immutable=1&uri=true"
            return _made(sqlalchemy.make_url(still), arguments)


def _refuse_foreign(path: Path, shown: str) -> None:
    """Optuna would make its tables in any database, and WAL would stay with it: look before."""
    if not path.is_file():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as looked:
            tables = {str(name) for (name,) in looked.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:  # whoever opens it in earnest says why
        return
    if tables and not tables & {"studies", "version_info", "alembic_version"}:
        raise StorageError(
            f"{shown}: a database of other software, with the tables {', '.join(sorted(tables)[:5])}; "
            "expected one of Optuna, or a new file"
        )


@contextlib.contextmanager
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


def _watched(storage: RDBStorage, path: Path) -> RDBStorage:
    """An open file takes writes though its folder was renamed or removed, where nobody finds them: look before each.

    What is raised instead says that the storage is away, see `search.patience`.
    """
    opened = path.stat()

    def same(_connection: Any, _record: Any, _proxy: Any) -> None:
        if not os.path.samestat(path.stat(), opened):
            raise OSError(f"{path} is another file than the one that was opened")

    sqlalchemy.event.listen(storage.engine, "checkout", same)
    return storage


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
