"""The bundled photographs: images without any download, loaded from the installed packages that carry them.

n crops, h height, w width, c = 3 colors, r k rows and columns of crops
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange
from PIL import Image

from vqvae import pictures
from vqvae.sources import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PHOTOGRAPHS = {
    "train": (
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/retina.jpg"),
        ("skimage", "data/hubble_deep_field.jpg"),
        ("skimage", "data/ihc.png"),
        ("sklearn", "datasets/images/china.jpg"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
    "validation": (("skimage", "data/chelsea.png"), ("skimage", "data/coffee.png")),
    "test": (("skimage", "data/motorcycle_left.png"),),
}
"""(package, file inside it) of each split: whole photographs are held out, never crops of one that trains."""

PROJECTS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

GRID = 64
"""Pixels between two crops of a photograph, or the resolution where that is smaller."""


def crops(resolution: int) -> dict[str, NDArray[np.uint8]]:
    """Crops (n, h, w, 3) of the photographs of each split, at 64 pixels 987 train, 82 validate, 77 test.

    The test split is a photograph of its own, the left motorcycle of scikit-image's stereo pair.

    Raises:
        DataError: a photograph is not installed.
    """
    return {name: np.concatenate([_grid(file, resolution) for file in files]) for name, files in PHOTOGRAPHS.items()}


def _grid(file: tuple[str, str], resolution: int) -> NDArray[np.uint8]:
    package, name = file
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(
            f"photograph {name}: not in the installed {PROJECTS[package]} (looked at {path}); "
            f"expected the package as PyPI has it, or images of your own (data.source: folder)"
        )
    photograph = pictures.read(path)
    enlarge = resolution / min(photograph.size)
    if enlarge > 1:
        width, height = (max(resolution, round(side * enlarge)) for side in photograph.size)
        photograph = photograph.resize((width, height), Image.Resampling.BICUBIC)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(photograph), (resolution, resolution), axis=(0, 1))
    stride = min(GRID, resolution)
    return rearrange(windows[::stride, ::stride], "r k c h w -> (r k) h w c")
