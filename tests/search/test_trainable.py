"""Reports of a worker, in a real Ray whose driver takes its time."""

import time

import pytest
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from search import cluster
from search.trainable import Reporter

pytestmark = [pytest.mark.ray, pytest.mark.slow]


class Slow(FIFOScheduler):
    """Takes a second for the first report of a trial; stops trial 1 there."""

    def __init__(self):
        super().__init__()
        self.taken = {}

    def on_trial_result(self, controller, trial, result):
        steps = self.taken.setdefault(trial.config["number"], [])
        steps.append(result["step"])
        if len(steps) == 1:
            time.sleep(1)
            return "STOP" if trial.config["number"] == 1 else "CONTINUE"
        return "CONTINUE"


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Three trials, one after the other on one worker: the scheduler and their results."""

    def train(config):  # in here, since a worker can't import a module of tests
        report = Reporter()
        for step in range(1, 61):
            time.sleep(0.05)
            report(step=step)
        report(step=61, evaluated=True)
        report(step=62, checkpoint="folder")
        report(step=63, ended="stopped")

    scheduler = Slow()
    with cluster.connected(None):
        tuner = tune.Tuner(
            train,
            param_space={"number": tune.grid_search([0, 1, 2])},
            tune_config=tune.TuneConfig(scheduler=scheduler, max_concurrent_trials=1, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(tmp_path_factory.mktemp("ray")), verbose=0),
        )
        results = tuner.fit()
    return scheduler, results


def test_a_trial_goes_on_training_while_the_driver_waits(searched):
    scheduler, results = searched
    assert not results.errors
    frame = {r.config["number"]: r.metrics for r in results}
    assert frame[0]["step"] == 63
    light = [step for step in scheduler.taken[0] if step < 61]
    assert light[0] == 1
    assert light[1] > 5  # those between were left out


def test_what_is_more_than_a_light_report_gets_through_in_order(searched):
    for number in (0, 2):
        assert searched[0].taken[number][-3:] == [61, 62, 63]
        assert searched[0].taken[number] == sorted(searched[0].taken[number])


def test_a_trial_that_was_stopped_at_a_light_report_ends_and_its_worker_goes_on(searched):
    scheduler, _ = searched
    assert scheduler.taken[1] == [1]
    assert scheduler.taken[2][-1] == 63
