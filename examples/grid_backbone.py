"""A backbone of one's own: a block that mixes tokens by a convolution over their grid, with one setting, its kernel.

vqsearch train preset:attention --plugin examples/grid_backbone.py --data ~/faces --to runs/grid \
    --set model.backbone=grid --set model.options.kernel=7

b images, n tokens in reading order (n = y x), c channels of a token
"""

import math
from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn

import vqvae
from vqvae.config import ModelConfig
from vqvae.layers import MixerBlock


@dataclass(frozen=True, kw_only=True)
class GridConfig:
    """What `model.options` holds for this backbone."""

    kernel: int = 5
    """Tokens along each side of the convolution; odd."""

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 1, but got {self.kernel}")


class GridMixer(nn.Module):
    """A depthwise convolution over the grid of tokens."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.map = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) to (b, n, c)."""
        grid = rearrange(x, "b (y x) c -> b c y x", y=math.isqrt(x.shape[1]))
        mixed: Tensor = self.map(grid)
        return rearrange(mixed, "b c y x -> b (y x) c")


@vqvae.register("backbone", "grid", config=GridConfig)
def grid_block(config: ModelConfig) -> MixerBlock:
    """A norm, the mixer and SwiGLU; encoder and decoder are made of `model.depth` such blocks each."""
    return MixerBlock(GridMixer(config.width, config.options.kernel), config.width, config.mlp_ratio)
