import os
import subprocess
import sys

import psutil
import pytest

from search import credentials, space, storage, study
from search.capacity import fitting
from search.cluster import connected, control
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


@pytest.fixture(scope="module")
def alone():
    """A Ray of our own on this machine."""
    with connected(None):
        yield


def joined(address, **environment):
    """What a program says that joins the cluster at an address with this token and no other one."""
    program = f"""
from search import cluster, errors
try:
    with cluster.connected({address!r}, print):
        print("let in")
except errors.ResourceError as error:
    print(error)
"""
    base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60, env=base | environment
    ).stdout


@pytest.mark.ray
def test_a_ray_on_this_machine_listens_on_the_loopback_alone(alone):
    import ray

    ray.get(ray.remote(num_cpus=0)(lambda: None).remote(), timeout=60)  # A worker listens too.
    listening = [
        connection.laddr.ip
        for process in (psutil.Process(), *psutil.Process().children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 4
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


@pytest.mark.ray
def test_a_ray_on_this_machine_lets_nobody_in_without_its_token(alone, tmp_path):
    import ray

    address = ray.get_runtime_context().gcs_address
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    asks, places = f"--address {address}: the cluster asks for ", credentials.PLACES
    assert joined(
        address, HOME=str(tmp_path)
    ) == f"{asks}a token, and there is none here; expected the cluster's in " + (f"{places}\n")
    wrong = joined(address, HOME=str(tmp_path), RAY_AUTH_TOKEN="0" * 64)
    assert wrong == f"{asks}another one than the token here; expected the cluster's in {places}\n"
    (tmp_path / "token").write_text(token)
    assert joined(address, HOME=str(tmp_path), RAY_AUTH_TOKEN_PATH=str(tmp_path / "token")) == "let in\n"


def test_a_ray_client_address_is_refused():
    with (
        pytest.raises(ResourceError, match="expected auto, HOST:PORT of a cluster's head, or http://HOST:PORT"),
        connected("ray://head:10001"),
    ):
        pass


@pytest.mark.ray
def test_workers_hear_of_a_drain_though_the_actor_that_tells_them_was_killed(alone, tmp_path, tiny_file):
    import ray

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
