"""The Mamba backbones: patches whose tokens are mixed by Mamba2, in one direction or in both.

Axes: b images, n tokens in reading order, c channels.
"""

from torch import Tensor, nn

from vqvae.config import ModelConfig
from vqvae.layers import RMSNorm, SwiGLU, patch_backbone
from vqvae.ssd import Mamba2


class MambaBlock(nn.Module):
    """Mamba2, then SwiGLU, each behind a norm and beside a residual.

    A token sees itself and the tokens before it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.width)
        self.mixer = Mamba2(config.width, config.head_size, config.state_size)
        self.mlp_norm = RMSNorm(config.width)
        self.mlp = SwiGLU(config.width, config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) to (b, n, c)."""
        x = x + self.mixer(self.mixer_norm(x))
        mixed: Tensor = x + self.mlp(self.mlp_norm(x))
        return mixed


class BidirectionalMambaBlock(nn.Module):
    """Two Mamba2 with a SwiGLU each, one reading backwards, and their sum.

    Each stream has its own residuals, as in the article: the trunk enters the sum twice.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mixer_norm = RMSNorm(config.width)
        self.forward_mixer = Mamba2(config.width, config.head_size, config.state_size)
        self.forward_mlp_norm = RMSNorm(config.width)
        self.forward_mlp = SwiGLU(config.width, config.mlp_ratio)
        self.backward_mixer = Mamba2(config.width, config.head_size, config.state_size)
        self.backward_mlp_norm = RMSNorm(config.width)
        self.backward_mlp = SwiGLU(config.width, config.mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) to (b, n, c)."""
        normed = self.mixer_norm(x)
        ahead = x + self.forward_mixer(normed)
        ahead = ahead + self.forward_mlp(self.forward_mlp_norm(ahead))
        # Only the mixer knows an order, so only its input and its output are turned.
        behind = x + self.backward_mixer(normed.flip(1)).flip(1)
        behind = behind + self.backward_mlp(self.backward_mlp_norm(behind))
        mixed: Tensor = ahead + behind
        return mixed


MAMBA = patch_backbone(MambaBlock)
BIMAMBA = patch_backbone(BidirectionalMambaBlock)
