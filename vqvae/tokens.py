"""Pictures to tokens: a folder as indices of a trained model's codes, for whoever models them.

    tokens = numpy.load("tokens.npz")
    indices = torch.from_numpy(tokens["indices"][:16].astype("int64"))
    images = vqvae.load("my-model").decode(indices)

n pictures, h height, w width, y and x rows and columns of tokens
"""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from vqvae import cache, pictures, sources
from vqvae.config import VqvaeError
from vqvae.conversion import to_dict
from vqvae.data import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from vqvae.config import DataConfig, TrainConfig
    from vqvae.model import VQVAE


class TokensError(VqvaeError):
    """Tokens that can't be made or written."""


class Written(NamedTuple):
    """What became of a folder."""

    tokens: tuple[int, int, int]
    """The shape (n, y, x) of the indices."""
    kind: str
    """The type of an index: uint8, uint16 or uint32, the smallest that holds the codebook."""
    left_out: tuple[str, ...]
    """Pictures that could not be read, each with the reason."""


def write(
    model: VQVAE,
    config: TrainConfig,
    folder: Path,
    target: Path,
    *,
    batch_size: int = 16,
    split: str = "",
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> Written:
    """Encodes every picture below a folder, or those of a split, made square as the model's training did it (data.fit).

    The file holds, and `numpy.load` gives without unpickling anything: indices (n, y, x), uint8, uint16 or uint32; the
    pictures' names (n), their paths in the folder, in the order of which they stand; codebook_size, resolution, patch;
    and config, the model's, as JSON. It appears whole or not at all. Memory is taken by the indices and by two batches
    of pictures.

    Args:
        model: a trained one, on the device that it is to run on.
        config: the model's.
        folder: searched in depth for picture files.
        target: a file that does not exist yet.
        batch_size: pictures at once.
        split: train, validation or test: only the pictures that the model's config puts there. Splits depend on names,
            so this is the model's own one if the folder holds what the model was trained on, wherever it lies now.
        tell: called with the number of pictures done, and of all, after every batch.

    Raises:
        DataError: no such folder, none with pictures, or too few for splits.
        TokensError: `target` is there, or can't be written; or no picture could be read.
    """
    data = dataclasses.replace(config.data, source="folder", path=str(folder))
    files = list(sources.find(data).pictures())
    if split:
        chosen = _names(data, split)
        files = [(name, file) for name, file in files if name in chosen]
        if not files:
            raise TokensError(f"{folder}: its split {split} is empty; expected one with pictures")
    size = model.quantizer.codebook_size
    indices = np.empty((len(files), model.rows, model.rows), np.min_scalar_type(size - 1))
    device = next(model.parameters()).device
    names: list[str] = []
    left_out: list[str] = []
    with _appearing(target) as file:
        done = 0
        for batch in _batches(files, data, batch_size):
            squares = [square for _, square in batch if not isinstance(square, str)]
            left_out += [f"{folder / name}: {square}" for name, square in batch if isinstance(square, str)]
            if squares:
                images = pictures.to_images(np.stack(squares)).to(device)
                indices[len(names) : len(names) + len(squares)] = model.encode(images).cpu().numpy()
            names += [name for name, square in batch if not isinstance(square, str)]
            done += len(batch)
            tell(done, len(files))
        if not names:
            raise TokensError(f"{folder}: none of its {len(files)} pictures can be read, {left_out[0]}")
        np.savez(
            file,
            indices=indices[: len(names)],
            names=np.array(names),
            codebook_size=size,
            resolution=model.resolution,
            patch=config.model.patch,
            config=json.dumps(to_dict(config)),
        )
    return Written((len(names), model.rows, model.rows), indices.dtype.name, tuple(left_out))


def _names(data: DataConfig, split: str) -> set[str]:
    """The pictures of a split; they are decoded into the cache of training if they are not there."""
    known = cache.decoded(sources.find(data), data).names
    splits = load(data)
    images = {"train": splits.train, "validation": splits.validation, "test": splits.test}[split]
    return {known[row] for row in images.rows}


def _batches(
    files: list[tuple[str, Path | bytes]], data: DataConfig, batch_size: int
) -> Iterator[list[tuple[str, NDArray[np.uint8] | str]]]:
    """Names and squares, or why there is none; while a batch is worked on, the next one is decoded."""
    chunks = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes without the GIL
        ahead = pool.map(partial(_square, data), chunks[0])
        for following in [*chunks[1:], []]:
            here, ahead = list(ahead), pool.map(partial(_square, data), following)
            yield here


def _square(data: DataConfig, picture: tuple[str, Path | bytes]) -> tuple[str, NDArray[np.uint8] | str]:
    name, file = picture
    assert not isinstance(file, bytes), "a folder gives paths"
    try:
        opened = pictures.read(file, 0 if data.fit == "crop" else data.resolution)
        return name, pictures.fit(opened, data.resolution, data.fit)
    except pictures.UNREADABLE as error:
        words = getattr(error, "strerror", None) or str(error).replace(f" {str(file)!r}", "")
        return name, words or type(error).__name__


@contextmanager
def _appearing(target: Path) -> Iterator[IO[bytes]]:
    """A file beside `target` to write into, which takes its place at the end."""
    if target.exists():
        raise TokensError(f"{target}: there already; expected a new file")
    partial_file = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_file.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial_file.rename(target)
    except OSError as error:
        raise TokensError(f"{target}: can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial_file.unlink()
