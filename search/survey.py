"""What lies in a folder of pictures, found in seconds: a sample of headers, and of it some pictures decoded."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vqvae import duplicates, pictures, sources
from vqvae.config import DataConfig
from vqvae.sources import DataError

HEADERS, DECODED = 2000, 512
"""Pictures of which the header is read, and those that are decoded too, at most."""

RUN = 16
"""Pictures in a row of the sorted names that are taken together: near-duplicates mostly lie side by side."""

SECONDS = 60.0
"""Wall seconds after which a slow folder has been looked at enough."""

TELL_EVERY_S = 5.0
"""Wall seconds between two lines that say how far it is."""

SMALL = 64
"""Pixels at which pictures are decoded here: enough for a perceptual hash."""

TURNED, SIDEWAYS = range(2, 9), range(5, 9)
"""Values of the EXIF tag that turn or mirror a picture, and those that swap its sides."""

ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found. Of a sample, but for total and folders."""

    place: str
    """Absolute path of the folder."""
    total: int
    """Files that are taken for pictures."""
    folders: tuple[int, ...]
    """Pictures in each folder that has any."""
    looked: int
    """Pictures whose header was read."""
    broken: int
    """Of them, those that can't be read."""
    decoded: int
    """Pictures that were decoded whole."""
    near_duplicates: int
    """Of them, those that are near-duplicates of an earlier one."""
    gray: int
    alpha: int
    turned: int
    """Turned or mirrored by their EXIF tag."""
    short_sides: tuple[int, ...]
    """Pixels, sorted, upright."""
    aspects: tuple[float, ...]
    """Long side / short side, sorted."""

    def short(self, part: float) -> int:
        """Short side in pixels that this part of the pictures stays below."""
        return int(np.quantile(self.short_sides, part, method="lower"))

    def aspect(self, part: float) -> float:
        """The same of the ratio of the sides."""
        return float(np.quantile(self.aspects, part))


def look(folder: str, tell: Callable[[str], None]) -> Survey:
    """Look at a folder, as training would find its pictures.

    Args:
        folder: searched in depth.
        tell: hears how far it is, every few seconds.

    Raises:
        DataError: no such folder, no pictures in it, or none that can be read.
    """
    root = Path(folder).expanduser().absolute()
    found = list(sources.folder(DataConfig(source="folder", path=str(root))).pictures())
    chosen = _sample(len(found), HEADERS)
    decode = {chosen[place] for place in _sample(len(chosen), DECODED)}
    kinds: Counter[str] = Counter()
    sizes: list[tuple[int, int]] = []
    hashes = []
    began = told = time.monotonic()
    for place in chosen:
        now = time.monotonic()
        if now > began + SECONDS:
            break
        if now > told + TELL_EVERY_S:
            told = now
            tell(f"looked at {kinds['looked']:,} of {len(chosen):,} pictures")
        kinds["looked"] += 1
        try:
            size, marks = _header(Path(found[place][1]))  # type: ignore[arg-type]
            if place in decode:
                hashes.append(_hash(Path(found[place][1])))  # type: ignore[arg-type]
        except pictures.UNREADABLE:
            kinds["broken"] += 1
            continue
        sizes.append(size)
        kinds.update(marks)
    if not sizes:
        raise DataError(f"{root}: none of {kinds['looked']:,} pictures can be read; expected whole ones")
    groups = duplicates.group(np.stack(hashes)) if hashes else np.zeros(0, np.int64)
    return Survey(
        place=str(root),
        total=len(found),
        folders=tuple(Counter(PurePosixPath(name).parent.as_posix() for name, _ in found).values()),
        looked=kinds["looked"],
        broken=kinds["broken"],
        decoded=len(hashes),
        near_duplicates=int((groups != np.arange(len(groups))).sum()),
        gray=kinds["gray"],
        alpha=kinds["alpha"],
        turned=kinds["turned"],
        short_sides=tuple(sorted(min(size) for size in sizes)),
        aspects=tuple(sorted(max(size) / min(size) for size in sizes)),
    )


def _sample(total: int, most: int) -> list[int]:
    """Places of all, or of runs that are spread over them."""
    if total <= most:
        return list(range(total))
    starts = np.linspace(0, total - RUN, most // RUN).astype(int)
    return sorted({place for start in starts.tolist() for place in range(start, start + RUN)})


def _header(file: Path) -> tuple[tuple[int, int], list[str]]:
    with warnings.catch_warnings(), Image.open(file) as opened:
        warnings.simplefilter("ignore")
        turn = opened.getexif().get(ORIENTATION, 1)
        width, height = opened.size
        marks = {
            "gray": opened.mode in ("1", "L", "LA", "La") or opened.mode.startswith("I"),
            "alpha": "transparency" in opened.info or opened.mode in ("RGBA", "RGBa", "LA", "La", "PA"),
            "turned": turn in TURNED,
        }
    size = (height, width) if turn in SIDEWAYS else (width, height)
    return size, [name for name, is_so in marks.items() if is_so]


def _hash(file: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return duplicates.perceptual_hash(pictures.fit(pictures.read(file, SMALL), SMALL))
