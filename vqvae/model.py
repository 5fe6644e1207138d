"""The VQVAE: images to tokens, tokens to codes, codes to images.

Axes: b images, h and w rows and columns of pixels, y and x rows and columns of tokens, n tokens in
reading order (n = y x), c channels of a token.

    model = build_model(config)
    indices = model.encode(images)       # (b, y, x)
    images = model.decode(indices)       # (b, 3, h, w)
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae import parametrization, plugins
from vqvae.attention import ATTENTION
from vqvae.codes import Quantized, Quantizer
from vqvae.config import ConfigError, QuantizerConfig, TrainConfig, VqvaeError
from vqvae.convolution import CONVOLUTION
from vqvae.layers import Backbone, conv, dense, patch_backbone
from vqvae.mamba import BIMAMBA, MAMBA
from vqvae.mambavision import MAMBAVISION
from vqvae.parametrization import Factors, Place, unallocated
from vqvae.quantize import QUANTIZERS

BACKBONES: dict[str, Backbone] = {
    "convolution": CONVOLUTION,
    "attention": ATTENTION,
    "mamba": MAMBA,
    "bimamba": BIMAMBA,
    "mambavision": MAMBAVISION,
}
"""Backbones by the name that `model.backbone` gives; a plug-in adds its own."""


def admit(part: Any) -> Backbone:
    """What a plug-in may enter above; a block alone becomes a `patch_backbone`.

    Raises:
        TypeError: anything else.
    """
    if isinstance(part, Backbone):
        return part
    if isinstance(part, FunctionType) or (isinstance(part, type) and issubclass(part, nn.Module)):
        return patch_backbone(part)
    raise TypeError(
        "must be a vqvae.layers.Backbone, or a block of one: a module class or a function that takes a ModelConfig, "
        f"but got {part!r}"
    )


class ShapeError(VqvaeError):
    """Images or indices that the model was not built for."""


class Reconstruction(NamedTuple):
    """What `VQVAE.forward` gives."""

    images: Tensor
    """Reconstructed images (b, 3, h, w); near [-1, 1], but not clamped."""
    quantized: Quantized
    """What the quantizer made of the tokens."""


class VQVAE(nn.Module):
    """Encoder, quantizer and decoder for square images of one size, with values in [-1, 1]."""

    parameter_roles: ClassVar = {"to_code.weight": "bottleneck"}

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        backbone: Backbone = plugins.find("backbone", BACKBONES, config.model.backbone)
        settings = plugins.settled("backbone", config.model)
        width = backbone.token_width(settings)
        self.resolution = config.data.resolution
        self.rows = config.data.resolution // config.model.patch
        self.encoder = backbone.encoder(settings, self.resolution)
        self.quantizer = build_quantizer(config.quantizer)
        self.to_code = dense(width, self.quantizer.code_dim, bias=True)
        self.from_code = dense(self.quantizer.code_dim, width, bias=True)
        self.decoder = backbone.decoder(settings, self.resolution)
        self.final_convolution: nn.Module = nn.Identity()
        if config.model.final_convolution:
            self.final_convolution = conv(3, 3, 3)
            nn.init.dirac_(self.final_convolution.weight)  # the identity: without effect until it has learned

    def forward(self, images: Tensor) -> Reconstruction:
        """Images (b, 3, h, w) through codes back to images.

        Raises:
            ShapeError: images of another shape.
        """
        quantized = self._quantize(images)
        return Reconstruction(self._decode(quantized.codes), quantized)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) to indices (b, y, x), int64, without gradients.

        Raises:
            ShapeError: images of another shape.
        """
        return rearrange(self._quantize(images).indices, "b (y x) -> b y x", y=self.rows)

    @torch.no_grad()
    def decode(self, indices: Tensor) -> Tensor:
        """Indices (b, y, x) to images (b, 3, h, w), without gradients.

        Raises:
            ShapeError: indices of another shape or type, or out of range.
        """
        expected = f"(b, {self.rows}, {self.rows})"
        if indices.ndim != 3 or indices.shape[1:] != (self.rows, self.rows):
            raise ShapeError(f"indices: must have shape {expected}, but got {tuple(indices.shape)}")
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ShapeError(f"indices: must be whole numbers, but got {indices.dtype}")
        size = self.quantizer.codebook_size
        if indices.numel() and not (indices.min() >= 0 and indices.max() < size):
            low, high = int(indices.min()), int(indices.max())
            raise ShapeError(f"indices: must be from 0 to {size - 1}, but got {low} to {high}")
        return self._decode(self.quantizer.decode(rearrange(indices.long(), "b y x -> b (y x)")))

    def blocks(self) -> Iterator[nn.Module]:
        """The repeated modules of encoder and decoder, each worth compiling by itself."""
        for half in (self.encoder, self.decoder):
            blocks = getattr(half, "blocks", ())
            yield from blocks

    def compile_blocks(self, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compiles each block by itself, once for every shape that it meets: alike blocks share what is compiled.

        Dynamo keeps compiled code with the code of a class, for all models of a process, and past a limit of 8 it runs
        what is new eagerly, with no more than a warning. A convolution model at its second size of micro-batch
        exceeds that, as does the fifth model that one process trains. So what earlier models left is dropped
        (those still alive compile anew at their next call) and the limit is raised to the most that Dynamo allows.

        Args:
            backend: as in `torch.compile`.
        """
        torch.compiler.reset()
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, dynamo.accumulated_recompile_limit)
        for block in self.blocks():
            block.compile(backend=backend, dynamic=False)

    def last_weight(self) -> nn.Parameter:
        """Weight of the last layer that makes the pixels, at which the losses' gradients are compared.

        It balances the reconstruction against a discriminator (Esser et al. 2021, eq. 7).

        Raises:
            ConfigError: the decoder of a plug-in that does not name its last layer `pixels`.
        """
        final = isinstance(self.final_convolution, nn.Conv2d)
        weight = getattr(self.final_convolution if final else getattr(self.decoder, "pixels", None), "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise ConfigError(
                "gan.adaptive",
                f"must be false, or {type(self.decoder).__name__} must have its last layer as `pixels`, but got true",
            )
        return weight

    def _quantize(self, images: Tensor) -> Quantized:
        size = self.resolution
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ShapeError(f"images: must have shape (b, 3, {size}, {size}), but got {tuple(images.shape)}")
        tokens = self.encoder(images)
        with torch.autocast(images.device.type, enabled=False):
            quantized: Quantized = self.quantizer(self.to_code(tokens.float()))
        return quantized

    def _decode(self, codes: Tensor) -> Tensor:
        images: Tensor = self.final_convolution(self.decoder(self.from_code(codes)))
        return images


def build_model(config: TrainConfig) -> VQVAE:
    """The model of a config, its weights drawn from torch's generator: `torch.manual_seed` settles them.

    Raises:
        ConfigError: a backbone or a quantizer of an unknown name, or sizes that do not fit together.
        UnclassifiedError: as in `roles`, and blocks whose residual branches take no scale.
    """
    model, chosen = VQVAE(config), config.parametrization
    if chosen.kind != "standard":
        parametrization.initialize(model, roles(config), chosen.kind)
        if chosen.base_depth and chosen.base_depth != config.model.depth:
            parametrization.scale_residuals(model.blocks(), chosen.base_depth / config.model.depth)
    return model


def roles(config: TrainConfig, base_width: int = 0) -> dict[str, Place]:
    """The place of every parameter of a config's model, by its name: what it needs to be trained at another width.

    Args:
        config: of a model of any width; its parametrization may be of any kind.
        base_width: of the family; 0 is that of the config, or else the model's own.

    Raises:
        UnclassifiedError: a parameter whose role can't be told.
        ConfigError: as in `build_model`, and a base width of which no such model can be built.
    """

    def build(width: int) -> VQVAE:
        return VQVAE(dataclasses.replace(config, model=dataclasses.replace(config.model, width=width)))

    return parametrization.classify(build, base_width or config.parametrization.base_width or config.model.width)


def factors(model: VQVAE, config: TrainConfig) -> dict[str, Factors]:
    """What the settings of each parameter of a config's model are multiplied by; {} where nothing is."""
    kind = config.parametrization.kind
    return {} if kind == "standard" else parametrization.factors(model, roles(config), kind)


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer of a config.

    Raises:
        ConfigError: an unknown name, or options that it does not take.
    """
    quantizer: Quantizer = plugins.find("quantizer", QUANTIZERS, config.kind)(plugins.settled("quantizer", config))
    return quantizer


def count_parameters(config: TrainConfig) -> int:
    """Number of trained values of a config's model, without allocating it.

    Raises:
        ConfigError: as in `build_model`.
    """
    with unallocated():
        return sum(parameter.numel() for parameter in build_model(config).parameters())


def bits_per_image(config: TrainConfig) -> float:
    """Bits of one image's indices, all codes being as likely.

    Raises:
        ConfigError: a quantizer of an unknown name.
    """
    with unallocated():
        quantizer = build_quantizer(config.quantizer)
    return config.tokens * math.log2(quantizer.codebook_size)
