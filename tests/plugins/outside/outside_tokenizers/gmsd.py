"""A metric of edges (Xue et al. 2014, "Gradient Magnitude Similarity Deviation", sections II-A and II-B).

Axes: b images, h and w rows and columns of pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

import vqvae

CONSTANT = 170 / 255**2
"""The paper's, for a range of one instead of 255; it keeps flat regions from counting."""


def _gradient_magnitude(images: Tensor) -> Tensor:
    """Of the brightness (b, 1, h, w) on [0, 1], by Prewitt's filters, at half the size."""
    gray = F.avg_pool2d((images.mean(1, keepdim=True) + 1) / 2, 2)
    prewitt = gray.new_tensor([[1.0, 0.0, -1.0]]).expand(3, 3) / 3
    across, down = (F.conv2d(gray, kernel[None, None]) for kernel in (prewitt, prewitt.T))
    return (across.square() + down.square()).sqrt()


@vqvae.register("metric", "gmsd", direction="minimize")
def gmsd(images: Tensor, references: Tensor) -> Tensor:
    """Standard deviation over an image of how alike its edges are, (b); images are float (b, 3, h, w) in [-1, 1]."""
    made, original = _gradient_magnitude(images), _gradient_magnitude(references)
    alike = (2 * made * original + CONSTANT) / (made.square() + original.square() + CONSTANT)
    return torch.std(alike, dim=(1, 2, 3), correction=0)
