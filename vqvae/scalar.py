"""Quantizers without a codebook: each dimension of a vector is rounded by itself.

Axes: b images, n tokens, d dimensions of a code, K codes, m vectors (m = b n), i and j codes of half the bits.

[1] Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple"
[2] Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation"
[3] Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization"
"""

import math

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from vqvae.codes import Quantized, Quantizer, full_precision, straight_through
from vqvae.config import QuantizerConfig
from vqvae.processes import ALONE, Processes

_BOUND_MARGIN = 1e-3
"""Relative width by which the bound reaches past the outermost levels, so that each has a finite vector."""


class FSQ(Quantizer):
    """Each dimension bounded and rounded to one of a few levels [1, section 3 and appendix A.1].

    Dimension i of a code has the values -floor(L/2) ... ceil(L/2) - 1, divided by floor(L/2), of its L levels; the
    first dimension is the fastest digit of an index. A code is computed from its levels as whole numbers alone, in
    `forward` as in `decode`, so that the two agree bit for bit. Rounding ends in a clamp to these values, so that
    an index is in range whatever the vector is.
    """

    levels: Tensor
    half_width: Tensor
    basis: Tensor
    reach: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.code_dim = len(config.levels)
        self.codebook_size = math.prod(config.levels)
        reach = [(level - 1) * (1 + _BOUND_MARGIN) / 2 for level in config.levels]
        offset = [0.0 if level % 2 else 0.5 for level in config.levels]
        # A vector of zero maps to the level 0. Of two levels 0 is the upper one, whose whole bin would lie beyond a
        # shift of 3.8: there zero is the border instead.
        shift = [0.0 if o >= r * 0.99 else math.atanh(o / r) for o, r in zip(offset, reach, strict=True)]
        basis = [math.prod(config.levels[:place]) for place in range(self.code_dim)]
        half_width = [level // 2 for level in config.levels]
        for name, values in {"levels": config.levels, "half_width": half_width, "basis": basis}.items():
            self.register_buffer(name, torch.tensor(values), persistent=False)
        for name, bounds in {"reach": reach, "offset": offset, "shift": shift}.items():
            self.register_buffer(name, torch.tensor(bounds), persistent=False)

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to their codes; in float32, since bfloat16 does not reach every code. No losses."""
        bounded = torch.tanh(vectors.float() + self.shift) * self.reach - self.offset
        digits = (bounded.detach().round().long() + self.half_width).clamp(min=0)
        digits = torch.minimum(digits, self.levels - 1)
        codes = self._codes(digits)
        return Quantized(straight_through(bounded / self.half_width, codes), (digits * self.basis).sum(-1), {})

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        return self._codes(rearrange(indices, "b n -> b n 1") // self.basis % self.levels)

    def _codes(self, digits: Tensor) -> Tensor:
        return (digits - self.half_width).float() / self.half_width


class _Binary(Quantizer):
    """What LFQ and BSQ share: one bit a dimension, its sign, and the terms of the loss.

    The first dimension is the lowest bit of an index [2, eq. 4].
    """

    beta: Tensor
    entropy_weight: Tensor
    diversity: Tensor
    entropy_temperature: Tensor
    basis: Tensor

    def __init__(self, config: QuantizerConfig, *, spherical: bool) -> None:
        super().__init__()
        self.codebook_size = config.codebook_size
        self.code_dim = config.codebook_size.bit_length() - 1
        self.magnitude = self.code_dim**-0.5 if spherical else 1.0
        # Settings are tensors, so that compiled code is not compiled again for another value.
        for name in ("beta", "entropy_weight", "diversity", "entropy_temperature"):
            self.register_buffer(name, torch.tensor(getattr(config, name)), persistent=False)
        self.register_buffer("basis", 2 ** torch.arange(self.code_dim), persistent=False)

    def _quantize(self, vectors: Tensor) -> Quantized:
        """The nearest codes, and the losses: commitment, times beta, and entropy, times its weight.

        The entropy term looks at the soft assignment softmax(-|v - c|^2 / T) of a vector v to the codes c, which is
        that of [3] with tau = 2 / T; of its bits each is independently positive with the log-odds
        4 |c_d| v_d / T.
        """
        positive = vectors.detach() > 0
        codes = self._codes(positive)
        log_odds = rearrange(vectors, "b n d -> (b n) d") * (4 * self.magnitude / self.entropy_temperature)
        mean_entropy, entropy_of_mean = assignment_entropies(log_odds, self.processes)
        losses = {
            "commitment": self.beta * F.mse_loss(vectors, codes),
            "entropy": self.entropy_weight * (mean_entropy - self.diversity * entropy_of_mean),
        }
        return Quantized(straight_through(vectors, codes), (positive * self.basis).sum(-1), losses)

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        return self._codes(rearrange(indices, "b n -> b n 1") & self.basis != 0)

    def _codes(self, positive: Tensor) -> Tensor:
        return torch.where(positive, self.magnitude, -self.magnitude)


class LFQ(_Binary):
    """The signs of a vector, as codes of +-1 [2, section 3.1], with an entropy term [2, eq. 5]."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config, spherical=False)

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to their codes; in float32.

        Losses: commitment and entropy; the mean distribution of the latter is that of the micro-batches of all
        processes.
        """
        return self._quantize(vectors)


class BSQ(_Binary):
    """The signs of a vector on the unit sphere, as codes of +-1 / sqrt(d) [3], with an entropy term."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__(config, spherical=True)

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to their codes; in float32.

        Losses: commitment, on the sphere, and entropy; the mean distribution of the latter is that of the
        micro-batches of all processes.
        """
        return self._quantize(F.normalize(vectors, dim=-1))


def assignment_entropies(log_odds: Tensor, processes: Processes = ALONE) -> tuple[Tensor, Tensor]:
    """Entropies of soft assignments to all 2^d patterns of d independent bits: exact, never holding m x 2^d values.

    The entropy of one assignment is the sum of the entropies of its bits. The mean assignment does not factorize
    ([3] takes it to); but with the bits in two halves each assignment is the outer product of
    those of its halves, and the sum of outer products is one product of matrices, m x 2^(d/2) each.

    Args:
        log_odds: of each bit to be one (m, d).
        processes: those over whose vectors too the mean assignment is taken.

    Returns:
        The mean over m of the entropies, 0 to d log 2, and the entropy of the mean; in nats.
    """
    # -p log p - (1 - p) log(1 - p), finite also in its gradient where p is 0 or 1.
    bits = torch.sigmoid(log_odds) * F.softplus(-log_odds) + torch.sigmoid(-log_odds) * F.softplus(log_odds)
    lower, upper = (_assignment(half) for half in log_odds.tensor_split(2, dim=1))
    with full_precision():
        mean = processes.mean(einsum(lower, upper, "m i, m j -> i j") / len(log_odds))
    # Clamped inside the logarithm alone: p log p is 0 at 0, and its gradient stays finite.
    surprise = -mean.clamp(min=torch.finfo(mean.dtype).tiny).log()
    return bits.sum(1).mean(), (mean * surprise).sum()


def _assignment(log_odds: Tensor) -> Tensor:
    """The distribution (m, 2^d) over all patterns of a few bits."""
    bits = log_odds.shape[1]
    patterns = torch.arange(2**bits, device=log_odds.device)[:, None] >> torch.arange(bits, device=log_odds.device) & 1
    signs = 2.0 * patterns.to(log_odds.dtype) - 1
    with full_precision():
        logits = einsum(log_odds / 2, signs, "m d, i d -> m i")
    return logits.softmax(1)
