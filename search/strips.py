"""Reconstruction sheets, taken apart and put side by side: the same held-out images, a row for each trial.

A sheet holds originals above their reconstructions, in rows of such pairs (`vqvae.pictures.sheet`).
Axes: r rows of k pairs (n in all), h and w pixels of a picture and of the sheet's width, c = 3 colors
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image

from vqvae.pictures import UNREADABLE

WIDEST = 2048
"""Pixels across that a picture on the page has at most."""

LOSSLESS = 250_000
"""Bytes up to which a picture keeps every bit; larger ones are WebP of quality 90."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that a page can hold.

    Attributes:
        label: what it shows.
        uri: the picture itself, as a data URI.
        width, height: pixels.
    """

    label: str
    uri: str
    width: int
    height: int


def whole(label: str, png: bytes) -> Picture | None:
    """A picture as it is; None where it is broken."""
    pixels = _pixels(png)
    return None if pixels is None else _picture(label, pixels)


def strips(sheets: Sequence[tuple[str, bytes]], side: int) -> list[list[Picture]]:
    """Originals once, and below them what each sheet made of them.

    Args:
        sheets: what a sheet shows, and its PNG.
        side: pixels of one picture.

    Returns:
        For each row of the sheets: the originals, then a strip of each sheet. Nothing where they don't go together:
        a sheet is broken or of another layout, or holds other originals.
    """
    pixels = [_pixels(png) for _, png in sheets]
    apart = [_apart(each, side) for each in pixels if each is not None]
    fitting = [each for each in apart if each is not None]
    if not sheets or len(fitting) < len(sheets):
        return []
    first = fitting[0]
    if any(each.shape != first.shape or not np.array_equal(each[:, 0], first[:, 0]) for each in fitting[1:]):
        return []
    labels = [label for label, _ in sheets]
    return [
        [
            _picture("original", first[row, 0]),
            *(_picture(label, each[row, 1]) for label, each in zip(labels, fitting, strict=True)),
        ]
        for row in range(len(first))
    ]


def pairs(png: bytes, side: int) -> NDArray[np.uint8] | None:
    """The pictures of a sheet one by one, each original with its reconstruction.

    Args:
        png: the sheet; what is left of its last row is white, and comes last.
        side: pixels of one picture.

    Returns:
        (n, 2, h, w, c); None where the sheet is broken or of another layout.
    """
    pixels = _pixels(png)
    apart = None if pixels is None else _apart(pixels, side)
    return None if apart is None else rearrange(apart, "r two h (k w) c -> (r k) two h w c", w=side)


def joined(chosen: NDArray[np.uint8]) -> bytes:
    """The PNG of a sheet of one row, of pairs (k, 2, h, w, c) as `pairs` gives them."""
    held = io.BytesIO()
    Image.fromarray(rearrange(chosen, "k two h w c -> (two h) (k w) c")).save(held, "PNG")
    return held.getvalue()


def _pixels(png: bytes) -> NDArray[np.uint8] | None:
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as opened:
            return np.asarray(opened.convert("RGB"))
    except UNREADABLE:
        return None


def _apart(sheet: NDArray[np.uint8], side: int) -> NDArray[np.uint8] | None:
    """Rows of originals and of reconstructions: (r, 2, h, w, c)."""
    height, width, _ = sheet.shape
    if height % (2 * side) or width % side:
        return None
    found: NDArray[np.uint8] = rearrange(sheet, "(r two h) w c -> r two h w c", two=2, h=side)
    return found


def _picture(label: str, pixels: NDArray[np.uint8]) -> Picture:
    image = Image.fromarray(pixels)
    if image.width > WIDEST:
        image = image.resize((WIDEST, max(round(image.height * WIDEST / image.width), 1)), Image.Resampling.LANCZOS)
    data = _webp(image, lossless=True)
    if len(data) > LOSSLESS:
        data = _webp(image, quality=90)
    uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    return Picture(label=label, uri=uri, width=image.width, height=image.height)


def _webp(image: Image.Image, **options: int) -> bytes:
    held = io.BytesIO()
    image.save(held, "WEBP", **options)
    return held.getvalue()
