"""Images to train and to be judged on, split once and for all: bundled photographs, or pictures of one's own.

n images, h height, w width
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from vqvae import partition, photographs, sources
from vqvae.cache import Decoding, decoded
from vqvae.sources import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from vqvae.cache import Decoded
    from vqvae.config import DataConfig
    from vqvae.metrics import Pictures

__all__ = ["DataError", "Decoding", "Images", "Splits", "load"]


@dataclass(frozen=True)
class Images:
    """Some rows of an array of pictures, which may lie on disk."""

    pixels: Pictures
    """(all, h, w, 3), shared between the splits."""
    rows: NDArray[np.int64]
    """(n) rows of `pixels`."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (b, h, w, 3)."""
        return self.pixels[self.rows[index]]


@dataclass(frozen=True, kw_only=True)
class Splits:
    """What trains, what selects, what reports."""

    train: Images
    validation: Images
    test: Images
    """Never read by a search: what finalists are judged on."""
    skipped: tuple[str, ...] = ()
    """Files that could not be read, each with the reason."""
    small: int = 0
    """Pictures left out because a side is below the resolution (data.small: skip)."""
    near_duplicates: int = 0
    """Pictures that are near-duplicates of an earlier one; they are counted whatever data.group_by says."""


def load(config: DataConfig, tell: Callable[[Decoding], None] | None = None) -> Splits:
    """The images of a config, the same split on every machine.

    The bundled photographs come split by photograph and prove the plumbing, not rankings. Other pictures are decoded
    once into a cache (`vqvae.cache`); data.splits lists their splits, or data.group_by says what stays together.

    Args:
        config: all of it is read but the augmentation.
        tell: called about once a second while pictures are decoded, by this process or by another one.

    Raises:
        DataError: no pictures there, too few of them, a line of data.splits that is wrong, no room for the cache, a
            package that is not installed.
    """
    if config.source == "photographs":
        sources.require(config)
        parts = {
            name: Images(part, np.arange(len(part))) for name, part in photographs.crops(config.resolution).items()
        }
        train = _some(parts["train"], config.images)
        return Splits(train=train, validation=parts["validation"], test=parts["test"])
    if config.source == "huggingface" and config.group_by == "folder" and not config.splits:
        raise DataError(
            "data.group_by: must be near-duplicates or file, since the pictures of a Hugging Face data set lie in no "
            "folders, but got 'folder'"
        )
    source = sources.find(config)
    found = decoded(source, config, tell)
    rows = _rows(found, config, source.place)
    parts = {name: Images(found.pixels, part) for name, part in rows.items()}
    within = source.place if config.source == "folder" else ""
    return Splits(
        train=_some(parts["train"], config.images),
        validation=parts["validation"],
        test=parts["test"],
        skipped=tuple(f"{PurePosixPath(within, name)}: {reason}" for name, reason in found.unread.items()),
        small=len(found.small),
        near_duplicates=int((found.group != np.arange(len(found.group))).sum()),
    )


def _some(images: Images, most: int) -> Images:
    """At most so many of them, in their order; fewer are among the more, since all are shuffled alike."""
    if not 0 < most < len(images):
        return images
    chosen = np.random.default_rng(0).permutation(len(images))[:most]
    return Images(images.pixels, images.rows[np.sort(chosen)])


def _rows(found: Decoded, config: DataConfig, place: str) -> dict[str, NDArray[np.int64]]:
    if config.splits:
        return partition.listed(Path(config.splits).expanduser(), found.names, {*found.unread, *found.small})
    if config.group_by == "near-duplicates":
        groups, kind = [found.names[first] for first in found.group], " that are no near-duplicates of each other"
    elif config.group_by == "folder":
        groups, kind = [PurePosixPath(name).parent.as_posix() for name in found.names], " in different folders"
    else:
        groups, kind = found.names, ""
    try:
        return partition.split(groups, config.validation_fraction, config.test_fraction)
    except ValueError as error:
        unusable = {
            "could not be read": len(found.unread),
            f"are smaller than {config.resolution} px": len(found.small),
        }
        aside = ", ".join(f"{count:,} {what}" for what, count in unusable.items() if count)
        aside = f" ({aside})" if aside else ""
        got = f" of {len(groups):,} (data.group_by)" if kind and len(groups) > len(set(groups)) else ""
        problem = str(error).replace(" for", f"{kind} for" if got else " for") + got
        raise DataError(f"{place}: too few pictures{aside}: {problem}") from None
