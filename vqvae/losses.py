"""The terms of the training loss, by name.

b images, h height, w width

[1] Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (VQGAN)
"""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import plugins
from vqvae.config import VqvaeError
from vqvae.discriminator import adaptive_weight
from vqvae.perceptual import LPIPS
from vqvae.processes import ALONE, Processes

if TYPE_CHECKING:
    from collections.abc import Callable

    from vqvae.config import LossConfig
    from vqvae.discriminator import Gan
    from vqvae.model import Reconstruction


TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": F.l1_loss, "l2": F.mse_loss}
"""Terms by name: images that were made and the originals to a scalar; a plug-in adds its own, maybe as a class."""

RESERVED = (
    "perceptual", "lpips_vgg", "lpips_random", "loss", "codebook", "commitment", "entropy", "kl", "gan_generator",
    "gan_weight", "gan_discriminator", "gan_real", "gan_fake",
)  # fmt: skip
"""Names under which something else is reported."""


def admit(part: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """What a plug-in may enter above.

    Raises:
        TypeError: anything else.
    """
    if isinstance(part, FunctionType) or (isinstance(part, type) and issubclass(part, nn.Module)):
        term: Callable[[Tensor, Tensor], Tensor] = cast("Any", part)
        return term
    raise TypeError(f"must be a function of two batches of images, or a module class, but got {part!r}")


def require(config: LossConfig) -> None:
    """Makes sure that there is every term that a config gives a weight.

    Raises:
        ConfigError: an unknown name.
    """
    for name in config.terms:
        plugins.find("loss", TERMS, name)


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
        self.terms = dict(TERMS)
        self.own = nn.ModuleList()
        for name, weight in config.terms.items():
            if weight:
                weights[name] = float(weight)
                self.terms[name] = self._made(plugins.find("loss", TERMS, name))
        self.names = tuple(weights)
        self.register_buffer("weights", torch.tensor(list(weights.values())))

    weights: Tensor
    processes: Processes = ALONE
    """Those that train together, over which an adaptive weight is taken."""

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
                weight = weight * adaptive_weight(weighted, adversarial, last_weight, self.processes)
            total = total + weight * adversarial
            terms |= {"gan_generator": adversarial, "gan_weight": weight}
        return total, {name: term.detach() for name, term in {**terms, "loss": total}.items()}

    def _term(self, name: str, images: Tensor, made: Tensor) -> Tensor:
        if self.perceptual is not None and name == self.perceptual.name:
            distance: Tensor = self.perceptual(made, images)
            return distance.mean()
        term = self.terms[name](made, images)
        if not isinstance(term, Tensor) or term.shape != ():
            got = f"shape {tuple(term.shape)}" if isinstance(term, Tensor) else repr(term)
            raise VqvaeError(f"loss.terms.{name}: must give a scalar tensor, but got {got}")
        return term

    def _made(self, part: Any) -> Callable[[Tensor, Tensor], Tensor]:
        """A plug-in's module is made here, and moves with this one; what it holds is not trained."""
        if isinstance(part, type):
            self.own.append(part().requires_grad_(False))
            return self.own[-1]
        term: Callable[[Tensor, Tensor], Tensor] = part
        return term
