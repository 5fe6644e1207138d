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
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vqvae.config import DataConfig, TrainConfig
    from vqvae.data import Images

ASPECT = 4 / 3
"""Widest ratio of the sides of a crop, as in torchvision's RandomResizedCrop."""


def batch(images: Images, config: TrainConfig, step: int, part: slice, device: torch.device) -> torch.Tensor:
    """The images of one micro-batch: cropped, flipped, sharpened, stretched, in this order.

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
    cropped = augment(levels, theta.to(device, non_blocking=True), enlarged=config.data.crop_scale < 1)
    sharpened, stretched = chosen(config.data, config.batch_size, config.seed, step)[:, part]
    return _where(stretched, autocontrast, _where(sharpened, sharpen, cropped))


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


def chosen(config: DataConfig, count: int, seed: int, step: int) -> torch.Tensor:
    """Which images of a batch are sharpened, and which are stretched to the full range.

    Args:
        config: sharpness and autocontrast are read.
        count: images of the whole batch.
        seed: of the run.
        step: optimizer steps done before.

    Returns:
        bool (2, count), on the CPU.
    """
    # A stream of its own beside that of the crops, which stay as they were before there was this one.
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, step, 1]).generate_state(1)[0]))
    return torch.rand(2, count, generator=generator) < torch.tensor([[config.sharpness], [config.autocontrast]])


def _where(chosen: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Images (b, 3, h, w), those changed that `chosen` (b) names; that lies on the CPU, so no device is waited for."""
    rows = chosen.nonzero().squeeze(1)
    if not len(rows):
        return images
    if images.device.type == "cuda":
        rows = rows.pin_memory().to(images.device, non_blocking=True)
    return images.index_copy(0, rows, change(images.index_select(0, rows)))


def sharpen(images: torch.Tensor) -> torch.Tensor:
    """Sharpens by the factor 2, as torchvision's adjust_sharpness: away from the blur of [1 1 1; 1 5 1; 1 1 1] / 13.

    The outermost pixels, whose blur is unknown, stay as they are.

    Args:
        images: float (b, 3, h, w) in [-1, 1].

    Returns:
        float (b, 3, h, w) in [-1, 1].
    """
    if min(images.shape[-2:]) <= 2:
        return images
    inner = images[..., 1:-1, 1:-1]
    blurred = (9 * F.avg_pool2d(images, 3, stride=1) + 4 * inner) / 13
    sharpened = images.clone()
    sharpened[..., 1:-1, 1:-1] = (2 * inner - blurred).clamp(-1, 1)
    return sharpened


def autocontrast(images: torch.Tensor) -> torch.Tensor:
    """Stretches each color of each image to the full range, as torchvision's autocontrast; a flat one stays as it is.

    Args:
        images: float (b, 3, h, w) in [-1, 1].

    Returns:
        float (b, 3, h, w) in [-1, 1].
    """
    low, high = images.amin((-2, -1), keepdim=True), images.amax((-2, -1), keepdim=True)
    flat = low == high
    stretched = 2 * ((images - low) / torch.where(flat, 1, high - low)) - 1
    return torch.where(flat, images, stretched)


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
