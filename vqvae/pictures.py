"""Pictures of people and tensors of models: decoding, fitting to a square, sheets to look at.

n pictures, h height, w width, c = 3 colors
At rest a picture is uint8 (h, w, 3); inside the models images are float (n, 3, h, w) in [-1, 1].
"""

from __future__ import annotations

import math
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont, ImageOps

if TYPE_CHECKING:
    from collections.abc import Sequence
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

CODE_COLORS = np.array([[[15, 15, 110], [90, 50, 0]], [[150, 205, 255], [255, 240, 90]]])
"""Colors (2, 2, 3) between which those of the codes lie: dark and bright, each blue and yellow. Brightness and blue
against yellow are what eyes that confuse red and green see as others do."""

GAP, LINE, LEAST = 12, 18, 256
"""Pixels of a captioned sheet: between panels, of a line of text, and the width to which small panels are enlarged."""


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


def write(path: Path, picture: NDArray[np.uint8]) -> None:
    """Saves uint8 (h, w, 3) as a PNG.

    Raises:
        OSError: it can't be written.
    """
    Image.fromarray(picture).save(path)


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


def difference(images: torch.Tensor, references: torch.Tensor, times: float = 4.0) -> NDArray[np.uint8]:
    """Absolute differences, each color for itself: black where equal, full where they differ by 1 / times of the range.

    Args:
        images: float (n, 3, h, w), clipped to [-1, 1].
        references: the same.
        times: by how much they are amplified.

    Returns:
        uint8 (n, h, w, 3).
    """
    return to_pictures((images.clamp(-1, 1) - references.clamp(-1, 1)).abs() * times - 1)


def code_map(indices: NDArray[np.int64], patch: int) -> NDArray[np.uint8]:
    """The codes of a picture as a picture: a square for each token, in a color that its code has always.

    The colors of successive codes are far apart: they follow the R2 sequence (Roberts 2018) between `CODE_COLORS`.

    Args:
        indices: (y, x), at least 0.
        patch: pixels along a side of the square.

    Returns:
        uint8 (y x patch, x x patch, 3).
    """
    brightness, hue = np.moveaxis((0.5 + indices[..., None] * [0.7548776662466927, 0.5698402909980532]) % 1, -1, 0)
    dark, bright = (first + (second - first) * hue[..., None] for first, second in CODE_COLORS)
    colors = (dark + (bright - dark) * brightness[..., None]).round().astype(np.uint8)
    enlarged: NDArray[np.uint8] = colors.repeat(patch, 0).repeat(patch, 1)
    return enlarged


def captioned(
    panels: Sequence[NDArray[np.uint8]], captions: Sequence[tuple[str, str]], columns: int = 2
) -> NDArray[np.uint8]:
    """Pictures of one size beside each other on white, a title and a line of details above each.

    Args:
        panels: uint8 (h, w, 3) each; small ones are enlarged by a whole factor, pixel by pixel.
        captions: title and details of each, without line breaks; what is too long is cut in its middle.
        columns: panels in a row.

    Returns:
        uint8 (height, width, 3).
    """
    height, width = panels[0].shape[:2]
    times = max(1, min(math.ceil(LEAST / width), 4 * LEAST // height))
    fonts = (ImageFont.load_default(15), ImageFont.load_default(13))
    longest = max(font.getlength(line) for words in captions for line, font in zip(words, fonts, strict=True))
    cell = max(width * times, min(math.ceil(longest), int(1.5 * LEAST)))
    across, down = cell + GAP, 2 * LINE + height * times + GAP
    whole = Image.new("RGB", (GAP + columns * across, GAP + math.ceil(len(panels) / columns) * down), "white")
    draw = ImageDraw.Draw(whole)
    for place, (panel, words) in enumerate(zip(panels, captions, strict=True)):
        left, top = GAP + place % columns * across, GAP + place // columns * down
        for number, (line, font, color) in enumerate(zip(words, fonts, ("#222", "#555"), strict=True)):
            draw.text((left, top + number * LINE), _fitting(line, font, cell), color, font)
        enlarged = Image.fromarray(panel).resize((width * times, height * times), Image.Resampling.NEAREST)
        whole.paste(enlarged, (left, top + 2 * LINE))
    return np.asarray(whole)


def _fitting(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The line, with as much of its middle left out as has to be."""
    kept = len(line)
    while font.getlength(line) > width and kept > 2:
        kept -= 1
        line = f"{line[: kept // 2]}…{line[len(line) - (kept - kept // 2) :]}"
    return line
