import time

import pytest
import torch

from vqvae.meter import Meter


def step(meter, value, meanwhile=lambda: None):
    meter.start()
    meanwhile()
    meter.add({"l1": torch.tensor(value), "loss": torch.tensor(2 * value)})


def test_each_step_is_read_once_and_means_go_on_until_reset():
    meter = Meter()
    step(meter, 1.0)
    step(meter, 2.0)
    assert meter.read() == [{"l1": 1, "loss": 2}, {"l1": 2, "loss": 4}]
    assert meter.read() == []
    step(meter, 6.0)
    assert meter.read() == [{"l1": 6, "loss": 12}]
    assert meter.means() == {"l1": 3, "loss": 6}
    meter.reset()
    assert meter.means() == {}


def test_means_do_not_depend_on_when_they_are_read():
    often, seldom = Meter(), Meter()
    values = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    for value in values:
        step(often, value)
        step(seldom, value)
        often.read()
    seldom.read()
    assert often.means() == seldom.means()


def test_the_rate_leaves_out_the_first_stretch_and_the_time_between_stretches(monkeypatch):
    now = 100.0

    def pass_time(seconds):
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = Meter()
    assert meter.steps_per_s() == 0
    step(meter, 1.0, lambda: pass_time(0.2))
    meter.read()
    assert meter.steps_per_s() == pytest.approx(5)  # all there is
    pass_time(0.2)
    for _ in range(5):
        step(meter, 1.0, lambda: pass_time(0.02))
    meter.read()
    assert meter.steps_per_s() == pytest.approx(50)


def test_a_term_that_begins_later_has_the_mean_of_its_own_steps():
    meter = Meter()
    step(meter, 1.0)
    meter.start()
    meter.add({"l1": torch.tensor(3.0), "gan": torch.tensor(5.0)})
    assert meter.read() == [{"l1": 1, "loss": 2}, {"l1": 3, "gan": 5}]
    assert meter.means() == {"l1": 2, "loss": 2, "gan": 5}
