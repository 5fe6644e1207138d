"""What a trainer promises: to evaluate where it has to, to stop when it is asked, and to go on as if it never had."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vqvae import trainers
from vqvae.checks import Subject, expect
from vqvae.contract import follow

if TYPE_CHECKING:
    from vqvae.config import TrainConfig
    from vqvae.train import Progress
    from vqvae.trainers import Trainer

RUNGS = (2, 3)
"""Steps at which a small run is evaluated besides the last one."""

Values = dict[int, dict[str, float]]
"""Step of an evaluation -> its metrics on held-out images."""


def it_evaluates_at_every_rung_and_at_the_last_step(subject: Subject) -> None:
    """It evaluates exactly at each of config.rungs and at config.steps, with a checkpoint and with finite numbers."""
    trainer = trainers.load(subject.name)
    for rungs in (RUNGS, ()):
        _values(trainer, subject.changed(rungs=rungs))  # `follow` refuses any others


def the_same_seed_gives_the_same_run(subject: Subject) -> None:
    """Two runs of one config measure the same, whatever random numbers were drawn before."""
    import torch

    trainer, config = trainers.load(subject.name), subject.changed(rungs=RUNGS)
    first = _values(trainer, config)
    torch.rand(3)
    _require_equal(first, _values(trainer, config), "a second run of the same config")


def rungs_change_nothing(subject: Subject) -> None:
    """A run with rungs ends where one without them does: schedules run over config.steps, measuring leaves no trace."""
    trainer = trainers.load(subject.name)
    without = _values(trainer, subject.changed(rungs=()))
    _require_equal(without, _values(trainer, subject.changed(rungs=RUNGS)), "a run with rungs")


def a_resumed_run_equals_an_uninterrupted_one(subject: Subject) -> None:
    """From the checkpoint of each evaluation it goes on to the values of a run that was never stopped."""
    trainer, config = trainers.load(subject.name), subject.changed(rungs=RUNGS)
    with tempfile.TemporaryDirectory() as place:
        whole: Values = {}
        for report in follow(trainer, config):
            if report.evaluated:
                whole[report.step] = _held_out(report)
                _save(report, Path(place, str(report.step)))
        for step in whole:
            later = {at: values for at, values in whole.items() if at >= step}
            again = _values(trainer, config, Path(place, str(step)))
            _require_equal(later, again, f"a run that goes on from step {step}")


def it_stops_within_a_step_and_goes_on_from_there(subject: Subject) -> None:
    """Once stop() says so it takes no further step, and goes on from its checkpoint as if it had never stopped."""
    trainer, config = trainers.load(subject.name), subject.changed(rungs=RUNGS)
    asked = 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        return False

    whole = _values(trainer, config, stop=count)
    expect(
        asked >= config.steps, f"stop() to be asked before each of {config.steps} steps", f"it was asked {asked} times"
    )
    for chosen in (1, asked // 2 + 1):
        with tempfile.TemporaryDirectory() as place:
            _require_stop(trainer, config, whole, chosen, Path(place))


def _require_stop(trainer: Trainer, config: TrainConfig, whole: Values, chosen: int, place: Path) -> None:
    """Stop a run when it asks for the `chosen`th time, and go on from there."""
    asked = 0
    before: Values = {}
    last: Progress | None = None

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked >= chosen

    for report in follow(trainer, config, None, stop):
        last = report
        if report.evaluated:
            before[report.step] = _held_out(report)
        if report.stopped:
            _save(report, place / "checkpoint")
    assert last is not None, "a run has a last report, or follow says why not"
    expect(last.stopped, "a last report with stopped=True once stop() says so", "the run went on to its end")
    # It asks before each step at least, so that it had done no more than these but one.
    expect(last.step <= chosen, f"it to stop after step {chosen} at the latest", f"it stopped after step {last.step}")
    went_on = _values(trainer, config, place / "checkpoint")
    _require_equal(whole, before | went_on, f"a run that was stopped after step {last.step}")


def _values(
    trainer: Trainer, config: TrainConfig, resume: Path | None = None, stop: Callable[[], bool] | None = None
) -> Values:
    return {report.step: _held_out(report) for report in follow(trainer, config, resume, stop) if report.evaluated}


def _held_out(report: Progress) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if name.startswith("val/")}


def _save(report: Progress, folder: Path) -> None:
    assert report.checkpoint is not None, "vqvae.contract has seen to that"
    folder.mkdir()
    report.checkpoint(folder)


def _require_equal(wanted: Values, got: Values, what: str) -> None:
    for step, metrics in wanted.items():
        for name, value in metrics.items():
            there = got.get(step, {}).get(name)
            expect(there == value, f"{name} {value!r} at step {step}", f"{what} has {there!r}")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    it_evaluates_at_every_rung_and_at_the_last_step,
    the_same_seed_gives_the_same_run,
    rungs_change_nothing,
    a_resumed_run_equals_an_uninterrupted_one,
    it_stops_within_a_step_and_goes_on_from_there,
)
