"""The article's model, quantizer and loss written plainly: what `train_step.py` measures ours against.

Its blocks are those of the article's text, with attention among tokens (its code of that week attended over the batch)
and beta on the commitment term. The quantizer holds all distances at once. LPIPS is the package's, its trunk drawn at
random, since weights change no time.

Axes: b images, n tokens, c channels, m vectors (m = b n), d dimensions of a code, K codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae.config import TrainConfig


class SwiGLU(nn.Module):
    """SiLU(x W) * (x V), projected back."""

    def __init__(self, features: int, ratio: int) -> None:
        super().__init__()
        self.gate, self.value = (nn.Linear(features, ratio * features, bias=False) for _ in range(2))
        self.out = nn.Linear(ratio * features, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) to (..., c)."""
        return self.out(F.silu(self.gate(x)) * self.value(x))


class Transformer(nn.Module):
    """SDPA among tokens, then SwiGLU."""

    def __init__(self, features: int, head_size: int, ratio: int) -> None:
        super().__init__()
        self.heads = features // head_size
        self.prenorm, self.postnorm = nn.RMSNorm(features), nn.RMSNorm(features)
        self.qkv = nn.Linear(features, 3 * features, bias=False)
        self.out = nn.Linear(features, features, bias=False)
        self.mlp = SwiGLU(features, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) to (b, n, c)."""
        q, k, v = rearrange(self.qkv(self.prenorm(x)), "b n (s h d) -> s b h n d", s=3, h=self.heads)
        x = self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")) + x
        return self.mlp(self.postnorm(x)) + x


def head(features: int) -> nn.Sequential:
    """The Tanh head of ViT-VQGAN."""
    layers = nn.Linear(features, 4 * features), nn.Tanh(), nn.Linear(4 * features, features)
    return nn.Sequential(nn.RMSNorm(features), *layers)


def search(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index (m) of the nearest code, by all m x K distances."""
    return torch.cdist(vectors, codebook).argmin(1)


class Quantizer(nn.Module):
    """l2-normalised codes that learn by the gradient of their own term."""

    def __init__(self, codes: int, dimensions: int, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.codebook = nn.Embedding(codes, dimensions)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, n, d) to codes, indices and loss."""
        x, table = F.normalize(x, dim=-1), F.normalize(self.codebook.weight, dim=-1)
        indices = search(x.detach().flatten(0, 1).float(), table.detach().float())
        codes = table[indices].view_as(x)
        loss = F.mse_loss(codes, x.detach()) + self.beta * F.mse_loss(x, codes.detach())
        return x + (codes - x).detach(), indices.view(x.shape[:2]), loss


class Library(nn.Module):
    """vector-quantize-pytorch's quantizer in the same place; its codes learn by EMA, for it takes no others here."""

    def __init__(self, codes: int, dimensions: int, beta: float) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.quantize = VectorQuantize(
            dim=dimensions, codebook_size=codes, use_cosine_sim=True, commitment_weight=beta, decay=0.99
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(b, n, d) to codes, indices and loss."""
        codes, indices, loss = self.quantize(x.float())
        return codes, indices, loss.sum()


class Model(nn.Module):
    """The attention backbone: patches in, blocks, quantizer, blocks, patches out."""

    def __init__(self, config: TrainConfig, quantizer: type[nn.Module] = Quantizer) -> None:
        super().__init__()
        model, chosen = config.model, config.quantizer
        width, self.rows = model.width, config.data.resolution // model.patch
        self.input = nn.Conv2d(3, width, model.patch, model.patch)
        self.output = nn.ConvTranspose2d(width, 3, model.patch, model.patch)
        self.epe, self.dpe = (nn.Parameter(0.02 * torch.randn(self.rows**2, width)) for _ in range(2))

        def half() -> nn.Sequential:
            blocks = (Transformer(width, model.head_size, model.mlp_ratio) for _ in range(model.depth))
            return nn.Sequential(*blocks, head(width))

        self.encoder, self.decoder = half(), half()
        self.to_code, self.from_code = nn.Linear(width, chosen.code_dim), nn.Linear(chosen.code_dim, width)
        self.quantiser = quantizer(chosen.codebook_size, chosen.code_dim, chosen.beta)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images (b, 3, h, w) to images and the quantizer's loss."""
        x = self.encoder(rearrange(self.input(x), "b c h w -> b (h w) c") + self.epe)
        codes, _, loss = self.quantiser(self.to_code(x))
        x = self.decoder(self.from_code(codes) + self.dpe)
        return self.output(rearrange(x, "b (h w) c -> b c h w", h=self.rows)), loss


def perceptual(device: torch.device) -> nn.Module:
    """LPIPS of the package `lpips`, frozen."""
    import lpips

    with torch.random.fork_rng():
        made: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    return made.requires_grad_(False).eval().to(device)
