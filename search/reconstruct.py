"""What a model makes of pictures: a sheet for each, and the numbers.

h, w height and width of a picture, y, x rows and columns of its tokens
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from torch.nn import functional

from search import progress, trainer, units
from search.errors import UserError, writing
from search.text import one_line
from vqvae import checkpoint, metrics, pictures, sources
from vqvae.config import DataConfig
from vqvae.perceptual import LPIPS
from vqvae.weights import RANDOM, TRUNKS, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from vqvae.model import VQVAE

SUFFIX = ".reconstruction.png"
"""How the names of sheets end; a folder's pictures of such names are passed over."""

TILES = 16
"""Tiles that go through the model at once."""

LEAST_FOR_LPIPS = 31
"""Pixels along the shorter side, below which AlexNet's last layers have nothing left."""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """What became of a picture.

    Attributes:
        path: of the picture.
        sheet: of what was made of it.
        width, height: pixels.
        metrics: psnr (dB), ssim, and the lpips if it was measured.
        tokens: that touch the picture.
        distinct: codes among them.
        codes: of the model.
    """

    path: Path
    sheet: Path
    width: int
    height: int
    metrics: Mapping[str, float]
    tokens: int
    distinct: int
    codes: int

    def line(self) -> str:
        """It in a line for people."""
        used = f"{self.distinct:,} of {self.codes:,} codes"
        return one_line(f"{self.path} -> {self.sheet}  {self.width} x {self.height}, {said(self.metrics)}, {used}")

    def as_json(self) -> dict[str, Any]:
        """It for programs; lpips is null where it was not measured, and the one of a random trunk has its own name."""
        return {
            "path": str(self.path),
            "sheet": str(self.sheet),
            "width": self.width,
            "height": self.height,
            "lpips": self.metrics.get("lpips_alex"),
            **{name: value for name, value in self.metrics.items() if name != "lpips_alex"},
            "tokens": self.tokens,
            "distinct_codes": self.distinct,
            "codebook_size": self.codes,
        }


def reconstruct(
    model: Path, images: Sequence[Path], target: Path, trunk: str = "", say: Callable[[str], None] = lambda _: None
) -> Iterator[Reconstruction]:
    """Encode and decode pictures, and make a sheet of each, NAME.reconstruction.png.

    A sheet shows the original, the reconstruction, their difference and the codes.

    Args:
        model: an exported model, or a checkpoint.
        images: pictures of any size, each cut into tiles of the model's resolution, so that it keeps its own; of
            folders all pictures below them, which keep their paths.
        target: folder of the sheets.
        trunk: file of LPIPS's weights, or random; "" takes the model's own, else torch.hub's, else goes without.
        say: takes lines: what is left out, and why.

    Yields:
        What became of each picture, once its sheet is written.

    Raises:
        CheckpointError: no model there.
        DataError: a folder without pictures.
        UserError: a picture that can't be read, unless it was found in a folder; two of one name; or `trunk` is no
            file of these weights.
        OutputError: `target` can't be written.
    """
    trainer.require_our_model(model, "vqsearch reconstruct shows")
    places = _places(images, target)
    network = checkpoint.load(model)
    named = {image for image in images if not os.path.isdir(image)}
    for image in named:
        _read(image)  # before anything is written
    lpips = _lpips(trunk or _own_trunk(model), trunk, say)
    left_out = []
    for sheet, image in places.items():
        try:
            original = _read(image)
        except UserError as error:
            if image in named:
                raise
            left_out.append(str(error))
            continue
        if lpips and min(original.shape[2:]) < LEAST_FOR_LPIPS:
            say(one_line(f"LPIPS is left out of {image}: it is smaller than {LEAST_FOR_LPIPS} px"))
        yield _reconstruct(network, image, original, sheet, lpips)
    if left_out and len(left_out) == len(places):
        raise UserError(f"none of {len(left_out)} pictures can be read: {left_out[0]}")
    for line in progress.left_out(left_out):
        say(one_line(line))


def said(values: Mapping[str, float]) -> str:
    """Metrics in a line: ``PSNR 24.19 dB, SSIM 0.7234``."""
    return ", ".join(f"{units.label(name)} {units.text(name, value)}" for name, value in values.items())


def in_tiles(network: VQVAE, image: Tensor) -> tuple[Tensor, Tensor]:
    """A picture of any size through a model, tile by tile.

    Args:
        network: a trained model.
        image: (1, 3, h, w) in [-1, 1]; what the last tiles lack is filled by repeating the edge.

    Returns:
        The reconstruction, (1, 3, h, w), and the indices of the codes of all tokens that touch the picture, (y, x).
    """
    side, (height, width) = network.resolution, image.shape[2:]
    padded = functional.pad(image, (0, -width % side, 0, -height % side), mode="replicate")
    tiles = rearrange(padded, "1 c (r h) (k w) -> (r k) c h w", h=side, w=side)
    with torch.inference_mode():
        parts = [network.encode(part) for part in torch.split(tiles, TILES)]
        decoded = torch.cat([network.decode(part) for part in parts])
    down = padded.shape[2] // side
    whole = rearrange(decoded, "(r k) c h w -> 1 c (r h) (k w)", r=down)
    indices = rearrange(torch.cat(parts), "(r k) y x -> (r y) (k x)", r=down)
    patch = side // network.rows
    return whole[:, :, :height, :width], indices[: -(-height // patch), : -(-width // patch)]


def _reconstruct(network: VQVAE, image: Path, original: Tensor, sheet: Path, lpips: LPIPS | None) -> Reconstruction:
    decoded, indices = in_tiles(network, original)
    decoded = decoded.clamp(-1, 1)
    measured = {"psnr": metrics.psnr(decoded, original).item(), "ssim": metrics.ssim(decoded, original).item()}
    if lpips and min(original.shape[2:]) >= LEAST_FOR_LPIPS:
        with torch.inference_mode():
            measured[lpips.name] = lpips(decoded, original).item()
    height, width = original.shape[2:]
    distinct, codes = len(np.unique(indices.numpy())), network.quantizer.codebook_size
    patch = network.resolution // network.rows
    panels = [
        pictures.to_pictures(original)[0],
        pictures.to_pictures(decoded)[0],
        pictures.difference(decoded, original)[0],
        pictures.code_map(indices.numpy(), patch)[:height, :width],
    ]
    captions = [
        (one_line(image.name), f"{width} x {height} px"),
        ("reconstruction", said(measured)),
        ("difference x 4", "of each color; black is equal"),
        ("codes", f"{indices.numel():,} tokens of {patch} x {patch} px, {distinct:,} of {codes:,} codes"),
    ]
    with writing(sheet.parent):
        sheet.parent.mkdir(parents=True, exist_ok=True)
        pictures.write(sheet, pictures.captioned(panels, captions))
    return Reconstruction(
        path=image,
        sheet=sheet,
        width=width,
        height=height,
        metrics=measured,
        tokens=indices.numel(),
        distinct=distinct,
        codes=codes,
    )


def _places(images: Sequence[Path], target: Path) -> dict[Path, Path]:
    """The sheet of each picture -> the picture."""
    places: dict[Path, Path] = {}
    for image in images:
        found = [(image, Path(image.name))]
        if os.path.isdir(image):
            names = [name for name, _ in sources.folder(DataConfig(source="folder", path=str(image))).pictures()]
            found = [(image / name, Path(name)) for name in names if not name.endswith(SUFFIX)]
            if not found:
                raise UserError(f"{image}: nothing in it but sheets of this command; expected pictures")
        for path, name in found:
            sheet = target / name.with_name(f"{name.stem}{SUFFIX}")
            if places.setdefault(sheet, path) != path:
                raise UserError(f"{places[sheet]} and {path}: both would become {sheet}; expected different names")
    return places


def _read(image: Path) -> Tensor:
    try:
        return pictures.to_images(np.asarray(pictures.read(image))[None])
    except pictures.UNREADABLE as error:
        words = getattr(error, "strerror", None) or str(error).replace(f" {str(image)!r}", "")
        raise UserError(f"{image}: this picture can't be read: {words or type(error).__name__}") from None


def _own_trunk(model: Path) -> str:
    """The file of LPIPS's weights that the model was judged with, if it is here."""
    file = checkpoint.load_config(model).evaluation.lpips_trunk
    return file if file != RANDOM and Path(file).expanduser().is_file() else ""


def _lpips(file: str, asked: str, say: Callable[[str], None]) -> LPIPS | None:
    try:
        return LPIPS("alex", file)
    except WeightsError as error:
        problem = str(error).split("; ")[0]
        if asked:
            expected = f"torchvision's {TRUNKS['alex'].file}, or no such flag to go without LPIPS"
            raise UserError(f"--lpips-trunk: {problem}; expected {expected}") from None
        say(one_line(f"LPIPS is left out: {problem}; --lpips-trunk FILE names another one"))
        return None
