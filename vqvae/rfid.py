"""rFID: the Frechet distance between held-out images and their reconstructions, as an Inception network sees them.

Heusel et al. 2017 (arXiv 1706.08500), eq. 6. The computation is torchmetrics'; the network's weights are a
file that `vqvae.weights` asks for. The extra `metrics` brings torchmetrics and torch-fidelity.

b images, h height, w width
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vqvae import weights
from vqvae.config import VqvaeError
from vqvae.weights import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

PACKAGES = {"torchmetrics": "torchmetrics", "torch_fidelity": "torch-fidelity"}


class RfidError(VqvaeError):
    """What rFID needs is not there."""


class Rfid(nn.Module):
    """Takes in images and reconstructions, then says how far apart the two sets are.

    The distance is biased: the fewer images, the higher it is, and below 2048 images, the dimensions of a feature, the
    covariances are not of full rank. Compare values over the same number of images only (`rfid_images`); papers
    use 50,000.

    Args:
        file: the Inception weights of torch-fidelity.
        features: dimensions of the features that are compared; all but 2048 are for tests.

    Raises:
        RfidError: the extra `metrics` is not installed.
        WeightsError: no such file, a damaged one, or one of another network.
    """

    def __init__(self, file: str, features: int = 2048) -> None:
        super().__init__()
        missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
        if missing:
            raise RfidError(f"rfid needs {' and '.join(missing)}: pip install 'vqsearch[metrics]'")
        from torchmetrics.image.fid import FrechetInceptionDistance

        path = weights.inception_file(file)
        weights.read(path, weights.INCEPTION)  # torch-fidelity would run code that it holds
        try:
            self.distance: Any = FrechetInceptionDistance(
                features,
                feature_extractor_weights_path=str(path),
                antialias=False,  # as the first definition resizes
            )
        except (RuntimeError, TypeError, AttributeError) as error:
            raise WeightsError(f"{path}: not the weights of Inception ({type(error).__name__})") from error
        self.requires_grad_(False)

    def begin(self) -> None:
        """Forgets what was taken in, such as by an evaluation that ran out of memory half way."""
        self.distance.reset()

    def add(self, made: Tensor, images: Tensor) -> None:
        """Takes in reconstructions and their originals, float (b, 3, h, w), clipped to [-1, 1] as in a picture file."""
        self.distance.update(_levels(images), real=True)
        self.distance.update(_levels(made), real=False)

    def result(self) -> dict[str, float]:
        """The distance over all that was taken in since `begin`.

        Returns:
            rfid, and rfid_images: how many images it is of.

        Raises:
            RfidError: fewer than two images were taken in.
        """
        images = int(self.distance.real_features_num_samples)
        if images < 2:
            raise RfidError(f"rfid: must be over at least 2 held-out images, but got {images} (evaluation.images)")
        return {"rfid": float(self.distance.compute()), "rfid_images": float(images)}


def _levels(images: Tensor) -> Tensor:
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
