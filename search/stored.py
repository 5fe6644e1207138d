"""What the doctor looks at in a storage: whether it answers and takes a write, and how its clock stands to ours."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage

from search import lease, mounts
from search.checkup import Finding, refused
from search.errors import StorageError
from search.places import existing
from search.storage import asked, open_storage, redact

SLOW_S = 1.0
"""Wall seconds a write to the storage may take before it is called slow."""

_STUDY = sqlalchemy.text("INSERT INTO studies (study_name) VALUES ('vqsearch doctor/lease/0')")
"""What is written and taken back; a name of a lease is shown nowhere."""


def storage(url: str) -> Iterator[Finding]:
    """Whether the storage answers and can be written, and how its clock stands to ours; nothing stays in it.

    Args:
        url: of the storage; what is said of it hides a password.
    """
    try:
        with asked(url) if "://" in url else contextlib.nullcontext() as server:
            yield from _filed(url) if server is None else _served(url, server)
    except StorageError as error:
        found = refused("storage", str(error))
        mend = found.mend or "a storage that is there and lets this user in; --storage names another one"
        yield Finding(name="storage", status="error", said=found.said, mend=mend)


def _filed(url: str) -> Iterator[Finding]:
    path = _path(url)
    if path is not None and not path.exists():
        yield _to_be_made(url, path)
    elif path is None or url.startswith("sqlite"):
        yield _written(url, time.monotonic())
    else:
        yield _appendable(url, path)
    if path is not None:
        yield clock_of(existing(path.absolute().parent))


def _path(url: str) -> Path | None:
    """The file of a storage; None where its URL names none."""
    kind, _, rest = url.partition("://")
    if kind == "journal":
        return Path(rest)
    database = sqlalchemy.make_url(url).database if kind.startswith("sqlite") else None
    return Path(database) if database and not database.startswith((":memory:", "file:")) else None


def _to_be_made(url: str, path: Path) -> Finding:
    shown, folder = redact(url), path.absolute().parent
    there = existing(folder)
    if url.startswith("sqlite"):
        if not folder.is_dir():
            return Finding(
                name="storage", status="error", said=f"{shown}: no such folder {folder}", mend=f"mkdir -p '{folder}'"
            )
        if found := _shared(url, path):
            return found
    if not os.access(there, os.W_OK, effective_ids=True):
        said = f"{shown}: {there} can't be written"
        return Finding(name="storage", status="error", said=said, mend="--storage with a file in another folder")
    return Finding(name="storage", status="ok", said=f"{shown} will be made")


def _shared(url: str, path: Path) -> Finding | None:
    if network := mounts.shared(path):
        said = f"{redact(url)}: lies on {network}, which machines share and where SQLite loses writes"
        mend = f"a local disk, --storage journal://{path.absolute()} or a PostgreSQL server"
        return Finding(name="storage", status="error", said=said, mend=mend)
    return None


def _appendable(url: str, path: Path) -> Finding:
    began = time.monotonic()
    studies = _studies(open_storage(url, create=False))
    # Its lock is a link in its folder. Nothing is written, since a journal never forgets a line.
    for each in (path, path.absolute().parent):
        if not os.access(each, os.W_OK, effective_ids=True):
            return Finding(
                name="storage", status="error", said=f"{url}: {each} can't be written", mend=f"chmod +w {each}"
            )
    return Finding(name="storage", status="ok", said=f"{url}: {studies}, read in {_ms(began)}, can be written")


def _written(url: str, began: float) -> Finding:
    """What becomes of a write that is taken back."""
    shown = redact(url)
    path = _path(url)
    if path is not None and (found := _shared(url, path)):
        return found
    opened = open_storage(url, create=False)
    assert isinstance(opened, RDBStorage)
    studies = _studies(opened)
    writes = time.monotonic()
    try:
        with opened.engine.connect() as connection, connection.begin() as transaction:
            connection.execute(_STUDY)
            transaction.rollback()
    except sqlalchemy.exc.SQLAlchemyError as error:
        words = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        said = f"{shown}: can be read, but not written: {redact(words)}"
        mend = "a user who may write to it" if path is None else f"who may write to {path} and its folder"
        return Finding(name="storage", status="error", said=said, mend=mend)
    finally:
        opened.engine.dispose()
    said = f"{shown}: {studies}, opened in {_ms(began, writes)}, written and taken back in {_ms(writes)}"
    if time.monotonic() - writes > SLOW_S:
        return Finding(name="storage", status="warning", said=said, mend="a storage that is nearer, or less busy")
    return Finding(name="storage", status="ok", said=said)


def _served(url: str, server: sqlalchemy.Connection) -> Iterator[Finding]:
    began, shown = time.monotonic(), redact(url)
    postgresql = server.dialect.name == "postgresql"
    if postgresql:
        version = server.execute(sqlalchemy.text("SELECT current_setting('server_version')")).scalar()
        shown = f"{shown} (PostgreSQL {str(version).split()[0]})"
    if not postgresql or sqlalchemy.inspect(server).has_table("studies"):
        found = _written(url, began)
        yield Finding(
            name="storage", status=found.status, said=found.said.replace(redact(url), shown, 1), mend=found.mend
        )
    else:
        may = sqlalchemy.text("SELECT has_schema_privilege(current_schema(), 'CREATE') AND NOT pg_is_in_recovery()")
        if server.execute(may).scalar():
            yield Finding(name="storage", status="ok", said=f"{shown} answers in {_ms(began)}; tables will be made")
        else:
            said = f"{shown}: no tables yet, and no right to make them"
            yield Finding(name="storage", status="error", said=said, mend="GRANT CREATE ON SCHEMA public TO the user")
    if postgresql:
        before = time.time()
        its = float(server.execute(sqlalchemy.text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
        yield clock(its - (before + time.time()) / 2, "the storage's server")


def clock_of(folder: Path) -> Finding:
    """How the clock of a folder's file server stands to ours."""
    if mounts.shared(folder) is None:
        return Finding(name="clock", status="ok", said="the storage is on a disk of this machine, and so is its clock")
    before = time.time()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".vqsearch-") as file:
        file.write(b"vqsearch")
        file.flush()
        os.fsync(file.fileno())
        its = os.stat(file.name).st_mtime
    return clock(its - (before + time.time()) / 2, f"the file server of {folder}")


def clock(skew_s: float, other: str) -> Finding:
    """What a skew means for leases, whose age one machine reads from what another one's clock wrote.

    Args:
        skew_s: seconds that the other clock is ahead of ours; below 0, behind.
        other: whose clock that is.
    """
    said = f"{other} is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine"
    mend = "chrony or ntpd on every machine"
    if abs(skew_s) > lease.GONE_S - lease.STALE_S:
        said += "; a driver that runs may be taken for dead"
        return Finding(name="clock", status="error", said=said, mend=mend)
    if abs(skew_s) > lease.STALE_S - lease.BEAT_S:
        said += "; a driver that runs may look silent"
        return Finding(name="clock", status="warning", said=said, mend=mend)
    return Finding(name="clock", status="ok", said=said)


def _studies(storage: BaseStorage) -> str:
    count = sum(not lease.is_lease(study.study_name) for study in storage.get_all_studies())
    return f"{count} {'study' if count == 1 else 'studies'}"


def _ms(began: float, ended: float | None = None) -> str:
    return f"{1000 * ((time.monotonic() if ended is None else ended) - began):.0f} ms"
