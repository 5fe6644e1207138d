"""What a backbone promises: one token for each patch, tokens of one image that mix and images that never do.

Axes: b images, h and w rows and columns of pixels, n tokens in reading order, c channels of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange

from vqvae import checks_model
from vqvae.checks import Subject, during, expect, listed
from vqvae.checks_model import pictures
from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace
from vqvae.model import VQVAE, build_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

SIZES: tuple[dict[str, Any], ...] = (
    {"model.depth": 3},
    {"model.depth": 1, "model.decoder_depth": 3},
    {"model.depth": 3, "model.decoder_depth": 1},
    {"model.width": 2},
    {"model.overlap": 0.5},
    {"model.overlap": 1.0},
    {"model.patch": 0.5},
    {"model.patch": 2},
    {"data.resolution": 2},
    {"data.resolution": 1.5},
)
"""Sizes that are tried besides the small ones; those of `SCALED` are factors."""

SCALED = ("model.width", "model.patch", "data.resolution")


def one_token_for_each_patch(subject: Subject) -> None:
    """The encoder gives float32 tokens (b, n, c), one for each patch; the decoder maps them to images (b, 3, h, w)."""
    _shapes(subject.config)


def it_takes_other_sizes(subject: Subject) -> None:
    """Other depths, widths, patches and resolutions work too, or are refused with a ConfigError when it is built."""
    worked = False
    for size in SIZES:
        with during(", ".join(f"{key}{' times' if key in SCALED else ''} {value}" for key, value in size.items())):
            try:
                _shapes(scaled(subject.config, size))
            except ConfigError:
                continue
        worked = True
    expect(worked, "some size besides the small one to work", "all of them are refused")


def scaled(config: TrainConfig, size: dict[str, Any]) -> TrainConfig:
    """A run of one of `SIZES`.

    Raises:
        ConfigError: sizes that do not fit together.
    """
    before = {"model.width": config.model.width, "model.patch": config.model.patch}
    before["data.resolution"] = config.data.resolution
    return replace(config, {key: int(before[key] * value) if key in SCALED else value for key, value in size.items()})


def _shapes(config: TrainConfig) -> None:
    model, size, count = (
        build_model(config),
        config.data.resolution,
        (config.data.resolution // config.model.patch) ** 2,
    )
    for images in (pictures(config, 3), pictures(config, 1)):
        tokens = model.encoder(images)
        expected = (len(images), count, model.to_code.in_features)
        expect(
            tokens.shape == expected and tokens.dtype == torch.float32,
            f"tokens {expected} of torch.float32: {len(images)} images, {count} patches, token_width channels",
            f"got {tuple(tokens.shape)} of {tokens.dtype}",
        )
        made = model.decoder(tokens)
        expect(
            made.shape == images.shape and made.dtype == torch.float32,
            f"images {(len(images), 3, size, size)} of torch.float32 from the decoder",
            f"got {tuple(made.shape)} of {made.dtype}",
        )


def images_never_mix(subject: Subject) -> None:
    """What becomes of an image does not depend on the other images of its batch, in training and in evaluation mode."""
    for training in (True, False):
        model = build_model(subject.config).train(training)
        for half, inputs, changed, module in _halves(model, subject.config, token=0):
            after = _outputs(module, inputs, changed)
            apart = (after[0] - after[1]).abs().flatten(1).amax(1)
            expect(
                not bool(apart[[0, 2]].any()),
                f"the {half} to leave images 0 and 2 of a batch as they are when image 1 changes",
                f"they change by up to {apart[[0, 2]].max():.3g} in {'training' if training else 'evaluation'} mode: "
                "does it mix along the first axis, as nn.MultiheadAttention without batch_first or BatchNorm do?",
            )


def tokens_mix(subject: Subject) -> None:
    """A token of an image reaches itself and at least one other, in the encoder and in the decoder."""
    model = build_model(subject.config).eval()
    count = (subject.config.data.resolution // subject.config.model.patch) ** 2
    chosen = sorted({0, count // 2, count - 1})
    for half, reach in zip(("encoder", "decoder"), reached(model, subject.config, chosen), strict=True):
        alone = [str(token) for token, row in zip(chosen, reach, strict=True) if not bool(row[token])]
        expect(not alone, f"each token of the {half} to depend on its own input", f"tokens {listed(alone)} do not")
        expect(
            bool((reach.sum(1) > 1).any()),
            f"tokens of the {half} to reach others",
            "each changes itself alone: does a block look along the tokens' axis, the second one?",
        )


def reached(model: VQVAE, config: TrainConfig, tokens: Iterable[int] | None = None) -> tuple[Tensor, Tensor]:
    """Which tokens see which: two boolean matrices (tokens, n), of the encoder and of the decoder.

    A row has the tokens (in the decoder: the patches of pixels) that change with one patch (token).

    Args:
        model: in evaluation mode, unless it is training that is asked about.
        config: that it was built from.
        tokens: numbers of the tokens that are changed, in reading order; all of them by default.
    """
    found: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    for token in range((config.data.resolution // config.model.patch) ** 2) if tokens is None else tokens:
        for half, inputs, changed, module in _halves(model, config, token):
            before, after = _outputs(module, inputs, changed)
            apart = (before - after).abs()[1]
            if half == "decoder":
                rows = config.data.resolution // config.model.patch
                apart = rearrange(apart, "c (y p) (x q) -> (y x) (p q c)", y=rows, x=rows)
            found[half].append(apart.amax(-1) > 0)
    return torch.stack(found["encoder"]), torch.stack(found["decoder"])


def _halves(
    model: VQVAE, config: TrainConfig, token: int
) -> list[tuple[str, Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Encoder and decoder: what three images enter as, and the same with one token of image 1 changed."""
    patch, rows = config.model.patch, config.data.resolution // config.model.patch
    y, x = divmod(token, rows)
    images = torch.rand(3, 3, config.data.resolution, config.data.resolution)
    repainted = images.clone()
    repainted[1, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] += 0.5
    tokens = torch.randn(3, rows**2, model.to_code.in_features)
    redrawn = tokens.clone()
    redrawn[1, token] = torch.randn_like(redrawn[1, token])
    return [("encoder", images, repainted, model.encoder), ("decoder", tokens, redrawn, model.decoder)]


@torch.no_grad()
def _outputs(module: Callable[[Tensor], Tensor], *inputs: Tensor) -> list[Tensor]:
    """What a module makes of each, with the same random numbers."""
    outputs = []
    for each in inputs:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            outputs.append(module(each))
    return outputs


def it_learns(subject: Subject) -> None:
    """Thirty steps of AdamW on four images take the squared error below 0.7 of what it was."""
    model, images = build_model(subject.config), pictures(subject.config, 4)
    optimizer, errors = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(30):
        made, quantized = model(images)
        error = (made - images).square().mean()
        optimizer.zero_grad()
        (error + sum(quantized.losses.values())).backward()
        optimizer.step()
        errors.append(error.item())
    expect(
        errors[-1] < 0.7 * errors[0], f"a squared error below {0.7 * errors[0]:.3g}", f"it is {errors[-1]:.3g} at last"
    )


def the_last_layer_makes_the_pixels(subject: Subject) -> None:
    """`VQVAE.last_weight` is that of the layer whose output the images are, or a ConfigError says there is none."""
    for final_convolution in (False, True):
        model = build_model(subject.changed(model__final_convolution=final_convolution))
        try:
            weight = model.last_weight()
        except ConfigError:
            continue
        owners = [each for each in model.modules() if getattr(each, "weight", None) is weight]
        made: list[Tensor] = []
        for owner in owners:
            owner.register_forward_hook(lambda _module, _inputs, output, made=made: made.append(output))
        images = model(pictures(subject.config)).images
        expect(
            len(made) == 1 and torch.equal(made[0], images),
            "the output of the decoder's layer `pixels` to be the images",
            "something comes after it, or it is called more than once: a gan with adaptive weight looks at its weight",
        )


def every_token_reaches_every_other(subject: Subject) -> None:
    """Each token of an image reaches all of them, in the encoder and in the decoder."""
    _require_reach(subject, lambda _one, _other: True)


def a_token_reaches_itself_and_later_ones(subject: Subject) -> None:
    """Each token of an image reaches itself and all later ones in reading order, and none before it."""
    _require_reach(subject, lambda one, other: other >= one)


def _require_reach(subject: Subject, promised: Callable[[int, int], bool]) -> None:
    model = build_model(subject.config).eval()
    for half, reach in zip(("encoder", "decoder"), reached(model, subject.config), strict=True):
        for one, row in enumerate(reach.tolist()):
            for other, there in enumerate(row):
                expect(
                    there == promised(one, other),
                    f"token {one} of the {half} {'' if promised(one, other) else 'not '}to reach token {other}",
                    f"it does{'' if there else ' not'}",
                )


def blocks_compile_whole(subject: Subject) -> None:
    """`torch.compile` takes each module of `blocks` without a graph break, and it gives the same."""
    torch.compiler.reset()
    model, compiled = build_model(subject.config), set[str]()
    for half, inputs, _, module in _halves(model, subject.config, token=0):
        expected = module(inputs)
        blocks: nn.ModuleList | None = getattr(module, "blocks", None)
        expect(blocks is not None and len(blocks) > 0, f"an nn.ModuleList `blocks` in the {half}", "there is none")
        for block in blocks or ():
            if repr(block) not in compiled:  # of blocks that are alike one tells of all
                compiled.add(repr(block))
                block.compile(backend="eager", fullgraph=True)
        apart = (module(inputs) - expected).abs().max().item()
        expect(apart < 1e-4, f"the same from the compiled {half}", f"it differs by up to {apart:.3g}")


CHECKS = (
    one_token_for_each_patch,
    it_takes_other_sizes,
    images_never_mix,
    tokens_mix,
    it_learns,
    the_last_layer_makes_the_pixels,
    *checks_model.CHECKS,
)
"""Of every backbone."""

PROMISES = (every_token_reaches_every_other, a_token_reaches_itself_and_later_ones, blocks_compile_whole)
"""Of backbones that say so."""
