"""The Ray side of a search: the cluster, what it holds, and the actor that tells workers to drain."""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import math
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from search.errors import ResourceError, SearchError
from search.schema import Resources
from search.space import Space

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "TUNE_WARN_THRESHOLD_S": "1000000",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
"""Environment of Ray: we speak for ourselves, handle our own signals and send no usage statistics."""


START_S = 120.0
"""Wall seconds after which a Ray that has not started, or taken us in, is given up."""


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A Ray cluster: a new one on this machine, or the one at `address`; left when the context ends.

    A Ray that does not answer for `START_S` ends this process with a line and exit 1.

    Raises:
        ResourceError: nothing answers at the address.
        SearchError: Ray can't be started here.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import logging

    import ray

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # A lost worker is told by us, in one line.
    common: dict[str, Any] = {"namespace": "vqsearch", "log_to_driver": False, "logging_level": "ERROR"}
    where = "on this machine" if address is None else f"at --address {address}"
    try:
        if address is None:
            # A small object store: nothing large goes through it, images and checkpoints lie in files.
            with _given_up_after(START_S, where), _sessions_of_their_own():
                ray.init(address="local", include_dashboard=False, object_store_memory=128 * 2**20, **common)
        else:
            _require_an_answer(address)
            with _given_up_after(START_S, where):
                ray.init(address=address, **common)
    except Exception as error:  # where a process of it dies early, Ray raises a bare Exception
        if address is None:
            raise SearchError(f"Ray can't be started on this machine: {error}") from error
        raise ResourceError(f"--address {address}: no Ray cluster answers there: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


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


def _require_an_answer(address: str) -> None:
    """Ray itself would try again for minutes, and then end the process without a line."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "://" not in address:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ConnectionError(getattr(error, "strerror", None) or error) from None


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


class Capacity:
    """How many trials the cluster can run at once, now; it may grow and shrink while a search runs.

    Args:
        space: what one trial needs, and the most that the user wants at once.
        local: the cluster is this machine alone, so that a node that is gone does not come back.
    """

    def __init__(self, space: Space, local: bool) -> None:
        self._space = space
        self._local = local
        self._read = -math.inf
        self._value = 0

    def __call__(self) -> int:
        """Trials at once; read from the cluster at most once a second.

        Raises:
            SearchError: Ray has died on this machine.
        """
        if time.monotonic() - self._read > 1.0:
            self._read = time.monotonic()
            self._value = self._fit()
        return self._value

    def _fit(self) -> int:
        nodes = _nodes()
        if self._local and not nodes:
            raise SearchError("Ray has died on this machine; the trials go on with: vqsearch resume")
        fits = sum(fitting(node, self._space.resources) for node in nodes)
        return fits if self._space.parallel is None else min(fits, self._space.parallel)

    def require(self, wait_for_nodes: bool) -> int:
        """Trials at once, at least one.

        Args:
            wait_for_nodes: no trial fits yet, but nodes will come.

        Raises:
            ResourceError: not even one trial fits; the message has the flag that mends it.
        """
        fits = self()
        if fits or wait_for_nodes:
            return max(fits, 1)
        need = self._space.resources
        most = {kind: max((node.get(kind, 0.0) for node in _nodes()), default=0.0) for kind in ("GPU", "CPU")}
        missing = [
            f"{wanted:g} {kind}s (the largest node has {most[kind]:g}; --set resources.{kind.lower()}s={most[kind]:g})"
            for kind, wanted in (("GPU", need.gpus), ("CPU", need.cpus))
            if wanted > most[kind]
        ] or ["GPUs and CPUs that no node has together"]
        raise ResourceError(
            f"a trial asks for {' and '.join(missing)}; or start nodes that have them, and --wait-for-nodes"
        )


def fitting(node: Mapping[str, float], need: Resources) -> int:
    """Trials that fit on one node at once: a fraction of a GPU never spans two.

    Args:
        node: CPU and GPU -> how many it has.
        need: what one trial asks for.
    """
    fits = math.floor(node.get("CPU", 0.0) / need.cpus + 1e-9)
    if need.gpus:
        fits = min(fits, math.floor(node.get("GPU", 0.0)) * math.floor(1 / need.gpus + 1e-9))
    return fits


def _nodes() -> list[Mapping[str, float]]:
    import ray

    nodes: list[Any] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


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
