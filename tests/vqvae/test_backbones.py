"""What the backbones are made of, and which tokens and pixels see which: nothing crosses between images."""

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from vqvae import testing
from vqvae.config import ConfigError, ModelConfig
from vqvae.convolution import ConvolutionBlock
from vqvae.layers import Attention, MixerBlock, PatchDecoder, PatchEncoder
from vqvae.mamba import BidirectionalMambaBlock
from vqvae.model import BACKBONES, build_model

RESOLUTION, PATCH, ROWS, TOKEN = 32, 8, 4, 6
NAMES = tuple(BACKBONES)


def _config(backbone: str, **settings: object) -> ModelConfig:
    sizes = {"width": 16, "depth": 2, "patch": PATCH, "head_size": 8, "state_size": 4}
    return ModelConfig(backbone=backbone, **(sizes | settings))  # type: ignore[arg-type]


PROMISES = {
    "convolution": ["every_token_reaches_every_other"],
    "attention": ["every_token_reaches_every_other"],
    "mamba": ["a_token_reaches_itself_and_later_ones"],
    "bimamba": ["every_token_reaches_every_other"],
    "mambavision": [],
}
"""Which tokens see which."""


def _checks(backbone: str) -> list[testing.Check]:
    """All that any backbone is held to, and its own promises: two blocks deep, since one may see less."""
    promises = [*PROMISES[backbone], "blocks_compile_whole"]
    two_deep = testing.checks("backbone", backbone, {"model.depth": 2}, promises=PROMISES[backbone])
    shallow = testing.checks("backbone", backbone, promises=["blocks_compile_whole"])
    return [*shallow, *(check for check in two_deep if check.name in promises)]


def _cases() -> list[object]:
    strict = pytest.mark.filterwarnings("error")  # PyTorch warns where it has no fused kernel for mixed dtypes
    return [
        pytest.param(check, id=f"{name}-{check}", marks=[strict] if check.name == "bfloat16_stays_near" else [])
        for name in NAMES
        for check in _checks(name)
    ]


@pytest.mark.parametrize("check", _cases())
def test_it_passes_the_checks_of_every_backbone(check: testing.Check) -> None:
    check()


def test_mambavision_sees_one_token_ahead_with_each_block() -> None:
    config = testing.checks("backbone", "mambavision", {"model.depth": 2})[0].subject.config
    tokens = torch.arange(ROWS**2)
    for reach in testing.reached(build_model(config).eval(), config):
        assert torch.equal(reach, tokens >= tokens[:, None] - 2)


def _patch_of(images: Tensor, token: int) -> Tensor:
    row, column = divmod(token, ROWS)
    return images[..., row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]


class _Doubled(nn.Module):
    """A block that any other stands for."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def _head(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state["head.0.weight"]
    hidden = torch.tanh(x @ state["head.1.weight"].T + state["head.1.bias"])
    assert hidden.shape[-1] == 4 * x.shape[-1]
    return hidden @ state["head.3.weight"].T + state["head.3.bias"]


def _randomized(module: nn.Module) -> dict[str, Tensor]:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module.state_dict()


def test_a_patch_encoder_is_patches_and_positions_then_blocks_then_the_tanh_head() -> None:
    encoder = PatchEncoder(_config("attention", depth=3), RESOLUTION, lambda _: _Doubled())
    state, images = _randomized(encoder), torch.rand(2, 3, RESOLUTION, RESOLUTION)
    patches = rearrange(images, "b c (y p) (x q) -> b (y x) (c p q)", p=PATCH, q=PATCH)
    tokens = patches @ state["patches.weight"].flatten(1).T + state["patches.bias"] + state["positions"]
    torch.testing.assert_close(encoder(images), _head(2**3 * tokens, state), rtol=1e-4, atol=1e-4)


def test_a_patch_decoder_is_positions_then_blocks_then_the_tanh_head_and_pixels() -> None:
    decoder = PatchDecoder(_config("attention", decoder_depth=3), RESOLUTION, lambda _: _Doubled())
    state, tokens = _randomized(decoder), torch.randn(2, ROWS**2, 16)
    patches = _head(2**3 * (tokens + state["positions"]), state) @ state["pixels.weight"].flatten(1)
    images = rearrange(patches, "b (y x) (c p q) -> b c (y p) (x q)", y=ROWS, p=PATCH, q=PATCH)
    expected = images + state["pixels.bias"][:, None, None]
    torch.testing.assert_close(decoder(tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 6, 7, 16)], ids=["mixer", "convolution"])
def test_a_block_adds_the_mixer_then_swiglu_each_behind_a_norm(shape: tuple[int, ...]) -> None:
    block = MixerBlock(_Doubled(), 16, 4) if len(shape) == 3 else ConvolutionBlock(16, 4)
    _randomized(block)
    x = torch.randn(shape)
    normed = block.mixer_norm(x)
    if isinstance(block, ConvolutionBlock):
        mixed = rearrange(block.mixer(rearrange(normed, "b h w c -> b c h w")), "b c h w -> b h w c")
    else:
        mixed = 2 * normed
    expected = x + mixed + block.mlp(block.mlp_norm(x + mixed))
    torch.testing.assert_close(block(x), expected)
    assert not torch.allclose(normed, x)


def test_the_convolution_backbone_halves_the_image_and_has_a_transformer_block_at_the_tokens() -> None:
    encoder, decoder = (build(_config("convolution"), RESOLUTION) for build in BACKBONES["convolution"][:2])
    two = ["ConvolutionBlock"] * 2
    names = [[type(block).__name__ for block in half.blocks] for half in (encoder, decoder)]
    assert names[0] == [*two, "Downsample", *two, "Downsample", *two, "Downsample", *two]
    assert names[1] == [*two, "Upsample", *two, "Upsample", *two, "Upsample", *two]
    order: list[str] = []
    for half in (encoder, decoder):
        assert isinstance(half.transformer.mixer, Attention)
        half.transformer.register_forward_hook(lambda *_: order.append("transformer"))
        for block in half.blocks:
            block.register_forward_hook(lambda *_: order.append("block"))
    decoder(encoder(torch.rand(1, 3, RESOLUTION, RESOLUTION)))
    assert order == [*["block"] * 11, "transformer", "transformer", *["block"] * 11]


@pytest.mark.parametrize("backbone", NAMES)
@pytest.mark.parametrize(("depth", "decoder_depth", "expected"), [(2, 0, (2, 2)), (1, 3, (1, 3)), (3, 1, (3, 1))])
def test_the_decoder_is_as_deep_as_the_encoder_or_as_asked(
    backbone: str, depth: int, decoder_depth: int, expected: tuple[int, int]
) -> None:
    config = _config(backbone, depth=depth, decoder_depth=decoder_depth)
    halves = [build(config, RESOLUTION) for build in BACKBONES[backbone][:2]]
    resolutions = 4 if backbone == "convolution" else 1
    counts = [
        sum(hasattr(block, "mlp_norm") or hasattr(block, "backward_mlp") for block in half.blocks) for half in halves
    ]
    assert counts == [resolutions * each for each in expected]
    assert halves[1](halves[0](torch.rand(1, 3, RESOLUTION, RESOLUTION))).shape == (1, 3, RESOLUTION, RESOLUTION)


def test_an_overlap_lets_a_patch_reach_its_neighbors() -> None:
    images = torch.rand(1, 3, RESOLUTION, RESOLUTION)
    changed = images.clone()
    _patch_of(changed, TOKEN).add_(0.5)
    for overlap, reached in ((0.0, {6}), (0.5, {1, 2, 3, 5, 6, 7, 9, 10, 11})):
        encoder = BACKBONES["attention"].encoder(_config("attention", overlap=overlap), RESOLUTION)
        difference = (encoder.patches(images) - encoder.patches(changed)).abs().amax(1).flatten()
        assert set(difference.nonzero().flatten().tolist()) == reached


@pytest.mark.parametrize(("overlap", "reach"), [(0.0, 0), (0.5, 2), (1.0, 4), (2.0, 8)])
def test_an_overlap_lets_a_token_paint_beyond_its_patch_on_every_side(overlap: float, reach: int) -> None:
    decoder = BACKBONES["attention"].decoder(_config("attention", overlap=overlap), RESOLUTION)
    nn.init.zeros_(decoder.pixels.bias)
    token = torch.zeros(1, 16, ROWS, ROWS)
    token[0, :, 1, 2] = 1
    painted = decoder.pixels(token)[0].abs().amax(0) > 0
    expected = torch.zeros(RESOLUTION, RESOLUTION, dtype=torch.bool)
    expected[max(0, 8 - reach) : 16 + reach, 16 - reach : 24 + reach] = True
    assert torch.equal(painted, expected)


def test_a_convolution_block_sees_seven_by_seven_pixels() -> None:
    block = ConvolutionBlock(4, mlp_ratio=2)
    x = torch.randn(2, 16, 16, 4)
    changed = x.clone()
    changed[0, 8, 6] = torch.randn(4)
    difference = (block(x) - block(changed)).abs().amax(-1)
    expected = torch.zeros(2, 16, 16, dtype=torch.bool)
    expected[0, 5:12, 3:10] = True
    assert torch.equal(difference > 0, expected)


@pytest.mark.parametrize("silent", ["forward_mixer", "backward_mixer"])
def test_bidirectional_mamba_flips_the_backward_stream_back(silent: str) -> None:
    block = BidirectionalMambaBlock(_config("bimamba"))
    nn.init.zeros_(getattr(block, silent).out_proj.weight)
    x = torch.randn(1, 10, 16)
    changed = x.clone()
    changed[0, 6] = torch.randn(16)
    difference = (block(x) - block(changed)).abs().amax(-1)[0]
    tokens = torch.arange(10)
    assert torch.equal(difference > 0, tokens <= 6 if silent == "forward_mixer" else tokens >= 6)


def test_bidirectional_mamba_sums_two_streams_with_a_residual_each() -> None:
    block = BidirectionalMambaBlock(_config("bimamba"))
    x = torch.randn(1, 10, 16)
    # The article's own code: the whole stream is turned, and turned back before the sum.
    ahead, behind = x, x.flip(1)
    ahead = block.forward_mixer(block.mixer_norm(ahead)) + ahead
    ahead = block.forward_mlp(block.forward_mlp_norm(ahead)) + ahead
    behind = block.backward_mixer(block.mixer_norm(behind)) + behind
    behind = block.backward_mlp(block.backward_mlp_norm(behind)) + behind
    torch.testing.assert_close(block(x), ahead + behind.flip(1))


def test_channels_follow_their_multipliers_from_pixels_to_tokens() -> None:
    config = _config("convolution", channel_multipliers=(0.5, 1, 1, 1.5))
    encoder, decoder = (build(config, RESOLUTION) for build in BACKBONES["convolution"][:2])
    widths = [block.mixer.weight.shape[0] for block in encoder.blocks if isinstance(block, ConvolutionBlock)]
    mirrored = [block.mixer.weight.shape[0] for block in decoder.blocks if isinstance(block, ConvolutionBlock)]
    assert widths == [8, 8, 16, 16, 16, 16, 24, 24]
    assert mirrored == widths[::-1]
    assert BACKBONES["convolution"].token_width(config) == 24
    assert BACKBONES["convolution"].token_width(_config("convolution")) == 16


@pytest.mark.parametrize(
    ("backbone", "settings", "message"),
    [
        (
            "convolution",
            {"patch": 6},
            "model.patch: must be a power of two for the convolution backbone, but got 6",
        ),
        (
            "convolution",
            {"channel_multipliers": (1, 2)},
            "model.channel_multipliers: must be 4 numbers, one for each resolution down to patches of 8 pixels, "
            "but got (1, 2)",
        ),
        (
            "convolution",
            {"channel_multipliers": (0.3, 1, 1, 1)},
            "model.channel_multipliers: must give whole numbers of channels at a width of 16, but got "
            "[4.8, 16, 16, 16]",
        ),
        (
            "convolution",
            {"head_size": 64},
            "model.head_size: must divide the 16 channels that attention works on, but got 64",
        ),
        (
            "attention",
            {"head_size": 12},
            "model.head_size: must divide the 16 channels that attention works on, but got 12",
        ),
        (
            "mambavision",
            {"head_size": 32},
            "model.head_size: must divide the 16 channels that MambaVision scans, but got 32",
        ),
        ("mamba", {"head_size": 12}, "model.head_size: must divide Mamba2's inner width of 32 channels, but got 12"),
        ("bimamba", {"head_size": 12}, "model.head_size: must divide Mamba2's inner width of 32 channels, but got 12"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(backbone: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        BACKBONES[backbone].encoder(_config(backbone, **settings), RESOLUTION)
    assert str(error.value) == message
