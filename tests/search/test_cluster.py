import subprocess
import sys

import psutil
import pytest

from search import space, storage, study
from search.cluster import connected, control, fitting
from search.errors import ResourceError
from search.schema import Resources
from search.steering import Steering


@pytest.mark.parametrize(
    ("cpus", "gpus", "node", "trials"),
    [
        (1, 0, {"CPU": 4}, 4),
        (8, 0, {"CPU": 4}, 0),
        (1, 1, {"CPU": 16, "GPU": 2}, 2),
        (1, 1, {"CPU": 1, "GPU": 2}, 1),
        (1, 1, {"CPU": 4}, 0),
        (1, 0.5, {"CPU": 16, "GPU": 2}, 4),
        (1, 0.4, {"CPU": 16, "GPU": 2}, 4),
        (1, 0.1, {"CPU": 16, "GPU": 1}, 10),
        (0.5, 0, {"CPU": 2}, 4),
    ],
)
def test_a_node_runs_as_many_trials_as_fit_on_whole_devices(cpus, gpus, node, trials):
    assert fitting(node, Resources(cpus=float(cpus), gpus=float(gpus))) == trials


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999"])
def test_an_address_where_nothing_answers_is_named_at_once(address):
    with pytest.raises(ResourceError, match=f"--address {address}: no Ray cluster answers there: "), connected(address):
        pass


@pytest.mark.ray
def test_a_ray_that_never_starts_ends_the_launch_with_a_line():
    # Ray's first process is stopped as soon as it is started.
    program = """
import os, signal, subprocess
from search import cluster
cluster.START_S = 2.0
start = subprocess.Popen.__init__
def stopped(self, command, **options):
    start(self, command, **options)
    if "gcs_server" in command[0]:
        os.kill(self.pid, signal.SIGSTOP)
subprocess.Popen.__init__ = stopped
with cluster.connected(None):
    print("connected")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert ran.stderr == "vqsearch: Ray does not answer on this machine within 2 s; nothing is lost: try again\n"


def kill_what_tells():
    """End the process of the actor, which Ray then starts again without what it had been told."""
    (process,) = (
        child
        for child in psutil.Process().children(recursive=True)
        if child.cmdline()[:1] and child.cmdline()[0].startswith("ray::_Control")
    )
    process.kill()
    process.wait(30)


def unanswered(actor, asked):
    """Whether an actor that answers what it is asked later does not answer this."""
    import ray

    ray.get(actor.__ray_ready__.remote(), timeout=60)
    return ray.wait([asked], timeout=0.5)[0] == []


@pytest.mark.ray
def test_workers_hear_of_a_drain_though_the_actor_that_tells_them_was_killed(tmp_path, tiny_file):
    import ray

    with connected(None):
        telling = control()
        actor = ray.get_actor(telling.name)
        drained = actor.drained.remote()
        assert unanswered(actor, drained)
        kill_what_tells()
        assert unanswered(actor, drained)
        telling.drain()
        assert ray.get(drained, timeout=60)
        kill_what_tells()
        drained = actor.drained.remote()
        assert unanswered(actor, drained)
        url = f"journal:///{tmp_path}/studies"
        opened = study.create(storage.open_storage(url), space.load(tiny_file), str(tmp_path / "out"), 1)
        opened.draining = True
        opened.flights["1"] = study.Flight(trial=opened.study.ask(), labels={}, started=0.0, before=0.0)
        Steering([opened], telling)()
        assert ray.get(drained, timeout=60)
        opened.close()
