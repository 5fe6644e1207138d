"""Storages: from a URL to an Optuna storage that is ready for one driver and many readers.

sqlite:///vqsearch.db                     one machine, local disk
postgresql://user@host/name               several people or machines
journal:///path/to/file                   no database at hand
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

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
        create: make the database or file where there is none; else its absence is an error.

    Raises:
        StorageError: no such storage, unreachable, or of another kind of file. The message hides a password.
    """
    kind, separator, rest = url.partition("://")
    if not separator:
        raise StorageError(f"{url}: a storage is a URL, such as {DEFAULT} or journal:///{url}")
    if kind == "journal":
        return _journal(Path(rest), create)
    return _relational(url, kind, create)


def redact(url: str) -> str:
    """The URL without its password."""
    return re.sub(r"(://[^/@:]*):[^/]+@", r"\1:***@", url)


def _journal(path: Path, create: bool) -> BaseStorage:
    if not create and not path.exists():
        raise StorageError(f"journal://{path}: no such file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError) as error:
        raise StorageError(f"journal://{path}: can't be opened: {error}") from None


def _relational(url: str, kind: str, create: bool) -> BaseStorage:
    shown = redact(url)
    arguments: dict[str, Any] = {}
    if kind.startswith("sqlite"):
        path = Path(sqlalchemy.make_url(url).database or "")
        if not create and not path.is_file():
            raise StorageError(f"{shown}: no such database file")
        if not path.parent.is_dir():
            raise StorageError(f"{shown}: no such folder {path.parent}")
        arguments = {"connect_args": {"timeout": 30}}
    elif kind == "postgresql":
        url = "postgresql+psycopg" + url[len(kind) :]
    try:
        storage = _made(url, arguments)
    except (ImportError, ModuleNotFoundError) as error:
        extra = "; pip install 'vqsearch[postgres]'" if kind.startswith("postgresql") else ""
        raise StorageError(f"{shown}: the database driver is not installed: {error}{extra}") from None
    except sqlalchemy.exc.ArgumentError:
        raise StorageError(f"{shown}: this is no storage URL") from None
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        words = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise StorageError(f"{shown}: the storage can't be opened: {redact(words)}") from None
    if kind.startswith("sqlite"):
        _tune_sqlite(storage)
    return storage


def _made(url: str, arguments: dict[str, Any], tries: int = 5) -> RDBStorage:
    """Open or make a database; of two processes that make it at the same moment, one finds half of the tables."""
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


def _tune_sqlite(storage: RDBStorage) -> None:
    """Readers beside the writer (WAL), and one flush to disk a checkpoint of the log instead of one a write."""

    def pragmas(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(storage.engine, "connect", pragmas)
    storage.engine.dispose()
