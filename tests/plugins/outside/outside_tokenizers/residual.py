"""A quantizer that adds up codes of several small codebooks (Lee et al. 2022, "Residual Quantization", section 3.1).

Axes: b images, n tokens, d dimensions of a code, m vectors (m = b n), s stages, k codes of a stage.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vqvae
from vqvae.codes import Quantized, Quantizer, nearest_codes, straight_through
from vqvae.config import QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """What `quantizer.options` holds for this quantizer."""

    stages: int = 2
    """Codebooks; each one quantizes what those before it have left."""
    codes: int = 8
    """Codes of each; all of them together make codes^stages."""

    def __post_init__(self) -> None:
        if self.stages < 1 or self.codes < 2:
            raise ValueError(f"stages and codes must be at least 1 and 2, but got {self.stages} and {self.codes}")
        if self.codes**self.stages > 2**24:
            raise ValueError(f"codes^stages must be at most {2**24}, but got {self.codes**self.stages}")


@vqvae.register("quantizer", "residual", config=ResidualConfig)
class ResidualQuantizer(Quantizer):
    """A sum of nearest codes; the first stage is the fastest digit of an index."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.stages, self.codes = config.options.stages, config.options.codes
        self.code_dim, self.codebook_size = config.code_dim, self.codes**self.stages
        self.beta = config.beta
        self.codebooks = nn.Parameter(torch.empty(self.stages, self.codes, config.code_dim))
        with torch.no_grad():  # each stage has less left to say than the one before
            for stage, codebook in enumerate(self.codebooks):
                nn.init.normal_(codebook, std=config.code_dim**-0.5 / 2**stage)

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to their codes; in float32. Losses: codebook, and commitment, times beta."""
        left, indices = vectors.detach(), torch.zeros(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
        for stage, codebook in enumerate(self.codebooks):
            digits = nearest_codes(left.flatten(0, 1), codebook).view(indices.shape)
            left = left - F.embedding(digits, codebook.detach())
            indices = indices + digits * self.codes**stage
        codes = self.decode(indices)
        losses = {
            "codebook": F.mse_loss(codes, vectors.detach()),
            "commitment": self.beta * F.mse_loss(vectors, codes.detach()),
        }
        return Quantized(straight_through(vectors, codes.detach()), indices, losses)

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        stages = enumerate(self.codebooks)
        parts = [F.embedding(indices // self.codes**stage % self.codes, codebook) for stage, codebook in stages]
        return torch.stack(parts).sum(0)

    def fast_parameters(self) -> list[nn.Parameter]:
        """The codebooks."""
        return [self.codebooks]
