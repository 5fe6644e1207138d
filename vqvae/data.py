"""Images to train and to be judged on: bundled photographs or a folder, split once and for all.

A folder is decoded once into a memory-mapped file that all processes of a machine share.

n images, h height, w width, c = 3 colors, r k rows and columns of crops
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import numpy as np
from einops import rearrange
from PIL import Image

from vqvae import pictures
from vqvae.config import VqvaeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vqvae.config import DataConfig


class DataError(VqvaeError):
    """Images that are missing, too few, or cannot be cached."""


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


@dataclass(frozen=True)
class Images:
    """Some rows of an array of pictures, which may lie on disk."""

    pixels: NDArray[np.uint8]
    """(all, h, w, 3), shared between the splits."""
    rows: NDArray[np.int64]
    """(n) rows of `pixels`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (b, h, w, 3)."""
        return self.pixels[self.rows[index]]

    def spread(self, count: int) -> NDArray[np.uint8]:
        """At most `count` of them, evenly spaced; always the same ones. uint8 (count, h, w, 3)."""
        return self[np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What trains, what selects, what reports."""

    train: Images
    validation: Images
    test: Images
    """Never read by a search: what finalists are judged on."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read, each with the reason."""


def load(config: DataConfig) -> Splits:
    """The images of a config, the same split on every machine.

    The bundled photographs are cut into a grid of crops (at 64 pixels 987 train, 82 validate, 77 test); the test
    split is a photograph of its own, the left motorcycle of scikit-image's stereo pair. They prove the plumbing, not
    rankings.

    Raises:
        DataError: no such folder, too few images in it, no room for the cache, or a photograph not installed.
    """
    return _photographs(config.resolution) if config.source == "photographs" else _folder(config)


def _photographs(resolution: int) -> Splits:
    parts = {name: np.concatenate([_crops(file, resolution) for file in files]) for name, files in PHOTOGRAPHS.items()}
    images = {name: Images(pixels, np.arange(len(pixels))) for name, pixels in parts.items()}
    return Splits(train=images["train"], validation=images["validation"], test=images["test"])


def _crops(file: tuple[str, str], resolution: int) -> NDArray[np.uint8]:
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


def split(groups: Sequence[str], validation_fraction: float, test_fraction: float) -> dict[str, NDArray[np.int64]]:
    """Rows of the splits train, validation and test.

    Groups are ranked by the hash of their name and never divided, so adding images moves few of the others.

    Args:
        groups: the group of each row; rows of one group land in one split.
        validation_fraction: part of the groups that validate, at least one group.
        test_fraction: part of the groups that test, at least one group if above 0.

    Raises:
        ValueError: too few groups for these parts.
    """
    ranked = sorted(set(groups), key=lambda group: hashlib.sha256(os.fsencode(group)).digest())
    testing = max(1, round(len(ranked) * test_fraction)) if test_fraction else 0
    held_out = testing + max(1, round(len(ranked) * validation_fraction))
    if len(ranked) <= held_out:
        raise ValueError(f"expected at least {held_out + 1} for its splits, but got {len(ranked)}")
    home = dict.fromkeys(ranked, "train")
    home |= dict.fromkeys(ranked[:held_out], "validation")
    home |= dict.fromkeys(ranked[:testing], "test")
    homes = np.array([home[group] for group in groups])
    return {name: np.flatnonzero(homes == name) for name in ("train", "validation", "test")}


def _folder(config: DataConfig) -> Splits:
    folder = Path(config.path).expanduser()
    kinds = ", ".join(pictures.SUFFIXES)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with pictures ({kinds})")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in pictures.SUFFIXES and path.is_file())
    if not files:
        raise DataError(f"{folder}: no pictures in it; expected files ending in {kinds}")
    names = [path.relative_to(folder).as_posix() for path in files]
    cache = _cached(folder, names, config)
    pixels = np.load(cache / "pixels.npy", mmap_mode="r")
    unread = json.loads((cache / "unread.json").read_text())
    kept = np.array([row for row, name in enumerate(names) if name not in unread], dtype=np.int64)
    groups = [names[row] for row in kept]  # one image, one group: near-duplicates are not looked for
    try:
        parts = split(groups, config.validation_fraction, config.test_fraction)
    except ValueError as error:
        aside = f" ({len(unread)} could not be read)" if unread else ""
        raise DataError(f"{folder}: too few pictures{aside}: {error}") from None
    skipped = tuple(f"{folder / name}: {reason}" for name, reason in unread.items())
    images = {name: Images(pixels, kept[rows]) for name, rows in parts.items()}
    return Splits(train=images["train"], validation=images["validation"], test=images["test"], skipped=skipped)


def _cached(folder: Path, names: Sequence[str], config: DataConfig) -> Path:
    """The folder with the decoded pictures, made if it is not there.

    Its name is the hash of what went in, it appears by one rename, and only the holder of the lock makes it: so
    processes that start together, or one that is killed half way, never leave or read half a cache.
    """
    stats = [(folder / name).stat() for name in names]
    described = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
    content = json.dumps([1, str(folder.resolve()), config.resolution, described])
    home = Path(config.cache or "~/.cache/vqsearch").expanduser()
    place = home / hashlib.sha256(content.encode()).hexdigest()[:24]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(place.with_suffix(".lock")):
            if not place.is_dir():
                partial = place.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                unread = _decode([folder / name for name in names], config.resolution, partial / "pixels.npy")
                (partial / "unread.json").write_text(json.dumps({names[row]: why for row, why in unread.items()}))
                partial.rename(place)
    except OSError as error:
        size = len(names) * config.resolution**2 * 3 / 2**20
        raise DataError(
            f"{home}: cannot hold the cache of decoded images ({size:.0f} MiB): {error.strerror or error}; "
            f"expected a folder with room (data.cache)"
        ) from error
    return place


def _decode(files: Sequence[Path], resolution: int, target: Path) -> dict[int, str]:
    """Writes the pictures into the rows of a .npy file; returns the rows that could not be read, with the reason."""
    shape = (len(files), resolution, resolution, 3)
    pixels = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    with target.open("r+b") as file:  # a full disk is an error here, and a fatal signal when a mapped page is written
        os.posix_fallocate(file.fileno(), 0, target.stat().st_size)

    def write(row: int) -> str:
        try:
            pixels[row] = pictures.fit(pictures.read(files[row], resolution), resolution)
        except pictures.UNREADABLE as error:
            return str(error).replace(f" {str(files[row])!r}", "") or type(error).__name__
        return ""

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes without the GIL
        reasons = list(pool.map(write, range(len(files))))
    pixels.flush()
    return {row: reason for row, reason in enumerate(reasons) if reason}
