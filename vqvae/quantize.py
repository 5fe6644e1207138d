"""Quantizers: from vectors to code indices and back.

Axes: b images, n tokens, d dimensions of a code, K codes.

[1] van den Oord et al. 2017, "Neural Discrete Representation Learning"
[2] Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN"
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.codes import Quantized, Quantizer, nearest_codes
from vqvae.config import QuantizerConfig


class VectorQuantizer(Quantizer):
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


QUANTIZERS: dict[str, Callable[[QuantizerConfig], Quantizer]] = {"vq": VectorQuantizer}
"""Quantizers by the name that `quantizer.kind` gives; a plug-in adds its own."""
