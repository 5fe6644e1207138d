"""The adversary of the decoder: a PatchGAN discriminator, its hinge losses, and how much they count.

Axes: b images, h and w rows and columns of pixels, y and x rows and columns of logits.

[1] Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks" (PatchGAN)
[2] Lim, Ye 2017, "Geometric GAN" (the hinge loss)
[3] Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (VQGAN)
[4] Wu, He 2018, "Group Normalization"
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae import parametrization
from vqvae.processes import ALONE, Processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vqvae.config import GanConfig, TrainConfig
    from vqvae.parametrization import Factors

_GROUP = 16
"""Channels that GroupNorm norms together, where they divide so; among the best in [4, table 3]."""
_SLOPE = 0.2
_DELTA = 1.0e-6
_LARGEST_WEIGHT = 1.0e4


class Discriminator(nn.Module):
    """A PatchGAN [1, section 3.2.2]: each logit judges one patch of the image, positive for real.

    `depth` convolutions of kernel 4 and stride 2, one of stride 1, and one of stride 1 to the logits, with LeakyReLU
    between them and a norm before each LeakyReLU but the first. Two departures from [1, sections 6.1.2 and 6.2]:

    - GroupNorm in place of BatchNorm, whose statistics run over the batch: a logit would depend on the other images
      of its micro-batch, and so the run on the memory of its device.
    - Weights are normal with variance 1 / fan_in, as everywhere here, not with a standard deviation of 0.02: the
      logits begin at one size for every `width`.
    """

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        widths = [config.width * min(2**layer, 8) for layer in range(config.depth + 1)]
        layers: list[nn.Module] = [_conv(3, widths[0], stride=2), nn.LeakyReLU(_SLOPE)]
        for layer, (before, width) in enumerate(itertools.pairwise(widths), 1):
            norm = nn.GroupNorm(width // math.gcd(width, _GROUP), width)
            layers += [_conv(before, width, stride=2 if layer < config.depth else 1), norm, nn.LeakyReLU(_SLOPE)]
        self.layers = nn.Sequential(*layers, _conv(widths[-1], 1, stride=1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) in [-1, 1] to logits (b, 1, y, x), with y = h // 2**depth - 2, x alike."""
        logits: Tensor = self.layers(images)
        return logits


def parametrized(discriminator: Discriminator, config: TrainConfig) -> dict[str, Factors]:
    """Scales a discriminator's weights as the parametrization of a run asks, and says how to scale its learning rates.

    Its width is its own, and so is its base, by default the same: one discriminator judges models of every width.

    Returns:
        What the settings of each parameter are multiplied by, by its name; {} where nothing is.

    Raises:
        ConfigError: as in `vqvae.parametrization.classify`.
    """
    chosen = config.parametrization
    if chosen.kind == "standard":
        return {}

    def build(width: int) -> Discriminator:
        return Discriminator(dataclasses.replace(config.gan, width=width))

    places = parametrization.classify(build, chosen.base_gan_width or config.gan.width)
    parametrization.initialize(discriminator, places, chosen.kind)
    return parametrization.factors(discriminator, places, chosen.kind)


class Gan(nn.Module):
    """A discriminator and the two hinge losses [2; 3, section 3.1] that play it against the model.

    Args:
        config: its sizes, and the weight of the generator's term.
    """

    weight: Tensor

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.discriminator = Discriminator(config)
        self.adaptive = config.adaptive
        # A tensor, so that compiled code is not compiled again for another value.
        self.register_buffer("weight", torch.tensor(config.weight), persistent=False)

    def generator_term(self, made: Tensor) -> Tensor:
        """What the model is to lower: minus the mean logit of what it made.

        The gradient reaches `made` alone, never the discriminator's parameters.

        Args:
            made: reconstructions (b, 3, h, w), not detached.

        Returns:
            A float32 scalar.
        """
        with _frozen(self.discriminator):
            logits: Tensor = self.discriminator(made)
        return -logits.float().mean()

    def discriminator_loss(self, images: Tensor, made: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the discriminator is to lower: logits of real images below 1, and those of made ones above -1.

        The gradient reaches the discriminator's parameters alone, never the model.

        Args:
            images: the real ones (b, 3, h, w).
            made: their reconstructions (b, 3, h, w).

        Returns:
            The loss, a float32 scalar with gradient, and its terms, detached float32 scalars: gan_discriminator (the
            loss), gan_real and gan_fake (the mean logits of the images and of what was made).
        """
        real = self.discriminator(images).float()
        fake = self.discriminator(made.detach()).float()
        loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        terms = {"gan_discriminator": loss, "gan_real": real.mean(), "gan_fake": fake.mean()}
        return loss, {name: term.detach() for name, term in terms.items()}


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_weight: Tensor, processes: Processes = ALONE
) -> Tensor:
    """The factor that makes the adversarial term pull as hard as the reconstruction [3, eq. 7].

    |gradient of the reconstruction| / (|gradient of the adversarial term| + 1e-6), both at the last layer of the
    decoder. Where a step has several micro-batches each has its own factor, from its own images: with it, unlike
    with every other term, their accumulated gradient is not quite that of the whole batch.

    Args:
        reconstruction: the weighted sum of the reconstruction terms, a scalar.
        adversarial: the generator's term, a scalar.
        last_weight: the weight of the decoder's last layer, on which both depend.
        processes: those over which both gradients are averaged first.

    Returns:
        A detached float32 scalar from 0 to 1e4; the graphs of both terms are kept.
    """
    # Autocast reaches what a backward pass computes too; it is to follow the dtypes that the forward pass chose.
    with torch.autocast(last_weight.device.type, enabled=False):
        (wanted,) = torch.autograd.grad(reconstruction, last_weight, retain_graph=True)
        (given,) = torch.autograd.grad(adversarial, last_weight, retain_graph=True)
        wanted, given = processes.mean(wanted.float()), processes.mean(given.float())
        factor: Tensor = wanted.norm() / (given.norm() + _DELTA)
    return factor.clamp(0, _LARGEST_WEIGHT)


def _conv(channels_in: int, channels_out: int, *, stride: int) -> nn.Conv2d:
    """Kernel 4, padding 1: (b, channels_in, h, w) to (b, channels_out, h // 2, w // 2), or h - 1, w - 1."""
    layer = nn.Conv2d(channels_in, channels_out, 4, stride, padding=1)
    nn.init.normal_(layer.weight, std=(16 * channels_in) ** -0.5)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """A forward pass inside leaves the module's parameters out of its graph; it may fail, as memory does."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
