"""Commands as jobs of a Ray cluster; the last test submits one to a real one."""

import os
import sys
import time

import optuna
import pytest

from search import cluster, credentials, jobs
from search.jobs import HEADS, SHARED
from search.storage import open_storage

NOWHERE = ["--address", "http://127.0.0.1:9"]
ROOT = ["--output", "/shared/out"]


def test_a_job_takes_its_storage_from_the_head_alone(refused, tiny_file):
    launch = ["launch", "tiny.yaml", *NOWHERE, *ROOT]
    assert refused(*launch, "--storage", "postgresql://me@db/studies") == (
        f"vqsearch: --storage: a job takes its storage from the head alone; expected {HEADS}"
    )
    assert refused(*launch, "--storage-file", "url") == (
        "vqsearch: --storage-file url: lies on the cluster's head; expected its absolute path there"
    )
    assert refused(*launch, "--set", "storage=sqlite:///a.db").endswith(
        f"storage: a job takes its storage from the head alone; expected {HEADS}"
    )
    tiny_file.write_text(f"storage: sqlite:///a.db\n{tiny_file.read_text()}")
    assert refused(*launch) == (
        f"vqsearch: tiny.yaml:1: storage: a job takes its storage from the head alone; expected {HEADS}"
    )


@pytest.mark.parametrize("output", [[], ["--output", "out"], ["--set", "output=out"]])
def test_a_job_refuses_an_output_root_that_starts_on_this_machine(refused, tiny_file, output):
    got = "got out, which lies on this machine" if output else "none was given"
    assert refused("launch", "tiny.yaml", *NOWHERE, *output) == f"vqsearch: --output: must be {SHARED}, but {got}"


def test_a_job_refuses_paths_that_start_on_this_machine(refused, tiny_file):
    line = "must be an absolute path, which the cluster's nodes have, but got 'faces', which starts on this machine"
    asked = ["train.data.source=folder", "train.data.path=faces"]
    settings = [word for each in asked for word in ("--set", each)]
    assert refused("launch", "tiny.yaml", *NOWHERE, *ROOT, *settings) == f"vqsearch: --set {asked[1]}: {line}"
    tiny_file.write_text(tiny_file.read_text().replace("data: {", "data: {source: folder, path: faces, "))
    assert refused("launch", "tiny.yaml", *NOWHERE, *ROOT).endswith(f"train.data.path: {line}")


def test_a_cluster_that_does_not_answer_is_named(refused, tiny_file):
    line = "vqsearch: --address http://127.0.0.1:9: no Ray cluster takes jobs there: Connection refused"
    assert refused("launch", "tiny.yaml", *NOWHERE, *ROOT) == line
    assert refused("resume", *NOWHERE) == line


def test_the_driver_of_a_job_refuses_a_storage_that_is_a_file(refused, tiny_file, monkeypatch):
    monkeypatch.setenv(jobs.INNER, "{}")
    assert refused("launch", "tiny.yaml") == (
        "vqsearch: the storage is sqlite, a file, but a job of a Ray cluster runs in a folder that goes with it; "
        f"expected the URL of a PostgreSQL server in {HEADS}"
    )


def test_two_plugins_of_one_name_travel_apart(tmp_path):
    sent = jobs.Parcel(plugins=("/a/mine.py", "/b/mine.py"))
    assert sent.names() == ["plugins/0/mine.py", "plugins/1/mine.py"]


def test_a_trainer_of_ones_own_is_found_where_the_job_starts(command, tiny_file, tmp_path):
    (tmp_path / "mine.py").write_text("def train(config, resume, stop):\n    yield\n")
    tiny_file.write_text(f"trainer: ./mine.py:train\n{tiny_file.read_text()}")
    sent = jobs.named(jobs.Parcel(file=str(tiny_file), output="/shared/out"))
    assert sent.overrides == ("trainer=plugins/0/mine.py:train",)
    head = tmp_path / "head"
    head.mkdir()
    jobs.pack(sent, head)
    (tmp_path / "mine.py").unlink()
    command("validate", "tiny.yaml", "--set", sent.overrides[0], cwd=head, check=0)


@pytest.mark.parametrize(("given", "problem"), [("none.py", "No such file or directory"), (".", "this is no file")])
def test_a_plugin_that_cannot_be_read_is_not_submitted(refused, tmp_path, given, problem):
    line = refused("resume", *NOWHERE, "--plugin", given)
    assert line == f"vqsearch: {(tmp_path / given).absolute()}: {problem}; expected a Python file that can be read"


@pytest.mark.ray
@pytest.mark.slow
def test_a_launch_is_submitted_from_outside_and_runs_on_the_cluster(
    tiny_file, tmp_path, command, refused, monkeypatch, postgresql
):
    pytest.importorskip("aiohttp", reason="ray[default], which serves jobs, is not installed: the extra cluster")
    from ray.cluster_utils import Cluster
    from ray.job_submission import JobSubmissionClient

    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "vqsearch").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m search "$@"\n')
    (bin_folder / "vqsearch").chmod(0o755)
    url = postgresql()
    (tmp_path / "url").write_text(url)
    (tmp_path / "url").chmod(0o600)
    for name, value in {**cluster.QUIET, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "j" * 64}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(bin_folder), prepend=os.pathsep)
    credentials.reread()
    served = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0},
    )
    try:
        address = f"http://{served.webui_url}"
        (tmp_path / "mine.py").write_text("")
        launch = ["launch", "tiny.yaml", "--address", address, "--output", str(tmp_path / "out")]
        launch += ["--storage-file", str(tmp_path / "url"), "--plugin", "mine.py", "--set", "resources.cpus=0.5"]
        monkeypatch.setenv("RAY_AUTH_TOKEN", "k" * 64)
        assert refused(*launch).startswith(f"vqsearch: --address {address}: the cluster refuses the token here")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "j" * 64)
        _, out, _ = command(*launch, check=0)
        job = out.split()[1]
        assert f"ray job logs {job} --address {address} --follow" in out
        with credentials.presented(True):
            client = JobSubmissionClient(address)
            deadline = time.monotonic() + 240
            while not (state := client.get_job_status(job)).is_terminal():
                assert time.monotonic() < deadline, client.get_job_logs(job)
                time.sleep(0.5)
            said = client.get_job_logs(job)
        assert state.value == "SUCCEEDED", said
        assert url not in said
        study = optuna.load_study(study_name="tiny", storage=open_storage(url, create=False))
        assert [trial.state.is_finished() for trial in study.trials] == [True] * 4
        assert list((tmp_path / "out" / "tiny").iterdir())
    finally:
        served.shutdown()
