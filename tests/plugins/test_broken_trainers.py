"""Every check of a trainer can fail: for each one a trainer that breaks the promise, and what the check says of it."""

import pytest

from vqvae import testing

SOUND = """
import json
import random

from vqvae.train import Progress


def train(config, resume, stop):
    step, value = json.loads((resume / "state.json").read_text()) if resume else (0, 1.0)
    late = 0

    def write(folder):
        (folder / "state.json").write_text(json.dumps([step, value]))

    while step < config.steps:
        if stop():
            yield Progress(step=step, metrics={}, stopped=True, checkpoint=write)
            return
        rate = 1 - step / config.steps
        value -= rate * random.Random(config.seed + step).random()
        step += 1
        if step in (*config.rungs, config.steps):
            yield Progress(step=step, metrics={"val/l1": value}, evaluated=True, checkpoint=write)
"""

CASES = [
    (
        "it_evaluates_at_every_rung_and_at_the_last_step",
        ("(*config.rungs, config.steps)", "(2, 3, config.steps)"),
        "evaluated at step 2; expected evaluations at 4 only: config.rungs and config.steps",
    ),
    (
        "it_evaluates_at_every_rung_and_at_the_last_step",
        ("(*config.rungs, config.steps)", "(config.steps,)"),
        "is at step 4, and did not evaluate at step 2; expected evaluations at 2, 3, 4",
    ),
    (
        "the_same_seed_gives_the_same_run",
        ("random.Random(config.seed + step)", "random"),
        "but a second run of the same config has",
    ),
    (
        "rungs_change_nothing",
        ("step / config.steps", "step / min([rung for rung in config.rungs if rung > step] or [config.steps])"),
        "but a run with rungs has",
    ),
    (
        "a_resumed_run_equals_an_uninterrupted_one",
        ("json.dumps([step, value])", "json.dumps([step, 1.0])"),
        "but a run that goes on from step 2 has",
    ),
    (
        "it_stops_within_a_step_and_goes_on_from_there",
        ("if stop():", "if False:"),
        "expected stop() to be asked before each of 4 steps, but it was asked 0 times",
    ),
    (
        "it_stops_within_a_step_and_goes_on_from_there",
        ("if stop():", "if stop() and False:"),
        "expected a last report with stopped=True once stop() says so, but the run went on to its end",
    ),
    (
        "it_stops_within_a_step_and_goes_on_from_there",
        ("if stop():", "late += stop()\n        if late > 3:"),
        "expected it to stop after step 1 at the latest, but it stopped after step 3",
    ),
    (
        "it_stops_within_a_step_and_goes_on_from_there",
        ("if stop():", "if stop():\n            value = 0.0"),
        "but a run that was stopped after step",
    ),
]


@pytest.fixture
def outcomes(tmp_path):
    """A function that checks a file with this text: check -> what went wrong, "" for nothing."""

    def of(text):
        path = tmp_path / "mine.py"
        path.write_text(text)
        return {each.check.name: each.problem for each in testing.report("trainer", f"{path}:train").outcomes}

    return of


@pytest.mark.parametrize(("check", "change", "says"), CASES)
def test_a_trainer_that_breaks_its_promise_is_caught_and_told_so(outcomes, check, change, says):
    assert SOUND.count(change[0]) == 1
    problem = outcomes(SOUND.replace(*change))[check]
    assert says in problem
    assert "\n" not in problem


def test_the_sound_trainer_that_each_broken_one_comes_from_passes(outcomes):
    assert set(outcomes(SOUND).values()) == {""}


def test_every_check_has_a_trainer_that_breaks_it():
    assert {check.name for check in testing.checks("trainer", "mine.py:train")} == {check for check, _, _ in CASES}
