"""Training as a generator: whoever iterates it decides what becomes of each report.

for progress in train(config):
    print(progress.step, progress.metrics)
"""

from __future__ import annotations

import dataclasses
import math
import operator
import time
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from vqvae import checkpoint, conversion, sources, weights
from vqvae.batches import batch
from vqvae.checkpoint import CheckpointError, TrainingState
from vqvae.config import ConfigError, TrainConfig, VqvaeError
from vqvae.data import Images, load
from vqvae.learner import Learner, OutOfMemory, require_shares
from vqvae.meter import Meter
from vqvae.metrics import Evaluation, evaluate, measures, spread
from vqvae.model import count_parameters
from vqvae.perceptual import LPIPS
from vqvae.pictures import sheet, to_images
from vqvae.processes import ALONE, Processes
from vqvae.rfid import Rfid
from vqvae.speed import costs, forget_peak_memory, peak_memory_gib

__all__ = ["Diverged", "OutOfMemory", "Progress", "check", "train"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

REPORT_EVERY_S = 2.0
"""Wall seconds between two light reports."""

TEST_VALUES = "test.npz"
"""File of a checkpoint with what each image of the test split measured: metric -> float64 (images)."""

SHEET_IMAGES, TEST_IMAGES = 16, 32
"""Images on a sheet, at most, of the validation and of the test split: there rows `spread(images, TEST_IMAGES)`."""

FREE = ("rungs", "micro_batch", "checkpoint_every", "device", "compile", "data.cache", "loss.lpips_trunk")
"""Fields, besides evaluation.*, in which a resumed run may differ: they change neither the data nor the objective. (The
micro-batch is where the adaptive weight of a GAN and the entropy of lfq and bsq are taken.) The number of processes is
none of them: a run may go on with any."""


class Diverged(VqvaeError):  # noqa: N818
    """A term of the loss, or a metric, became NaN or infinite.

    Args:
        term: its name.
        value: what it became.
        step: optimizer steps done when it did.
        config: of the run.
        at: the settings that may be at fault, in words.

    Attributes:
        step: as given.
        term: as given.
    """

    def __init__(self, term: str, value: float, step: int, config: TrainConfig, at: str = "") -> None:
        where = f"after step {step} of {config.steps}" + (f", at {at}" if at else "")
        super().__init__(f"{term} is {value} {where}; expected a finite value")
        self.step = step
        self.term = term


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report of a run."""

    step: int
    """Optimizer steps done."""
    metrics: dict[str, float]
    """train/<term>: means since the last report, at evaluations since the last evaluation; images_per_s: of training
    alone, since the last evaluation; peak_memory_gib, on CUDA; at evaluations also val/<metric>, see
    `vqvae.metrics.evaluate`, and what the model costs, see `vqvae.speed.costs`; with evaluation.test at the last step
    test/<metric>."""
    evaluated: bool = False
    """The held-out images were measured: at every rung and at the last step."""
    stopped: bool = False
    """The run ends here because `stop()` said so; it can be resumed from `checkpoint`."""
    checkpoint: Callable[[Path], None] | None = None
    """Writes all that resuming needs into an empty folder; call it before asking for the next report."""
    pictures: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """At evaluations, uint8 (h, w, 3) each, held-out images above what the model makes of them: "reconstructions", the
    same images every time, and "worst", those with the largest error (by LPIPS if it is measured, else by PSNR) of all
    that were measured, the worst first; where the test split is measured also "test", the same images of it in every
    run, see `TEST_IMAGES`."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Images of each split that holds any: train, validation, test; the same in every report."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read, each with the reason."""


def train(
    config: TrainConfig,
    resume: Path | None = None,
    stop: Callable[[], bool] | None = None,
    processes: Processes = ALONE,
) -> Iterator[Progress]:
    """Trains a model and reports.

    It evaluates exactly at each step of `config.rungs` and at the last one, offers a checkpoint there and at every
    multiple of `config.checkpoint_every`, and reports lightly every two seconds. A resumed run equals one that was
    never stopped: on a CPU bit for bit.

    Args:
        config: the run.
        resume: a checkpoint's folder to go on from. If it was taken at an evaluation, that evaluation comes first
            again, so that it is not lost with whoever asked for it.
        stop: asked between steps; once it says True a last report with a checkpoint ends the run.
        processes: those that train together (`vqvae.processes.joined`). Each iterates this to its end; the model is,
            but for rounding, that of one process. The first one alone measures and offers checkpoints.

    Yields:
        Reports with rising steps; in processes other than the first one without content.

    Raises:
        Diverged: a term of the loss or a metric is no longer finite.
        OutOfMemory: of the device, at a micro-batch that can't be made smaller.
        CheckpointError: `resume` is no checkpoint, or one of another run.
        VqvaeError: data, weights of LPIPS or the device are missing; or the processes no longer train one model.
    """
    run = _Run(config, processes)
    if resume is not None:
        run.restore(resume)
        if run.evaluated_at == run.step:
            yield run.evaluation()
    run.learner.settle()
    evaluations = {*config.rungs, config.steps}
    while run.step < config.steps:
        if processes.any([stop is not None and stop()])[0]:
            yield run.report(saved=True, stopped=True)
            return
        run.advance()
        if run.step in evaluations:
            run.evaluate()
            yield run.evaluation()
        elif config.checkpoint_every and run.step % config.checkpoint_every == 0:
            yield run.report(saved=True)
        elif run.since_report() > REPORT_EVERY_S:
            yield run.report()


def check(config: TrainConfig, processes: int = 1) -> None:
    """Refuses what can't be trained here, before a picture is read and memory is taken.

    Raises:
        ConfigError: no such device, a model that can't be built, a batch that so many processes can't share, or
            options, which are for other trainers.
        WeightsError: files of weights that the run reads are missing.
    """
    require_shares(config, processes)
    if config.options:
        raise ConfigError(
            "options", f"must be empty, since vqsearch's own trainer has none, but got {config.options!r}"
        )
    _device(config)
    sources.require(config.data)
    measures(config.evaluation)
    count_parameters(config)
    weights.require(config)


class _Run:
    """A learner, its data, and what is known of it so far."""

    def __init__(self, config: TrainConfig, processes: Processes) -> None:
        self.config = config
        check(config, processes.size)
        self.device = _device(config)
        self.leads = processes.rank == 0
        judged = config.evaluation
        self.lpips = LPIPS("alex", judged.lpips_trunk).to(self.device) if judged.lpips and self.leads else None
        self.rfid = Rfid(judged.rfid_weights).to(self.device) if judged.rfid_weights and self.leads else None
        forget_peak_memory(self.device)
        self.learner = Learner(config, self.device, processes)
        splits = load(config.data)
        self.images, self.skipped = splits.train, splits.skipped
        self.held_out = splits.validation
        self.test = splits.test if judged.test else None
        if self.test is not None and not len(self.test):
            raise ConfigError("evaluation.test", "must be false where no image is in the test split, but got true")
        sizes = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
        self.sizes = {name: size for name, size in sizes.items() if size}
        self.meter = Meter()
        self.reported_at = -math.inf
        self.evaluated_at = -1  # not yet
        self.metrics: dict[str, float] = {}
        self.worst: list[int] = []
        self.tested: dict[str, NDArray[np.float64]] = {}

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.learner.step

    def advance(self) -> None:
        """One optimizer step; nothing in it waits for the device."""
        config, step, device = self.config, self.step, self.device
        self.meter.start()
        terms = self.learner.advance(lambda part: batch(self.images, config, step, part, device))
        if self.leads:
            self.meter.add(terms)

    def evaluate(self) -> None:
        """Measures the averaged weights on the held-out images."""
        if not self.leads:
            self.evaluated_at = self.step
            return
        self._read()
        training = self._training(self.meter.means())
        learner = self.learner

        def measure() -> tuple[Evaluation, dict[str, float]]:
            size, judged = learner.micro_batch, self.config.evaluation
            found = evaluate(learner.average, self.held_out, judged, size, self.lpips, self.rfid)
            return found, costs(learner.average, size)

        measured, cost = learner.in_memory(measure)
        held_out = {f"val/{name}": value for name, value in measured.metrics.items()}
        self.tested = {}  # of the last step of a run that this one makes longer
        if self.step == self.config.steps and self.test is not None:
            judged = self._judge(self.test)
            held_out |= {f"test/{name}": value for name, value in judged.metrics.items()}
            self.tested = judged.each
        for name, value in held_out.items():
            self._require_finite(name, value, self.step)
        self.metrics, self.evaluated_at = {**training, **cost, **held_out}, self.step
        self.worst = measured.worst[:SHEET_IMAGES]
        self.meter.reset()

    def _judge(self, images: Images) -> Evaluation:
        """Measures all images of the test split."""
        learner, config = self.learner, dataclasses.replace(self.config.evaluation, images=len(images))
        return learner.in_memory(
            lambda: evaluate(learner.average, images, config, learner.micro_batch, self.lpips, self.rfid)
        )

    def evaluation(self) -> Progress:
        """The report of the last evaluation, with a checkpoint."""
        pictures = self._sheets() if self.leads else {}
        self.learner.settle()
        return self._progress(self.metrics, saved=True, evaluated=True, pictures=pictures)

    def report(self, *, saved: bool = False, stopped: bool = False) -> Progress:
        """A report between evaluations."""
        terms: dict[str, list[float]] = {}
        for row in self._read():
            for name, value in row.items():
                terms.setdefault(name, []).append(value)
        means = {name: sum(values) / len(values) for name, values in terms.items()}
        if saved:
            self.learner.settle()
        return self._progress(self._training(means), saved=saved, stopped=stopped)

    def since_report(self) -> float:
        """Wall seconds since the last report; infinite before the first."""
        return time.monotonic() - self.reported_at

    def restore(self, folder: Path) -> None:
        """Goes on from a checkpoint.

        Raises:
            CheckpointError: no checkpoint, a damaged one, or one of another run.
            OutOfMemory: of the device.
        """
        state = checkpoint.read(folder)
        _require_same_run(state, self.config, folder)
        try:
            self.evaluated_at, self.metrics = state.progress["evaluated_at"], state.progress["metrics"]
            self.worst = state.progress.get("worst", [])  # which older checkpoints do not know
            self.tested = _tested(folder)
            self.meter.sums = {name: (total, count) for name, (total, count) in state.progress["sums"].items()}
            self.learner.restore(state.step, state.progress["micro_batch"], state.tensors)
        except KeyError as error:
            raise CheckpointError(f"{folder}: damaged: no {error} in its progress") from error
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    def _progress(
        self,
        metrics: dict[str, float],
        *,
        saved: bool,
        evaluated: bool = False,
        stopped: bool = False,
        pictures: dict[str, NDArray[np.uint8]] | None = None,
    ) -> Progress:
        self.reported_at = time.monotonic()
        return Progress(
            step=self.step,
            metrics=metrics,
            evaluated=evaluated,
            stopped=stopped,
            checkpoint=self._saver() if saved and self.leads else None,
            pictures=pictures or {},
            sizes=self.sizes,
            skipped=self.skipped,
        )

    def _saver(self) -> Callable[[Path], None]:
        step = self.step

        def save(folder: Path) -> None:
            assert self.step == step, "a checkpoint is written before the next report is asked for"
            progress = {
                "evaluated_at": self.evaluated_at,
                "metrics": self.metrics,
                "worst": self.worst,
                "sums": self.meter.sums,
                "micro_batch": self.learner.at_once,
            }
            state = TrainingState(step=step, config=self.config, tensors=self.learner.tensors(), progress=progress)
            checkpoint.save(state, folder)
            if self.tested:
                np.savez(folder / TEST_VALUES, **self.tested)  # type: ignore[arg-type]

        return save

    def _read(self) -> list[dict[str, float]]:
        """The terms of the steps since the last reading, all finite."""
        rows = self.meter.read()
        for step, row in enumerate(rows, self.step - len(rows) + 1):
            for name, value in row.items():
                self._require_finite(f"train/{name}", value, step)
        return rows

    def _require_finite(self, term: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise Diverged(term, value, step, self.config, f"optimizer.lr {self.config.optimizer.lr:g}")

    def _training(self, means: dict[str, float]) -> dict[str, float]:
        rate = self.meter.steps_per_s() * self.config.batch_size
        memory = peak_memory_gib(self.device)
        return (
            {f"train/{name}": value for name, value in means.items()}
            | ({"images_per_s": rate} if rate else {})
            | ({} if memory is None else {"peak_memory_gib": memory})
        )

    def _sheets(self) -> dict[str, NDArray[np.uint8]]:
        measured = spread(len(self.held_out), self.config.evaluation.images)
        shown = {"reconstructions": self._sheet(self.held_out, measured[spread(len(measured), SHEET_IMAGES)])}
        worst = [row for row in self.worst if row < len(self.held_out)]  # before a resume there may have been more
        if worst:
            shown["worst"] = self._sheet(self.held_out, np.array(worst))
        if self.test is not None and self.tested:
            shown["test"] = self._sheet(self.test, spread(len(self.test), TEST_IMAGES))
        return shown

    def _sheet(self, images: Images, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        originals = to_images(images[rows])
        return sheet(originals, self.learner.reconstruct(originals))


def _device(config: TrainConfig) -> torch.device:
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError("device", "must be cpu or auto, since torch finds no CUDA device, but got 'cuda'")
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def _tested(folder: Path) -> dict[str, NDArray[np.float64]]:
    try:
        with np.load(folder / TEST_VALUES, allow_pickle=False) as values:
            return dict(values)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"damaged: {TEST_VALUES}: {error}") from error


def _require_same_run(state: TrainingState, config: TrainConfig, folder: Path) -> None:
    """A checkpoint and a config of one run agree in all that changes what is learned.

    Raises:
        CheckpointError: naming every field that differs.
    """
    tied = config.optimizer.schedule == "cosine" or config.gan.weight or config.quantizer.kind == "gumbel"
    free = {*FREE, *([] if tied else ["steps"])}  # what is a fraction of the steps moves with them
    differences = []
    for key in conversion.fields():
        before, now = (operator.attrgetter(key)(each) for each in (state.config, config))
        if before != now and key not in free and not key.startswith("evaluation."):
            differences.append(f"{key} was {before!r}, but is {now!r} now")
    if differences:
        raise CheckpointError(f"{folder}: of another run: {'; '.join(differences)}")
    if state.step > config.steps:
        raise CheckpointError(f"{folder}: taken at step {state.step}; expected at most steps, {config.steps}")
