"""The terms of the training loss, by name.

b images, h height, w width

[1] Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (VQGAN)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.discriminator import adaptive_weight
from vqvae.perceptual import LPIPS

if TYPE_CHECKING:
    from vqvae.config import LossConfig
    from vqvae.discriminator import Gan
    from vqvae.model import Reconstruction


class Loss(nn.Module):
    """Weighted sum of reconstruction terms, plus the terms of the quantizer as they come, plus that of a GAN.

    The weights are buffers, so that a searched weight does not compile anything anew; a term of weight 0 is not
    computed.

    Args:
        config: the weights, and the file of the perceptual trunk.

    Raises:
        WeightsError: the perceptual term is on and its trunk has no weights.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.perceptual = LPIPS("vgg", config.lpips_trunk) if config.perceptual else None
        names = {"l1": "l1", "l2": "l2", "perceptual": self.perceptual.name if self.perceptual else ""}
        weights = {name: getattr(config, field) for field, name in names.items() if getattr(config, field)}
        self.names = tuple(weights)
        self.register_buffer("weights", torch.tensor(list(weights.values())))

    weights: Tensor

    def forward(
        self,
        images: Tensor,
        reconstruction: Reconstruction,
        gan: Gan | None = None,
        last_weight: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms.

        Args:
            images: float (b, 3, h, w) in [-1, 1].
            reconstruction: what the model made of them.
            gan: the adversary, once it counts; its parameters get no gradient from here.
            last_weight: weight of the decoder's last layer, which an adaptive `gan` asks for. Its factor balances the
                gan's term against the reconstruction terms alone, not against those of the quantizer [1, eq. 7].

        Returns:
            The loss, a scalar with gradient, and its terms, detached float32 scalars: l1, l2 and lpips_vgg before
            their weights, those of the quantizer as they enter the sum, and their sum as "loss". With a gan also
            gan_generator, before its weight, and gan_weight, by which it enters: `gan.weight`, times the factor.
        """
        made = reconstruction.images
        terms = {name: self._term(name, images, made) for name in self.names}
        zero = torch.zeros((), device=images.device)
        weighted = sum((weight * term for weight, term in zip(self.weights, terms.values(), strict=True)), zero)
        terms |= reconstruction.quantized.losses
        total = sum(reconstruction.quantized.losses.values(), zero) + weighted
        if gan is not None:
            adversarial, weight = gan.generator_term(made), gan.weight
            if gan.adaptive:
                assert last_weight is not None, "an adaptive weight is taken at the last layer"
                weight = weight * adaptive_weight(weighted, adversarial, last_weight)
            total = total + weight * adversarial
            terms |= {"gan_generator": adversarial, "gan_weight": weight}
        return total, {name: term.detach() for name, term in {**terms, "loss": total}.items()}

    def _term(self, name: str, images: Tensor, made: Tensor) -> Tensor:
        if name == "l1":
            return F.l1_loss(made, images)
        if name == "l2":
            return F.mse_loss(made, images)
        assert self.perceptual is not None
        distance: Tensor = self.perceptual(made, images)
        return distance.mean()
