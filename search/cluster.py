"""The Ray side of a search: the cluster, and the actor that tells workers to drain."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import functools
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from search import credentials
from search.errors import ResourceError, SearchError
from search.text import one_line

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_enable_metrics_collection": "0",
    "AUTOSCALER_METRIC_PORT": "-1",
    "DASHBOARD_METRIC_PORT": "-1",
}
"""Environment of Ray: we speak for ourselves, handle our own signals, send no usage statistics, and serve no metrics,
which Ray gives to anyone, token or not.

The pattern that skips every line keeps twenty of a log from the terminal whenever a node dies."""


START_S = 120.0
"""Wall seconds after which a Ray that has not started, or taken us in, is given up."""

ANSWER_S = 30.0
"""Wall seconds after which a cluster that has not said whether it lets us in is given up."""


@contextmanager
def connected(address: str | None, tell: Callable[[str], None] = lambda _line: None) -> Iterator[None]:
    """A Ray cluster: a new one on this machine, or the one at `address`; left when the context ends.

    The new one listens on the loopback alone and asks for a token that nobody else knows, since whoever is let in runs
    code here. A Ray that does not answer for `START_S` ends this process with a line and exit 1.

    Args:
        address: ``auto``, ``HOST:PORT``, or None.
        tell: takes a line for people.

    Raises:
        ResourceError: nothing answers at the address, or it does not let us in.
        SearchError: Ray can't be started here.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with contextlib.ExitStack() as held:
        held.enter_context(_alone() if address is None else credentials.presented(_lets_us_in(address, tell)))
        import logging

        import ray

        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # A lost worker is told by us, in one line.
        common: dict[str, Any] = {"namespace": "vqsearch", "log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is None:
                # A small object store: nothing large goes through it, images and checkpoints lie in files.
                with _given_up_after(START_S, "on this machine"), _sessions_of_their_own():
                    ray.init(address="local", include_dashboard=False, object_store_memory=128 * 2**20, **common)
            else:
                with _given_up_after(START_S, f"at --address {address}"):
                    ray.init(address=address, **common)
        except Exception as error:  # where a process of it dies early, Ray raises a bare Exception
            if address is None:
                raise SearchError(f"Ray can't be started on this machine: {error}") from error
            raise ResourceError(f"--address {address}: {_words(error)}") from None
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _alone() -> Iterator[None]:
    """A Ray that starts in this context is out of reach for everybody else.

    Ray listens on all interfaces, except where it believes that it can't be a cluster.
    """
    from ray._private import ray_constants

    name, possible = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    before = os.environ.get(name)
    os.environ[name] = "0"  # for the processes that it starts
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with credentials.fresh():
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = possible
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _given_up_after(seconds: float, where: str) -> Iterator[None]:
    """End this process with a line if what is done in here takes too long.

    Ray 2.60 waits without end where two of its idle workers die while a driver registers, in code that takes no signal
    and may hold Python's lock: so the watch is Python's own in C. What it writes makes a waiting shell say our line. No
    study is open yet, so nothing is lost; Ray's own processes end with this one.
    """
    line = f"vqsearch: Ray does not answer {where} within {seconds:g} s; nothing is lost: try again"
    speaker = subprocess.Popen(["sh", "-c", 'read -r _ && echo "$0" >&2', line], stdin=subprocess.PIPE)
    assert speaker.stdin is not None
    faulthandler.dump_traceback_later(seconds, file=speaker.stdin, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        speaker.communicate()


def _lets_us_in(address: str, tell: Callable[[str], None]) -> bool:
    """Make sure that a cluster answers and lets us in; Ray itself would try again for long, and end without a line.

    Returns:
        Whether it asks for a token.

    Raises:
        ResourceError: it does not.
    """
    if "://" in address:
        raise ResourceError(f"--address {address}: expected auto, HOST:PORT of a cluster's head, or http://HOST:PORT")
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            words = getattr(error, "strerror", None) or error
            raise ResourceError(f"--address {address}: no Ray cluster answers there: {words}") from None
    # In a process of its own: Ray says what went wrong on stderr, and ends the process where a token is missing.
    command = [sys.executable, "-P", "-c", "from search import cluster; cluster.answer()"]
    try:
        asked = subprocess.run(command, input=address, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise ResourceError(f"--address {address}: no Ray cluster answers there within {ANSWER_S:g} s") from None
    kind, _, words = asked.stdout.strip().rpartition("vqsearch:")[2].partition(" ")
    if kind == "open":
        tell(
            f"the Ray cluster at {address} asks for no token: whoever reaches its ports runs code there; "
            "docs/cluster.md closes it"
        )
        return False
    if kind == "refused":
        which = "another one than the token here" if credentials.found() else "a token, and there is none here"
        raise ResourceError(
            f"--address {address}: the cluster asks for {which}; expected the cluster's in {credentials.PLACES}"
        )
    if kind != "known":
        said = words or asked.stderr.strip().rpartition("\n")[2]
        raise ResourceError(f"--address {address}: no Ray cluster answers there: {said}")
    return True


def _words(error: Exception) -> str:
    return one_line(" ".join(str(error).split()))


def answer() -> None:
    """Tell whether the cluster that standard input names lets us in, in a process of its own.

    Prints ``open`` (it asks for no token), ``known`` (it takes ours), ``refused``, or ``away`` and why.
    """
    from ray import _raylet
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray.exceptions import AuthenticationError

    internals: Any = _raylet
    kind = "open"
    try:
        place = canonicalize_bootstrap_address_or_die(sys.stdin.read())
        os.environ["RAY_AUTH_MODE"] = "disabled"
        credentials.reread()
        try:
            internals.GcsClient(address=place)
        except AuthenticationError:
            kind = "refused"
            if credentials.found():
                os.environ["RAY_AUTH_MODE"] = "token"
                credentials.reread()
                internals.GcsClient(address=place)
                kind = "known"
    except AuthenticationError:
        pass
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told
        kind = f"away {_words(error)}"
    sys.stdout.write(f"vqsearch:{kind}")


@contextmanager
def _sessions_of_their_own() -> Iterator[None]:
    """Start processes in sessions of their own.

    A closing terminal, `timeout` and a job's end tell the whole process group, and Ray's own processes must outlive the
    drain of the driver. They can't be made to ignore SIGTERM, for which they install handlers.
    """
    original = subprocess.Popen.__init__

    @functools.wraps(original)
    def start(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **{"start_new_session": True, **options})

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = original  # type: ignore[method-assign]


class _Control:
    """An actor whose `drained` answers once the driver drains; workers wait for it without asking again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def drained(self) -> bool:
        return await self._event.wait()

    async def drain(self) -> None:
        self._event.set()

    async def go_on(self) -> None:
        self._event = asyncio.Event()


@dataclass(frozen=True, kw_only=True)
class Control:
    """The actor that tells workers to drain.

    Attributes:
        name: by which workers find it.
        drain: every worker saves a checkpoint and stops, those to come at once.
        go_on: workers to come train again.
    """

    name: str
    drain: Callable[[], None]
    go_on: Callable[[], None]


def control() -> Control:
    """Start the actor."""
    import ray

    name = f"control-{uuid.uuid4().hex[:8]}"
    # Started again where its process or node is lost: else every worker would take that for a drain, again and again.
    lasting = {"max_restarts": -1, "max_task_retries": -1}
    actor: Any = ray.remote(num_cpus=0)(_Control).options(name=name, max_concurrency=10_000, **lasting).remote()
    return Control(name=name, drain=lambda: actor.drain.remote(), go_on=lambda: actor.go_on.remote())
