"""Makes sure that the nodes of a cluster are alike for a search, before a trial runs on them.

A task on each node writes to the output root and reads what the driver wrote there, and looks at versions, images and
files of weights. Nodes that join later are looked at before they count.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

from search import code, output
from search.capacity import Node, nodes
from search.errors import OutputError, ResourceError, UserError
from search.text import one_line
from vqvae.config import DataConfig, TrainConfig, VqvaeError
from vqvae.plugins import Plugin

PACKAGES = ("vqsearch", "torch", "torchvision", "ray")

LIMIT_S = 300.0
"""Wall seconds a node may take to look at its files; a list of millions of images on a network's disk takes minutes."""

ANSWER_S = 2.0
"""Wall seconds after which a node whose worker was lost is taken for lost too; the driver waits meanwhile."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What trials need of a node, of all studies that a driver runs.

    Attributes:
        roots: output roots.
        images: where trials read them; None where they read none.
        weights: fixed settings of each search whose trials read files of weights, and whether any of them has a
            perceptual loss.
        plugins: code that has to run before.
    """

    roots: tuple[str, ...]
    images: DataConfig | None = None
    weights: tuple[tuple[TrainConfig, bool], ...] = ()
    plugins: tuple[Plugin, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a node is like.

    Attributes:
        alike: what must be the same on all nodes -> what it is on this one.
        problem: what makes it useless, "" where nothing does.
    """

    alike: Mapping[str, str]
    problem: str = ""


def versions() -> dict[str, str]:
    """The versions that must be the same everywhere."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def look(needs: Needs, mark: str, name: str) -> Facts:
    """What this node is like; in each output root it reads the driver's mark and leaves its own."""
    alike = versions()
    try:
        for root in needs.roots:
            _compare_and_sign(root, mark, name)
        code.run(needs.plugins)
        if needs.images is not None:
            alike |= _images(needs.images)
        for config, perceptual in needs.weights:
            require_weights(config, perceptual)
    except (UserError, VqvaeError, OSError) as error:
        return Facts(alike=alike, problem=one_line(str(error)))
    return Facts(alike=alike)


def _compare_and_sign(root: str, mark: str, name: str) -> None:
    """Make sure that the root is the driver's, and not a folder of the same name on a disk of this node."""
    try:
        there = output.read(root, f"{mark}/driver") == mark.encode()
    except OSError:
        there = False
    if not there:
        raise OutputError(
            f"{root}: what the driver wrote there is not there; expected a folder that all nodes share, or a bucket"
        )
    _sign(root, mark, name)


def _sign(root: str, mark: str, name: str) -> None:
    system, base = output.filesystem(root)
    try:
        with system.open_output_stream(f"{base}/{mark}/{name}") as stream:
            stream.write(mark.encode())
    except OSError as error:
        raise OutputError(f"{root}: the output root can't be written: {error}") from None


def _images(config: DataConfig) -> dict[str, str]:
    """How many images there are, and for a folder a hash of their names: times and places may differ among copies."""
    from vqvae import sources

    if config.source == "photographs":
        return {}
    found = sources.find(config)
    known = {f"images in {config.path}": f"{found.total:,}"}
    if config.source == "folder":
        names = hashlib.sha256()
        for name, _ in found.pictures():
            names.update(name.encode(errors="surrogateescape") + b"\0")
        known[f"names of the images in {config.path} (hash)"] = names.hexdigest()[:12]
    return known


def require_weights(config: TrainConfig, perceptual: bool) -> None:
    """The files of weights that trials read.

    Args:
        config: the fixed settings.
        perceptual: whether any trial has a perceptual loss.

    Raises:
        WeightsError: one is missing or damaged; the message says which one goes where.
    """
    from vqvae import weights
    from vqvae.perceptual import LPIPS

    weights.require(config)
    if config.evaluation.lpips:
        LPIPS("alex", config.evaluation.lpips_trunk)
    if perceptual:
        LPIPS("vgg", config.loss.lpips_trunk)


@dataclass(kw_only=True)
class Inspector:
    """Knows the nodes that were looked at.

    Attributes:
        needs: of trials.
        tell: takes a line for people.
        facts: identity of a node -> what it is like, of those where trials may run.
        refused: identities of those where none may run.
    """

    needs: Needs
    tell: Callable[[str], None]
    facts: dict[str, Facts] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    _places: dict[str, str] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)
    _left: set[str] = field(default_factory=set)

    def require(self, found: Sequence[Node]) -> None:
        """Look at all nodes before the first trial.

        Raises:
            ResourceError: one of them is useless, or differs from another one; both are named.
        """
        if problems := list(self._look(found).values()):
            raise ResourceError("; ".join(problems))

    def admitted(self, found: Sequence[Node]) -> list[Node]:
        """Of these nodes, the ones that were looked at and are alike; a new one is looked at meanwhile."""
        new = [node for node in found if node.identity not in self._asked]
        if new:
            self._asked.update(node.identity for node in new)
            threading.Thread(target=self._join, args=(new,), name="nodes", daemon=True).start()
        there = {node.identity for node in found}
        for identity in (self.facts.keys() - there) - self._left:
            self._left.add(identity)
            self.tell(f"node {self._places[identity]} is gone")
        return [node for node in found if node.identity in self.facts]

    def admits(self, identity: str) -> bool:
        """Whether a node was looked at, and trials may run there."""
        return identity in self.facts

    def gone(self, identity: str) -> bool:
        """Whether a node on which a trial ran is not there any more."""
        if not identity:
            return False
        node = next((node for node in nodes() if node.identity == identity), None)
        return node is None or not _answers(node)  # Ray itself takes 15 s to find a node dead.

    def _join(self, new: Sequence[Node]) -> None:
        try:
            problems = self._look(new)
        except OutputError:  # whoever writes there next says it; then they are looked at again
            self._asked.difference_update(node.identity for node in new)
            return
        for identity, problem in problems.items():
            self.refused.append(identity)
            self.tell(f"no trial runs there: {problem}")
        for node in new:
            if node.identity in self.facts:
                self.tell(f"node {node.place} joins")

    def _look(self, found: Sequence[Node]) -> dict[str, str]:
        """Look at some nodes; the problem of each that has one."""
        self._asked.update(node.identity for node in found)
        self._places.update({node.identity: node.place for node in found})
        with _marked(self.needs.roots) as mark:
            told = _ask(found, self.needs, mark)
            problems = {}
            for node in found:
                facts = told[node.identity]
                problem = facts.problem or self._unread(mark, node)
                if problem:
                    problems[node.identity] = f"node {node.place}: {problem}"
                elif words := self._difference(node, facts):
                    problems[node.identity] = words
                else:
                    self.facts[node.identity] = facts
        return problems

    def _unread(self, mark: str, node: Node) -> str:
        for root in self.needs.roots:
            try:
                output.read(root, f"{mark}/{node.identity}")
            except OSError:
                return f"{root}: what it wrote there does not come back; expected a folder that all nodes share"
        return ""

    def _difference(self, node: Node, facts: Facts) -> str:
        """In which way a node differs from the driver, or from the first node that was let in; "" in none."""
        first, known = next(iter(self.facts.items()), ("", Facts(alike={})))
        for whose, theirs in (("the driver's machine", versions()), (self._places.get(first, ""), known.alike)):
            for what, value in theirs.items():
                here = facts.alike.get(what, "not there")
                if here != value:
                    return f"nodes differ in {what}: {value} on {whose}, but {here} on {node.place}"
        return ""


def _answers(node: Node) -> bool:
    try:
        socket.create_connection(node.address, timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _marked(roots: Sequence[str]) -> Iterator[str]:
    """A folder in each root where the driver has written its name; it is gone afterwards."""
    mark = f".vqsearch-nodes-{uuid.uuid4().hex}"
    try:
        for root in roots:
            _make(root, mark)
            _sign(root, mark, "driver")
        yield mark
    finally:
        for root in roots:
            with contextlib.suppress(OSError, OutputError):
                output.delete(root, mark)


def _make(root: str, mark: str) -> None:
    system, base = output.filesystem(root)
    try:
        system.create_dir(f"{base}/{mark}", recursive=False)
    except OSError as error:
        raise OutputError(f"{root}: the output root can't be written: {error}") from None


def _ask(found: Sequence[Node], needs: Needs, mark: str) -> dict[str, Facts]:
    """What each node says of itself, or why it can't."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = {}
    for node in found:
        there = NodeAffinitySchedulingStrategy(node_id=node.identity, soft=False)
        asked[node.identity] = task.options(scheduling_strategy=there).remote(needs, mark, node.identity)
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=LIMIT_S)
    told = {}
    for identity, answer in asked.items():
        try:
            told[identity] = ray.get(answer, timeout=0)
        except ray.exceptions.GetTimeoutError:
            told[identity] = Facts(alike={}, problem=f"no answer within {LIMIT_S:g} s")
        except ray.exceptions.RayError as error:
            last = (str(error).strip().splitlines() or [""])[-1]
            told[identity] = Facts(alike={}, problem=f"it can't run vqsearch: {one_line(last)}")
    return told
