"""One run in a folder of its own: its newest checkpoint to go on from, its pictures, at the end the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from search import progress, standing
from search.errors import writing
from vqvae.config import TrainConfig

if TYPE_CHECKING:
    from vqvae.data import Decoding
    from vqvae.processes import Processes
    from vqvae.train import Progress


def fit(
    config: TrainConfig,
    target: Path,
    stop: Callable[[], bool],
    say: Callable[[str], None],
    show: Callable[[Progress], None],
    decoding: Callable[[Decoding], None],
    processes: Processes | None = None,
) -> bool:
    """Train one model; see `search.models.train`.

    Args:
        config: what to train.
        target: the folder, with `checkpoints` in it.
        stop: asked between steps; once it says True the run ends with a checkpoint and without a model.
        say: takes lines.
        show: takes each report.
        decoding: told how far the pictures are.
        processes: those that train together, of which this one is the first.

    Returns:
        Whether `stop` ended it.

    Raises:
        OutputError: `target` can't be written.
        VqvaeError: what `vqvae.train.train` raises.
    """
    from vqvae import checkpoint, data, pictures
    from vqvae import train as training
    from vqvae.processes import ALONE

    last = latest(target)
    if last is not None:
        say(f"going on from {last}")
    for line in progress.images(data.load(config.data, decoding), config.data):
        say(line)
    measured: dict[str, float] = {}
    for report in training.train(config, last, stop, processes or ALONE):
        show(report)
        folder = target / "checkpoints" / f"step-{report.step:08d}"
        with writing(target):
            if report.checkpoint and folder != last:
                report.checkpoint(folder)
                if last is not None:
                    shutil.rmtree(last)
                last = folder
            for name, picture in report.pictures.items():
                pictures.write(target / f"{name}.png", picture)
        if report.evaluated:
            measured = {name: value for name, value in report.metrics.items() if standing.is_metric(name)}
        if report.stopped:
            return True
    assert last is not None
    model = target / "model"
    shutil.rmtree(model, ignore_errors=True)
    checkpoint.save_model(checkpoint.load(last), config, model, measured)
    return False


def latest(target: Path) -> Path | None:
    """The newest checkpoint of a run's folder."""
    found = sorted(path for path in (target / "checkpoints").glob("step-*") if (path / "state.json").is_file())
    return found[-1] if found else None
