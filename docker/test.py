"""Proves docker/ on this machine: builds the image without CUDA, brings compose.yaml up, and searches while nodes go.

A worker is killed in the middle of a trial and started again, the other one is cut off the network for a while; the
search must end with the exact budget. Nothing may answer to a stranger, and no secret may show. Where no base image can
be pulled, stand-in.sh makes stand-ins. What it started is gone at the end; the image stays, as a cache.

Environment: $DOCKER (docker), $COMPOSE ("docker compose", else docker-compose), and that of stand-in.sh.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
IMAGE = "vqsearch:docker-test"
PROJECT = "vqsearch-test"
MINE = f"label=com.docker.compose.project={PROJECT}"
TRIALS = 12

LAUNCH = ["vqsearch", "launch", "spaces/demo.yaml", "--output", "/output", "--set", f"budget.trials={TRIALS}"]
STATES = """select coalesce(json_agg(json_build_object('number', t.number, 'state', t.state, 'lost', coalesce((
    select sum(a.value_json::int) from trial_user_attributes a
    where a.trial_id = t.trial_id and a.key in ('retries', 'lost_nodes')), 0)
    ) order by t.number), '[]') from trials t join studies s using (study_id) where s.study_name = 'demo'"""


class RefusedError(Exception):
    """This machine can't do the test."""


def say(line: str) -> None:
    """A line of the log."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def call(*command: str, check: bool = True, timeout_s: float = 600, **variables: str) -> str:
    """What a command writes to both outputs; its failure ends the test."""
    done = subprocess.run(
        command,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    if check and done.returncode:
        raise AssertionError(f"{shlex.join(command)} exited with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def until(what: str, true: Callable[[], Any], seconds: float, pause_s: float = 2.0) -> Any:
    """Wait until something is true; what it then is."""
    end = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(pause_s)
    say(what)
    return value


def tools() -> tuple[list[str], list[str]]:
    """The commands for Docker and Compose.

    Raises:
        RefusedError: there are none, or no engine answers.
    """
    docker = shlex.split(os.environ.get("DOCKER", "docker"))
    if not shutil.which(docker[0]):
        raise RefusedError(f"{docker[0]}: no such command; install Docker (Debian: apt-get install docker.io)")
    answer = subprocess.run([*docker, "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True)
    if answer.returncode:
        raise RefusedError(f"no Docker engine answers: {answer.stderr.strip().splitlines()[-1]}")
    asked = os.environ.get("COMPOSE")
    for compose in [shlex.split(asked)] if asked else [[*docker, "compose"], ["docker-compose"]]:
        if shutil.which(compose[0]):
            said = subprocess.run([*compose, "version", "--short"], capture_output=True, text=True)
            if not said.returncode:
                say(f"Docker {answer.stdout.strip()}, Compose {said.stdout.strip()}")
                return docker, compose
    raise RefusedError("no Docker Compose; install it (Debian: apt-get install docker-compose)")


def build(docker: list[str]) -> str:
    """Build the image; the image of PostgreSQL to go with it."""
    arguments = {"VARIANT": "cpu", "BASE": "debian:bookworm-slim"}
    postgres = os.environ.get("POSTGRES_IMAGE", "")
    if call(*docker, "pull", arguments["BASE"], check=False).find("Status:") < 0:
        say("no base image can be pulled: stand-ins by debootstrap, and torch from the ordinary index (5 GB more)")
        made = call(str(HERE / "stand-in.sh"), DOCKER=shlex.join(docker)).splitlines()
        arguments |= {"BASE": made[-2], "TORCH_INDEX": ""}
        postgres = made[-1]
    say("building the image (minutes)")
    settings = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    path = ("--file", str(HERE / "Dockerfile"), str(HERE.parent))
    call(*docker, "build", "--network", "host", "--tag", IMAGE, *settings, *path, timeout_s=3600, DOCKER_BUILDKIT="1")
    return postgres


def check_image(docker: list[str]) -> None:
    """Not root, and nothing in it that constraints.txt does not name, but for CUDA's packages, which torch chooses."""
    run = (*docker, "run", "--rm", "--network", "none", IMAGE)
    assert call(*run, "id", "--user").strip() == "10001"
    pins = dict(line.split("==") for line in (HERE.parent / "constraints.txt").read_text().split() if "==" in line)
    pinned = {_spelled(name): version for name, version in pins.items()}
    held = dict(line.split("==") for line in call(*run, "pip", "freeze", "--exclude", "vqsearch").split())
    loose = {
        f"{name}=={version}"
        for name, version in held.items()
        if pinned.get(_spelled(name)) != version.partition("+")[0] and not re.match("nvidia-|cuda-|triton$", name)
    }
    assert not loose, f"constraints.txt does not name {sorted(loose)}"
    say(f"the image runs as user 10001 and holds {len(held)} packages, all of them pinned")


def _spelled(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Cluster:
    """The containers of compose.yaml, under a project of their own.

    Args:
        docker: command.
        compose: command.
        secrets: folder.
        postgres: image; "" for that of compose.yaml.
    """

    def __init__(self, docker: list[str], compose: list[str], secrets: Path, postgres: str) -> None:
        self.docker, self.secrets = docker, secrets
        self.ray, self.dashboard = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._compose = [*compose, "--project-name", PROJECT, "--file", str(HERE / "compose.yaml")]
        self._variables = {
            "VQSEARCH_IMAGE": IMAGE,
            "VQSEARCH_SECRETS": str(secrets),
            "VQSEARCH_RAY_PORT": self.ray.rpartition(":")[2],
            "VQSEARCH_DASHBOARD_PORT": self.dashboard.rpartition(":")[2],
        } | ({"POSTGRES_IMAGE": postgres} if postgres else {})

    def compose(self, *words: str, check: bool = True) -> str:
        """Run Compose."""
        return call(*self._compose, *words, check=check, **self._variables)

    def containers(self, service: str) -> list[str]:
        """Names of the containers of a service, those that have ended too."""
        label = f"label=com.docker.compose.service={service}"
        return sorted(
            call(*self.docker, "ps", "--all", "--filter", label, "--filter", MINE, "--format", "{{.Names}}").split()
        )

    def healthy(self, service: str, count: int = 1) -> bool:
        """Whether so many containers of a service pass their health check."""
        shown = [
            call(*self.docker, "inspect", "--format", "{{.State.Health.Status}}", name, check=False).strip()
            for name in self.containers(service)
        ]
        return shown.count("healthy") == count

    def secret(self, name: str) -> str:
        """What a file of secrets holds."""
        return (self.secrets / name).read_text()

    def outside(self, *command: str, check: bool = True, token: bool = True) -> str:
        """Run a command in a container on this machine's network, not the cluster's."""
        shown = ("--volume", f"{self.secrets}/auth_token:/run/secrets/auth_token:ro")
        shown = (*shown, "--env", "RAY_AUTH_TOKEN_PATH=/run/secrets/auth_token") if token else ()
        return call(*self.docker, "run", "--rm", "--network", "host", *shown, IMAGE, *command, check=check)

    def trials(self) -> list[dict[str, Any]]:
        """Number, state and lost workers of each trial of the study, from its tables; none before these are there."""
        (name,) = self.containers("postgres")
        psql = ("psql", "--username=vqsearch", "--dbname=vqsearch", "--no-align", "--tuples-only", "--command", STATES)
        said = call(*self.docker, "exec", name, *psql, check=False)
        return [] if "ERROR" in said else json.loads(said)

    def count(self, *states: str) -> int:
        """Trials in one of these states."""
        return sum(trial["state"] in states for trial in self.trials())

    def nodes(self) -> int:
        """Nodes of Ray that are alive, the head among them."""
        request = urllib.request.Request(f"{self.ray}/nodes?view=summary")
        request.add_header("Authorization", f"Bearer {self.secret('auth_token')}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return sum(node["raylet"].get("state") == "ALIVE" for node in json.load(answer)["data"]["summary"])


@contextmanager
def up(cluster: Cluster) -> Iterator[None]:
    """The containers, removed with their volumes at the end; their last words where the test fails."""
    cluster.compose("down", "--volumes", "--remove-orphans", check=False)
    try:
        cluster.compose("up", "--detach", "--scale", "worker=2")
        yield
    except BaseException:
        print(cluster.compose("ps", check=False), cluster.compose("logs", "--tail", "60", check=False), flush=True)
        raise
    finally:
        cluster.compose("down", "--volumes", "--remove-orphans", check=False)


def status_of(url: str, password: str | None = None, **headers: str) -> int:
    """The status with which a page answers, redirects not followed; a password is sent as the form does."""
    form = None if password is None else urllib.parse.urlencode({"password": password}).encode()
    return _answer(url, form, headers)[0]


def _answer(url: str, form: bytes | None, headers: dict[str, str]) -> tuple[int, Any]:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_arguments: Any) -> None:
            return None

    request = urllib.request.Request(url, data=form, headers=headers)
    try:
        with urllib.request.build_opener(Stay).open(request, timeout=30) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.headers


def check_strangers(cluster: Cluster) -> None:
    """Two ports are open, on this machine alone, and both ask who is there; so does Ray inside the network."""
    published = set(re.findall(r"\S+->", call(*cluster.docker, "ps", "--filter", MINE, "--format", "{{.Ports}}")))
    wanted = {f"{url.removeprefix('http://')}->" for url in (cluster.ray, cluster.dashboard)}
    assert published == wanted, published
    say(f"published: {', '.join(sorted(port.removesuffix('->') for port in wanted))}")

    jobs = f"{cluster.ray}/api/jobs/"
    refused = [status_of(jobs), status_of(jobs, Authorization="Bearer " + "0" * 64)]
    assert refused == [401, 403], refused
    assert status_of(jobs, Authorization=f"Bearer {cluster.secret('auth_token')}") == 200
    network = ("--network", f"{PROJECT}_default")
    for wrong in ("RAY_AUTH_MODE=disabled", "RAY_AUTH_TOKEN=" + "0" * 64):
        joining = ("ray", "start", "--block", "--address=head:6379")
        said = call(
            *cluster.docker, "run", "--rm", *network, "--env", wrong, IMAGE, "timeout", "60", *joining, check=False
        )
        assert re.search("(?i)authenticat|token", said), said
        assert cluster.nodes() == 3
    say("Ray answers 401 without its token and to a wrong one, and no node joins with either")

    assert status_of(cluster.dashboard) == 303
    assert status_of(f"{cluster.dashboard}/api/studies") == 401
    origin = {"Origin": cluster.dashboard}
    assert status_of(f"{cluster.dashboard}/login", "wrong", **origin) == 403
    status, headers = _answer(f"{cluster.dashboard}/login", _form(cluster.secret("dashboard_password")), origin)
    assert status == 303, status
    cookie = {"Cookie": headers["Set-Cookie"].partition(";")[0]}
    assert [status_of(f"{cluster.dashboard}{path}", **cookie) for path in ("/dashboard", "/api/studies")] == [200, 200]
    say("the dashboard asks for its password, refuses a wrong one and opens with the right one")


def _form(password: str) -> bytes:
    return urllib.parse.urlencode({"password": password}).encode()


def check_search(cluster: Cluster) -> None:
    """A search from outside ends with the exact budget, though a worker is killed and the other cut off for a while."""
    killed, cut = cluster.containers("worker")
    said = cluster.outside(*LAUNCH, "--address", cluster.ray)
    (job,) = re.findall(r"job (\S+) is submitted", said)
    say(f"submitted from outside as {job}: {shlex.join(LAUNCH)}")
    until("two trials run, one on each worker", lambda: cluster.count("RUNNING") == 2, 180)
    time.sleep(5)

    call(*cluster.docker, "kill", killed)
    say(f"killed {killed}")
    until("its trial is back", lambda: any(trial["lost"] for trial in cluster.trials()), 180)
    until("Ray has given the node up", lambda: cluster.nodes() == 2, 180)
    call(*cluster.docker, "start", killed)
    until("the worker is a node again", lambda: cluster.nodes() == 3, 180)
    until("two trials run again", lambda: cluster.count("RUNNING") == 2, 120)
    time.sleep(5)

    lost = sum(trial["lost"] for trial in cluster.trials())
    network = f"{PROJECT}_default"
    call(*cluster.docker, "network", "disconnect", network, cut)
    say(f"cut {cut} off the network")
    until("Ray has given the node up", lambda: cluster.nodes() == 2, 180)
    until("its trial is back", lambda: sum(trial["lost"] for trial in cluster.trials()) > lost, 180)
    connect = (*cluster.docker, "network", "connect", "--alias", "worker", network, cut)
    # Docker refuses while it starts the container again, which it does once Ray there has given up.
    until("connected again", lambda: "rror" not in call(*connect, check=False), 120)
    until("the worker is a node again", lambda: cluster.nodes() == 3, 180)
    until(f"{TRIALS} trials have ended", lambda: cluster.count("COMPLETE", "PRUNED", "FAIL") == TRIALS, 1200, 5)
    status = ("ray", "job", "status", "--address", cluster.ray, job)
    until("the job has succeeded", lambda: "succeeded" in cluster.outside(*status), 120)

    trials = cluster.trials()
    assert [trial["number"] for trial in trials] == list(range(TRIALS)), trials
    assert {trial["state"] for trial in trials} <= {"COMPLETE", "PRUNED"}, trials
    say(f"{TRIALS} of {TRIALS} trials, none lost, none run twice: {sum(t['lost'] for t in trials)} lost workers")
    print(cluster.compose("run", "--rm", "vqsearch", "status"), flush=True)


def check_secrets(cluster: Cluster) -> None:
    """No secret shows in what containers log, in how they were started, or in the image."""
    names = [n for s in ("postgres", "head", "worker", "dashboard") for n in cluster.containers(s)]
    shown = cluster.compose("logs") + call(*cluster.docker, "inspect", *names, IMAGE)
    shown += call(*cluster.docker, "history", "--no-trunc", IMAGE)
    for path in sorted(cluster.secrets.iterdir()):
        assert path.read_text() not in shown, f"{path.name} shows"
    say("no secret shows in logs, containers or image")


def main() -> int:
    """Run it all; 0, 1 where something is wrong, 2 where this machine can't."""
    began = time.monotonic()
    try:
        docker, compose = tools()
        postgres = build(docker)
        check_image(docker)
        with tempfile.TemporaryDirectory() as folder:
            secrets = Path(folder) / "secrets"
            call(str(HERE / "secrets.sh"), str(secrets))
            cluster = Cluster(docker, compose, secrets, postgres)
            with up(cluster):
                for service, count in (("head", 1), ("worker", 2), ("dashboard", 1)):
                    until(f"healthy: {service}", lambda s=service, c=count: cluster.healthy(s, c), 240)
                check_strangers(cluster)
                check_search(cluster)
                check_secrets(cluster)
    except RefusedError as problem:
        print(f"docker-test: {problem}", file=sys.stderr)
        return 2
    except AssertionError as problem:
        print(f"docker-test: {problem}", file=sys.stderr)
        return 1
    say(f"passed in {(time.monotonic() - began) / 60:.1f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
