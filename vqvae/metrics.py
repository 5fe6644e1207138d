"""What is measured on held-out images.

b images, h height, w width, t tokens of an image, k codes
Every function takes float images (b, 3, h, w) in [-1, 1] and clips them to that range, as a picture file would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqvae.pictures import to_images

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vqvae.model import VQVAE
    from vqvae.perceptual import LPIPS


def psnr(images: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (b) in dB, pixels on [0, 1]; at most 100, for equal images.

    An image's ratio is taken from its own mean squared error; a set is summed up by the mean of the ratios.
    """
    error = (_unit(images) - _unit(references)).square().mean((1, 2, 3))
    return -10 * error.clamp(min=1e-10).log10()


def ssim(images: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each image, (b) in [-1, 1] (Wang et al. 2004, section III-B, eq. 13).

    The mean over colors and over all places of an 11 x 11 Gaussian window (sigma 1.5) that lie within the image;
    the window is smaller on images of less than 11 pixels.
    """
    x, y = _unit(images).double(), _unit(references).double()
    size = min(11, (min(x.shape[-2:]) - 1) // 2 * 2 + 1)
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
    return (luminance * structure).mean((1, 2, 3)).float()


def _band(side: int, size: int) -> Tensor:
    """A Gaussian window (sigma 1.5) as a matrix: (side - size + 1, side), a shifted copy of it in each row."""
    window = torch.exp(-(torch.arange(size, dtype=torch.float64) - size // 2).square() / (2 * 1.5**2))
    places = torch.arange(side - size + 1)[:, None] + torch.arange(size)
    band = torch.zeros(len(places), side, dtype=torch.float64)
    return band.scatter_(1, places, (window / window.sum()).expand(places.shape))


def l1(images: Tensor, references: Tensor) -> Tensor:
    """Mean absolute error of each image, (b), pixels on [0, 1]."""
    return (_unit(images) - _unit(references)).abs().mean((1, 2, 3))


def code_statistics(counts: Tensor, tokens_per_image: int) -> dict[str, float]:
    """How the codes are used.

    Args:
        counts: whole numbers (k): how often each code was drawn.
        tokens_per_image: tokens of one image.

    Returns:
        codebook_usage: part of the codes that were drawn, 0 to 1;
        perplexity: 2 to the entropy of the codes' frequencies, 1 to k;
        entropy_bits_per_image: tokens x entropy in bits: what an ideal coder of single tokens would need;
        codebook_tokens: tokens that were counted. Below about ten times k they cannot show every code, and the
        three figures are too low.
    """
    frequencies = counts.double() / counts.sum()
    bits = -(frequencies * frequencies.clamp(min=1e-300).log2()).sum().item()
    return {
        "codebook_usage": (counts > 0).double().mean().item(),
        "perplexity": 2**bits,
        "entropy_bits_per_image": tokens_per_image * bits,
        "codebook_tokens": float(counts.sum().item()),
    }


@torch.no_grad()
def evaluate(
    model: VQVAE, held_out: NDArray[np.uint8], micro_batch: int, lpips: LPIPS | None = None
) -> dict[str, float]:
    """All of the above over a set of held-out pictures, in float32.

    Args:
        model: in evaluation mode, with the weights to judge (the moving average).
        held_out: uint8 (n, h, w, 3), n at least 1.
        micro_batch: images at once.
        lpips: measured too, under its name, if given.

    Returns:
        psnr (dB), ssim, l1, the lpips if any, each the mean over images, and `code_statistics`.
    """
    device = next(model.parameters()).device
    codes = model.quantizer.codebook_size
    counts = torch.zeros(codes, dtype=torch.long, device=device)
    parts: list[dict[str, Tensor]] = []
    tokens = 0
    for start in range(0, len(held_out), micro_batch):
        images = to_images(held_out[start : start + micro_batch]).to(device)
        made, quantized = model(images)
        part = {"psnr": psnr(made, images), "ssim": ssim(made, images), "l1": l1(made, images)}
        if lpips:
            part[lpips.name] = lpips(made.clamp(-1, 1), images)
        parts.append(part)
        counts += torch.bincount(quantized.indices.flatten(), minlength=codes)
        tokens = quantized.indices[0].numel()
    means = {name: torch.cat([part[name] for part in parts]).double().mean().item() for name in parts[0]}
    return means | code_statistics(counts, tokens)


def _unit(images: Tensor) -> Tensor:
    return (images.float().clamp(-1, 1) + 1) / 2
