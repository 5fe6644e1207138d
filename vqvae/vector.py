"""Quantizers that look for the nearest of K vectors, the codebook.

Axes: b images, n tokens, d dimensions of a code, K codes, m vectors (m = b n).

[1] van den Oord et al. 2017, "Neural Discrete Representation Learning"
[2] Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN"
[3] Dhariwal et al. 2020, "Jukebox: A Generative Model for Music"
[4] Zhu et al. 2024, "Addressing Representation Collapse in Vector Quantized Models with One Linear Layer"
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae.codes import (
    Quantized,
    Quantizer,
    full_precision,
    nearest_codes,
    rotated,
    step_generator,
    straight_through,
)
from vqvae.config import QuantizerConfig
from vqvae.processes import Processes

USAGE_DECAY = 0.9
"""Decay, an optimizer step, of how often a code is drawn: `revive_below` looks at the last ten steps or so."""

ESTIMATORS = {"straight-through": straight_through, "rotation": rotated}
"""Gradients past the nearest code, by the name that `quantizer.estimator` gives."""


class VectorQuantizer(Quantizer):
    """The nearest of K codes, on the unit sphere [2, section 3.2] or in plain space [1, section 3.1].

    The codebook learns by the gradient of its own term [1, eq. 3], or each code is a moving average of the vectors
    that were nearest to it [1, appendix A.1]. Codes that are hardly drawn may restart at vectors of the batch
    [3, section 3.1].
    """

    codebook: Tensor
    beta: Tensor
    ema_decay: Tensor
    counts: Tensor
    usage: Tensor
    revive_below: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.code_dim = config.code_dim
        self.codebook_size = config.codebook_size
        self.l2_normalize = config.l2_normalize
        self.ema = config.update == "ema"
        self.revives = config.revive_below > 0
        self._estimate = ESTIMATORS[config.estimator]
        self._tally: _Tally | None = None
        codebook = torch.empty(config.codebook_size, config.code_dim)
        nn.init.normal_(codebook, std=config.code_dim**-0.5)
        # Settings are tensors, so that compiled code is not compiled again for another value.
        self.register_buffer("beta", torch.tensor(config.beta), persistent=False)
        if self.ema:
            self.register_buffer("codebook", codebook)
            self.register_buffer("counts", torch.zeros(config.codebook_size))
            self.register_buffer("ema_decay", torch.tensor(config.ema_decay), persistent=False)
        else:
            self.codebook = nn.Parameter(codebook)
        if self.revives:
            self.register_buffer("usage", torch.ones(config.codebook_size))
            self.register_buffer("revive_below", torch.tensor(config.revive_below), persistent=False)

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to their codes; in float32.

        Losses: commitment, times beta; and codebook, if it learns by gradient.
        """
        vectors = self._on_sphere(vectors)
        with torch.no_grad():
            indices = nearest_codes(vectors.flatten(0, 1), self._on_sphere(self.codebook)).view(vectors.shape[:2])
        if self.training and self._tally is not None:
            self._tally.add(vectors.detach().flatten(0, 1), indices.flatten())
        codes = self.decode(indices)
        fixed = codes.detach()
        losses = {} if self.ema else {"codebook": F.mse_loss(codes, vectors.detach())}
        losses["commitment"] = self.beta * F.mse_loss(vectors, fixed)
        return Quantized(self._estimate(vectors, fixed), indices, losses)

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        return self._on_sphere(F.embedding(indices, self.codebook))

    def begin_step(self, step: int, steps: int, seed: int) -> None:  # noqa: ARG002
        """Forgets what micro-batches have left, and from now on listens to them."""
        if self.ema or self.revives:
            device = self.codebook.device
            generator = step_generator(step, seed, device) if self.revives else None
            self._tally = _Tally(self.codebook, generator, self.processes)

    @torch.no_grad()
    def end_step(self) -> None:
        """Moves the averages by one step, and restarts codes that are starving."""
        tally, self._tally = self._tally, None
        if tally is None or not tally.vectors:
            return
        tally.share()
        if self.ema:
            self._follow(tally)
        if self.revives:
            self._revive(tally)

    def fast_parameters(self) -> list[nn.Parameter]:
        """The codebook, where it learns by gradient."""
        return [self.codebook] if isinstance(self.codebook, nn.Parameter) else []

    def _on_sphere(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.l2_normalize else vectors

    def _follow(self, tally: "_Tally") -> None:
        """One step of [1, eq. 6 to 8], for the quotient m / N instead of the sum m.

        So a code that drew nothing keeps its place bit for bit, without the smoothing that would pull it towards zero
        as N vanishes. N starts at zero: the random first place of a code counts nothing once it has drawn a vector.
        On the sphere the means lie inside it, and `decode` projects them.
        """
        new = 1 - self.ema_decay
        self.counts.mul_(self.ema_decay).add_(tally.counts * new)
        pull = tally.sums - rearrange(tally.counts, "K -> K 1") * self.codebook
        weight = new / self.counts.clamp(min=torch.finfo(self.counts.dtype).tiny)
        self.codebook.add_(pull * rearrange(weight, "K -> K 1"))

    def _revive(self, tally: "_Tally") -> None:
        """Restarts codes below the wanted usage, which is 1 for a code that draws its share of the vectors.

        A new code, and one that has restarted, is taken to draw its share: it has the time in which the average
        forgets that to prove itself. Each takes another vector, so as many restart in a step as there are vectors;
        the rest wait. Nothing here makes the host wait for the device.
        """
        self.usage.lerp_(tally.counts * (self.codebook_size / tally.vectors), 1 - USAGE_DECAY)
        starving = self.usage < self.revive_below
        turn = starving.cumsum(0) - 1
        restarting = starving & (turn < len(tally.sample))
        places = tally.sample[turn.clamp(0, len(tally.sample) - 1)]
        self.codebook.copy_(torch.where(rearrange(restarting, "K -> K 1"), places, self.codebook))
        self.usage.masked_fill_(restarting, 1)
        if self.ema:  # the mean, so far, of one vector
            self.counts.copy_(torch.where(restarting, 1 - self.ema_decay, self.counts))


class _Tally:
    """What the micro-batches of one optimizer step leave for its end.

    Equal, bit for bit on a CPU, however the vectors are spread over micro-batches.
    """

    def __init__(self, codebook: Tensor, generator: torch.Generator | None, processes: Processes) -> None:
        self.counts = codebook.new_zeros(len(codebook))
        self.sums = torch.zeros_like(codebook, requires_grad=False)
        self.vectors = 0
        self.sample = codebook.new_empty(0, codebook.shape[1])
        """Vectors drawn without replacement, in random order; at most as many as there are codes."""
        self._generator, self._processes = generator, processes
        self._ranks = torch.empty(0, dtype=torch.float64, device=codebook.device)

    def add(self, vectors: Tensor, indices: Tensor) -> None:
        """Counts vectors (m, d) for the codes of their indices (m)."""
        self.counts.index_add_(0, indices, torch.ones_like(vectors[:, 0]))
        self.sums.index_add_(0, indices, vectors)
        self.vectors += len(vectors)
        if self._generator is not None:
            # Each process draws the numbers of all of them, so that a vector has the one that it would have in one.
            everyone = self._processes.size * len(vectors)
            ranks = self._ranks.new_empty(everyone).uniform_(generator=self._generator)
            self._keep(ranks[self._processes.rank * len(vectors) :][: len(vectors)], vectors)

    def share(self) -> None:
        """Takes over what the other processes have counted."""
        processes = self._processes
        if processes.size == 1:
            return
        processes.add([self.counts, self.sums])
        self.vectors *= processes.size
        if self._generator is not None:
            ranks, sample = processes.gathered(self._ranks), processes.gathered(self.sample)
            self._ranks, self.sample = self._ranks[:0], self.sample[:0]
            self._keep(ranks, sample)

    def _keep(self, ranks: Tensor, vectors: Tensor) -> None:
        """Those with the highest of the random numbers; in float64, in which no two are equal."""
        ranks = torch.cat([self._ranks, ranks])
        self._ranks, kept = ranks.topk(min(len(ranks), len(self.counts)))
        self.sample = torch.cat([self.sample, vectors])[kept]


class SimVQ(Quantizer):
    """The nearest of K frozen random vectors behind one learned linear map [4].

    The map moves all codes together, so that none is left behind where no vector is near.
    """

    beta: Tensor
    basis: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.code_dim = config.code_dim
        self.codebook_size = config.codebook_size
        self._estimate = ESTIMATORS[config.estimator]
        basis = torch.empty(config.codebook_size, config.code_dim)
        nn.init.normal_(basis, std=config.code_dim**-0.5)
        self.register_buffer("basis", basis)
        self.map = nn.Linear(config.code_dim, config.code_dim, bias=False)
        self.register_buffer("beta", torch.tensor(config.beta), persistent=False)

    def forward(self, vectors: Tensor) -> Quantized:
        """Vectors (b, n, d) to their codes; in float32.

        Losses: codebook, and commitment, times beta.
        """
        codebook = self._codebook()
        indices = nearest_codes(vectors.detach().flatten(0, 1), codebook.detach()).view(vectors.shape[:2])
        codes = F.embedding(indices, codebook)
        fixed = codes.detach()
        losses = {
            "codebook": F.mse_loss(codes, vectors.detach()),
            "commitment": self.beta * F.mse_loss(vectors, fixed),
        }
        return Quantized(self._estimate(vectors, fixed), indices, losses)

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, n) to codes (b, n, d)."""
        return F.embedding(indices, self._codebook())

    def fast_parameters(self) -> list[nn.Parameter]:
        """The matrix of the map."""
        return list(self.map.parameters())

    def _codebook(self) -> Tensor:
        """All codes (K, d), mapped at once, so that a code has the same bits whatever it is decoded with."""
        with full_precision():
            codebook: Tensor = self.map(self.basis)
        return codebook
