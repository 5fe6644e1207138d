"""Pictures of people and tensors of models: decoding, fitting to a square, reconstruction sheets.

n pictures, h height, w width, c = 3 colors
At rest a picture is uint8 (h, w, 3); inside the models images are float (n, 3, h, w) in [-1, 1].
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from numpy.typing import NDArray

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""File names that are taken for pictures, in lower case."""

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's decoders raise on broken files, depending on the format."""


def read(file: Path | BinaryIO, side: int = 0) -> Image.Image:
    """A picture as RGB: upright by its EXIF tag, transparency over white, 16 bits scaled to 8, the first of its frames.

    CMYK and other color spaces are converted as Pillow does it, without their profiles.

    Args:
        file: where it is read from.
        side: pixels along the shorter side that suffice; a JPEG is then decoded at a fraction of its size, never
            below twice this. 0 decodes all of it.

    Raises:
        UNREADABLE: the file is broken, or of a kind without a fixed white (floating point, 32 bits).
    """
    with Image.open(file) as opened:
        if side:
            opened.draft(None, (2 * side, 2 * side))
        picture = ImageOps.exif_transpose(opened)
        if picture.mode == "F":
            raise ValueError("floating-point pixels have no fixed white")
        if picture.mode.startswith("I"):
            levels = np.asarray(picture)
            if levels.min() < 0 or levels.max() > 65535:
                raise ValueError("32-bit pixels have no fixed white")
            return Image.fromarray((levels / 257).round().astype(np.uint8)).convert("RGB")
        if "transparency" in picture.info or picture.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
            picture = picture.convert("RGBA")
            white = Image.new("RGBA", picture.size, "white")
            return Image.alpha_composite(white, picture).convert("RGB")
        return picture.convert("RGB")


def fit(picture: Image.Image, resolution: int, how: str = "short-side") -> NDArray[np.uint8]:
    """A picture as a square of (resolution, resolution, 3).

    Pixels are resampled with Pillow's bicubic filter, which widens with the reduction and so does not alias; beyond six
    times they are first averaged to at least three times the resolution (its `reducing_gap`).

    Args:
        picture: RGB, of any size; what is smaller than the square is enlarged.
        resolution: pixels.
        how: short-side (the central square, resized), crop (the central `resolution` pixels at their own scale; of a
            picture with a shorter side than that, as short-side) or stretch (all of it, its sides resized alike).
    """
    width, height = picture.size
    across, down = float(width), float(height)
    if how != "stretch":
        across = down = min(width, height) if how == "short-side" else min(width, height, resolution)
    left, top = (width - across) / 2, (height - down) / 2
    if how == "crop" and across == resolution:
        left, top = width // 2 - resolution // 2, height // 2 - resolution // 2  # whole pixels, none is resampled
    square = picture.resize(
        (resolution, resolution),
        Image.Resampling.BICUBIC,
        box=(left, top, left + across, top + down),
        reducing_gap=3.0,
    )
    return np.asarray(square)


def to_images(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (n, h, w, 3) to float (n, 3, h, w) in [-1, 1]."""
    return rearrange(torch.from_numpy(np.array(pictures)), "n h w c -> n c h w").float() / 127.5 - 1


def to_pictures(images: torch.Tensor) -> NDArray[np.uint8]:
    """float (n, 3, h, w), clipped to [-1, 1], to uint8 (n, h, w, 3)."""
    levels = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    pictures: NDArray[np.uint8] = rearrange(levels, "n c h w -> n h w c").cpu().numpy()
    return pictures


def sheet(originals: torch.Tensor, reconstructions: torch.Tensor, columns: int = 8) -> NDArray[np.uint8]:
    """Originals above their reconstructions, in rows of `columns` pairs.

    Args:
        originals: float (n, 3, h, w) in [-1, 1], n at least 1.
        reconstructions: the same shape.
        columns: pictures in a row, at most; what is left of the last row is white.

    Returns:
        uint8 (rows x 2 x h, columns x w, 3).
    """
    columns = min(columns, len(originals))
    pairs = np.stack([to_pictures(originals), to_pictures(reconstructions)], axis=1)
    blank = np.full((-len(pairs) % columns, *pairs.shape[1:]), 255, dtype=np.uint8)
    pairs = np.concatenate([pairs, blank])
    joined: NDArray[np.uint8] = rearrange(pairs, "(r k) two h w c -> (r two h) (k w) c", k=columns)
    return joined
