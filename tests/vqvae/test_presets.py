"""The presets: the article's models, and proxies of equal sizes at equal tokens."""

import inspect
from statistics import fmean

import pytest

from vqvae import presets
from vqvae.config import ConfigError, ModelConfig, TrainConfig
from vqvae.conversion import replace, to_dict
from vqvae.model import BACKBONES, bits_per_image, count_parameters
from vqvae.presets import PRESETS, preset

SUFFIXES = ("", "-small", "-tiny")


def _backbone(name: str) -> str:
    return name.split("-")[0]


def test_every_backbone_has_the_articles_size_and_two_smaller_ones() -> None:
    assert list(PRESETS) == [f"{backbone}{suffix}" for suffix in SUFFIXES for backbone in BACKBONES]


@pytest.mark.parametrize(
    ("name", "millions"),
    [("convolution", 16), ("attention", 36), ("mamba", 33), ("bimamba", 33), ("mambavision", 33)],
)
def test_presets_have_the_sizes_of_the_article(name: str, millions: int) -> None:
    assert count_parameters(preset(name)) / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize(("suffix", "part"), [("-small", 1 / 4), ("-tiny", 1 / 12)])
def test_proxies_have_equal_sizes(suffix: str, part: float) -> None:
    counts = [count_parameters(preset(f"{backbone}{suffix}")) for backbone in BACKBONES]
    assert counts == [pytest.approx(fmean(counts), rel=0.1)] * len(BACKBONES)
    assert fmean(counts) == pytest.approx(part * count_parameters(preset("mambavision")), rel=0.15)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_table_states_the_sizes(suffix: str) -> None:
    counts = [count_parameters(preset(f"{backbone}{suffix}")) / 1e6 for backbone in BACKBONES]
    row = " | ".join([suffix or "the article's", *(f"{count:.1f}" for count in counts)])
    assert f"| {row} |\n" in inspect.getsource(presets)


@pytest.mark.parametrize("name", PRESETS)
def test_all_presets_make_equally_many_tokens_and_bits(name: str) -> None:
    config = preset(name)
    assert (config.data.resolution, config.model.patch, config.tokens) == (256, 8, 1024)
    assert bits_per_image(config) == 1024 * 14


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_default_training_with_another_model(name: str) -> None:
    config = preset(name)
    assert config.model.backbone == _backbone(name)
    assert replace(config, {f"model.{key}": value for key, value in to_dict(ModelConfig()).items()}) == TrainConfig()


@pytest.mark.parametrize("name", PRESETS)
def test_widths_suit_tensor_cores_at_every_resolution(name: str) -> None:
    model = preset(name).model
    multipliers = model.channel_multipliers or (1.0,)
    assert [multiplier * model.width % 8 for multiplier in multipliers] == [0] * len(multipliers)
    assert model.width % model.head_size == 0


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "attention-tiny"])
def test_a_proxy_differs_from_its_model_in_width_alone(name: str) -> None:
    whole = preset(_backbone(name))
    assert replace(preset(name), {"model.width": whole.model.width}) == whole


def test_the_shallower_proxy_keeps_its_head_size() -> None:
    whole = preset("attention")
    assert replace(preset("attention-tiny"), {"model.width": whole.model.width, "model.depth": 7}) == whole


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        preset("resnet")
    assert str(error.value) == (
        "preset: must be one of convolution, attention, mamba, bimamba, mambavision, "
        "convolution-small, attention-small, mamba-small, bimamba-small, mambavision-small, "
        "convolution-tiny, attention-tiny, mamba-tiny, bimamba-tiny, mambavision-tiny, but got 'resnet'"
    )
