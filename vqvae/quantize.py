"""Quantizers: from vectors to code indices and back.

Axes: b images, n tokens, d dimensions of a code, K codes, m vectors (m = b n).

A quantizer is an `nn.Module` with the shape of `Quantizer`; `vqvae.model.VQVAE` owns the projections
between the width of its tokens and d.

[1] van den Oord et al. 2017, "Neural Discrete Representation Learning"
[2] Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN"
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.config import QuantizerConfig

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


class Quantizer(Protocol):
    """What the model needs of a quantizer, which is an `nn.Module` too."""

    code_dim: int
    """Dimensions d of the vectors that it takes and gives."""
    codebook_size: int
    """Number K of codes."""

    def __call__(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to codes; in float32."""

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""


class VectorQuantizer(nn.Module):
    """The nearest of K learned codes, on the unit sphere [2, section 3.2] or in plain space [1, section 3.1].

    The codebook learns by the gradient of its own term; the gradient of the decoder passes straight through.
    """

    beta: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.code_dim = config.code_dim
        self.codebook_size = config.codebook_size
        self.l2_normalize = config.l2_normalize
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.code_dim))
        nn.init.normal_(self.codebook, std=config.code_dim**-0.5)
        # A tensor, so that compiled code is not compiled again for another value.
        self.register_buffer("beta", torch.tensor(config.beta), persistent=False)

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to their codes; in float32."""
        vectors = self._on_sphere(vectors)
        with torch.no_grad():
            indices = nearest_codes(vectors.flatten(0, 1), self._on_sphere(self.codebook)).view(vectors.shape[:2])
        codes = self.decode(indices)
        losses = {  # [1, eq. 3]
            "codebook": F.mse_loss(codes, vectors.detach()),
            "commitment": self.beta * F.mse_loss(vectors, codes.detach()),
        }
        # Written so that the sum is exactly the code, as decode(indices) gives it.
        return Quantized(codes.detach() + (vectors - vectors.detach()), indices, losses)

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        return self._on_sphere(F.embedding(indices, self.codebook))

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.l2_normalize else vectors


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


QUANTIZERS: dict[str, Callable[[QuantizerConfig], Quantizer]] = {"vq": VectorQuantizer}
"""Quantizers by the name that `quantizer.kind` gives; a plug-in adds its own."""
