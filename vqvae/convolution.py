"""The convolution backbone: ConvNeXt-style blocks at every resolution from pixels to tokens.

Axes: b images, h and w rows and columns at one resolution, c channels there, n tokens (n = h w).

The image halves log2(patch) times, so that there are as many tokens as in a patch backbone. Between
blocks the channels come last, where norms and 1 x 1 convolutions (as linear layers) want them;
convolutions see the same memory as (b, c, h, w) in the channels_last format.

[1] Liu et al. 2022, "A ConvNet for the 2020s" (ConvNeXt)
[2] Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis" (attention at the lowest resolution)
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae.config import ConfigError, ModelConfig
from vqvae.layers import Backbone, Downsample, RMSNorm, SwiGLU, Upsample, conv, transformer_block


class ConvolutionBlock(nn.Module):
    """A 7 x 7 depthwise convolution, then SwiGLU, each behind a norm and beside a residual [1, section 2]."""

    def __init__(self, width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.residual_scale = 1.0
        self.mixer_norm = RMSNorm(width)
        self.mixer = conv(width, width, 7, groups=width)
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) to (b, h, w, c)."""
        convolved = self.mixer(rearrange(self.mixer_norm(x), "b h w c -> b c h w"))
        x = torch.add(x, rearrange(convolved, "b c h w -> b h w c"), alpha=self.residual_scale)
        return torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.residual_scale)


class ConvolutionEncoder(nn.Module):
    """Blocks and down-sampling, one transformer block [2]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = _widths(config)
        self.pixels = conv(3, widths[0], 3)
        self.blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            if level > 0:
                self.blocks.append(Downsample(widths[level - 1], width))
            self.blocks.extend(ConvolutionBlock(width, config.mlp_ratio) for _ in range(config.depth))
        self.transformer = transformer_block(widths[-1], config.head_size, config.mlp_ratio)
        self.norm = RMSNorm(widths[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) to tokens (b, n, c)."""
        x = rearrange(self.pixels(images), "b c h w -> b h w c")
        for block in self.blocks:
            x = block(x)
        tokens: Tensor = self.norm(self.transformer(rearrange(x, "b h w c -> b (h w) c")))
        return tokens


class ConvolutionDecoder(nn.Module):
    """The encoder's mirror image."""

    def __init__(self, config: ModelConfig, resolution: int) -> None:
        super().__init__()
        widths = _widths(config)[::-1]
        depth = config.decoder_depth or config.depth
        self.rows = resolution // config.patch
        self.transformer = transformer_block(widths[0], config.head_size, config.mlp_ratio)
        self.blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            if level > 0:
                self.blocks.append(Upsample(widths[level - 1], width))
            self.blocks.extend(ConvolutionBlock(width, config.mlp_ratio) for _ in range(depth))
        self.norm = RMSNorm(widths[-1])
        self.pixels = conv(widths[-1], 3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, n, c) to images (b, 3, h, w)."""
        x = rearrange(self.transformer(tokens), "b (h w) c -> b h w c", h=self.rows)
        for block in self.blocks:
            x = block(x)
        images: Tensor = self.pixels(rearrange(self.norm(x), "b h w c -> b c h w"))
        return images


def _widths(config: ModelConfig) -> list[int]:
    """Channels at each resolution, from pixels to tokens."""
    halvings = config.patch.bit_length() - 1
    if config.patch != 2**halvings:
        raise ConfigError("model.patch", f"must be a power of two for the convolution backbone, but got {config.patch}")
    multipliers = config.channel_multipliers or (0.5,) * halvings + (1.0,)
    if len(multipliers) != halvings + 1:
        raise ConfigError(
            "model.channel_multipliers",
            f"must be {halvings + 1} numbers, one for each resolution down to patches of {config.patch} pixels, "
            f"but got {multipliers!r}",
        )
    widths = [multiplier * config.width for multiplier in multipliers]
    if any(width != int(width) for width in widths):
        raise ConfigError(
            "model.channel_multipliers",
            f"must give whole numbers of channels at a width of {config.width}, but got {widths!r}",
        )
    return [int(width) for width in widths]


CONVOLUTION = Backbone(
    encoder=lambda config, _resolution: ConvolutionEncoder(config),
    decoder=ConvolutionDecoder,
    token_width=lambda config: _widths(config)[-1],
)
