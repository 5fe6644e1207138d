"""What every quantizer gives and is, and the search for the nearest code.

Axes: b images, n tokens, d dimensions of a code, K codes, m vectors (m = b n).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

_SEARCH_ELEMENTS = 2**22
"""Products held at once by `nearest_codes`: 16 MiB."""


class Quantized(NamedTuple):
    """What a quantizer makes of vectors (b, n, d)."""

    codes: Tensor
    """Codes (b, n, d), whose gradient passes on to the vectors; equal to `decode(indices)`."""
    indices: Tensor
    """Indices (b, n) of the codes, int64, 0 to K - 1."""
    losses: dict[str, Tensor]
    """Terms to be added to the training loss, by name; their weights are applied."""


class Quantizer(nn.Module):
    """Vectors to codes and back; `vqvae.model.VQVAE` owns the projections between the width of its tokens and d.

    What it learns by other means than gradients it keeps in buffers, so that checkpoints carry it, and changes in
    `end_step` alone, so that an optimizer step of many micro-batches counts once.
    """

    code_dim: int
    """Dimensions d of the vectors that it takes and gives."""
    codebook_size: int
    """Number K of codes."""

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to codes; called in float32, autocast being off."""
        raise NotImplementedError

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        raise NotImplementedError

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Called before the micro-batches of an optimizer step, and again if they have to be repeated.

        Args:
            step: from 1 to `steps`.
            steps: of the whole run, over which anything annealed is annealed.
            seed: of the run; random numbers are a function of it and of `step` alone, so that a resumed run
                draws the same ones.
        """

    def end_step(self) -> None:
        """Called once after each optimizer step."""

    def fast_parameters(self) -> list[nn.Parameter]:
        """Parameters whose learning rate `quantizer.lr_multiplier` scales: the codebook's own."""
        return []


@torch.no_grad()
def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the Euclidean nearest code of each vector, in float32 and never holding m x K products.

    Args:
        vectors: (m, d).
        codebook: (K, d).

    Returns:
        (m,), int64; the first of several equally near.
    """
    vectors, codebook = vectors.float(), codebook.float()
    # |v - c|^2 is least where v . c - |c|^2 / 2 is greatest.
    offset = codebook.square().sum(1) / -2
    rows = max(1, min(len(vectors), _SEARCH_ELEMENTS // len(codebook)))
    products = vectors.new_empty(rows, len(codebook))
    indices = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    with _full_precision():
        for start in range(0, len(vectors), rows):
            part = vectors[start : start + rows]
            torch.addmm(offset, part, codebook.T, out=products[: len(part)])  # autocast leaves alone what has an out
            indices[start : start + rows] = products[: len(part)].max(1).indices
    return indices


@contextmanager
def _full_precision() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products, whatever the trainer chose for the rest.

    torch keeps this choice twice, and raises where a getter of the older kind finds that the two differ: both are set.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # they differ already
        older = None
    torch.set_float32_matmul_precision("highest")  # sets the backends too
    try:
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older)
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
