"""Which picture trains, which selects, which reports: three splits that never divide a group.

n pictures
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vqvae.sources import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")


def split(groups: Sequence[str], validation_fraction: float, test_fraction: float) -> dict[str, NDArray[np.int64]]:
    """Rows of the splits train, validation and test.

    Groups are ranked by the hash of their name and never divided. The first ones test, the next ones validate, until
    their part of the rows is reached; a group too large for what is left of it is passed over. So adding pictures moves
    few of the others.

    Args:
        groups: (n) the group of each row.
        validation_fraction: part of the rows that validate, at least one group.
        test_fraction: part of the rows that test, at least one group if above 0.

    Raises:
        ValueError: fewer groups than splits.
    """
    sizes = Counter(groups)
    ranked = sorted(sizes, key=lambda group: hashlib.sha256(os.fsencode(group)).digest())
    wanted = 3 if test_fraction else 2
    if len(ranked) < wanted:
        raise ValueError(f"expected at least {wanted} for its splits, but got {len(ranked)}")
    home = dict.fromkeys(ranked, "train")
    for name, fraction, kept in (("test", test_fraction, 2), ("validation", validation_fraction, 1)):
        if fraction:
            free = [group for group in ranked if home[group] == "train"]
            home |= dict.fromkeys(_first(free, sizes, round(len(groups) * fraction))[: len(free) - kept], name)
    homes = np.array([SPLITS.index(home[group]) for group in groups])
    return {name: np.flatnonzero(homes == index) for index, name in enumerate(SPLITS)}


def _first(ranked: Sequence[str], sizes: Counter[str], rows: int) -> list[str]:
    """The first groups that fit into so many rows together, or else the smallest one."""
    chosen = []
    for group in ranked:
        if sizes[group] <= rows:
            chosen.append(group)
            rows -= sizes[group]
    return chosen or [min(ranked, key=lambda group: sizes[group])]


def listed(file: Path, names: Sequence[str], skipped: Collection[str]) -> dict[str, NDArray[np.int64]]:
    """Rows of the splits as a file lists them: lines "train|validation|test NAME"; what is not listed trains.

    Empty lines, and those that start with "#", say nothing.

    Args:
        file: the list.
        names: (n) the name of each row.
        skipped: names that have no row, since they could not be used; they may be listed all the same.

    Raises:
        DataError: a line that is no such line, lists an unknown name, or lists one again; or a split without pictures.
    """
    try:
        lines = file.read_bytes().decode(errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}; expected a list of splits (data.splits)") from error
    rows = {name: row for row, name in enumerate(names)}
    homes = np.zeros(len(names), dtype=np.int64)
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        home, _, name = line.partition(" ")
        name = name.strip()
        if home not in SPLITS or not name:
            raise DataError(f'{file}:{number}: expected "train|validation|test NAME", but got {line!r}')
        if name in seen:
            raise DataError(f"{file}:{number}: {name} is listed already, in line {seen[name]}; expected it once")
        if name not in rows and name not in skipped:
            example = f", such as {names[0]}" if names else ""
            raise DataError(f"{file}:{number}: no picture {name}; expected the name of one{example}")
        seen[name] = number
        if name in rows:
            homes[rows[name]] = SPLITS.index(home)
    parts = {name: np.flatnonzero(homes == index) for index, name in enumerate(SPLITS)}
    for name in ("train", "validation"):
        if not len(parts[name]):
            raise DataError(f"{file}: leaves no picture in {name}; expected at least one")
    return parts
