"""The terms of the training loss, by name.

b images, h height, w width
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.perceptual import LPIPS

if TYPE_CHECKING:
    from vqvae.config import LossConfig
    from vqvae.model import Reconstruction


class Loss(nn.Module):
    """Weighted sum of reconstruction terms, plus the terms of the quantizer as they come.

    The weights are buffers, so that a searched weight does not compile anything anew; a term of weight 0 is not
    computed.

    Args:
        config: the weights, and the file of the perceptual trunk.

    Raises:
        PerceptualError: the perceptual term is on and its trunk has no weights.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.perceptual = LPIPS("vgg", config.lpips_trunk) if config.perceptual else None
        names = {"l1": "l1", "l2": "l2", "perceptual": self.perceptual.name if self.perceptual else ""}
        weights = {name: getattr(config, field) for field, name in names.items() if getattr(config, field)}
        self.names = tuple(weights)
        self.register_buffer("weights", torch.tensor(list(weights.values())))

    weights: Tensor

    def forward(self, images: Tensor, reconstruction: Reconstruction) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms.

        Args:
            images: float (b, 3, h, w) in [-1, 1].
            reconstruction: what the model made of them.

        Returns:
            The loss, a scalar with gradient, and its terms, detached float32 scalars: l1, l2 and lpips_vgg before
            their weights, those of the quantizer as they enter the sum, and their sum as "loss".
        """
        terms = {name: self._term(name, images, reconstruction.images) for name in self.names}
        quantizer = reconstruction.quantized.losses
        total = sum(quantizer.values(), torch.zeros((), device=images.device))
        for weight, term in zip(self.weights, terms.values(), strict=True):
            total = total + weight * term
        return total, {name: term.detach() for name, term in {**terms, **quantizer, "loss": total}.items()}

    def _term(self, name: str, images: Tensor, made: Tensor) -> Tensor:
        if name == "l1":
            return F.l1_loss(made, images)
        if name == "l2":
            return F.mse_loss(made, images)
        assert self.perceptual is not None
        distance: Tensor = self.perceptual(made, images)
        return distance.mean()
