"""What every quantizer gives and is, gradients past the choice of a code, and the search for the nearest one.

Axes: b images, n tokens, d dimensions of a code, K codes, m vectors (m = b n).

[1] Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for Conditional
    Computation"
[2] Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick"
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.processes import ALONE, Processes

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
    processes: Processes = ALONE
    """Those that train together; what depends on more than one image at once is taken over all of them."""

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


def straight_through(vectors: Tensor, codes: Tensor) -> Tensor:
    """The codes, bit for bit, with the gradient of the vectors [1].

    Args:
        vectors: finite, of any shape.
        codes: of the same shape; their own gradient is kept too, so they are detached where they learn otherwise.
    """
    # The difference is exactly zero. The usual vectors + (codes - vectors) rounds, and is not what decode gives.
    return codes + (vectors - vectors.detach())


def rotated(vectors: Tensor, codes: Tensor) -> Tensor:
    """The codes, bit for bit, whose gradient is rotated and rescaled on its way to the vectors [2, eq. 4].

    The linear map that takes each vector e to its code q, lambda R with lambda = |q| / |e| and
    R = I - 2 r r^T + 2 q^ e^^T, r = (e^ + q^) / |e^ + q^|, is a constant to the backward pass; hats are unit vectors.

    Args:
        vectors: (..., d), finite.
        codes: (..., d), without gradient.
    """
    lengths = vectors.detach().norm(dim=-1, keepdim=True), codes.norm(dim=-1, keepdim=True)
    e, q = F.normalize(vectors.detach(), dim=-1), F.normalize(codes, dim=-1)
    r = F.normalize(e + q, dim=-1)
    scale = lengths[1] / lengths[0].clamp(min=1e-6)  # a vector of no length has no direction to be rotated from
    along_r, along_e = ((vectors * axis).sum(-1, keepdim=True) for axis in (r, e))
    return straight_through(scale * (vectors - 2 * along_r * r + 2 * along_e * q), codes)


def step_generator(step: int, seed: int, device: torch.device) -> torch.Generator:
    """Random numbers of a quantizer that are a function of the run's seed and of the optimizer step alone."""
    # The last number keeps this stream apart from that of the augmentation, which is drawn from the first two.
    words = np.random.SeedSequence([seed, step, 1]).generate_state(1)
    return torch.Generator(device).manual_seed(int(words[0]))


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
    with full_precision():
        for start in range(0, len(vectors), rows):
            part = vectors[start : start + rows]
            torch.addmm(offset, part, codebook.T, out=products[: len(part)])  # autocast leaves alone what has an out
            indices[start : start + rows] = products[: len(part)].max(1).indices
    return indices


@contextmanager
def full_precision() -> Iterator[None]:
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
