"""The shared layers: what they compute, and how large their outputs start."""

import math

import pytest
import torch
from torch import nn

from vqvae import layers
from vqvae.config import ConfigError


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.dense(256, 128), (64, 256)),
        (layers.dense(64, 128, bias=True), (64, 64)),
        (layers.conv(32, 64, 3), (4, 32, 16, 16)),
        (layers.conv(64, 64, 7, groups=64), (4, 64, 16, 16)),
        (layers.conv(3, 64, 8, stride=8), (16, 3, 32, 32)),
        (layers.transposed_conv(32, 8, 8, stride=8), (4, 32, 8, 8)),
        (layers.transposed_conv(256, 8, 16, stride=8), (4, 256, 8, 8)),
    ],
    ids=str,
)
def test_outputs_start_as_large_as_inputs(layer: nn.Module, shape: tuple[int, ...]) -> None:
    output = layer(torch.randn(shape))
    inside = output if output.ndim == 2 else output[..., 4:-4, 4:-4]  # away from the padding
    if inside.numel() == 0:
        inside = output
    assert inside.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("kernel", [8, 12, 16])
def test_overlapping_patches_keep_the_grid(kernel: int) -> None:
    images = torch.randn(1, 3, 32, 32)
    tokens = layers.conv(3, 5, kernel, stride=8)(images)
    assert tokens.shape == (1, 5, 4, 4)
    assert layers.transposed_conv(5, 3, kernel, stride=8)(tokens).shape == images.shape


def test_swiglu_follows_its_formula() -> None:
    layer = layers.SwiGLU(8, 4)
    x = torch.randn(2, 3, 8)
    gate, value = x @ layer.gate.weight.T, x @ layer.value.weight.T
    torch.testing.assert_close(layer(x), (gate * gate.sigmoid() * value) @ layer.output.weight.T)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 3 * 8 * 32


def test_attention_mixes_the_tokens_of_one_image_with_a_softmax() -> None:
    layer = layers.Attention(8, head_size=4)
    x = torch.randn(3, 5, 8)
    expected = torch.empty_like(x)
    query, key, value = (layer.query_key_value(x)[..., start : start + 8] for start in (0, 8, 16))
    for head in (slice(0, 4), slice(4, 8)):
        weights = (query[..., head] @ key[..., head].mT / math.sqrt(4)).softmax(-1)
        expected[..., head] = weights @ value[..., head]
    torch.testing.assert_close(layer(x), layer.output(expected))


def test_a_head_size_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        layers.Attention(96, head_size=64)
    assert str(error.value) == ("model.head_size: must divide the 96 channels that attention works on, but got 64")


def _without_channel_map(layer: layers.Downsample | layers.Upsample) -> nn.Module:
    layer.channels = nn.Identity()  # type: ignore[assignment]
    return layer


def test_down_sampling_keeps_flat_areas_and_removes_the_finest_pattern() -> None:
    down = _without_channel_map(layers.Downsample(2, 2))
    flat = torch.full((1, 8, 8, 2), 3.0)
    torch.testing.assert_close(down(flat)[:, 1:-1, 1:-1], flat[:, :2, :2])
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    checkers = (1.0 - 2.0 * ((rows + columns) % 2))[None, :, :, None].expand(1, 8, 8, 2)
    torch.testing.assert_close(down(checkers)[:, 1:-1, 1:-1], torch.zeros(1, 2, 2, 2))


def test_up_sampling_repeats_every_pixel() -> None:
    up = _without_channel_map(layers.Upsample(1, 1))
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    expected = torch.tensor([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]], dtype=torch.float32)
    torch.testing.assert_close(up(x)[0, :, :, 0], expected)


def test_resampling_maps_the_channels() -> None:
    x = torch.randn(2, 8, 8, 3)
    assert layers.Downsample(3, 7)(x).shape == (2, 4, 4, 7)
    assert layers.Upsample(3, 7)(x).shape == (2, 16, 16, 7)
