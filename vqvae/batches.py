"""What a step sees: which images, and how they are augmented.

A pure function of (seed, step): a resumed run, and one with smaller micro-batches, get the same images augmented
alike, on every device.

n images that train, b images of a batch or of a micro-batch, h height, w width
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vqvae.config import DataConfig, TrainConfig
    from vqvae.data import Images

ASPECT = 4 / 3
"""Widest ratio of the sides of a crop, as in torchvision's RandomResizedCrop."""


def batch(images: Images, config: TrainConfig, step: int, part: slice, device: torch.device) -> torch.Tensor:
    """The images of one micro-batch, augmented.

    Args:
        images: what trains.
        config: seed, batch_size and data are read.
        step: optimizer steps done before.
        part: which images of the batch make the micro-batch.
        device: where the images go; the pixels travel as uint8.

    Returns:
        float (images of the part, 3, h, w) in [-1, 1].
    """
    rows = order(len(images), config.seed, step * config.batch_size, config.batch_size)[part]
    theta = crops(config.data, config.batch_size, config.seed, step)[part]
    pixels = rearrange(torch.from_numpy(images[rows]), "b h w c -> b c h w")
    if device.type == "cuda":  # pinned, so that the copies need not wait for the device
        pixels, theta = pixels.pin_memory(), theta.pin_memory()
    levels = pixels.to(device, non_blocking=True).float() / 127.5 - 1
    return augment(levels, theta.to(device, non_blocking=True), enlarged=config.data.crop_scale < 1)


def order(n: int, seed: int, start: int, count: int) -> NDArray[np.int64]:
    """`count` rows from place `start` of the endless stream of epochs, each a permutation of the n images."""
    places = np.arange(start, start + count)
    permutations = {epoch: _permutation(n, seed, epoch) for epoch in range(start // n, (start + count - 1) // n + 1)}
    return np.array([permutations[place // n][place % n] for place in places.tolist()])


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(n)


def crops(config: DataConfig, count: int, seed: int, step: int) -> torch.Tensor:
    """Random resized crops and horizontal flips as affine maps from output to input coordinates.

    The area is uniform in [crop_scale, 1] and the ratio of the sides log-uniform in [3/4, 4/3]; a side that would be
    longer than the image is cut to it.

    Args:
        config: crop_scale and flip are read.
        count: images of the whole batch.
        seed: of the run.
        step: optimizer steps done before.

    Returns:
        float32 (count, 2, 3), on the CPU, as `F.affine_grid` takes it.
    """
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step]).generate_state(1)[0]))
    area, ratio, x, y, flip = torch.rand(5, count, generator=generator)
    area = config.crop_scale + (1 - config.crop_scale) * area
    stretch = (math.log(ASPECT) * (ratio - 0.5)).exp() if config.crop_scale < 1 else torch.ones(count)
    width, height = (area.sqrt() * stretch).clamp(max=1), (area.sqrt() / stretch).clamp(max=1)
    mirror = torch.where(flip < config.flip, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, (1 - width) * (2 * x - 1)
    theta[:, 1, 1], theta[:, 1, 2] = height, (1 - height) * (2 * y - 1)
    return theta


def augment(images: torch.Tensor, theta: torch.Tensor, *, enlarged: bool = True) -> torch.Tensor:
    """Crops, enlarges and flips a batch in one pass.

    Args:
        images: float (b, 3, h, w).
        theta: float (b, 2, 3), see `crops`.
        enlarged: False says that theta holds flips only; no pixel is then interpolated.

    Returns:
        float (b, 3, h, w).
    """
    if not enlarged:
        return torch.where(theta[:, :1, :1, None] < 0, images.flip(-1), images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
