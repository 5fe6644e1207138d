"""A backbone that mixes tokens by a dense layer along them (Tolstikhin et al. 2021, "MLP-Mixer", eq. 1).

Axes: b images, n tokens in reading order, c channels of a token.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

import vqvae
from vqvae.config import ModelConfig
from vqvae.layers import Backbone, MixerBlock, PatchDecoder, PatchEncoder, dense


@dataclass(frozen=True, kw_only=True)
class TokenMlpConfig:
    """What `model.options` holds for this backbone."""

    ratio: float = 0.5
    """Hidden tokens / tokens."""

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise ValueError(f"ratio must be above 0, but got {self.ratio}")


class TokenMlp(nn.Module):
    """Two layers along the tokens, the same ones for every channel."""

    def __init__(self, tokens: int, ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(tokens * ratio))
        self.inward = dense(tokens, hidden, bias=True)
        self.outward = dense(hidden, tokens, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, c) to (b, n, c)."""
        mixed: Tensor = self.outward(F.gelu(self.inward(x.mT))).mT
        return mixed


def _block(config: ModelConfig, resolution: int) -> MixerBlock:
    mixer = TokenMlp((resolution // config.patch) ** 2, config.options.ratio)
    return MixerBlock(mixer, config.width, config.mlp_ratio)


def _encoder(config: ModelConfig, resolution: int) -> PatchEncoder:
    return PatchEncoder(config, resolution, lambda each: _block(each, resolution))


def _decoder(config: ModelConfig, resolution: int) -> PatchDecoder:
    return PatchDecoder(config, resolution, lambda each: _block(each, resolution))


TOKEN_MLP = Backbone(encoder=_encoder, decoder=_decoder, token_width=lambda config: config.width)
"""Its blocks have to know how many tokens there are, so it is a whole backbone: a block alone would not be told."""

vqvae.register("backbone", "token-mlp", config=TokenMlpConfig)(TOKEN_MLP)
