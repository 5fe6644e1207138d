"""Storages that go away in mid-search: a real PostgreSQL is stopped and started, a real SQLite is locked.

Only answers that are lost are lost on purpose: no server can be stopped just between its commit and its answer.
"""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from search import lease as leases
from search import patience
from search.errors import LeaseError, SearchError, StorageError
from search.lease import Lease
from search.patience import Patient
from search.storage import open_storage

AWAY = sqlalchemy.exc.OperationalError("UPDATE trials SET state", {}, Exception("server closed the connection"))
LOST = ("create_new_trial", "set_trial_state_values", "set_trial_param", "set_trial_intermediate_value",
        "set_trial_user_attr", "set_trial_system_attr", "set_study_user_attr", "delete_study")  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(patience, "FIRST_S", 0.05)
    monkeypatch.setattr(patience, "LONGEST_S", 0.4)


class Forgetful(optuna.storages._CachedStorage):
    """A database whose answer to the `losing`-th write is lost, though the write is done."""

    def __init__(self, backend, losing):
        super().__init__(backend)
        self.left = losing
        self.lost = None
        for name in LOST:
            setattr(self, name, self._losing(name, getattr(self, name)))

    def _losing(self, name, original):
        def write(*arguments, **options):
            answer = original(*arguments, **options)
            self.left -= 1
            if self.left == -1:
                self.lost = name
                raise AWAY
            return answer

        return write


def search(study, trials=3):
    """A search in small."""
    study.enqueue_trial({"x": 0.5}, skip_if_exists=True)
    for count in range(trials):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, count)
        trial.set_user_attr("seen", x)
        if count == 1:
            study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        else:
            study.tell(trial, x)
    study.set_user_attr("hours", trials)


def history(study):
    return [(t.number, t.state, t.params, t.intermediate_values, t.values, t.user_attrs) for t in study.trials]


def new_study(storage, name="a"):
    return optuna.create_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))


def test_a_write_whose_answer_was_lost_is_done_once(tmp_path):
    backend = open_storage(f"sqlite:///{tmp_path}/a")
    twin = optuna.trial.create_trial(value=1.0)
    whole = new_study(backend)
    search(whole)
    whole.add_trials([twin, twin])
    lost = []
    while True:
        storage = Forgetful(backend, len(lost))
        study = new_study(Patient(storage, lambda _line: None), f"losing {len(lost)}")
        search(study)
        study.add_trials([twin, twin])
        assert history(study) == history(whole), storage.lost
        assert study.user_attrs == whole.user_attrs
        if storage.lost is None:
            break
        lost.append(storage.lost)
    assert set(lost) == set(LOST) - {"delete_study", "set_trial_system_attr"}
    assert len(lost) > 12


def test_deleting_whose_answer_was_lost_is_done(tmp_path):
    storage = Forgetful(open_storage(f"sqlite:///{tmp_path}/a"), 0)
    new_study(storage)
    optuna.delete_study(study_name="a", storage=Patient(storage, lambda _line: None))
    assert storage.lost == "delete_study"
    assert storage.get_all_studies() == []


def test_a_trial_that_optuna_made_twice_by_itself_goes_back(tmp_path, monkeypatch):
    backend = open_storage(f"sqlite:///{tmp_path}/a")
    storage = Patient(backend, lambda _line: None)
    study = new_study(storage)
    original, times = backend._get_prepared_new_trial, []

    def twice(*arguments):
        if not times:
            times.append(backend._create_new_trial.__name__)
            optuna.load_study(study_name="a", storage=open_storage(f"sqlite:///{tmp_path}/a")).ask()
        return original(*arguments)

    monkeypatch.setattr(backend, "_get_prepared_new_trial", twice)
    monkeypatch.setattr(backend, "_create_new_trial", lambda *a: type(backend)._create_new_trial(backend, *a))
    mine = study.ask()
    assert [t.number for t in study.trials if t.state == TrialState.RUNNING] == [mine.number]
    assert len(study.trials) == 2


def test_errors_of_logic_are_not_waited_for(tmp_path):
    storage = Patient(open_storage(f"sqlite:///{tmp_path}/a"), pytest.fail)
    study = new_study(storage)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        storage.set_trial_user_attr(trial._trial_id, "a", 1)
    with pytest.raises(KeyError):
        storage.get_trial(99)


def test_a_storage_that_stays_away_ends_the_search_in_a_line(tmp_path, monkeypatch):
    told = []
    storage = Patient(open_storage(f"sqlite:///{tmp_path}/a"), told.append, wait_s=0.3)
    study = new_study(storage)

    def away(*_arguments, **_options):
        raise AWAY

    monkeypatch.setattr(storage.inner, "get_all_trials", away)
    with pytest.raises(SearchError) as caught:
        study.get_trials()
    assert str(caught.value) == (
        "the storage has not answered for 0.005 min, so the search ends; nothing is lost, and it goes on with: "
        "vqsearch resume (server closed the connection)"
    )
    assert told == [
        "the storage does not answer; it is waited for up to 0.005 min, and trials go on training: "
        "server closed the connection"
    ]
    started = time.monotonic()
    with pytest.raises(SearchError, match="the storage does not answer: server closed the connection"):
        study.get_trials()
    assert time.monotonic() - started < 0.2


def test_only_the_driver_waits_and_not_who_watches(tmp_path, monkeypatch):
    storage = Patient(open_storage(f"sqlite:///{tmp_path}/a"), pytest.fail)
    new_study(storage)

    def away(*_arguments, **_options):
        raise AWAY

    monkeypatch.setattr(storage.inner, "get_all_studies", away)
    caught = []

    def watch():
        try:
            storage.get_all_studies()
        except StorageError as error:
            caught.append(str(error))

    watcher = threading.Thread(target=watch)
    watcher.start()
    watcher.join()
    assert caught == ["the storage does not answer: server closed the connection"]


def test_a_lock_that_another_program_holds_on_sqlite_is_waited_for(tmp_path):
    told = []
    storage = Patient(open_storage(f"sqlite:///{tmp_path}/a?timeout=0.1"), told.append)
    study = new_study(storage)
    other = sqlite3.connect(tmp_path / "a", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    threading.Timer(1, other.rollback).start()
    study.set_user_attr("a", 1)
    assert study.user_attrs == {"a": 1}
    assert told[0].endswith(": database is locked")
    assert told[1].startswith("the storage is back after ")
    assert len(told) == 2
    other.close()


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_a_file_whose_folder_is_gone_for_a_while_is_waited_for(tmp_path, kind):
    told = []
    folder = tmp_path / "mounted"
    folder.mkdir()
    study = new_study(Patient(open_storage(f"{kind}:///{folder}/a"), told.append))
    search(study)
    before = history(study)
    folder.rename(tmp_path / "elsewhere")
    threading.Timer(0.6, (tmp_path / "elsewhere").rename, [folder]).start()
    trial = study.ask()
    assert trial.number == 2
    assert history(study)[:2] == before
    assert "No such file or directory: " in told[0]
    assert f"{folder}/a'" in told[0]
    assert [line.partition(";")[0].partition(" after")[0] for line in told] == [
        "the storage does not answer",
        "the storage is back",
    ]


def test_a_database_that_another_one_has_replaced_is_not_written(tmp_path):
    storage = Patient(open_storage(f"sqlite:///{tmp_path}/a"), lambda _line: None, wait_s=0.2)
    study = new_study(storage)
    (tmp_path / "a").rename(tmp_path / "b")
    other = new_study(open_storage(f"sqlite:///{tmp_path}/a"))
    with pytest.raises(SearchError, match=rf"\({tmp_path}/a is another file than the one that was opened\)$"):
        study.set_user_attr("mine", 1)
    assert other.user_attrs == {}


@pytest.fixture
def server():
    """A PostgreSQL server that can be stopped and started."""
    pgserver = pytest.importorskip("pgserver", reason="pgserver, a PostgreSQL for tests, is not installed")
    from pgserver._commands import pg_ctl

    folder = tempfile.mkdtemp(prefix="pg")
    made = pgserver.get_server(folder, cleanup_mode="delete")
    options = {"pgdata": made.pgdata, "user": made.system_user, "timeout": 20}
    sockets = f"-h '' -k {made.get_postmaster_info().socket_dir}"
    yield SimpleNamespace(
        url=made.get_uri(),
        stop=lambda: pg_ctl(["-w", "-m", "immediate", "stop"], **options),
        start=lambda: pg_ctl(["-w", "-o", sockets, "-l", str(made.log), "start"], **options),
    )
    made.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_search_outlives_a_postgresql_that_is_stopped_and_started_under_it(server, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.2)
    told = []
    study = new_study(Patient(open_storage(server.url), told.append))
    lease = Lease(study._storage, "a")
    search(study, 2)
    before = history(study)
    server.stop()
    starter = threading.Timer(1.5, server.start)
    starter.start()
    lease.check()
    search(study)
    starter.join()
    assert history(study)[:1] == before[:1]
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.COMPLETE]
    assert len(told) == 2
    lease.check()
    lease.release()
    assert [s.study_name for s in open_storage(server.url).get_all_studies()] == ["a"]


def test_a_driver_whose_study_was_taken_over_while_its_storage_was_away_writes_nothing_more(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/a"
    study = new_study(Patient(open_storage(url), lambda _line: None))
    trial = study.ask()
    lease = Lease(study._storage, "a")
    monkeypatch.setattr(leases, "_alive", lambda _holder: False)
    monkeypatch.setattr(leases, "STALE_S", 0.0)
    monkeypatch.setattr(leases, "_here", lambda _holder: True)
    original, others = study._storage.inner.set_trial_intermediate_value, []

    def cut_off(*arguments):
        if not others:
            others.append(Lease(open_storage(url), "a"))
            raise AWAY
        return original(*arguments)

    monkeypatch.setattr(study._storage.inner, "set_trial_intermediate_value", cut_off)
    with pytest.raises(LeaseError, match="a: another driver has taken over this study, so this one stops writing"):
        trial.report(0.5, 1)
    assert study.trials[0].intermediate_values == {}
    others[0].check()
    lease.release()
    others[0].release()


@pytest.fixture
def launched(server, tiny_file, start, reached):
    """A function that starts a launch of six trials; it gives its process once there is a value, long before the last.

    Rungs are at 20 and 60 of 180 steps.
    """

    def launch(program=("-m", "search")):
        command = [sys.executable, *program, "launch", "tiny.yaml", "--trials", "6", "--set", "budget.steps=180"]
        command += ["--set", "train.optimizer.warmup_steps=2"]
        variables = {**os.environ, "VQSEARCH_STORAGE": server.url}
        process = start(command, cwd=tiny_file.parent, env=variables)
        reached(process, server.url)
        return process

    return launch


def trials(server):
    try:
        return optuna.load_study(study_name="tiny", storage=open_storage(server.url)).trials
    except (KeyError, StorageError):
        return []


@pytest.mark.ray
@pytest.mark.slow
def test_a_launch_outlives_a_postgresql_that_is_stopped_for_a_while(server, launched):
    process = launched()
    server.stop()
    time.sleep(15)  # long enough that the driver has to look at its lease again
    server.start()
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, out + err
    assert len(re.findall("the storage does not answer; it is waited for up to 10 min, and trials go on", out)) == 1
    (away_s,) = re.findall(r"the storage is back after (\d+) s; nothing is lost", out)
    assert int(away_s) >= 12
    assert len(trials(server)) == 6
    for trial in trials(server):
        assert trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
        assert list(trial.intermediate_values) == [20, 60, 180][: len(trial.intermediate_values)]
    assert [s.study_name for s in open_storage(server.url).get_all_studies()] == ["tiny"]


@pytest.mark.ray
@pytest.mark.slow
def test_two_signals_end_a_launch_whose_storage_stays_away_and_it_goes_on_later(server, tiny_file, launched):
    process = launched()
    server.stop()
    read = iter(process.stdout.readline, "")
    assert any("the storage does not answer" in line for line in read), process.communicate()
    process.send_signal(signal.SIGINT)
    assert any("once more ends at once" in line for line in read), process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    server.start()
    resume = [sys.executable, "-m", "search", "resume"]
    variables = {**os.environ, "VQSEARCH_STORAGE": server.url}
    ran = subprocess.run(
        resume, cwd=tiny_file.parent, env=variables, capture_output=True, text=True, check=False, timeout=180
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert [trial.state.is_finished() for trial in trials(server)] == [True] * 6


@pytest.mark.ray
@pytest.mark.slow
def test_a_launch_whose_storage_stays_away_ends_with_a_line_and_goes_on_later(server, launched):
    impatient = "from search import cli, patience; patience.Patient.__init__.__defaults__ = (3.0,); cli.main()"
    process = launched(program=["-c", impatient])
    server.stop()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert len(err.splitlines()) == 1
    assert err.startswith(
        "vqsearch: the storage has not answered for 0.05 min, so the search ends; nothing is lost, "
        "and it goes on with: vqsearch resume ("
    )
    server.start()
    assert {trial.state for trial in trials(server)} - {TrialState.COMPLETE, TrialState.PRUNED} != set()
