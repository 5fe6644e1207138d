"""The Ray side of a search: the cluster, what it holds, and the actor that tells workers to drain."""

from __future__ import annotations

import asyncio
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from search.errors import ResourceError
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


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A Ray cluster: a new one on this machine, or the one at `address`; left when the context ends.

    Raises:
        ResourceError: nothing answers at the address.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    common: dict[str, Any] = {"namespace": "vqsearch", "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            # A small object store: nothing large goes through it, images and checkpoints lie in files.
            ray.init(address="local", include_dashboard=False, object_store_memory=128 * 2**20, **common)
        else:
            ray.init(address=address, **common)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ResourceError(f"--address {address}: no Ray cluster answers there: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


class Capacity:
    """How many trials the cluster can run at once, now; it may grow and shrink while a search runs.

    Args:
        space: what one trial needs, and the most that the user wants at once.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self._read = -math.inf
        self._value = 0

    def __call__(self) -> int:
        """Trials at once; read from the cluster at most once a second."""
        if time.monotonic() - self._read > 1.0:
            self._read = time.monotonic()
            self._value = self._fit()
        return self._value

    def _fit(self) -> int:
        there, need = _resources(), self._space.resources
        fits = math.floor(there["CPU"] / need.cpus + 1e-9)
        if need.gpus:
            fits = min(fits, math.floor(there["GPU"] / need.gpus + 1e-9))
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
        there, need = _resources(), self._space.resources
        missing = [
            f"{wanted:g} {name}s (the cluster has {there[key]:g}; --set resources.{name.lower()}s={there[key]:g})"
            for name, key, wanted in (("GPU", "GPU", need.gpus), ("CPU", "CPU", need.cpus))
            if wanted > there[key]
        ]
        raise ResourceError(
            f"a trial asks for {' and '.join(missing)}; or start nodes that have them, and --wait-for-nodes"
        )


def _resources() -> dict[str, float]:
    import ray

    there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return {"CPU": float(there.get("CPU", 0)), "GPU": float(there.get("GPU", 0))}


class _Control:
    """An actor whose `drained` answers once the driver drains; workers wait for it without asking again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def drained(self) -> bool:
        return await self._event.wait()

    async def drain(self) -> None:
        self._event.set()


def control() -> tuple[str, Callable[[], None]]:
    """Start the actor.

    Returns:
        Its name for the workers, and the function that drains.
    """
    import ray

    name = f"control-{uuid.uuid4().hex[:8]}"
    actor: Any = ray.remote(num_cpus=0)(_Control).options(name=name, max_concurrency=10_000).remote()
    return name, lambda: actor.drain.remote()
