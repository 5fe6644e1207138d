"""How many trials a Ray cluster can run at once, now, and where."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search import labels
from search.errors import ResourceError, SearchError
from search.schema import Resources
from search.space import Space

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory
    from ray.util.placement_group import PlacementGroup

TYPED = "accelerator_type:"
"""How a resource's name begins with which Ray tells that a node has GPUs of a kind."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster, alive.

    Attributes:
        identity: as Ray names it.
        place: host and address, for people.
        address: host and port where its Ray listens.
        has: CPU, GPU and others -> how many.
        labels: as it was started with.
    """

    identity: str
    place: str
    address: tuple[str, int]
    has: Mapping[str, float]
    labels: Mapping[str, str]

    def suits(self, need: Resources) -> bool:
        """Whether it is of a kind that a trial asks for, be it large enough or not."""
        kind = need.accelerator_type
        return (kind is None or TYPED + kind in self.has) and labels.match(need.labels or {}, self.labels)


def nodes() -> list[Node]:
    """The nodes of the cluster that are alive."""
    import ray

    alive: list[Any] = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return [
        Node(
            identity=node["NodeID"],
            place=f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})",
            address=(node["NodeManagerAddress"], node["NodeManagerPort"]),
            has=node["Resources"],
            labels=node["Labels"],
        )
        for node in alive
    ]


def request(need: Resources, avoided: Sequence[str] = ()) -> PlacementGroupFactory:
    """What is asked of Ray for one trial.

    Args:
        need: of the trial.
        avoided: identities of nodes where it can't run.
    """
    from ray import tune

    bundle = {"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {})
    if need.accelerator_type:
        bundle[TYPED + need.accelerator_type] = 0.001  # as Ray itself does: it says where, and uses nothing up
    where = dict(need.labels or {})
    if avoided:
        where["ray.io/node-id"] = f"!in({','.join(avoided)})"
    selector: dict[str, Any] = {"bundle_label_selector": [where]} if where else {}
    return tune.PlacementGroupFactory([bundle], **selector)


def fitting(node: Mapping[str, float], need: Resources) -> int:
    """Trials that fit on one node at once: a fraction of a GPU never spans two.

    Args:
        node: CPU and GPU -> how many it has, or has left.
        need: what one trial asks for.
    """
    fits = math.floor(node.get("CPU", 0.0) / need.cpus + 1e-9)
    if need.gpus:
        gpus = node.get("GPU", 0.0)
        whole = math.floor(gpus + 1e-9)
        shares = whole * math.floor(1 / need.gpus + 1e-9) + math.floor((gpus - whole) / need.gpus + 1e-9)
        fits = min(fits, shares)
    return max(0, fits)


class Capacity:
    """How many trials of a driver the cluster can run at once, now; it may grow and shrink while a search runs.

    What other drivers use is not counted.

    Args:
        space: what one trial needs, and the most that the user wants at once.
        local: the cluster is this machine alone, so that a node that is gone does not come back, and nobody else is
            there.
        admitted: of these nodes, the ones where a trial may run.
        refused: identities of nodes that are not admitted; it may grow.
        grows: nodes come where Ray is asked for more than there is.
    """

    def __init__(
        self,
        space: Space,
        local: bool,
        admitted: Callable[[Sequence[Node]], Sequence[Node]] = lambda nodes: nodes,
        refused: Sequence[str] = (),
        grows: bool = False,
    ) -> None:
        self._space = space
        self._local = local
        self._admitted = admitted
        self._demand = Demand(space.resources, refused) if grows else None
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

    def suiting(self) -> list[Node]:
        """Nodes on which at least one trial would fit if nothing else ran there."""
        need = self._space.resources
        return [node for node in nodes() if node.suits(need) and fitting(node.has, need)]

    def _fit(self) -> int:
        if self._local and not nodes():
            raise SearchError("Ray has died on this machine; the trials go on with: vqsearch resume")
        need, wanted = self._space.resources, self._space.parallel
        admitted = self._admitted(self.suiting())
        if self._demand is not None:
            self._demand((wanted or 1) - sum(fitting(node.has, need) for node in admitted))
        others = Counter[tuple[str, str]]() if self._local else _used_by_others()
        fits = sum(
            fitting({kind: node.has.get(kind, 0.0) - others[node.identity, kind] for kind in ("CPU", "GPU")}, need)
            for node in admitted
        )
        return fits if wanted is None else min(fits, wanted)

    def require(self, wait_for_nodes: bool) -> int:
        """Trials at once, at least one.

        Args:
            wait_for_nodes: no trial fits yet, but nodes will come.

        Raises:
            ResourceError: not even one trial fits on any node; the message has the flag that mends it.
        """
        if self.suiting() or wait_for_nodes:
            return max(self(), 1)
        need = self._space.resources
        there = nodes()
        suiting = [node for node in there if node.suits(need)]
        if there and not suiting:
            raise ResourceError(f"{_kinds(need, there)}; or start nodes that have them, and --wait-for-nodes")
        most = {kind: max((node.has.get(kind, 0.0) for node in suiting), default=0.0) for kind in ("GPU", "CPU")}
        missing = [
            f"{wanted:g} {kind}s (the largest node has {most[kind]:g}; --set resources.{kind.lower()}s={most[kind]:g})"
            for kind, wanted in (("GPU", need.gpus), ("CPU", need.cpus))
            if wanted > most[kind]
        ] or ["GPUs and CPUs that no node has together"]
        raise ResourceError(
            f"a trial asks for {' and '.join(missing)}; or start nodes that have them, and --wait-for-nodes"
        )


def _kinds(need: Resources, there: Sequence[Node]) -> str:
    """What no node has of the kinds that a trial asks for, and what there is."""
    found = sorted({name.removeprefix(TYPED) for node in there for name in node.has if name.startswith(TYPED)})
    if need.accelerator_type and need.accelerator_type not in found:
        return f"a trial asks for accelerator_type {need.accelerator_type}; the nodes have {', '.join(found) or 'none'}"
    wanted = ", ".join(f"{key}={value}" for key, value in (need.labels or {}).items())
    own = ({f"{key}={value}" for key, value in node.labels.items() if not key.startswith("ray.io/")} for node in there)
    seen = ", ".join(sorted(set().union(*own)))
    return f"a trial asks for nodes with the labels {wanted}; the nodes have {seen or 'none'}"


class Demand:
    """Asks Ray for room for more trials, so that an autoscaler sees what is missing.

    Trials themselves can't ask: one that waits for a GPU would be called running. Ray's own request for resources
    would outlive the driver, and take the place of any other driver's.

    Args:
        need: of one trial.
        refused: identities of nodes whose room is of no use.
    """

    def __init__(self, need: Resources, refused: Sequence[str]) -> None:
        self._need = need
        self._refused = refused
        self._asked: list[PlacementGroup] = []

    def __call__(self, missing: int) -> None:
        """Ask for room for so many trials; what has come is given back to them."""
        from ray.util import remove_placement_group

        waiting: list[PlacementGroup] = []
        for each in self._asked:
            if len(waiting) < missing and not each.wait(0):
                waiting.append(each)
            else:
                remove_placement_group(each)
        more: Any = request(self._need, self._refused)
        self._asked = waiting + [more.to_placement_group() for _ in range(missing - len(waiting))]


def _used_by_others() -> Counter[tuple[str, str]]:
    """Node and kind of resource -> what other drivers use of it.

    What the nodes say lags behind what Ray has granted us by up to a second; then it is nothing for a moment.
    """
    import ray
    from ray._private import state
    from ray.util import placement_group_table

    own = ray.get_runtime_context().get_job_id()
    used = Counter[tuple[str, str]]()
    for group in placement_group_table().values():
        if group["state"] == "CREATED" and group["placement_group_id"].endswith(own):
            for index, node in group["bundles_to_node_id"].items():
                for kind, amount in group["bundles"][index].items():
                    used[node, kind] -= amount
    available: Any = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    for node in nodes():
        left = available.get(node.identity, {})
        for kind in ("CPU", "GPU"):
            used[node.identity, kind] += node.has.get(kind, 0.0) - left.get(kind, 0.0)
    return Counter({key: amount for key, amount in used.items() if amount > 0})
