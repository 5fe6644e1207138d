"""What is measured on held-out images.

b images, h height, w width, t tokens of an image, k codes
Every function takes float images (b, 3, h, w) in [-1, 1] and clips them to that range, as a picture file would.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
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
    places = torch.arange(size, device=x.device, dtype=x.dtype) - size // 2
    window = torch.exp(-places.square() / (2 * 1.5**2))
    window /= window.sum()

    def local_mean(z: Tensor) -> Tensor:
        kernel = window.expand(z.shape[1], 1, 1, size)
        return F.conv2d(F.conv2d(z, kernel, groups=z.shape[1]), kernel.mT, groups=z.shape[1])

    mean_x, mean_y = local_mean(x), local_mean(y)
    variance_x = local_mean(x * x) - mean_x.square()
    variance_y = local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3)).float()


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
    model: VQVAE, images: Tensor, *, codebook_size: int, micro_batch: int, lpips: LPIPS | None = None
) -> dict[str, float]:
    """All of the above over a set of held-out images, in float32.

    Args:
        model: in evaluation mode, with the weights to judge (the moving average).
        images: float (n, 3, h, w) in [-1, 1], on the model's device.
        codebook_size: number of codes.
        micro_batch: images at once.
        lpips: measured too, under its name, if given.

    Returns:
        psnr (dB), ssim, l1, the lpips if any, each the mean over images, and `code_statistics`.
    """
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(codebook_size, dtype=torch.long, device=images.device)
    tokens = 0
    for batch in images.split(micro_batch):
        made, quantized = model(batch)
        values = {"psnr": psnr(made, batch), "ssim": ssim(made, batch), "l1": l1(made, batch)}
        if lpips:
            values[lpips.name] = lpips(made.clamp(-1, 1), batch)
        for name, value in values.items():
            sums[name] = sums.get(name, torch.zeros((), device=images.device)) + value.sum()
        counts += torch.bincount(quantized.indices.flatten(), minlength=codebook_size)
        tokens = math.prod(quantized.indices.shape[1:])
    means = {name: total.item() / len(images) for name, total in sums.items()}
    return means | code_statistics(counts, tokens)


def _unit(images: Tensor) -> Tensor:
    return (images.float().clamp(-1, 1) + 1) / 2
