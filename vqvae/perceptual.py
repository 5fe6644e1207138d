"""LPIPS, the perceptual distance of Zhang et al. 2018 (arXiv 1801.03924, section 3, eq. 1), version 0.1.

The calibrated heads come with the package `lpips`. The trunk is torchvision's network trained on ImageNet, whose
weights are a file that `vqvae.weights` finds or asks for.

b images, c channels of a layer, h height, w width
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from vqvae.weights import RANDOM, TRUNKS, Trunk, WeightsError, read, trunk_file


class LPIPS(nn.Module):
    """Distance between two images as a frozen network sees them.

    Args:
        trunk: vgg (to train with) or alex (to judge by).
        file: weights of the trunk; "" looks in torch.hub's folder; "random" draws them.

    Raises:
        WeightsError: no such file, a damaged one, or one of another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: str, file: str = "") -> None:
        super().__init__()
        self.name = f"lpips_{RANDOM}" if file == RANDOM else f"lpips_{trunk}"
        self.taps = TRUNKS[trunk].taps
        self.layers = _trunk(TRUNKS[trunk], file)[: self.taps[-1] + 1]
        self.heads = nn.ParameterList(_heads(trunk))
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """Distances (b); gradients reach `images` alone.

        Args:
            images: float (b, 3, h, w) in [-1, 1].
            references: the same shape.
        """
        with torch.no_grad():
            wanted = self.directions(references)
        distances = [
            (head * (here - there).square()).sum(1).mean((1, 2))
            for head, here, there in zip(self.heads, self.directions(images), wanted, strict=True)
        ]
        return torch.stack(distances).sum(0)

    def directions(self, images: Tensor) -> list[Tensor]:
        """Activations (b, c, h, w) of the compared layers in float32, of length 1 along the channels."""
        x = (images - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in self.taps:
                found.append(_unit(x.float()))
        return found


def _unit(x: Tensor, epsilon: float = 1e-10) -> Tensor:
    """x over its length along the channels; where x is all zero so is the result, and the gradient is finite."""
    return x * (x.square().sum(1, keepdim=True) + epsilon).rsqrt()


def _trunk(trunk: Trunk, file: str) -> nn.Sequential:
    with torch.device("meta"):  # the classifier, most of the weights, is never allocated
        layers: nn.Sequential = getattr(torchvision.models, trunk.network)(weights=None).features
    if file == RANDOM:
        return _draw(layers.to_empty(device="cpu"))
    path = trunk_file(trunk, file)
    weights = read(path, trunk.file)
    try:
        features = {key.removeprefix("features."): value for key, value in weights.items() if "features." in key}
        layers.load_state_dict(features, assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path}: not the weights of {trunk.network} ({type(error).__name__})") from error
    return layers


def _draw(layers: nn.Sequential) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return layers


def _heads(trunk: str) -> list[Tensor]:
    """Non-negative weights (c, 1, 1) of the channels of each compared layer."""
    spec = importlib.util.find_spec("lpips")  # located, not imported: importing it loads much that is not needed
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "weights" / "v0.1" / f"{trunk}.pth"
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return [weights[f"lin{index}.model.1.weight"][0] for index in range(len(TRUNKS[trunk].taps))]
