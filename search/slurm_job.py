"""What the script of a job asks (`search/templates/slurm.sh`): free ports, and whether the nodes of its Ray are up.

python -m search.slurm_job ports               prints the address of this node, and free ports for Ray's head
python -m search.slurm_job wait HOST:PORT 4    returns when four nodes are up, or says after a while how many are
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import time
from typing import Any

PATIENCE_S = 300.0
"""Wall seconds in which the nodes of a job start Ray; a shared file system that is busy takes minutes to load it."""


def ports() -> list[str]:
    """The address by which other nodes reach this one, a free port, and where Ray would serve clients one for them."""
    import ray.util

    util: Any = ray.util
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("", 0))
        free = [str(each.getsockname()[1]) for each in (first, second)]
    return [str(util.get_node_ip_address()), *free[: 2 if importlib.util.find_spec("grpc") else 1]]


def wait(address: str, count: int, patience_s: float = PATIENCE_S) -> bool:
    """Wait until so many nodes of a Ray are up.

    Args:
        address: of its head; the token is found as Ray finds it.
        count: how many.
        patience_s: wall seconds after which those that are up will do.

    Returns:
        Whether any is up.
    """
    found, until = 0, time.monotonic() + patience_s
    while time.monotonic() < until:
        with contextlib.suppress(Exception):  # it does not answer yet, in whatever way
            found = _alive(address)
        if found >= count:
            return True
        time.sleep(1)
    words = f"{found} of {count} nodes" if found else "Ray's head did not come up"
    then = "; the others are used when they come" if found else ""
    sys.stderr.write(f"vqsearch: {words} after {patience_s:g} s{then}\n")
    return found > 0


def _alive(address: str) -> int:
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=2).close()  # Ray itself would try for long, and say so
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "error")
    from ray import _raylet
    from ray.core.generated import gcs_pb2

    internals: Any = _raylet
    messages: Any = gcs_pb2
    nodes = internals.GcsClient(address=address).get_all_node_info(timeout=5).values()
    return sum(node.state == messages.GcsNodeInfo.GcsNodeState.ALIVE for node in nodes)


def main(words: list[str]) -> int:
    """One of the above; its exit status."""
    if words[:1] == ["ports"]:
        sys.stdout.write(" ".join(ports()) + "\n")
        return 0
    _, address, count = words
    return 0 if wait(address, int(count)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
