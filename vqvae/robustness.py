"""Codes with errors, as a generator of codes makes them: what the perturbed metrics look at.

Reconstruction can improve while generation gets worse, where the decoder does not bear the slightest wrong code.
Qiu et al. 2025, "Robust Latent Matters" (arXiv 2503.08354), replace a part of an image's codes by near neighbors in
the codebook and measure the Frechet distance of the result (pFID). Here LPIPS takes the place of that distance, since
it needs few images.

b images, n tokens, d dimensions of a code, K codes, m distinct codes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vqvae.codes import full_precision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from vqvae.codes import Quantizer

NEIGHBORS = 4
"""A code is replaced by one of so many nearest other ones."""

DISTANCES = 2**30
"""Most distances of one evaluation: about three seconds on one CPU core."""

_DISTANCES_AT_ONCE = 2**22


def images_within_reach(codebook_size: int, tokens: int, fraction: float) -> int | None:
    """How many images can be perturbed with at most `DISTANCES` distances; None for any number.

    A code is searched for once, so up to 2^15 codes there is no bound; with 2^18 codes and a tenth of 1024 tokens it
    is 40 images.
    """
    if codebook_size**2 <= DISTANCES:
        return None
    return max(1, DISTANCES // (codebook_size * replaced(tokens, fraction)))


def replaced(tokens: int, fraction: float) -> int:
    """How many of an image's tokens are replaced: the nearest whole number, at least 1."""
    return max(1, round(tokens * fraction))


class Neighbors:
    """The nearest other codes of a quantizer, searched when they are first asked for.

    Args:
        quantizer: any; the distance is the Euclidean one of what it decodes codes to.
    """

    @torch.no_grad()
    def __init__(self, quantizer: Quantizer, device: torch.device) -> None:
        everything = torch.arange(quantizer.codebook_size, device=device)
        self._codes = quantizer.decode(everything[None])[0].float()  # (K, d)
        self._table = everything.new_full((len(everything), min(NEIGHBORS, len(everything) - 1)), -1)

    @property
    def count(self) -> int:
        """Neighbors of a code."""
        return self._table.shape[1]

    def of(self, codes: Tensor) -> Tensor:
        """The neighbors of codes (...), the nearest first: (..., count), int64; none of them the code itself."""
        distinct = torch.unique(codes)
        unknown = distinct[self._table[distinct, 0] < 0]
        # |a - b|^2 is least where a . b - |b|^2 / 2 is greatest.
        offset = self._codes.square().sum(1) / -2
        for part in unknown.split(max(1, _DISTANCES_AT_ONCE // len(self._codes))):
            with full_precision():
                nearness = torch.addmm(offset, self._codes[part], self._codes.T)  # (m, K)
            nearness.scatter_(1, part[:, None], -torch.inf)
            self._table[part] = nearness.topk(self.count).indices
        return self._table[codes]


def perturb(indices: Tensor, fraction: float, images: Sequence[int], neighbors: Neighbors) -> Tensor:
    """Replaces a part of each image's indices by near neighbors.

    Which tokens, and by which of their neighbors, is a function of the image's number alone.

    Args:
        indices: int64 (b, n).
        fraction: part of the tokens that are replaced, at least one token; 0 to 1.
        images: the b numbers of the images.
        neighbors: of the quantizer that gave the indices.

    Returns:
        int64 (b, n).
    """
    tokens = indices.shape[1]
    count = replaced(tokens, fraction)
    places, choices = [], []
    for image in images:
        generator = torch.Generator().manual_seed(image)
        places.append(torch.randperm(tokens, generator=generator)[:count])
        choices.append(torch.randint(neighbors.count, (count,), generator=generator))
    where, which = torch.stack(places).to(indices.device), torch.stack(choices).to(indices.device)
    nearby = neighbors.of(indices.gather(1, where)).gather(2, which[:, :, None]).squeeze(2)
    return indices.scatter(1, where, nearby)
