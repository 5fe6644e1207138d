"""A trainer without torch: principal components of patches, one batch after the other (Oja and Karhunen 1985, eq. 3).

Axes: b images, y and x rows and columns of patches, p and q rows and columns of pixels in one, c colors, m patches
(m = b y x), d numbers of a patch (d = p q c), k components.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange
from numpy.typing import NDArray

import vqvae
from vqvae import data
from vqvae.config import TrainConfig
from vqvae.train import Progress


@dataclass(frozen=True, kw_only=True)
class ComponentsConfig:
    """What `options` holds for this trainer."""

    components: int = 4
    """Directions that are kept of a patch."""
    lr: float = 0.5
    """Rate of the first step; it falls to 0 along a line."""

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError(f"components must be at least 1, but got {self.components}")


def _patches(images: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """Pixels (b, h, w, c) to patches (m, d) in [-1, 1]."""
    return rearrange(images / 127.5 - 1, "b (y p) (x q) c -> (b y x) (p q c)", p=side, q=side)


def _parameters(config: TrainConfig) -> dict[str, float]:
    return {"parameters": 3 * config.model.patch**2 * config.options.components}


@vqvae.trainer(config=ComponentsConfig, metrics={"val/captured": "maximize"}, costs=_parameters)
def train(config: TrainConfig, resume: Path | None, stop: Callable[[], bool]) -> Iterator[Progress]:
    """Reports which part of the held-out patches' energy the components hold, 0 to 1."""
    images, side = data.load(config.data), config.model.patch
    held_out = _patches(images.validation[np.arange(len(images.validation))[: config.evaluation.images]], side)
    shape = (held_out.shape[1], config.options.components)
    step, components = 0, np.linalg.qr(np.random.default_rng(config.seed).normal(size=shape))[0]
    if resume is not None:
        with np.load(resume / "components.npz") as kept:
            step, components = int(kept["step"]), kept["components"]

    def write(folder: Path) -> None:
        np.savez(folder / "components.npz", step=step, components=components)

    while step < config.steps:
        if stop():
            yield Progress(step=step, metrics={}, stopped=True, checkpoint=write)
            return
        rows = np.random.default_rng([config.seed, step]).integers(len(images.train), size=config.batch_size)
        seen = _patches(images.train[rows], side)
        rate = config.options.lr * (1 - step / config.steps)
        components = np.linalg.qr(components + rate * seen.T @ (seen @ components) / len(seen))[0]
        step += 1
        if step in (*config.rungs, config.steps):
            captured = np.square(held_out @ components).sum() / np.square(held_out).sum()
            yield Progress(step=step, metrics={"val/captured": captured}, evaluated=True, checkpoint=write)
