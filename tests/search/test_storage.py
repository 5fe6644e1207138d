import sqlite3
import subprocess
import sys
import time

import optuna
import pytest

from search.errors import StorageError
from search.storage import open_storage, redact


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_study_comes_back_from_a_storage_that_is_opened_again(tmp_path, kind):
    url = f"{kind}:///{tmp_path}/studies"
    study = optuna.create_study(study_name="a", storage=open_storage(url))
    trial = study.ask()
    trial.report(0.5, 1)
    again = optuna.load_study(study_name="a", storage=open_storage(url, create=False))
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


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "a.db").write_text("not a database, and long enough to be read as one" * 10)
    with pytest.raises(StorageError, match=r"a\.db: the storage can't be opened: file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/a.db")


def test_a_server_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(StorageError) as caught:
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert str(caught.value).startswith("postgresql://me:***@127.0.0.1:1/x: the storage can't be opened: ")
    assert "secret" not in str(caught.value)


def test_a_password_is_hidden():
    assert redact("postgresql://me:a@b:c@host/x") == "postgresql://me:***@host/x"
    assert redact("postgresql://me@host/x") == "postgresql://me@host/x"
    assert redact("sqlite:///a.db") == "sqlite:///a.db"


def test_processes_that_make_a_database_at_the_same_moment_all_get_it(tmp_path):
    script = f"from search import storage; import sys; sys.stdin.read(); storage.open_storage('sqlite:///{tmp_path}/a')"
    command = [sys.executable, "-c", script]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    time.sleep(3)
    for maker in makers:
        maker.stdin.close()
    assert [maker.wait() for maker in makers] == [0] * 4
    assert not any(maker.stderr.read() for maker in makers)
