"""Near-duplicates: a perceptual hash of each picture, and the groups of pictures whose hashes are close.

The hash is a difference hash ("dHash", Krawetz 2013, "Kind of Like That") with a dead zone. Each pair of neighboring
cells, across and down, of 8 x 8 cells gives two bits: brighter by more than `MARGIN`, darker by more than `MARGIN`. The
dead zone keeps the noise of flat areas out of it.

n pictures, h height, w width, c = 3 colors, u different hashes
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELLS = 8
"""Cells along each side; a hash has 2 directions x 2 signs x 8 x 8 = 256 bits."""

MARGIN = 2
"""Gray levels by which neighboring cells have to differ for a bit to be set."""

DISTANCE = 12
"""Bits in which the hashes of near-duplicates differ at most. Of 648 crops, 256 pixels wide, of the bundled photographs
no two come closer, while 99.8 % of their copies as JPEG of quality 75 do, and all copies of half the size."""

LEAST_BITS = 24
"""A hash with fewer bits set says too little: such a picture (one color, a night sky) is a duplicate only of equals."""

BANDS = DISTANCE + 1
"""Hashes that differ in at most `DISTANCE` bits agree in one of so many bands, so only those are compared."""

WORDS = 20
"""Of 16 bits each in a hash: 16 of its bits, 4 of an exact digest."""

FLUSH = 2**22
"""Pairs that are held before groups are joined."""

TILE = 2048
"""Rows, and columns, of a product of hashes."""

_ONES = np.array([value.bit_count() for value in range(2**16)], dtype=np.uint8)


def perceptual_hash(pixels: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """The hash of a picture; independent of its resolution, but for rounding.

    Args:
        pixels: (h, w, 3).

    Returns:
        uint16 (20): 256 bits, then a 64-bit digest of the pixels where those say too little, else zeros.
    """
    gray = Image.fromarray(pixels).convert("L")
    across, down = (
        np.diff(np.asarray(gray.resize(size, Image.Resampling.BOX), dtype=np.int16), axis=axis).ravel()
        for size, axis in (((CELLS + 1, CELLS), 1), ((CELLS, CELLS + 1), 0))
    )
    bits = np.concatenate([difference > MARGIN for difference in (across, -across, down, -down)])
    exact = hashlib.blake2b(pixels.tobytes(), digest_size=8).digest() if bits.sum() < LEAST_BITS else bytes(8)
    return np.frombuffer(np.packbits(bits).tobytes() + exact, dtype=np.uint16)


def group(hashes: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Joins pictures that are near-duplicates, also by way of others.

    Args:
        hashes: uint16 (n, 20), see `perceptual_hash`.

    Returns:
        int64 (n): for each row the first row of its group.
    """
    if not len(hashes):
        return np.zeros(0, dtype=np.int64)
    different, first, member_of = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    structured = np.flatnonzero(~different[:, 16:].any(1))
    label = np.arange(len(different))
    label[structured] = structured[_joined(np.ascontiguousarray(different[structured, :16]))]
    smallest = np.full(len(different), len(hashes))
    np.minimum.at(smallest, label, first)
    groups: NDArray[np.int64] = smallest[label][member_of.ravel()]
    return groups


def _joined(hashes: NDArray[np.uint16]) -> NDArray[np.int64]:
    """For each of u different hashes (u, 16), a row that stands for its group."""
    found = _Groups(hashes)
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    allowed = len(hashes) ** 2 // 64  # one pair costs about ten times as much here as in a matrix product
    for band in range(BANDS):  # strided, so that a flat corner of the pictures does not fill a band
        part = bits[:, band::BANDS]
        keys = part @ (1 << np.arange(part.shape[1], dtype=np.int64))
        order = np.argsort(keys, kind="stable")
        allowed -= found.compare_within(order, keys[order], allowed)
        if allowed < 0:
            found.compare_all(bits)
            break
    return found.of


class _Groups:
    """Groups that grow as pairs are found."""

    def __init__(self, hashes: NDArray[np.uint16]) -> None:
        self.hashes = hashes
        self.of = np.arange(len(hashes))
        """(u) a row that stands for the group of each row."""
        self.pairs: list[NDArray[np.int64]] = []
        self.held = 0

    def compare_within(self, order: NDArray[np.int64], keys: NDArray[np.int64], allowed: int) -> int:
        """Joins close hashes of one key; returns the number of pairs compared, and ends early once it is too many.

        Each row is compared with the one 1, 2, 3, ... places behind it while the keys agree. Runs of one key that are
        one group already are left out, so that a video of thousands of frames does not cost millions of pairs.

        Args:
            order: (u) rows in the order of keys.
            keys: (u) their keys.
            allowed: number of pairs that may be compared.
        """
        left, apart, compared = np.arange(len(order)), 1, 0
        while len(left) and compared <= allowed:
            left = left[left + apart < len(order)]
            left = left[keys[left] == keys[left + apart]]
            one, other = order[left], order[left + apart]
            foreign = self.of[one] != self.of[other]
            one, other = one[foreign], other[foreign]
            for start in range(0, len(one), 2**16):
                rows, others = one[start : start + 2**16], other[start : start + 2**16]
                near = _ONES[self.hashes[rows] ^ self.hashes[others]].sum(1, dtype=np.int64) <= DISTANCE
                self._hold(rows[near], others[near])
            compared += len(one)
            if apart.bit_count() == 1:
                self._join()
                left = left[_unsettled(keys, self.of[order])[left]]
            apart += 1
        self._join()
        return compared

    def compare_all(self, bits: NDArray[np.uint8]) -> None:
        """Joins close hashes by products of all pairs, for pictures so alike that the bands do not part them.

        Args:
            bits: (u, 256), 0 or 1.
        """
        signs = bits.astype(np.float32) * 2 - 1  # the product of two is 256 - 2 x their distance
        for top in range(0, len(signs), TILE):
            for left in range(top, len(signs), TILE):
                near = signs[top : top + TILE] @ signs[left : left + TILE].T >= bits.shape[1] - 2 * DISTANCE
                row, column = np.divmod(np.flatnonzero(near), near.shape[1])
                one, other = row + top, column + left
                foreign = self.of[one] != self.of[other]
                self._hold(one[foreign], other[foreign])
        self._join()

    def _hold(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        self.pairs.append(np.stack([one, other]))
        self.held += len(one)
        if self.held > FLUSH:
            self._join()

    def _join(self) -> None:
        """Groups of the pairs held so far."""
        if self.held:
            count = len(self.of)
            one, other = self.of[np.concatenate(self.pairs, axis=1)]
            graph = coo_array((np.ones(len(one), dtype=bool), (one, other)), shape=(count, count))
            _, component = connected_components(graph, directed=False)
            stands_for = np.full(count, count)
            np.minimum.at(stands_for, component, np.arange(count))
            self.of = stands_for[component][self.of]
        self.pairs, self.held = [], 0


def _unsettled(keys: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the run of equal keys around each place holds more than one group."""
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    several = np.minimum.reduceat(groups, starts) != np.maximum.reduceat(groups, starts)
    unsettled: NDArray[np.bool_] = np.repeat(several, np.diff(starts, append=len(keys)))
    return unsettled
