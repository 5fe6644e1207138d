"""The bundled photographs: images without any download, loaded from the installed packages that carry them.

n crops, h height, w width, c = 3 colors, r k rows and columns of crops
"""

from __future__ import annotations

import importlib.util
import math
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


TEST_SIZE = (741, 500)
"""Width and height of the photograph that tests, so that its crops are counted while it stays closed."""


def crops(resolution: int) -> dict[str, NDArray[np.uint8] | Unopened]:
    """Crops (n, h, w, 3) of the photographs of each split, at 64 pixels 987 train, 82 validate, 77 test.

    The test split is a photograph of its own, the left motorcycle of scikit-image's stereo pair. It is not opened
    before one of its crops is asked for.

    Raises:
        DataError: a photograph is not installed.
    """
    [test] = PHOTOGRAPHS["test"]
    closed = Unopened(test, TEST_SIZE, resolution)
    read = {
        name: np.concatenate([_grid(file, resolution) for file in PHOTOGRAPHS[name]])
        for name in ("train", "validation")
    }
    return {**read, "test": closed}


class Unopened:
    """The crops of a photograph that stays closed until one of them is asked for.

    Args:
        file: package and file inside it.
        size: its width and height.
        resolution: of a crop.

    Raises:
        DataError: it is not installed.
    """

    def __init__(self, file: tuple[str, str], size: tuple[int, int], resolution: int) -> None:
        _path(file)
        self.file, self.size, self.resolution = file, size, resolution
        stride = min(GRID, resolution)
        self.crops = math.prod((side - resolution) // stride + 1 for side in _enlarged(size, resolution))
        self.pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self.crops

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (rows, h, w, 3)."""
        if self.pixels is None:
            self.pixels = _grid(self.file, self.resolution)
            if len(self.pixels) != self.crops:
                name, size = self.file[1], " x ".join(map(str, self.size))
                raise DataError(f"photograph {name}: of another size; expected {size} pixels, as PyPI has it")
        return self.pixels[rows]


def _path(file: tuple[str, str]) -> Path:
    package, name = file
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec and spec.origin else None
    if path is None or not path.is_file():
        raise DataError(
            f"photograph {name}: not in the installed {PROJECTS[package]} (looked at {path}); "
            f"expected the package as PyPI has it, or images of your own (data.source: folder)"
        )
    return path


def _enlarged(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """Width and height at which a photograph holds a crop."""
    enlarge = resolution / min(size)
    width, height = (max(resolution, round(side * enlarge)) if enlarge > 1 else side for side in size)
    return width, height


def _grid(file: tuple[str, str], resolution: int) -> NDArray[np.uint8]:
    photograph = pictures.read(_path(file))
    if (size := _enlarged(photograph.size, resolution)) != photograph.size:
        photograph = photograph.resize(size, Image.Resampling.BICUBIC)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(photograph), (resolution, resolution), axis=(0, 1))
    stride = min(GRID, resolution)
    return rearrange(windows[::stride, ::stride], "r k c h w -> (r k) h w c")
