"""How many trials a Ray cluster can run at once, now."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from search.errors import ResourceError, SearchError
from search.schema import Resources
from search.space import Space


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
