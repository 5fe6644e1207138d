"""Several raylets on this machine, some of which are not like the others."""

import functools
import os
import re
import subprocess
import sys
import time

import optuna
import pytest

from search import capacity, cluster, nodes, space
from search.errors import ResourceError, StorageError
from search.nodes import Inspector, Needs
from search.storage import open_storage
from vqvae.config import DataConfig, EvaluationConfig, LossConfig, TrainConfig

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FACES = DataConfig(source="folder", path="~/faces")
GRADED = TrainConfig(loss=LossConfig(perceptual=0), evaluation=EvaluationConfig(lpips=True))
ROOT = "~/out"


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """Folders of users: `first` has two pictures, `second` three, and a package of another version."""
    place = tmp_path_factory.mktemp("homes")
    for name, pictures in (("first", 2), ("second", 3)):
        (place / name / "faces").mkdir(parents=True)
        (place / name / "out").mkdir()
        for number in range(pictures):
            (place / name / "faces" / f"{number}.png").touch()
    (place / "packages" / "torch-0.0.1.dist-info").mkdir(parents=True)
    (place / "packages" / "torch-0.0.1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 0.0.1\n")
    return place


@pytest.fixture(scope="module")
def machines(homes):
    """A cluster that asks for a token: a head without CPUs, two trainers and two strangers."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.QUIET.items():
            patch.setenv(name, value)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "t" * 64)
        patch.setenv("HOME", str(homes / "first"))
        from search import credentials

        credentials.reread()
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        made.trainer = lambda: made.add_node(num_cpus=2, num_gpus=1, labels={"role": "trainer"})
        path = os.pathsep.join([str(homes / "packages"), os.environ.get("PYTHONPATH", "")])
        made.named = {
            "one": made.trainer(),
            "two": made.trainer(),
            "away": made.add_node(labels={"role": "odd"}, env_vars={"HOME": str(homes / "second")}),
            "old": made.add_node(labels={"role": "odd"}, env_vars={"PYTHONPATH": path}),
        }
        with cluster.connected(made.address):
            yield made
        made.shutdown()


@pytest.fixture
def inspected(machines):
    """A function that looks at some of the nodes, the first one first, and gives what is refused."""

    def look(needs, *names):
        inspector = Inspector(needs=needs, tell=lambda _line: None)
        found = {node.identity: node for node in capacity.nodes()}
        chosen = [found[machines.named[name].node_id] for name in names]
        try:
            for node in chosen:
                inspector.require([node])
        except ResourceError as error:
            line = str(error)
            for name, node in zip(names, chosen, strict=True):
                line = line.replace(node.place, name)
            return line
        return inspector.admitted(chosen) == chosen

    return look


def test_nodes_that_are_alike_are_let_in_and_leave_nothing_behind(inspected, homes):
    assert inspected(Needs(roots=(ROOT,), images=FACES), "one", "two") is True
    assert list((homes / "first" / "out").iterdir()) == []


def test_a_root_on_a_disk_of_a_nodes_own_is_refused(inspected):
    assert inspected(Needs(roots=(ROOT,)), "one", "away") == (
        "node away: ~/out: what the driver wrote there is not there; expected a folder that all nodes share, or a "
        "bucket"
    )


def test_nodes_with_other_images_are_refused_and_both_named(inspected):
    assert inspected(Needs(roots=(), images=FACES), "one", "away") == (
        "nodes differ in images in ~/faces: 2 on one, but 3 on away"
    )


def test_a_node_with_another_version_is_refused(inspected):
    here = nodes.versions()["torch"]
    assert inspected(Needs(roots=()), "old") == (
        f"nodes differ in torch: {here} on the driver's machine, but 0.0.1 on old"
    )


def test_a_node_without_the_files_of_weights_is_refused(inspected):
    line = inspected(Needs(roots=(), weights=((GRADED, False),)), "one")
    assert re.match(r"node one: .*/first/.cache/torch/hub/checkpoints/alexnet\S+: no such file", line), line


def test_a_node_that_joins_later_is_looked_at_before_it_counts(machines):
    told = []
    inspector = Inspector(needs=Needs(roots=(ROOT,)), tell=told.append)
    found = {node.identity: node for node in capacity.nodes()}
    one, two, away = (found[machines.named[name].node_id] for name in ("one", "two", "away"))
    inspector.require([one])
    assert inspector.admitted([one, two, away]) == [one]
    until(lambda: len(told) == 2)
    assert inspector.admitted([one, two, away]) == [one, two]
    assert (inspector.admits(two.identity), inspector.admits(away.identity)) == (True, False)
    assert inspector.refused == [away.identity]
    assert told[0].startswith(
        f"no trial runs there: node {away.place}: {ROOT}: what the driver wrote there is not there"
    )
    assert told[1] == f"node {two.place} joins"
    for _ in range(2):
        assert inspector.admitted([two]) == [two]
    assert told[2:] == [f"node {one.place} is gone"]


def test_a_cluster_lets_nobody_in_with_another_token(machines, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "u" * 64)
    with (
        pytest.raises(ResourceError, match="asks for another one than the token here"),
        cluster.connected(machines.address),
    ):
        pass
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with (
        pytest.raises(ResourceError, match="asks for a token, and there is none here"),
        cluster.connected(machines.address),
    ):
        pass


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ("resources.accelerator_type=A100", "a trial asks for accelerator_type A100; the nodes have none; or start "),
        (
            "resources.labels={role: cook}",
            "a trial asks for nodes with the labels role=cook; the nodes have role=odd, ",
        ),
        ("resources.cpus=3", "a trial asks for 3 CPUs (the largest node has 2; --set resources.cpus=2); or start "),
    ],
)
def test_what_no_node_has_is_refused_with_what_there_is(machines, tiny_file, asked, problem):
    loaded = space.load(tiny_file, ["resources.gpus=1", asked])
    with pytest.raises(ResourceError) as refused:
        capacity.Capacity(loaded, local=False).require(wait_for_nodes=False)
    assert str(refused.value).startswith(problem)
    assert str(refused.value).endswith("start nodes that have them, and --wait-for-nodes")


def test_only_nodes_that_are_asked_for_count_and_what_others_use_does_not(machines, tiny_file):
    loaded = space.load(tiny_file, ["parallel=null", "resources.labels.role=trainer"])
    room = capacity.Capacity(loaded, local=False)
    assert room() == 4
    import ray

    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, machines.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    mine = capacity.request(loaded.resources).to_placement_group()
    assert mine.wait(30)
    until(lambda: room() == 3)
    ray.util.remove_placement_group(mine)
    holder.communicate()
    until(lambda: room() == 4)


HOLD = """
import sys, ray
from ray.util import placement_group
from search import cluster
with cluster.connected(sys.argv[1]):
    assert placement_group([{"CPU": 1}], bundle_label_selector=[{"role": "trainer"}]).wait(30)
    print("held", flush=True)
    sys.stdin.read()
"""


def until(holds, limit_s=240):
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.2)


def used():
    """Identities of the nodes where trials are placed."""
    from ray.util import placement_group_table

    placed = [each for each in placement_group_table().values() if each["state"] == "CREATED"]
    return {node for each in placed for node in each["bundles_to_node_id"].values()}


SLOW = """
import time
import vqvae

@vqvae.register("loss", "slow")
def slow(made, originals):
    time.sleep(0.2)
    return 0 * made.mean()
"""
"""A step takes time on whatever machine, so that a node can be lost in the middle of a trial."""


def test_two_searches_share_nodes_that_come_and_go_and_lose_no_trial(machines, tiny_file, tmp_path, postgresql, start):
    url = postgresql()
    (tmp_path / "slow.py").write_text(SLOW)

    def launch(name, *overrides):
        settings = [word for each in ("resources.labels.role=trainer", *overrides) for word in ("--set", each)]
        command = [sys.executable, "-m", "search", "launch", "tiny.yaml", "--address", machines.address, *settings]
        environment = os.environ | {"VQSEARCH_STORAGE": url}
        log = (tmp_path / f"{name}.log").open("w")
        return start([*command, "--study", name], cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)

    opened = functools.cache(lambda: open_storage(url, create=False))  # each one holds connections of the server

    def trials(name):
        try:
            return optuna.load_study(study_name=name, storage=opened()).trials
        except (KeyError, StorageError):  # not there yet, or half made
            return []

    long = ["budget.trials=2", "budget.steps=120", "train.checkpoint_every=10", "parallel=null", "resources.gpus=1"]
    first = launch("first", *long, "pruner={kind: none}", "plugins=[slow.py]", "train.loss.terms.slow=1")
    second = launch("second", "budget.trials=3", "parallel=1")
    one, two = (machines.named[name] for name in ("one", "two"))
    until(lambda: sum("checkpoint" in trial.user_attrs for trial in trials("first")) == 2)
    assert {one.node_id, two.node_id} <= used()
    machines.remove_node(two, allow_graceful=False)
    three = machines.trainer()
    until(lambda: three.node_id in used())
    for process, name, budget in ((second, "second", 3), (first, "first", 2)):
        process.wait(240)
        said = (tmp_path / f"{name}.log").read_text()
        assert process.returncode == 0, said
        states = [trial.state.name for trial in trials(name)]
        assert len(states) == budget
        assert set(states) <= {"COMPLETE", "PRUNED"}
    lost = [trial for trial in trials("first") if "lost_nodes" in trial.user_attrs]
    assert [trial.user_attrs["lost_nodes"] for trial in lost] == [1]
    assert "retries" not in lost[0].user_attrs
    number = lost[0].number
    assert re.search(rf"trial {number} is handed back at step \d+: its node was lost\n", said)
    assert re.search(rf"trial {number} goes on at step [1-9]\d*", said)
    assert "raylet" not in said
