"""The MambaVision backbone: patches whose tokens are mixed by a scan beside a convolution.

Axes: b images, l tokens in reading order, h heads, p channels of a head, n state dimensions.

[1] Hatamizadeh, Kautz 2024, "MambaVision: A Hybrid Mamba-Transformer Vision Backbone", arXiv 2407.08083
[2] Dao, Gu 2024, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
    State Space Duality", arXiv 2405.21060
"""

# ruff: noqa: N806 - A, B, C, D are the paper's names.

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqvae.config import ConfigError, ModelConfig
from vqvae.layers import MixerBlock, RMSNorm, dense, patch_backbone
from vqvae.ssd import EXPAND, INNER_NORM_EPSILON, depthwise_conv, scan, scan_parameters

_CONV_KERNEL = 3


class MambaVisionMixer(nn.Module):
    """One half of the inner channels goes through the scan, the other through a convolution alone [1, section 3.2].

    Where Mamba2 multiplies the scan's output by a gate, the two halves stand side by side. The convolution, in
    front of both, looks at the tokens on either side. The rest is Mamba2's [2, section 7]: the SSD scan instead of
    the paper's, B and C made beside its input, twice the width inside, and a norm before the output projection.

    Raises:
        ConfigError: head_size does not divide the channels of the scan.
    """

    def __init__(self, width: int, head_size: int, state_size: int) -> None:
        super().__init__()
        half = EXPAND * width // 2
        if half % head_size:
            raise ConfigError(
                "model.head_size", f"must divide the {half} channels that MambaVision scans, but got {head_size}"
            )
        heads = half // head_size
        self.sizes = [half, half, state_size, state_size]
        self.head_size = head_size
        self.in_proj = dense(width, sum(self.sizes) + heads)
        self.conv1d = depthwise_conv(sum(self.sizes), _CONV_KERNEL, padding=_CONV_KERNEL // 2)
        self.dt_bias, self.A_log, self.D = scan_parameters(heads)
        self.norm = RMSNorm(2 * half, INNER_NORM_EPSILON)
        self.out_proj = dense(2 * half, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, width) to (b, l, width)."""
        mixed, dt = torch.split(self.in_proj(x), [sum(self.sizes), len(self.D)], dim=-1)
        convolved = self.conv1d(rearrange(mixed, "b l d -> b d l"))
        local, inputs, B, C = torch.split(F.silu(rearrange(convolved, "b d l -> b l d")), self.sizes, dim=-1)
        inputs = rearrange(inputs, "b l (h p) -> b l h p", p=self.head_size)
        scanned = rearrange(scan(inputs, dt, B, C, self.dt_bias, self.A_log, self.D), "b l h p -> b l (h p)")
        projected: Tensor = self.out_proj(self.norm(torch.cat([scanned, local], dim=-1)))
        return projected


def mambavision_block(config: ModelConfig) -> MixerBlock:
    """MambaVision's mixer, then SwiGLU: a token sees all tokens up to its right neighbor.

    Raises:
        ConfigError: head_size does not divide the channels of the scan.
    """
    mixer = MambaVisionMixer(config.width, config.head_size, config.state_size)
    return MixerBlock(mixer, config.width, config.mlp_ratio)


MAMBAVISION = patch_backbone(mambavision_block)
