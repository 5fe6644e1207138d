"""The dashboard in a real browser."""

import json
import re
import signal
import subprocess
import sys
import urllib.request

import optuna
import pytest

from search.lease import Lease
from search.storage import open_storage


@pytest.fixture
def study(tmp_path):
    """A study with a complete and a pruned trial, in a SQLite file."""
    study = optuna.create_study(study_name="faces", storage=open_storage(f"sqlite:///{tmp_path}/vqsearch.db"))
    for values in ((0.9, 0.5, 0.3), (0.8, 0.7)):
        trial = study.ask()
        trial.suggest_float("optimizer.lr", 1e-4, 1e-2, log=True)
        for step, value in enumerate(values, start=1):
            trial.report(value, step)
        if len(values) == 3:
            study.tell(trial, values[-1])
        else:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return study


@pytest.fixture
def address(study, tmp_path):
    """Where `vqsearch dashboard` serves that study."""
    command = [sys.executable, "-m", "search", "dashboard", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        yield re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


def test_it_serves_the_studies_of_a_storage_but_no_leases(address, tmp_path):
    lease = Lease(open_storage(f"sqlite:///{tmp_path}/vqsearch.db"), "faces")
    with urllib.request.urlopen(f"{address}/api/studies") as answer:
        studies = json.load(answer)["study_summaries"]
    assert [study["study_name"] for study in studies] == ["faces"]
    lease.release()


def test_a_port_that_is_taken_is_named(address, tmp_path):
    port = address.rpartition(":")[2]
    command = [sys.executable, "-m", "search", "dashboard", "--port", port]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert ran.stderr == (
        f"vqsearch: --host 127.0.0.1 --port {port}: can't listen there: Address already in use; try --port 0\n"
    )


def test_a_browser_shows_the_study_its_curves_and_its_pruned_trial(address, browser_page):
    from playwright.sync_api import expect

    page = browser_page()
    page.goto(f"{address}/dashboard")
    page.get_by_text("faces").first.click()
    expect(page.get_by_text("Intermediate values")).to_be_visible(timeout=20_000)
    page.goto(page.url.rstrip("/") + "/trials")
    expect(page.get_by_text("Pruned").first).to_be_visible(timeout=20_000)
    expect(page.get_by_text("optimizer.lr").first).to_be_visible()
