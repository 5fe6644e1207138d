"""What is measured on held-out images.

b images, h height, w width, t tokens of an image, k codes
Every function takes float images (b, 3, h, w) in [-1, 1] and clips them to that range, as a picture file would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from vqvae import plugins
from vqvae.config import VqvaeError
from vqvae.pictures import to_images
from vqvae.robustness import Neighbors, images_within_reach, perturb

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vqvae.config import EvaluationConfig
    from vqvae.model import VQVAE
    from vqvae.perceptual import LPIPS
    from vqvae.rfid import Rfid

TOKENS_PER_CODE = 10
"""Tokens that have to be counted for each code, before usage, perplexity and entropy can be trusted."""

BLOCK = 512
"""Places of SSIM's window along each side that are computed at once: the window is a matrix of as many rows."""


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (b) in dB, pixels on [0, 1]; at most 100, for equal images.

    An image's ratio is taken from its own mean squared error; a set is summed up by the mean of the ratios.
    """
    error = (_unit(images) - _unit(references)).square().mean((1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, (b) in [-1, 1] (Wang et al. 2004, section III-B, eq. 13).

    The mean over colors and over all places of an 11 x 11 Gaussian window (sigma 1.5) that lie within the image;
    the window is smaller on images of less than 11 pixels. Large images are taken in blocks of places.
    """
    height, width = images.shape[-2:]
    size = min(11, (min(height, width) - 1) // 2 * 2 + 1)
    sums, places = torch.zeros(len(images), dtype=torch.float64, device=images.device), 0
    for top in range(0, height - size + 1, BLOCK):
        for left in range(0, width - size + 1, BLOCK):
            block = (..., slice(top, top + BLOCK + size - 1), slice(left, left + BLOCK + size - 1))
            found = _ssim_at_each_place(images[block], references[block], size)
            sums += found.sum((1, 2, 3))
            places += found[0].numel()
    return (sums / places).float()


def _ssim_at_each_place(images: Tensor, references: Tensor, size: int) -> Tensor:
    """(b, 3, h - size + 1, w - size + 1)."""
    x, y = _unit(images).double(), _unit(references).double()
    rows, columns = (_band(side, size).to(x) for side in x.shape[-2:])

    def local_mean(z: Tensor) -> Tensor:
        return rows @ z @ columns.mT

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return luminance * structure


def _band(side: int, size: int) -> Tensor:
    """A Gaussian window (sigma 1.5) as a matrix: (side - size + 1, side), a shifted copy of it in each row."""
    window = torch.exp(-(torch.arange(size, dtype=torch.float64) - size // 2).square() / (2 * 1.5**2))
    places = torch.arange(side - size + 1)[:, None] + torch.arange(size)
    band = torch.zeros(len(places), side, dtype=torch.float64)
    return band.scatter_(1, places, (window / window.sum()).expand(places.shape))


def l1(images: Tensor, references: Tensor) -> Tensor:
    """Mean absolute error of each image, (b), pixels on [0, 1]."""
    return (_unit(images) - _unit(references)).abs().mean((1, 2, 3))


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim, "l1": l1}
"""Metrics of each image by name; a plug-in adds its own, which `evaluation.metrics` asks for."""

RESERVED = (
    "lpips_alex", "lpips_random", "lpips_perturbed", "lpips_random_perturbed", "rfid", "rfid_images", "codebook_usage",
    "perplexity", "entropy_bits_per_image", "codebook_tokens", "codebook_undersampled",
)  # fmt: skip
"""Names under which something else is reported."""


def admit(part: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """What a plug-in may enter above.

    Raises:
        TypeError: anything else.
    """
    if isinstance(part, FunctionType):
        return part
    raise TypeError(f"must be a function of two batches of images, but got {part!r}")


def measures(config: EvaluationConfig) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """The metrics of each image that a config measures, lpips aside: ours, and those of plug-ins that it asks for.

    Raises:
        ConfigError: an unknown name.
    """
    return {name: plugins.find("metric", MEASURES, name) for name in ("psnr", "ssim", "l1", *config.metrics)}


def code_statistics(counts: Tensor, tokens_per_image: int) -> dict[str, float]:
    """How the codes are used.

    Args:
        counts: whole numbers (k): how often each code was drawn.
        tokens_per_image: tokens of one image.

    Returns:
        codebook_usage: part of the codes that were drawn, 0 to 1;
        perplexity: 2 to the entropy of the codes' frequencies, 1 to k;
        entropy_bits_per_image: tokens x entropy in bits: what an ideal coder of single tokens would need;
        codebook_tokens: tokens that were counted;
        codebook_undersampled: 1 where they are fewer than `TOKENS_PER_CODE` x k, else 0: they cannot show every code
        then, and the first three figures are too low.
    """
    tokens = float(counts.sum().item())
    frequencies = counts.double() / tokens
    bits = -(frequencies * frequencies.clamp(min=1e-300).log2()).sum().item()
    return {
        "codebook_usage": (counts > 0).double().mean().item(),
        "perplexity": 2**bits,
        "entropy_bits_per_image": tokens_per_image * bits,
        "codebook_tokens": tokens,
        "codebook_undersampled": float(tokens < TOKENS_PER_CODE * len(counts)),
    }


class Pictures(Protocol):
    """Pictures by their numbers, wherever they lie."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """uint8 (rows, h, w, 3)."""
        ...


def spread(pictures: int, count: int) -> NDArray[np.int64]:
    """Numbers of at most `count` of so many pictures, evenly spaced; always the same ones."""
    return np.unique(np.linspace(0, pictures - 1, max(0, min(count, pictures))).round().astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found."""

    metrics: dict[str, float]
    """psnr (dB), ssim, l1, those of plug-ins, the lpips if any, each the mean over images; rfid and rfid_images if any;
    and `code_statistics`."""
    worst: list[int]
    """Numbers of the measured pictures, the one with the largest error first: of lpips if it was measured, else the one
    with the least psnr."""
    each: dict[str, NDArray[np.float64]]
    """psnr, ssim, l1 and the lpips if any of each measured picture, in the order of the pictures."""


@torch.no_grad()
def evaluate(
    model: VQVAE,
    pictures: Pictures,
    config: EvaluationConfig,
    micro_batch: int,
    lpips: LPIPS | None = None,
    rfid: Rfid | None = None,
) -> Evaluation:
    """All of the above over held-out pictures, in float32.

    Where the measured pictures have too few tokens to show every code, further ones are encoded, and only encoded.

    Args:
        model: in evaluation mode, with the weights to judge (the moving average).
        pictures: the held-out pictures, at least one; `spread` picks those that are measured.
        config: how many are measured, and the part of the codes that is perturbed.
        micro_batch: images at once.
        lpips: measured too, under its name, if given, and with it the same of perturbed codes as lpips_perturbed
            (of a random trunk lpips_random_perturbed): see `vqvae.robustness`, which bounds the images where the
            codes are very many.
        rfid: measured too, if given.

    Raises:
        RfidError: rfid of a single picture.
    """
    device = next(model.parameters()).device
    codes, tokens = model.quantizer.codebook_size, model.rows**2
    counts = torch.zeros(codes, dtype=torch.long, device=device)
    rows = spread(len(pictures), config.images)
    measured = measures(config)
    neighbors = Neighbors(model.quantizer, device) if lpips and config.perturbed else None
    reach = images_within_reach(codes, tokens, config.perturbed)
    perturbed = set(spread(len(rows), len(rows) if reach is None else reach).tolist())
    parts: dict[str, list[Tensor]] = {}
    if rfid:
        rfid.begin()
    for start in range(0, len(rows), micro_batch):
        images = to_images(pictures[rows[start : start + micro_batch]]).to(device)
        made, quantized = model(images)
        counts += torch.bincount(quantized.indices.flatten(), minlength=codes)
        found = {name: _measured(name, measure, made, images) for name, measure in measured.items()}
        if lpips:
            found[lpips.name] = lpips(made.clamp(-1, 1), images)
        chosen = [place for place in range(len(images)) if start + place in perturbed]
        if lpips and neighbors and chosen:
            wrong = perturb(quantized.indices[chosen], config.perturbed, [start + place for place in chosen], neighbors)
            decoded = model.decode(rearrange(wrong, "b (y x) -> b y x", y=model.rows))
            found[f"{lpips.name.removesuffix('_alex')}_perturbed"] = lpips(decoded.clamp(-1, 1), images[chosen])
        if rfid:
            rfid.add(made, images)
        for name, values in found.items():
            parts.setdefault(name, []).append(values)
    further = np.setdiff1d(np.arange(len(pictures)), rows)
    further = further[spread(len(further), math.ceil(TOKENS_PER_CODE * codes / tokens) - len(rows))]
    for start in range(0, len(further), micro_batch):
        indices = model.encode(to_images(pictures[further[start : start + micro_batch]]).to(device))
        counts += torch.bincount(indices.flatten(), minlength=codes)
    each = {name: torch.cat(values).double() for name, values in parts.items()}
    means = {name: values.mean().item() for name, values in each.items()}
    errors = each[lpips.name] if lpips else -each["psnr"]
    return Evaluation(
        metrics=means | (rfid.result() if rfid else {}) | code_statistics(counts, tokens),
        worst=rows[errors.argsort(descending=True, stable=True).cpu().numpy()].tolist(),
        each={name: values.cpu().numpy() for name, values in each.items() if len(values) == len(rows)},
    )


def _measured(name: str, measure: Callable[[Tensor, Tensor], Tensor], made: Tensor, images: Tensor) -> Tensor:
    values = measure(made.float().clamp(-1, 1), images)
    if not isinstance(values, Tensor) or values.shape != (len(images),):
        got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else repr(values)
        raise VqvaeError(
            f"evaluation.metrics: {name} must give one number for each image, ({len(images)},), but got {got}"
        )
    return values


def _unit(images: Tensor) -> Tensor:
    return (images.float().clamp(-1, 1) + 1) / 2
