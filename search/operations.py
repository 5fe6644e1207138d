"""How many floating-point operations a training step takes, counted on models without memory; needs no training."""

from __future__ import annotations

import functools

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from vqvae.config import TrainConfig
from vqvae.model import build_model
from vqvae.perceptual import LPIPS


def operations(config: TrainConfig) -> float:
    """Floating-point operations of a training step for each image.

    The search of vq and simvq for the nearest codes, which is no part of the gradient, is taken for tokens x codes x
    dimensions. What no matrix product or convolution does is left out, and so is a discriminator.

    Args:
        config: of any model.
    """
    with FakeTensorMode():
        model = build_model(config).train()
        images = torch.empty(1, 3, config.data.resolution, config.data.resolution)
        with FlopCounterMode(display=False) as counter:
            codes = model.to_code(model.encoder(images))
            made = model.final_convolution(model.decoder(model.from_code(codes)))
            torch.autograd.backward(made.sum())
    searched = config.quantizer.kind in ("vq", "simvq")
    search = 2 * config.tokens * model.quantizer.codebook_size * model.quantizer.code_dim * searched
    perceptual = _of_lpips(config.data.resolution) if config.loss.perceptual else 0.0
    return float(counter.get_total_flops()) + search + perceptual


@functools.cache
def _of_lpips(resolution: int) -> float:
    lpips = LPIPS("vgg", "random")
    made = torch.rand(1, 3, resolution, resolution, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(lpips(made, made.detach()).sum())
    return float(counter.get_total_flops())
