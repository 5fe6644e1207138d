import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from search.errors import StorageError
from search.storage import open_storage, redact


def test_a_study_comes_back_from_a_storage_that_is_opened_again(storage_url):
    study = optuna.create_study(study_name="a", storage=open_storage(storage_url))
    trial = study.ask()
    trial.report(0.5, 1)
    again = optuna.load_study(study_name="a", storage=open_storage(storage_url, create=False))
    assert again.trials[0].intermediate_values == {1: 0.5}


def test_sqlite_lets_readers_in_beside_the_writer(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/a.db")
    optuna.create_study(storage=storage)
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("studies.db", "studies.db: a storage is a URL, such as sqlite:///vqsearch.db or journal:///studies.db"),
        ("sqlite:///{tmp}/missing.db", "sqlite:///{tmp}/missing.db: no such database file"),
        ("sqlite:///{tmp}/no/a.db", "sqlite:///{tmp}/no/a.db: no such database file"),
        ("journal:///{tmp}/missing", "journal:///{tmp}/missing: no such file"),
    ],
)
def test_a_storage_that_is_not_there_is_named(tmp_path, url, message):
    with pytest.raises(StorageError) as caught:
        open_storage(url.format(tmp=tmp_path), create=False)
    assert str(caught.value) == message.format(tmp=tmp_path)


def test_a_folder_that_is_missing_is_named_before_a_database_is_made(tmp_path):
    with pytest.raises(StorageError, match=rf": no such folder {tmp_path}/no$"):
        open_storage(f"sqlite:///{tmp_path}/no/a.db")


def test_sqlite_is_refused_where_machines_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("search.storage.shared", lambda _path: "nfs4")
    with pytest.raises(StorageError) as caught:
        open_storage(f"sqlite:///{tmp_path}/a.db")
    assert str(caught.value) == (
        f"sqlite:///{tmp_path}/a.db: {tmp_path} lies on nfs4, which machines share and where SQLite loses writes; "
        f"expected a local disk, journal://{tmp_path}/a.db or a PostgreSQL server"
    )
    assert not (tmp_path / "a.db").exists()
    open_storage(f"journal://{tmp_path}/a.db")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "a.db").write_text("not a database, and long enough to be read as one" * 10)
    with pytest.raises(StorageError, match=r"a\.db: the storage can't be opened: file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/a.db")


@pytest.mark.parametrize("create", [True, False])
def test_a_database_of_other_software_is_refused_and_left_as_it_is(tmp_path, create):
    path = tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StorageError) as caught:
        open_storage(f"sqlite:///{path}", create=create)
    assert str(caught.value) == (
        f"sqlite:///{path}: a database of other software, with the tables orders; expected one of Optuna, or a new file"
    )
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["shop.db"]


def test_a_server_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(StorageError) as caught:
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert str(caught.value).startswith("postgresql://me:***@127.0.0.1:1/x: the storage can't be opened: ")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgresql://me@host:abc/x", "this is no storage URL: the port must be a number"),
        ("oracular://host/x", "this is no storage URL"),
        ("sqlite:///{tmp}/a.db?timeout=soon", "the storage can't be opened: could not convert string to float: 'soon'"),
    ],
)
def test_a_url_that_means_nothing_is_refused(tmp_path, url, problem):
    url = url.format(tmp=tmp_path)
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    assert str(caught.value) == f"{url}: {problem}"


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"]
)
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(StorageError) as caught:
        open_storage(url)
    expected = "a database in memory is gone with this process; expected a file: sqlite:///vqsearch.db"
    assert str(caught.value) == f"{url}: {expected}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:a@b:c@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:a/b@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me:a?b@host/x", "postgresql://me:***@host/x"),
        ("postgresql://me@corp:secret@host/x", "postgresql://me@corp:***@host/x"),
        ("postgresql://:secret@host/x", "postgresql://:***@host/x"),
        ("postgresql://me:secret@host/x?options=a@b", "postgresql://me:***@host/x?options=a@b"),
        ("postgresql://host:5432/x?user=me&password=a@b", "postgresql://host:5432/x?user=me&password=***"),
        ("postgresql://host/x?password=a:b&user=me", "postgresql://host/x?password=***&user=me"),
        ("postgresql://host/x?user=me&sslpassword=secret", "postgresql://host/x?user=me&sslpassword=***"),
        ("mysql://me:secret@host/x?passwd=secret", "mysql://me:***@host/x?passwd=***"),
        ("postgresql://me@host:5432/x", None),
        ("postgresql://host:5432/x?user=me", None),
        ("postgresql://host/x?passfile=/home/me/.pgpass", None),
        ("sqlite:///a.db", None),
        ("sqlite:////folder:1/a@b.db", None),
        ("journal:////folder:1/a@b", None),
    ],
)
def test_passwords_are_hidden_and_nothing_else(url, shown):
    assert redact(url) == (shown or url)
    password = sqlalchemy.make_url(url).password if url != "postgresql://me:a@b:c@host/x" else "a@b:c"
    assert not password or f":{password}@" not in redact(url)


@pytest.fixture(params=[0o555, 0o777], ids=["all of it read-only", "a read-only file"])
def shared(request):
    """A folder with a study in `a.db` that this process may read and not write, be it root's."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    storage = open_storage(f"sqlite:///{folder}/a.db")
    optuna.create_study(study_name="a", storage=storage).ask()
    storage.engine.dispose()
    assert [path.name for path in folder.iterdir()] == ["a.db"]
    (folder / "a.db").chmod(0o444)
    folder.chmod(request.param)
    if not user:
        os.seteuid(65534)
    yield folder
    if not user:
        os.seteuid(user)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_database_that_can_only_be_read_is_read(shared):
    study = optuna.load_study(study_name="a", storage=open_storage(f"sqlite:///{shared}/a.db", create=False))
    assert len(study.trials) == 1


def test_a_database_that_can_only_be_read_is_refused_to_a_writer(shared):
    with pytest.raises(StorageError) as caught:
        open_storage(f"sqlite:///{shared}/a.db")
    problem = "the storage can't be opened: attempt to write a readonly database"
    assert str(caught.value) == f"sqlite:///{shared}/a.db: {problem}"


def _journal_with_a_trial(path):
    optuna.create_study(study_name="a", storage=open_storage(f"journal://{path}")).ask()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda lines: lines[:20] + lines[30:], "damaged, or no journal of Optuna: "),
        (lambda lines: b"{}\n" + lines, "damaged, or no journal of Optuna: 'op_code'\n"),
        (lambda lines: b'{"op_code": 99}\n' + lines, "damaged, or no journal of Optuna: "),
        (lambda lines: b"SQLite format 3\0" + lines, "this is no journal of Optuna\n"),
        (lambda lines: b"hello", "this is no journal of Optuna\n"),
        (lambda lines: b'{"steps": 3}', "this is no journal of Optuna\n"),
        (lambda lines: lines + b"hello", "this is no journal of Optuna\n"),
    ],
)
def test_a_journal_that_is_none_or_damaged_is_refused_in_a_line(tmp_path, damage, problem):
    path = tmp_path / "a"
    path.write_bytes(damage(_journal_with_a_trial(path)))
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(StorageError) as caught:
            open_storage(f"journal://{path}", create=create)
        assert f"{caught.value}\n".startswith(f"journal://{path}: {problem}")
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(StorageError) as caught:
        open_storage(f"journal://{tmp_path}")
    assert str(caught.value) == f"journal://{tmp_path}: this is a folder; expected a file"


def test_processes_that_make_a_database_at_the_same_moment_all_get_it(tmp_path):
    script = (
        "import sys; from search import storage; print('ready', flush=True); sys.stdin.read(); "
        f"storage.open_storage('sqlite:///{tmp_path}/a')"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    makers = [subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) for _ in range(4)]
    assert [maker.stdout.readline() for maker in makers] == ["ready\n"] * 4
    for maker in makers:
        maker.stdin.close()
    assert [maker.wait() for maker in makers] == [0] * 4
    assert not any(maker.stderr.read() for maker in makers)
