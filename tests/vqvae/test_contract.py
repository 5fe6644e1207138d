"""What a search relies on, held against trainers that keep it and trainers that do not."""

import json
import math

import numpy as np
import pytest
import torch

from vqvae import trainers
from vqvae.checkpoint import CheckpointError
from vqvae.config import ConfigError, TrainConfig
from vqvae.contract import TrainerError, follow
from vqvae.conversion import replace
from vqvae.train import Diverged, OutOfMemory, Progress
from vqvae.trainers import Trainer

CONFIG = replace(TrainConfig(), {"steps": 6, "rungs": (2, 4)})
DUE = "2, 4, 6"


def steady(config, resume, stop):
    """Keeps the contract; what it learns is the sum of its steps."""
    step, total = json.loads((resume / "mine.json").read_text()) if resume else (0, 0)

    def write(folder):
        (folder / "mine.json").write_text(json.dumps([step, total]))

    while step < config.steps:
        if stop():
            yield Progress(step=step, metrics={}, stopped=True, checkpoint=write)
            return
        step += 1
        total += step
        evaluated = step in (*config.rungs, config.steps)
        yield Progress(
            step=step,
            metrics={"val/sum": total} if evaluated else {},
            evaluated=evaluated,
            checkpoint=write if evaluated else None,
            sizes={"train": 3},
        )


def trainer(function, **fields):
    return Trainer(name="mine.py:train", sha256="0" * 64, function=function, metrics={"val/sum": "maximize"}, **fields)


def yielding(*reports):
    """A trainer that reports what it is told to."""

    def train(config, resume, stop):
        yield from reports

    return trainer(train)


def evaluation(step, **fields):
    given = {"step": step, "metrics": {"val/sum": 1.0}, "evaluated": True, "checkpoint": lambda folder: None}
    return Progress(**(given | fields))


def told(reports):
    return [(report.step, report.metrics) for report in reports if report.evaluated]


def test_reports_pass_as_they_are():
    reports = list(follow(trainer(steady), CONFIG))
    assert [report.step for report in reports] == [1, 2, 3, 4, 5, 6]
    assert told(reports) == [(2, {"val/sum": 3.0}), (4, {"val/sum": 10.0}), (6, {"val/sum": 21.0})]
    assert reports[0].sizes == {"train": 3}


def test_a_run_resumed_at_an_evaluation_begins_with_it_though_its_trainer_does_not(tmp_path):
    reports = follow(trainer(steady), CONFIG)
    next(report for report in reports if report.step == 4).checkpoint(tmp_path / "four")
    again = list(follow(trainer(steady), CONFIG, tmp_path / "four"))
    assert told(again) == [(4, {"val/sum": 10.0}), (6, {"val/sum": 21.0})]
    again[0].checkpoint(tmp_path / "copy")
    assert told(follow(trainer(steady), CONFIG, tmp_path / "copy")) == told(again)


def test_an_evaluation_that_a_trainer_repeats_by_itself_is_told_once(tmp_path):
    first = follow(yielding(evaluation(2, checkpoint=lambda folder: (folder / "x").touch())), CONFIG)
    next(first).checkpoint(tmp_path / "two")
    reports = follow(yielding(evaluation(2), evaluation(4), evaluation(6)), CONFIG, tmp_path / "two")
    assert [report.step for report in reports] == [2, 4, 6]


def test_a_run_resumed_at_its_end_trains_no_more(tmp_path):
    list(follow(trainer(steady), CONFIG))[-1].checkpoint(tmp_path / "six")
    never = trainer(lambda config, resume, stop: pytest.fail("it trains"))
    assert told(follow(never, CONFIG, tmp_path / "six")) == [(6, {"val/sum": 21.0})]


def test_a_stopped_run_goes_on_from_its_checkpoint(tmp_path):
    calls = iter(range(100))
    reports = list(follow(trainer(steady), CONFIG, None, lambda: next(calls) == 3))
    assert [report.step for report in reports] == [1, 2, 3, 3]
    assert reports[-1].stopped
    reports[-1].checkpoint(tmp_path / "three")
    assert told(follow(trainer(steady), CONFIG, tmp_path / "three")) == [(4, {"val/sum": 10.0}), (6, {"val/sum": 21.0})]


def test_what_comes_after_the_last_step_is_not_asked_for():
    reports = list(follow(yielding(evaluation(2), evaluation(4), evaluation(6), "nonsense"), CONFIG))
    assert [report.step for report in reports] == [2, 4, 6]


def test_numbers_of_numpy_and_torch_are_numbers():
    metrics = {"val/sum": np.float32(0.5), "train/loss": torch.tensor(2.0)}
    report = next(follow(yielding(evaluation(np.int64(2), metrics=metrics)), CONFIG))
    assert (type(report.step), report.metrics) == (int, {"val/sum": 0.5, "train/loss": 2.0})
    assert {type(value) for value in report.metrics.values()} == {float}


BROKEN = [
    ([{"step": 1}], "yielded dict; expected vqvae.train.Progress"),
    ([Progress(step="1", metrics={})], "reported step '1'; expected a whole number"),
    (
        [Progress(step=1, metrics={}), Progress(step=0, metrics={})],
        "went back from step 1 to 0; expected steps that never fall",
    ),
    (
        [evaluation(2), evaluation(4), Progress(step=7, metrics={})],
        "is at step 7; expected the last one to be 6, which is config.steps",
    ),
    (
        [evaluation(2), Progress(step=5, metrics={})],
        f"is at step 5, and did not evaluate at step 4; expected evaluations at {DUE}: config.rungs and config.steps",
    ),
    (
        [evaluation(1)],
        f"evaluated at step 1; expected evaluations at {DUE} only: config.rungs and config.steps",
    ),
    ([evaluation(2, metrics={})], "evaluated at step 2 without val/sum; expected all of its metrics"),
    (
        [evaluation(2, metrics={"val/sum": "0.5"})],
        "reported val/sum as '0.5' at step 2; expected a name and a number",
    ),
    ([evaluation(2, metrics=[1.0])], "reported metrics [1.0] at step 2; expected a mapping of names to numbers"),
    ([evaluation(2, checkpoint=None)], "evaluated at step 2 without a checkpoint; expected one to resume from"),
    (
        [Progress(step=1, metrics={}, stopped=True, checkpoint=lambda folder: None)],
        "stopped at step 1, though stop() had not said so; expected to go on",
    ),
    ([evaluation(2)], "ended after step 2; expected to go on to step 6 and to evaluate there"),
]


@pytest.mark.parametrize(("reports", "problem"), BROKEN)
def test_a_broken_promise_is_said_with_its_trainer(reports, problem):
    with pytest.raises(TrainerError) as error:
        list(follow(yielding(*reports), CONFIG))
    assert str(error.value) == f"trainer mine.py:train: {problem}"


def test_a_function_that_gives_no_reports_is_refused():
    with pytest.raises(TrainerError) as error:
        list(follow(trainer(lambda config, resume, stop: None), CONFIG))
    assert str(error.value) == "trainer mine.py:train: gave NoneType; expected reports by `yield`"


def test_a_stop_without_a_checkpoint_is_refused():
    def train(config, resume, stop):
        if stop():
            yield Progress(step=0, metrics={}, stopped=True)

    with pytest.raises(TrainerError) as error:
        list(follow(trainer(train), CONFIG, None, lambda: True))
    expected = "stopped at step 0 without a checkpoint; expected one to resume from"
    assert str(error.value) == f"trainer mine.py:train: {expected}"


def test_a_checkpoint_of_nothing_is_refused(tmp_path):
    with pytest.raises(TrainerError) as error:
        next(follow(yielding(evaluation(2)), CONFIG)).checkpoint(tmp_path / "two")
    expected = "wrote nothing into its checkpoint at step 2; expected what resuming needs"
    assert str(error.value) == f"trainer mine.py:train: {expected}"


def test_a_rung_at_which_it_was_stopped_before_it_evaluated_is_still_due(tmp_path):
    def write(folder):
        (folder / "x").touch()

    def train(config, resume, stop):
        if resume is None:
            stop()
            yield Progress(step=2, metrics={}, stopped=True, checkpoint=write)
        else:
            yield Progress(step=3, metrics={})

    (report,) = follow(trainer(train), CONFIG, None, lambda: True)
    report.checkpoint(tmp_path / "two")
    with pytest.raises(TrainerError, match="is at step 3, and did not evaluate at step 2; "):
        list(follow(trainer(train), CONFIG, tmp_path / "two"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_a_divergence_and_no_setting_is_blamed(value):
    with pytest.raises(Diverged) as error:
        list(follow(yielding(evaluation(2, metrics={"val/sum": value})), CONFIG))
    assert str(error.value) == f"val/sum is {value} after step 2 of 6; expected a finite value"


def test_too_little_memory_is_said_as_ours():
    def train(config, resume, stop):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        yield

    with pytest.raises(OutOfMemory, match=r"^CUDA out of memory\. Tried to allocate 2 GiB$"):
        list(follow(trainer(train), CONFIG))


def test_an_error_of_its_files_is_an_error_of_its_code():
    def train(config, resume, stop):
        yield Progress(step=1, metrics={}, evaluated=False)
        raise FileNotFoundError(2, "No such file or directory", "vocabulary.txt")

    with pytest.raises(RuntimeError, match=r"^trainer \S+: \[Errno 2\] No such file or directory: 'vocabulary.txt'$"):
        list(follow(trainer(train), CONFIG))


def test_the_test_split_is_measured_at_the_last_step_where_it_is_asked_for():
    config = replace(CONFIG, {"evaluation.test": True, "rungs": ()})
    with pytest.raises(TrainerError) as error:
        list(follow(yielding(evaluation(6)), config))
    expected = "evaluated at step 6 without test/sum; expected all of its metrics"
    assert str(error.value) == f"trainer mine.py:train: {expected}"
    metrics = {"val/sum": 1.0, "test/sum": 2.0}
    assert told(follow(yielding(evaluation(6, metrics=metrics)), config)) == [(6, metrics)]


def test_a_folder_without_its_record_is_no_checkpoint_of_a_trainer(tmp_path):
    with pytest.raises(CheckpointError, match=f"{trainers.RECORD}: missing or damaged"):
        list(follow(trainer(steady), CONFIG, tmp_path))


def test_options_of_another_trainer_are_refused():
    with pytest.raises(ConfigError, match=r"^options: must be empty, since mine\.py:train has none"):
        list(follow(trainer(steady), replace(CONFIG, {"options.width": 3})))


def test_ours_takes_no_options():
    from vqvae.train import check

    with pytest.raises(ConfigError) as error:
        check(replace(TrainConfig(), {"options.width": 3}))
    assert str(error.value) == "options: must be empty, since vqsearch's own trainer has none, but got {'width': 3}"
