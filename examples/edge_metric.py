"""A metric of one's own: how far the edges of a reconstruction are from those of its original.

vqsearch train preset:attention --plugin examples/edge_metric.py --data ~/faces --to runs/edges \
    --set evaluation.metrics=[edges]

b images, h and w rows and columns of pixels
"""

from torch import Tensor

import vqvae


@vqvae.register("metric", "edges", direction="minimize")
def edges(images: Tensor, references: Tensor) -> Tensor:
    """Mean absolute error of the differences of neighboring pixels, (b); images are float (b, 3, h, w) in [-1, 1]."""
    error = images - references
    across, down = error.diff(dim=3).abs(), error.diff(dim=2).abs()
    return across.mean((1, 2, 3)) + down.mean((1, 2, 3))
