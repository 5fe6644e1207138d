import os
import subprocess
import sys
import textwrap
import time

import optuna
import pytest
from optuna.storages import InMemoryStorage

from search import lease as leases
from search import storage as storages
from search.errors import LeaseError
from search.lease import Lease
from search.patience import Patient


@pytest.fixture
def url(storage_url):
    optuna.create_study(study_name="a", storage=storages.open_storage(storage_url))
    return storage_url


def test_a_second_driver_is_refused_and_told_who_runs_the_study(url):
    lease = Lease(storages.open_storage(url), "a")
    with pytest.raises(
        LeaseError, match=rf"^a: process {os.getpid()} on .* is running this study \(heard of \d+ s ago"
    ):
        Lease(storages.open_storage(url), "a")
    lease.release()
    Lease(storages.open_storage(url), "a").release()


def test_a_lease_leaves_no_study_behind(url):
    storage = storages.open_storage(url)
    lease = Lease(storage, "a")
    assert sorted(study.study_name for study in storage.get_all_studies()) == ["a", "a/lease/1"]
    lease.release()
    assert [study.study_name for study in storage.get_all_studies()] == ["a"]


def test_the_lease_of_a_killed_process_is_taken_over_at_once(url):
    script = textwrap.dedent(f"""
        import os, signal
        from search import storage, lease
        held = lease.Lease(storage.open_storage({url!r}), "a")
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    started = time.monotonic()
    lease = Lease(storages.open_storage(url), "a")
    assert lease.number == 2
    assert time.monotonic() - started < leases.STALE_S / 4
    lease.release()


def test_a_lease_of_another_machine_counts_while_it_is_heard_of(url):
    storage = storages.open_storage(url)
    other = storage.create_new_study([optuna.study.StudyDirection.NOT_SET], "a/lease/4")
    for key, value in {"host": "far", "pid": 7, "machine": "another", "born": 1, "beat": time.time()}.items():
        storage.set_study_user_attr(other, key, value)
    with pytest.raises(LeaseError, match=r"^a: process 7 on far is running this study"):
        Lease(storage, "a")
    storage.set_study_user_attr(other, "beat", time.time() - 2 * 3600)
    lease = Lease(storage, "a")
    assert lease.number == 5
    lease.release()


def test_of_many_drivers_at_once_just_one_gets_the_lease(url, tmp_path):
    script = textwrap.dedent(f"""
        import sys
        from search import storage, lease
        from search.errors import LeaseError
        opened = storage.open_storage({url!r})
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            lease.Lease(opened, "a")
        except LeaseError:
            sys.exit(3)
        print("got it", flush=True)
        sys.stdin.read()
    """)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    drivers = [subprocess.Popen([sys.executable, "-c", script], **pipes) for _ in range(4)]
    assert [driver.stdout.readline() for driver in drivers] == ["ready\n"] * 4
    for driver in drivers:
        driver.stdin.write("go\n")
        driver.stdin.flush()
    winners = [driver for driver in drivers if driver.stdout.readline() == "got it\n"]
    for driver in drivers:
        driver.communicate()
    assert len(winners) == 1
    assert sorted(driver.returncode for driver in drivers) == [0, 3, 3, 3]


def test_a_driver_that_lost_its_lease_stops_writing(url, monkeypatch):
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    storage = storages.open_storage(url)
    lease = Lease(storage, "a")
    lease.check()
    storage.create_new_study([optuna.study.StudyDirection.NOT_SET], "a/lease/2")
    lease._thread.join(timeout=10)
    with pytest.raises(LeaseError, match="another driver has taken over"):
        lease.check()
    lease.release()


def test_every_lease_of_a_driver_is_looked_at_once_the_storage_is_back_and_none_that_was_given_back():
    patient = Patient(InMemoryStorage(), lambda _line: None)
    for name in ("a", "b"):
        optuna.create_study(study_name=name, storage=patient)
    first, second = Lease(patient, "a"), Lease(patient, "b")
    assert patient.returned == [first._confirm, second._confirm]
    second.release()
    assert patient.returned == [first._confirm]
    first.release()
    assert patient.returned == []
