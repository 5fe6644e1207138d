"""Holds a trainer of one's own to what a search relies on, so that whoever iterates it sees one of ours.

What the trainer reports is checked as it comes. Beside its checkpoints lies what it had measured there, so that an
evaluation is not lost with whoever asked for it, and its trainer need not measure it again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from vqvae.checkpoint import CheckpointError
from vqvae.config import TrainConfig, VqvaeError
from vqvae.conversion import to_dict
from vqvae.train import Diverged, OutOfMemory, Progress
from vqvae.trainers import RECORD, Trainer


class TrainerError(VqvaeError):
    """A trainer broke what docs/plugins.md asks of it."""


def follow(
    trainer: Trainer, config: TrainConfig, resume: Path | None = None, stop: Callable[[], bool] | None = None
) -> Iterator[Progress]:
    """Trains with a trainer of one's own, as `vqvae.train.train` does with ours.

    Args:
        trainer: whose function is called, its options settled.
        config, resume, stop: as there.

    Yields:
        Its reports. A run that goes on from an evaluation begins with that one again.

    Raises:
        TrainerError: it breaks the contract; the message says how.
        ConfigError: options that it refuses.
        Diverged: it says so, or a number that it reports is not finite.
        OutOfMemory: of the device.
        CheckpointError: `resume` is no checkpoint of a trainer.
        RuntimeError: it raises an OSError, such as for a file of its own; anything else that it raises comes as it is.
    """
    run = _Run(trainer, config, stop)
    first = None if resume is None else run.restore(resume)
    if first is not None:
        yield first
        if run.over:
            return
    try:
        reports = trainer.function(trainer.settled(config), resume, run.stop)
        if not isinstance(reports, Iterator):
            run.fail(f"gave {type(reports).__name__}; expected reports by `yield`")
        for report in reports:
            checked = run.check(report)
            if checked is not None:
                yield checked
            if run.over:
                return
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(str(error).strip().partition("\n")[0]) from error
    except OSError as error:  # of ours it says that no trial can run here; what is wrong with theirs, nobody knows
        raise RuntimeError(f"trainer {trainer.name}: {error}") from error
    run.fail(f"ended after step {run.step}; expected to go on to step {config.steps} and to evaluate there")


class _Run:
    """What is known of a run so far."""

    def __init__(self, trainer: Trainer, config: TrainConfig, stop: Callable[[], bool] | None) -> None:
        self.trainer, self.config, self._stop = trainer, config, stop
        self.step = 0
        self.evaluated_at = 0
        self.over = False
        self._asked = False
        self._repeats = 0
        self._evaluation: dict[str, Any] | None = None

    def fail(self, what: str) -> NoReturn:
        """Say what it did, and what was expected."""
        raise TrainerError(f"trainer {self.trainer.name}: {what}")

    def stop(self) -> bool:
        """As given; once true, always true."""
        self._asked = self._asked or (self._stop is not None and self._stop())
        return self._asked

    def restore(self, folder: Path) -> Progress | None:
        """Go on from a checkpoint.

        Returns:
            The evaluation at its step, if there was one.
        """
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            self.step, self.evaluated_at = int(record["step"]), int(record["evaluated_at"])
            self._evaluation = record["evaluation"]
            if self._evaluation is None or self.evaluated_at != self.step:
                return None
            metrics, sizes = dict(self._evaluation["metrics"]), dict(self._evaluation["sizes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / RECORD}: missing or damaged: {error}") from error
        self._repeats, self.over = self.step, self.step == self.config.steps

        def write(target: Path) -> None:
            shutil.copytree(folder, target, dirs_exist_ok=True)

        return Progress(step=self.step, metrics=metrics, evaluated=True, checkpoint=write, sizes=sizes)

    def check(self, given: object) -> Progress | None:
        """A report that keeps the contract; None for an evaluation that was told already."""
        if not isinstance(given, Progress):
            self.fail(f"yielded {type(given).__name__}; expected vqvae.train.Progress")
        report = self._check_step(given)
        metrics = self._numbers(report)
        if report.evaluated:
            self._check_evaluation(report, metrics)
            if report.step == self._repeats:
                return None
            self._evaluation = {"metrics": metrics, "sizes": dict(report.sizes)}
        if report.stopped:
            self._check_stop(report)
        self.over = report.stopped or (report.evaluated and report.step == self.config.steps)
        return dataclasses.replace(report, metrics=metrics, checkpoint=self._writer(report))

    def _check_step(self, report: Progress) -> Progress:
        last = self.config.steps
        try:
            step = operator.index(report.step)  # also of numpy
        except TypeError:
            self.fail(f"reported step {report.step!r}; expected a whole number")
        if step < self.step:
            self.fail(f"went back from step {self.step} to {step}; expected steps that never fall")
        if step > last:
            self.fail(f"is at step {step}; expected the last one to be {last}, which is config.steps")
        missed = [due for due in self._due() if self.evaluated_at < due < step]
        if missed:
            self.fail(
                f"is at step {step}, and did not evaluate at step {missed[0]}; expected evaluations at "
                f"{', '.join(map(str, self._due()))}: config.rungs and config.steps"
            )
        self.step = step
        return dataclasses.replace(report, step=step)

    def _due(self) -> list[int]:
        return sorted({*self.config.rungs, self.config.steps})

    def _numbers(self, report: Progress) -> dict[str, float]:
        if not isinstance(report.metrics, Mapping):
            self.fail(
                f"reported metrics {report.metrics!r} at step {self.step}; expected a mapping of names to numbers"
            )
        found = {}
        given: Mapping[Any, Any] = report.metrics
        for name, value in given.items():
            number = _number(value)
            if number is None or not isinstance(name, str):
                self.fail(f"reported {name} as {value!r} at step {self.step}; expected a name and a number")
            if not math.isfinite(number):
                raise Diverged(name, number, self.step, self.config)
            found[name] = number
        return found

    def _check_evaluation(self, report: Progress, metrics: Mapping[str, float]) -> None:
        if report.step not in self._due():
            self.fail(
                f"evaluated at step {report.step}; expected evaluations at {', '.join(map(str, self._due()))} only: "
                "config.rungs and config.steps"
            )
        lacking = [name for name in self.trainer.metrics if name not in metrics]
        if self.config.evaluation.test and report.step == self.config.steps:
            tested = [f"test/{name.removeprefix('val/')}" for name in self.trainer.metrics]
            lacking += [name for name in tested if name not in metrics]
        if lacking:
            self.fail(f"evaluated at step {report.step} without {', '.join(lacking)}; expected all of its metrics")
        if report.checkpoint is None:
            self.fail(f"evaluated at step {report.step} without a checkpoint; expected one to resume from")
        self.evaluated_at = report.step

    def _check_stop(self, report: Progress) -> None:
        if not self._asked:
            self.fail(f"stopped at step {report.step}, though stop() had not said so; expected to go on")
        if report.checkpoint is None:
            self.fail(f"stopped at step {report.step} without a checkpoint; expected one to resume from")

    def _writer(self, report: Progress) -> Callable[[Path], None] | None:
        wrapped = report.checkpoint
        if wrapped is None:
            return None
        record = {
            "trainer": self.trainer.name,
            "sha256": self.trainer.sha256,
            "step": report.step,
            "evaluated_at": self.evaluated_at,
            "evaluation": self._evaluation,
            "config": to_dict(self.config),
        }

        def write(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            wrapped(folder)
            if not any(folder.iterdir()):
                self.fail(f"wrote nothing into its checkpoint at step {report.step}; expected what resuming needs")
            (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

        return write


def _number(value: Any) -> float | None:
    """A number of Python, numpy or torch; None for anything else, text that reads like one included."""
    if isinstance(value, (str, bytes)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last: of a tensor of many numbers
        return None
