"""Several studies under one driver, over workers that only report curves: turns, capacity, ends, kills, requests."""

import json
from types import SimpleNamespace

import pytest
from optuna.storages import InMemoryStorage

from search import comparison, equality, pruning, records, study
from search import lease as leases
from search.cluster import Control
from search.interleaving import Interleaved
from search.records import Request
from search.searcher import StudySearcher
from search.steering import Steering
from vqvae.conversion import from_dict


class Driver:
    """A driver of all arms whose workers report when they are told to.

    Attributes:
        said: lines for people, with their arms.
        trained: (arm, number) of each start, in order.
    """

    def __init__(self, storage, arms, root, capacity=2):
        self.studies = [study.create(storage, each, root, 2) for each in arms.values()]
        self.said, self.trained, self.asked = [], [], 0
        for name, opened in zip(arms, self.studies, strict=True):
            opened.study.pruner = pruning.build(opened.space)
            opened.notify = lambda line, name=name: self.said.append((name, line))
        control = Control(name="c", drain=lambda: None, go_on=lambda: None)
        self.steering = Steering(self.studies, control)
        self.capacity = capacity

        def left_for(opened):
            return lambda: self.capacity - sum(len(o.flights) for o in self.studies if o is not opened)

        self.searcher = Interleaved(
            [StudySearcher(o, left_for(o), lambda _config: {}, "c") for o in self.studies],
            lambda: self.capacity,
            self.steering,
        )
        self.scheduler = pruning.StudyScheduler(self.studies)

    def suggest(self):
        """What Ray is told, and the name of its trial."""
        self.asked += 1
        name = f"t{self.asked}"
        told = self.searcher.suggest(name)
        if isinstance(told, dict):
            self.trained.append((told["study"].partition("-")[2], told["number"]))
        return told, name

    def fly(self, told, name):
        """A worker's reports of a trial, to its end."""
        config = from_dict(json.loads(told["config"]))
        for step in (*config.rungs, config.steps):
            value = 10 + step**0.5 + told["number"] + config.seed / 100 + 100 * (config.model.backbone == "mamba")
            metrics = {"val/psnr": value, **({"test/psnr": value - 1} if config.evaluation.test else {})}
            report = {
                "step": step, "metrics": list(metrics.items()), "evaluated": True, "ended": "", "reason": "",
                "began": False, "node": "",
                "checkpoint": f"{told['study']}/trials/{told['number']:05d}/step-{step:08d}",
                "pictures": [], "device": "", "sizes": [],
            }  # fmt: skip
            if self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=name), report) == "STOP":
                break
        self.searcher.on_trial_complete(name)

    def run(self, most=1000):
        """Trials one after the other, until nothing comes or so many were trained."""
        for _ in range(most):
            told, name = self.suggest()
            if told == Interleaved.FINISHED:
                return True
            assert isinstance(told, dict), "nothing runs, so there is something to start"
            self.fly(told, name)
        return False

    def close(self):
        for opened in self.studies:
            opened.close()


@pytest.fixture
def place(tmp_path, write_duel, monkeypatch):
    monkeypatch.setattr(leases, "_alive", lambda _holder: False)
    file = write_duel(
        {("budget",): {"trials": 3, "steps": 36}, ("finalists",): {"top": 1, "seeds": 2, "include": "nothing"}}
    )
    arms = equality.prove(comparison.load(file)).arms
    return SimpleNamespace(storage=InMemoryStorage(), arms=arms, root=str(tmp_path / "out"))


@pytest.fixture
def drivers(place):
    """A function that opens a driver of all arms."""
    made = []

    def start(**options):
        made.append(Driver(place.storage, place.arms, place.root, **options))
        return made[-1]

    yield start
    for driver in made:
        driver.close()


def test_arms_take_turns_and_each_spends_its_own_budget(drivers):
    driver = drivers()
    assert driver.run()
    assert [arm for arm, _ in driver.trained] == ["attention", "mamba"] * 5  # the finalists too
    assert sorted(driver.trained) == [(arm, n) for arm in ("attention", "mamba") for n in range(5)]  # 2 finalists each
    for opened in driver.studies:
        assert sum(map(records.counts, opened.trials())) == 3
        assert sum(records.finalist(t) is not None for t in opened.trials()) == 2
        assert len(records.openings(opened.study)) == 1


def test_the_arm_that_is_behind_comes_first(drivers, place):
    ahead = Driver(place.storage, {"attention": place.arms["attention"]}, place.root)
    ahead.run(most=2)
    ahead.close()
    driver = drivers()
    driver.run(most=3)
    assert driver.trained == [("mamba", 0), ("mamba", 1), ("attention", 2)]


def test_arms_share_what_the_cluster_holds(drivers):
    driver = drivers(capacity=3)
    flying = [driver.suggest() for _ in range(5)]
    assert [isinstance(told, dict) for told, _ in flying] == [True, True, True, False, False]
    assert [len(opened.flights) for opened in driver.studies] == [2, 1]
    driver.fly(*flying[0])
    driver.capacity = 2  # a node is gone
    assert driver.suggest()[0] is None
    driver.capacity = 3
    assert isinstance(driver.suggest()[0], dict)


def test_an_arm_that_ended_waits_for_the_other_one(drivers):
    driver = drivers(capacity=1)
    driver.run(most=9)
    told, name = driver.suggest()  # the last finalist
    assert isinstance(told, dict)
    assert driver.suggest()[0] is None
    driver.fly(told, name)
    assert driver.suggest()[0] == Interleaved.FINISHED


@pytest.mark.parametrize("after", range(11))
def test_a_driver_that_dies_leaves_what_the_next_one_needs(drivers, after):
    first = drivers()
    first.run(most=after)
    first.suggest()  # in flight when it dies
    for opened in first.studies:
        opened.flights.clear()
        opened.lease.release()
    first.studies = []
    second = drivers()
    assert second.run()
    started = first.trained[:after] + second.trained
    assert sorted(started) == [(arm, n) for arm in ("attention", "mamba") for n in range(5)]
    for opened in second.studies:
        assert all(trial.state.is_finished() for trial in opened.trials())
        assert len(records.openings(opened.study)) == 1


def ask(driver, place, arm, kind):
    """Ask something through the lease of one arm, and let the driver look."""
    opened = driver.studies[list(place.arms).index(arm)]
    held = leases.study_of(place.storage, opened.study.study_name, opened.lease.number)
    key = f"{records.REQUEST}x{kind}"
    records.set_request(place.storage, held, Request(key=key, kind=kind, trial=-1, time=0.0))
    driver.steering._looked = float("-inf")
    driver.suggest()
    (answered,) = [r for r in records.requests(place.storage.get_study_user_attrs(held)) if r.key == key]
    return answered.answer


@pytest.mark.parametrize("arm", ["attention", "mamba"])
def test_who_asks_one_arm_to_stop_stops_all(drivers, place, arm):
    driver = drivers()
    driver.run(most=1)
    assert ask(driver, place, arm, "stop") == "running trials save a checkpoint and stop"
    assert driver.suggest()[0] == Interleaved.FINISHED
    assert all(opened.draining for opened in driver.studies)


@pytest.mark.parametrize("arm", ["attention", "mamba"])
def test_who_asks_one_arm_to_pause_pauses_all_until_any_goes_on(drivers, place, arm):
    driver = drivers()
    told, name = driver.suggest()
    assert ask(driver, place, arm, "pause") == ""  # one trial runs yet
    driver.fly(told, name)
    assert driver.suggest()[0] == Interleaved.FINISHED
    assert driver.searcher.paused
    for opened in driver.studies:
        held = leases.study_of(place.storage, opened.study.study_name, opened.lease.number)
        assert place.storage.get_study_user_attrs(held)[records.PAUSED] is True
    ask(driver, place, "mamba", "go on")
    assert all(opened.paused is None for opened in driver.studies)
    assert isinstance(driver.suggest()[0], dict)


def test_a_fault_of_one_arm_ends_the_run(drivers):
    driver = drivers()
    driver.studies[1].failure = RuntimeError("the storage is gone")
    with pytest.raises(RuntimeError, match="the storage is gone"):
        driver.suggest()
    driver.studies[1].failure = None
    assert driver.trained == []


def test_every_report_is_written_to_the_trials_own_study(drivers):
    driver = drivers(capacity=4)
    flying = [driver.suggest() for _ in range(4)]
    for told, name in reversed(flying):
        driver.fly(told, name)
    for opened, more in zip(driver.studies, (0, 100), strict=True):
        rung = opened.space.rungs[0]
        curves = [trial.intermediate_values[rung] for trial in opened.trials()[:2]]
        assert curves == [10 + rung**0.5 + more, 11 + rung**0.5 + more]
