"""Layers that two or more backbones share, and the encoder and decoder of the patch backbones.

Axes: b images, h and w rows and columns (of pixels or of tokens), n tokens in reading order (n = h w),
c channels, k heads, d channels of a head.

Every weight is initialized in plain sight, normal with variance 1 / fan_in, so that activations keep
their size at any width. (PyTorch's default for ConvTranspose2d takes fan_in from the wrong axis: its
output grows with the square root of the width.)

[1] Zhang, Sennrich 2019, "Root Mean Square Layer Normalization"
[2] Shazeer 2020, "GLU Variants Improve Transformer"
[3] Zhang 2019, "Making Convolutional Networks Shift-Invariant Again"
[4] Odena et al. 2016, "Deconvolution and Checkerboard Artifacts"
[5] Yu et al. 2022, "Vector-quantized Image Modeling with Improved VQGAN" (ViT-VQGAN)
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vqvae.config import ConfigError, ModelConfig

_NORM_EPSILON = 1.0e-6
_POSITION_STD = 0.02

_Weighted = TypeVar("_Weighted", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


class Backbone(NamedTuple):
    """How one kind of encoder and decoder is built: an entry of `vqvae.model.BACKBONES`.

    Both builders take the model's config and the height (= width) of the images in pixels. An encoder
    maps images (b, 3, h, w) to tokens (b, n, c), a decoder maps such tokens to images. Modules worth
    compiling one by one are kept in an attribute `blocks`, an `nn.ModuleList`; the layer that makes the
    pixels, in an attribute `pixels`, for `VQVAE.last_weight`.
    """

    encoder: Callable[[ModelConfig, int], nn.Module]
    decoder: Callable[[ModelConfig, int], nn.Module]
    token_width: Callable[[ModelConfig], int]
    """Channels c of a token."""


def dense(fan_in: int, fan_out: int, *, bias: bool = False) -> nn.Linear:
    """A linear layer: (..., fan_in) to (..., fan_out)."""
    return _initialized(nn.Linear(fan_in, fan_out, bias=bias), fan_in)


def conv(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A padded convolution: (b, channels_in, h, w) to (b, channels_out, h / stride, w / stride)."""
    layer = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=(kernel - stride + 1) // 2, groups=groups)
    return _initialized(layer, channels_in // groups * kernel**2)


def transposed_conv(channels_in: int, channels_out: int, kernel: int, *, stride: int) -> nn.ConvTranspose2d:
    """The mirror image of a strided `conv`: (b, channels_in, h, w) to (b, channels_out, h stride, w stride)."""
    layer = nn.ConvTranspose2d(channels_in, channels_out, kernel, stride, padding=(kernel - stride) // 2)
    return _initialized(layer, channels_in * (kernel / stride) ** 2)


def _initialized(layer: _Weighted, fan_in: float) -> _Weighted:
    nn.init.normal_(layer.weight, std=fan_in**-0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def position_embeddings(tokens: int, width: int) -> nn.Parameter:
    """Learned positions (n, c), to be added to tokens (b, n, c)."""
    return nn.Parameter(torch.empty(tokens, width).normal_(std=_POSITION_STD))


class RMSNorm(nn.RMSNorm):
    """Root mean square norm over the last axis [1], its gains starting at 1."""

    def __init__(self, width: int, epsilon: float = _NORM_EPSILON) -> None:
        super().__init__(width, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) to (..., c), in the dtype of x."""
        # Under autocast x may be bfloat16 and the gains float32, for which PyTorch has no fused kernel.
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class SwiGLU(nn.Module):
    """SiLU(x W) * (x V), projected back, without biases [2, eq. 6]."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.gate = dense(width, ratio * width)
        self.value = dense(width, ratio * width)
        self.output = dense(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., c) to (..., c)."""
        projected: Tensor = self.output(F.silu(self.gate(x)) * self.value(x))
        return projected


class Attention(nn.Module):
    """Multi-head self-attention among the tokens of one image, without mask or biases.

    Raises:
        ConfigError: head_size does not divide width.
    """

    def __init__(self, width: int, head_size: int) -> None:
        super().__init__()
        if width % head_size:
            raise ConfigError(
                "model.head_size",
                f"must divide the {width} channels that attention works on, but got {head_size}",
            )
        self.head_size = head_size
        self.query_key_value = dense(width, 3 * width)
        self.output = dense(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) to (b, n, c)."""
        stacked = rearrange(self.query_key_value(x), "b n (three k d) -> three b k n d", three=3, d=self.head_size)
        query, key, value = stacked.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.output(rearrange(mixed, "b k n d -> b n (k d)"))
        return projected


class MixerBlock(nn.Module):
    """A mixer of tokens (b, n, c), then SwiGLU, each behind a norm and beside a residual."""

    def __init__(self, mixer: nn.Module, width: int, mlp_ratio: int) -> None:
        super().__init__()
        self.residual_scale = 1.0
        self.mixer_norm = RMSNorm(width)
        self.mixer = mixer
        self.mlp_norm = RMSNorm(width)
        self.mlp = SwiGLU(width, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) to (b, n, c)."""
        x = torch.add(x, self.mixer(self.mixer_norm(x)), alpha=self.residual_scale)
        return torch.add(x, self.mlp(self.mlp_norm(x)), alpha=self.residual_scale)


def transformer_block(width: int, head_size: int, mlp_ratio: int) -> MixerBlock:
    """Attention among the tokens of one image, then SwiGLU.

    Raises:
        ConfigError: head_size does not divide width.
    """
    return MixerBlock(Attention(width, head_size), width, mlp_ratio)


class Downsample(nn.Module):
    """Blur with [1, 3, 3, 1], keep every second pixel [3], map the channels."""

    blur: Tensor

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("blur", torch.outer(row, row).expand(width_in, 1, 4, 4).clone(), persistent=False)
        self.channels = dense(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) to (b, h / 2, w / 2, c')."""
        x = rearrange(x, "b h w c -> b c h w")
        # Zero padding, as in every convolution here: the gradient of reflection is not deterministic on CUDA.
        x = F.conv2d(x, self.blur.to(x.dtype), stride=2, padding=1, groups=x.shape[1])
        mapped: Tensor = self.channels(rearrange(x, "b c h w -> b h w c"))
        return mapped


class Upsample(nn.Module):
    """Map the channels, repeat every pixel twice along each side [4]."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.channels = dense(width_in, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, w, c) to (b, 2 h, 2 w, c')."""
        repeated: Tensor = repeat(self.channels(x), "b h w c -> b (h 2) (w 2) c")
        return repeated


def patch_backbone(block: Callable[[ModelConfig], nn.Module]) -> Backbone:
    """The backbone of ViT-VQGAN [5, section 3.1] with any `block` (b, n, c) to (b, n, c) as its mixer of tokens."""
    return Backbone(
        encoder=lambda config, resolution: PatchEncoder(config, resolution, block),
        decoder=lambda config, resolution: PatchDecoder(config, resolution, block),
        token_width=lambda config: config.width,
    )


class PatchEncoder(nn.Module):
    """Patch embedding, positions, blocks, head."""

    parameter_roles: ClassVar = {"positions": "input"}

    def __init__(self, config: ModelConfig, resolution: int, block: Callable[[ModelConfig], nn.Module]) -> None:
        super().__init__()
        self.patches = conv(3, config.width, _patch_kernel(config), stride=config.patch)
        self.positions = position_embeddings((resolution // config.patch) ** 2, config.width)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.depth))
        self.head = _head(config.width)

    def forward(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) to tokens (b, n, c)."""
        tokens = rearrange(self.patches(images), "b c h w -> b (h w) c") + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        encoded: Tensor = self.head(tokens)
        return encoded


class PatchDecoder(nn.Module):
    """Positions, blocks, head, transposed convolution."""

    parameter_roles: ClassVar = {"positions": "input"}

    def __init__(self, config: ModelConfig, resolution: int, block: Callable[[ModelConfig], nn.Module]) -> None:
        super().__init__()
        self.rows = resolution // config.patch
        self.positions = position_embeddings(self.rows**2, config.width)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.decoder_depth or config.depth))
        self.head = _head(config.width)
        self.pixels = transposed_conv(config.width, 3, _patch_kernel(config), stride=config.patch)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (b, n, c) to images (b, 3, h, w)."""
        tokens = tokens + self.positions
        for block in self.blocks:
            tokens = block(tokens)
        images: Tensor = self.pixels(rearrange(self.head(tokens), "b (h w) c -> b c h w", h=self.rows))
        return images


def _patch_kernel(config: ModelConfig) -> int:
    return config.patch + int(config.patch * config.overlap)


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(
        RMSNorm(width),
        dense(width, 4 * width, bias=True),
        nn.Tanh(),
        dense(4 * width, width, bias=True),
    )
