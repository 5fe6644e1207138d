"""The Mamba backbones: patches whose tokens are mixed by Mamba2, in one direction or in both.

Axes: b images, n tokens in reading order, c channels.
"""

from torch import Tensor, nn

from vqvae.config import ModelConfig
from vqvae.layers import MixerBlock, RMSNorm, SwiGLU, patch_backbone
from vqvae.ssd import Mamba2


def mamba_block(config: ModelConfig) -> MixerBlock:
    """Mamba2, then SwiGLU: a token sees itself and the tokens before it.

    Raises:
        ConfigError: head_size does not divide Mamba2's inner width.
    """
    return MixerBlock(Mamba2(config.width, config.head_size, config.state_size), config.width, config.mlp_ratio)


class BidirectionalMambaBlock(nn.Module):
    """Two Mamba2 with a SwiGLU each, one reading backwards, and their sum.

    As in the article's code, the streams share the norm in front of their Mamba2 alone, and each has its own
    residuals: the trunk enters the sum twice. So a block counts half as much as the one before it, and the first few
    decide however many follow: what transfers over the depth is the model as it is, without a residual scale.
    """

    residual_scale = None

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


MAMBA = patch_backbone(mamba_block)
BIMAMBA = patch_backbone(BidirectionalMambaBlock)
