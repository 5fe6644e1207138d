"""The quantizer that draws its codes from a distribution and learns through a soft version of the draw.

Axes: b images, n tokens, d dimensions of a code, K codes.

[1] Jang et al. 2017, "Categorical Reparameterization with Gumbel-Softmax"
[2] Ramesh et al. 2021, "Zero-Shot Text-to-Image Generation"
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.codes import Quantized, Quantizer, full_precision, step_generator, straight_through
from vqvae.config import QuantizerConfig


class GumbelQuantizer(Quantizer):
    """A linear layer scores K codes for each vector; training draws one of them, evaluation takes the best.

    The draw is hard, with the gradient of the soft one (straight-through Gumbel-softmax [1, section 2.2]), so that the
    decoder sees nothing but codes, in training as later. Unlike every other quantizer it holds vectors x codes, and
    several times: at 16384 x 16384 a GiB each.
    """

    kl_weight: Tensor
    temperature: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.code_dim = config.code_dim
        self.codebook_size = config.codebook_size
        self.to_logits = nn.Linear(config.code_dim, config.codebook_size)
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.code_dim))
        nn.init.normal_(self.codebook, std=config.code_dim**-0.5)
        self.temperatures = config.temperature, config.final_temperature
        # Settings are tensors, so that compiled code is not compiled again for another value.
        self.register_buffer("temperature", torch.tensor(config.temperature), persistent=False)
        self.register_buffer("kl_weight", torch.tensor(config.kl_weight), persistent=False)
        self._generator: torch.Generator | None = None
        self._behind = 0

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to codes drawn for them, or, in evaluation mode, to the likeliest; in float32.

        Losses: kl, from the distribution of each vector's code to the uniform one, in nats, times its weight.
        """
        with full_precision():  # so that a code does not hang on the trainer's choice of TF32
            logits = self.to_logits(vectors)
        log_probabilities = logits.log_softmax(-1)
        divergence = (log_probabilities.exp() * log_probabilities).sum(-1).mean() + math.log(self.codebook_size)
        losses = {"kl": self.kl_weight * divergence}
        if not self.training:
            indices = logits.argmax(-1)
            return Quantized(self.decode(indices), indices, losses)
        # [1, eq. 1]: minus the logarithm of a draw from the exponential distribution is one from Gumbel's.
        waits = torch.empty_like(logits)
        for _ in range(self._behind + self.processes.rank + 1):  # past what the others draw, to what is its own
            waits.exponential_(generator=self._generator)  # never zero
        self._behind = self.processes.size - self.processes.rank - 1
        scores = logits - waits.log_()
        indices = scores.argmax(-1)
        soft = (scores / self.temperature).softmax(-1) @ self.codebook.detach()  # [1, eq. 2]
        return Quantized(straight_through(soft, self.decode(indices)), indices, losses)

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        return F.embedding(indices, self.codebook)

    def begin_step(self, step: int, steps: int, seed: int) -> None:
        """Sets the temperature, which falls exponentially from the first to the last step, and the draws' seed."""
        first, last = self.temperatures
        done = (step - 1) / max(1, steps - 1)
        self.temperature.fill_(first * (last / first) ** done)
        self._generator, self._behind = step_generator(step, seed, self.codebook.device), 0

    def fast_parameters(self) -> list[nn.Parameter]:
        """The codebook."""
        return [self.codebook]
