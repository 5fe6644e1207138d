"""The whole model: sizes, refusals, plug-ins. What holds for each backbone and quantizer is in `vqvae.testing`."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from vqvae.codes import Quantized
from vqvae.config import ConfigError, ModelConfig, QuantizerConfig, TrainConfig
from vqvae.conversion import replace
from vqvae.layers import Backbone, PatchDecoder, patch_backbone
from vqvae.model import BACKBONES, ShapeError, bits_per_image, build_model, count_parameters
from vqvae.quantize import QUANTIZERS

NAMES = tuple(BACKBONES)
BACKBONE = pytest.mark.parametrize("backbone", NAMES)


def _config(backbone: str = "attention", **settings: object) -> TrainConfig:
    tiny = {
        "model.width": 16,
        "model.depth": 1,
        "model.head_size": 8,
        "model.state_size": 4,
        "data.resolution": 32,
        "quantizer.codebook_size": 64,
        "quantizer.code_dim": 4,
    }
    return replace(TrainConfig(), tiny | {"model.backbone": backbone} | settings)


def _images(count: int = 2) -> Tensor:
    return 2 * torch.rand(count, 3, 32, 32) - 1


@BACKBONE
def test_every_parameter_learns(backbone: str) -> None:
    model, images = build_model(_config(backbone, **{"model.final_convolution": True})), _images(4)
    reconstruction = model(images)
    loss = (reconstruction.images - images).square().mean() + sum(reconstruction.quantized.losses.values())
    loss.backward()
    silent = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("backbone", "count"), [("convolution", 14), ("attention", 2), ("mamba", 2), ("bimamba", 2), ("mambavision", 2)]
)
def test_the_blocks_of_both_sides_are_listed(backbone: str, count: int) -> None:
    assert len(list(build_model(_config(backbone)).blocks())) == count


@pytest.fixture
def dynamo() -> Iterator[CompileCounter]:
    """A backend that counts what is compiled, under limits soon reached, at which Dynamo raises."""
    limits = {"recompile_limit": 2, "accumulated_recompile_limit": 4, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(limits):
        yield CompileCounter()
    torch.compiler.reset()


def test_compiled_blocks_may_meet_many_shapes(dynamo: CompileCounter) -> None:
    model = build_model(_config())
    images = [_images(size) for size in (1, 2)]
    expected = [model(each).images for each in images]
    model.compile_blocks(dynamo)
    for each, whole in zip(images, expected, strict=True):
        torch.testing.assert_close(model(each).images, whole)
    assert dynamo.frame_count > 2


def test_alike_blocks_share_what_is_compiled(dynamo: CompileCounter) -> None:
    model = build_model(_config("attention", **{"model.depth": 4}))
    model.compile_blocks(dynamo)
    model(_images())
    assert dynamo.frame_count <= 2  # of eight


def test_one_process_compiles_as_many_models_as_it_trains(dynamo: CompileCounter) -> None:
    for width in (8, 16, 24):
        model = build_model(_config("attention", **{"model.width": width}))
        model.compile_blocks(dynamo)
        model(_images(1))
    assert dynamo.frame_count > 4


def test_the_final_convolution_starts_without_effect() -> None:
    model, images = build_model(_config(**{"model.final_convolution": True})), _images()
    reconstruction = model(images)
    plain = model.decoder(model.from_code(reconstruction.quantized.codes))
    torch.testing.assert_close(reconstruction.images, plain)


def test_a_decoder_without_a_named_last_layer_has_no_last_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anonymous(PatchDecoder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.last = self.pixels
            del self.pixels

    backbone = BACKBONES["attention"]
    build = backbone._replace(decoder=lambda config, size: Anonymous(config, size, lambda _: _Blend()))
    monkeypatch.setitem(BACKBONES, "anonymous", build)
    with pytest.raises(ConfigError) as error:
        build_model(_config("anonymous")).last_weight()
    assert str(error.value) == (
        "gan.adaptive: must be false, or Anonymous must have its last layer as `pixels`, but got true"
    )


def test_the_final_convolution_learns_across_the_borders_of_patches() -> None:
    model = build_model(_config(**{"model.final_convolution": True}))
    nn.init.normal_(model.final_convolution.weight)
    drawn = torch.zeros(1, 3, 32, 32)
    drawn[..., 8, 16] = 1  # a corner of a patch
    reached = (model.final_convolution(drawn) != model.final_convolution(0 * drawn)).any(1)[0]
    assert set(map(tuple, reached.nonzero().tolist())) == {(y, x) for y in (7, 8, 9) for x in (15, 16, 17)}


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 32, 32), (3, 32, 32)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = build_model(_config())
    for call in (model, model.encode):
        with pytest.raises(ShapeError) as error:
            call(torch.zeros(shape))
        assert str(error.value) == f"images: must have shape (b, 3, 32, 32), but got {shape}"


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(1, 16, dtype=torch.int64), "indices: must have shape (b, 4, 4), but got (1, 16)"),
        (torch.zeros(1, 4, 4), "indices: must be whole numbers, but got torch.float32"),
        (torch.arange(49, 65).view(1, 4, 4), "indices: must be from 0 to 63, but got 49 to 64"),
        (torch.arange(-1, 15).view(1, 4, 4), "indices: must be from 0 to 63, but got -1 to 14"),
    ],
)
def test_indices_that_the_model_cannot_decode_are_refused(indices: Tensor, message: str) -> None:
    with pytest.raises(ShapeError) as error:
        build_model(_config()).decode(indices)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.backbone", "must be one of convolution, attention, mamba, bimamba, mambavision, but got 'bamba'"),
        ("quantizer.kind", f"must be one of {', '.join(QUANTIZERS)}, but got 'bamba'"),
    ],
)
def test_unknown_names_are_refused(key: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_model(_config(**{key: "bamba"}))
    assert str(error.value) == f"{key}: {message}"


class _Blend(nn.Module):
    """A user's own block: every token takes half of the mean."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (x + x.mean(1, keepdim=True))


class _Signs(nn.Module):
    """A user's own quantizer: one bit for each dimension."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.code_dim, self.codebook_size = 5, 32

    def forward(self, vectors: Tensor) -> Quantized:
        indices = ((vectors > 0) * 2 ** torch.arange(5)).sum(-1)
        return Quantized(self.decode(indices) + (vectors - vectors.detach()), indices, {})

    def decode(self, indices: Tensor) -> Tensor:
        return 2.0 * ((indices[..., None] >> torch.arange(5)) & 1) - 1


def test_a_plug_in_brings_its_own_backbone_and_quantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def block(config: ModelConfig) -> nn.Module:
        return _Blend()

    backbone: Backbone = patch_backbone(block)
    monkeypatch.setitem(BACKBONES, "blend", backbone)
    monkeypatch.setitem(QUANTIZERS, "signs", _Signs)
    config = _config("blend", **{"quantizer.kind": "signs"})
    model, images = build_model(config), _images()
    assert torch.equal(model.decode(model.encode(images)), model(images).images)
    assert bits_per_image(config) == 16 * math.log2(32)


QUANTIZER_SETTINGS = {
    "vq": st.fixed_dictionaries(
        {
            "codebook_size": st.integers(2, 40),
            "code_dim": st.integers(1, 6),
            "l2_normalize": st.booleans(),
            "update": st.sampled_from(["gradient", "ema"]),
            "estimator": st.sampled_from(["straight-through", "rotation"]),
            "revive_below": st.sampled_from([0.0, 0.5]),
        }
    ),
    "simvq": st.fixed_dictionaries(
        {
            "codebook_size": st.integers(2, 40),
            "code_dim": st.integers(1, 6),
            "estimator": st.sampled_from(["straight-through", "rotation"]),
        }
    ),
    "fsq": st.fixed_dictionaries({"levels": st.lists(st.integers(2, 9), min_size=1, max_size=5)}),
    "lfq": st.fixed_dictionaries({"codebook_size": st.sampled_from([2, 4, 32, 1024])}),
    "bsq": st.fixed_dictionaries({"codebook_size": st.sampled_from([2, 4, 32, 1024])}),
    "gumbel": st.fixed_dictionaries({"codebook_size": st.integers(2, 40), "code_dim": st.integers(1, 6)}),
}


@st.composite
def configs(draw: st.DrawFn) -> TrainConfig:
    """Small models of every backbone, every quantizer and every way to cut an image into patches."""
    patch, head_size = draw(st.sampled_from([1, 2, 4, 8])), draw(st.sampled_from([4, 8]))
    kind = draw(st.sampled_from(sorted(QUANTIZERS)))
    model = {
        "backbone": draw(st.sampled_from(NAMES)),
        "width": head_size * draw(st.integers(1, 3)),
        "depth": draw(st.integers(1, 2)),
        "decoder_depth": draw(st.integers(0, 2)),
        "patch": patch,
        "overlap": 2 * draw(st.integers(0, patch)) / patch,
        "final_convolution": draw(st.booleans()),
        "mlp_ratio": draw(st.integers(1, 3)),
        "head_size": head_size,
        "state_size": draw(st.integers(1, 5)),
    }
    resolution = patch * draw(st.integers(1, 4))
    quantizer = {"kind": kind, **draw(QUANTIZER_SETTINGS[kind])}
    return replace(TrainConfig(), {"model": model, "quantizer": quantizer, "data.resolution": resolution})


EXAMPLES = settings(max_examples=30, deadline=None, derandomize=True)


@EXAMPLES
@given(configs(), st.integers(1, 3))
def test_any_model_decodes_its_indices_to_its_reconstruction_bit_for_bit(config: TrainConfig, count: int) -> None:
    model, size = build_model(config).eval(), config.data.resolution
    images = torch.rand(count, 3, size, size) * 2 - 1
    with torch.no_grad():
        reconstruction = model(images)
    indices = model.encode(images)
    assert indices.shape == (count, size // config.model.patch, size // config.model.patch)
    assert indices.min() >= 0
    assert indices.max() < model.quantizer.codebook_size
    assert torch.equal(indices.flatten(1), reconstruction.quantized.indices)
    assert reconstruction.images.shape == images.shape
    assert torch.equal(model.decode(indices), reconstruction.images)


@EXAMPLES
@given(configs())
def test_any_model_is_counted_before_it_is_built(config: TrainConfig) -> None:
    model = build_model(config)
    assert count_parameters(config) == sum(parameter.numel() for parameter in model.parameters())
    assert bits_per_image(config) == config.tokens * math.log2(model.quantizer.codebook_size)


@EXAMPLES
@given(configs())
def test_any_model_gives_every_parameter_a_finite_gradient(config: TrainConfig) -> None:
    model, size = build_model(config), config.data.resolution
    images = torch.rand(2, 3, size, size) * 2 - 1
    model.quantizer.begin_step(1, 10, seed=0)
    reconstruction = model(images)
    loss = (reconstruction.images - images).square().mean()
    torch.stack([loss, *reconstruction.quantized.losses.values()]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.last_weight().grad.any()
