"""Every check can fail: for each one a part that breaks the promise, and what the check says of it."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vqvae import sources, testing
from vqvae.codes import Quantized, Quantizer, straight_through
from vqvae.layers import PatchDecoder, patch_backbone
from vqvae.plugins import KINDS, register
from vqvae.vector import VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class Case:
    kind: str
    check: str
    part: Any
    says: str
    config: type | None = None
    direction: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class Block(nn.Module):
    """Sound: every token gets a map of the mean."""

    def __init__(self, config):
        super().__init__()
        self.map = nn.Linear(config.width, config.width)

    def forward(self, x):
        return x + self.map(x.mean(1, keepdim=True))


def block(forward, make=None):
    """The sound block with another forward pass, and more that is made beforehand."""

    class Broken(Block):
        def __init__(self, config):
            super().__init__(config)
            if make:
                make(self, config)

        def forward(self, x):
            return forward(self, x)

    return Broken


sound = Block.forward


class Decoder(PatchDecoder):
    def forward(self, tokens):
        return self.change(super().forward(tokens))


def decoder(function):
    made = type("Squashed", (Decoder,), {"change": staticmethod(function)})
    return patch_backbone(Block)._replace(decoder=lambda config, size: made(config, size, Block))


def drawn_by_numpy(self, config):
    self.map.weight.data = torch.from_numpy(np.random.rand(config.width, config.width)).float()


def tied(self, config):
    self.again = nn.Linear(config.width, config.width)
    self.again.weight = self.map.weight


def one_width_alone(self, config):
    if config.width != 16:
        raise RuntimeError("16 or nothing")


@dataclass(frozen=True, kw_only=True)
class Unchecked:
    kernel: int = 3


def with_kernel(self, config):
    self.local = nn.Conv1d(config.width, config.width, config.options.kernel, padding="same")


BACKBONES = [
    Case(
        kind="backbone",
        check="one_token_for_each_patch",
        part=block(lambda self, x: sound(self, x)[:, ::2]),
        says="3 images, 16 patches, token_width channels, but got (3, 8, 16) of torch.float32",
    ),
    Case(
        kind="backbone",
        check="it_takes_other_sizes",
        part=block(lambda self, x: sound(self, x.reshape(-1, 16, x.shape[2]))),
        says="but got (12, 16, 16) of torch.float32 (model.patch times 0.5)",
    ),
    Case(
        kind="backbone",
        check="images_never_mix",
        part=block(
            lambda self, x: self.norm(sound(self, x).mT).mT,
            lambda self, config: setattr(self, "norm", nn.BatchNorm1d(config.width)),
        ),
        says="in training mode: does it mix along the first axis",
    ),
    Case(
        kind="backbone",
        check="tokens_mix",
        part=block(lambda self, x: x + self.map(x)),
        says="expected tokens of the encoder to reach others, but each changes itself alone",
    ),
    Case(kind="backbone", check="it_learns", part=decoder(lambda images: 0 * images), says="at last"),
    Case(
        kind="backbone",
        check="the_last_layer_makes_the_pixels",
        part=decoder(torch.tanh),
        says="`pixels` to be the images, but something comes after it",
    ),
    Case(
        kind="backbone",
        check="every_token_reaches_every_other",
        part=block(lambda self, x: x + self.map(x.roll(1, 1))),
        says="expected token 0 of the encoder to reach token 2, but it does not",
    ),
    Case(
        kind="backbone",
        check="a_token_reaches_itself_and_later_ones",
        part=Block,
        says="expected token 1 of the encoder not to reach token 0, but it does",
    ),
    Case(
        kind="backbone",
        check="blocks_compile_whole",
        part=block(lambda self, x: (torch._dynamo.graph_break(), sound(self, x))[1]),
        says="Unsupported",
    ),
    Case(
        kind="backbone",
        check="decoding_the_indices_gives_the_reconstruction",
        part=block(lambda self, x: sound(self, x) + torch.randn_like(x)),
        says="does evaluation mode draw random numbers?",
    ),
    Case(
        kind="backbone",
        check="every_parameter_learns",
        part=block(sound, lambda self, config: setattr(self, "idle", nn.Linear(2, 2))),
        says="none reaches decoder.blocks.0.idle.bias, decoder.blocks.0.idle.weight, encoder",
    ),
    Case(
        kind="backbone",
        check="the_seed_settles_every_weight",
        part=block(sound, drawn_by_numpy),
        says="encoder.blocks.0.map.weight, decoder.blocks.0.map.weight differ: draw them from torch's generator",
    ),
    Case(
        kind="backbone",
        check="it_is_counted_without_memory",
        part=block(sound, lambda self, config: self.map.weight.sum().item()),
        says="no .item() and no numpy in __init__",
    ),
    Case(
        kind="backbone",
        check="a_copy_and_a_state_dict_give_the_same_model",
        part=block(
            lambda self, x: sound(self, x + self.shift),
            lambda self, config: self.register_buffer("shift", torch.randn(config.width), persistent=False),
        ),
        says="expected the same images from a state_dict, but they differ",
    ),
    Case(
        kind="backbone",
        check="a_saved_model_is_loaded_with_its_options",
        part=block(lambda self, x: self.again(sound(self, x)), tied),
        says="two names can't share one, as tied weights do",
    ),
    Case(
        kind="backbone",
        check="training_goes_on_from_a_checkpoint",
        part=block(lambda self, x: sound(self, F.dropout(x, 0.5, self.training))),
        says="does training draw from torch's own generator, as dropout does",
    ),
    Case(
        kind="backbone",
        check="bfloat16_stays_near",
        part=block(lambda self, x: torch.sin(1000 * sound(self, x))),
        says="expected images within 5% of those in float32, but they are",
    ),
    Case(
        kind="backbone",
        check="every_parameter_has_a_role",
        part=block(sound, one_width_alone),
        says="RuntimeError: 16 or nothing",
    ),
    Case(
        kind="backbone",
        check="options_work_or_are_refused",
        part=block(lambda self, x: sound(self, self.local(x.mT).mT), with_kernel),
        config=Unchecked,
        says="expected model.options.kernel = 0 to work, or to be refused with a ConfigError when the model is built",
    ),
]


class Signs(Quantizer):
    """Sound: one bit for each of five dimensions."""

    def __init__(self, config):
        super().__init__()
        self.code_dim, self.codebook_size = 5, 32
        self.register_buffer("powers", 2 ** torch.arange(5), persistent=False)

    def forward(self, vectors):
        indices = self.choose(vectors)
        codes = self.decode(indices)
        return Quantized(straight_through(vectors, codes), indices, {"commitment": F.mse_loss(vectors, codes)})

    def choose(self, vectors):
        return ((vectors > 0) * self.powers).sum(-1)

    def decode(self, indices):
        return 2.0 * (indices[..., None] & self.powers != 0) - 1


class Rounded(Signs):
    def forward(self, vectors):
        sound = super().forward(vectors)
        return sound._replace(codes=vectors + (sound.codes - vectors).detach())

    def decode(self, indices):
        return 0.7 * super().decode(indices)


class Sized(VectorQuantizer):
    def __init__(self, config):
        super().__init__(config)
        self.codebook_size = 32


class Doubled(Signs):
    def decode(self, indices):
        return super().decode(indices % 16)


class Centered(Signs):
    def decode(self, indices):
        codes = super().decode(indices)
        return codes - codes.mean((0, 1))


class Shadowing(Signs):
    def forward(self, vectors):
        return super().forward(vectors)._replace(losses={"l2": vectors.mean()})


class Detached(Signs):
    def forward(self, vectors):
        sound = super().forward(vectors)
        return sound._replace(codes=sound.codes.detach())


class Drawing(Signs):
    def choose(self, vectors):
        return super().choose(vectors + torch.rand_like(vectors) * self.training)


class Counting(Signs):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, vectors):
        self.seen += 1
        return super().forward(vectors)


class Forgetful(Signs):
    shift = 0.0

    def choose(self, vectors):
        return super().choose(vectors + self.shift)

    def end_step(self):
        self.shift += 0.1


class Growing(Counting):
    def forward(self, vectors):
        return Signs.forward(self, vectors)

    def end_step(self):
        self.seen = torch.cat([self.seen.view(-1), torch.zeros(1)])


class Mirrored(Signs):
    def choose(self, vectors):
        return super().choose(-vectors)


class Multiplying(Signs):
    def choose(self, vectors):
        return super().choose(vectors @ torch.eye(5))


QUANTIZERS = [
    Case(
        kind="quantizer", check="codes_and_indices_agree", part=Rounded, says="`vqvae.codes.straight_through` does not"
    ),
    Case(kind="quantizer", check="it_takes_other_sizes", part=Sized, says="(quantizer.codebook_size 64)"),
    Case(
        kind="quantizer",
        check="every_index_has_a_code_of_its_own",
        part=Doubled,
        says="expected 32 different codes of 32 indices, but there are 16",
    ),
    Case(
        kind="quantizer",
        check="a_code_does_not_depend_on_the_others",
        part=Centered,
        says="expected the codes of an image decoded alone to be those within a batch",
    ),
    Case(
        kind="quantizer",
        check="losses_are_named_scalars",
        part=Shadowing,
        says="expected names of losses under which nothing else is reported, but l2 is taken",
    ),
    Case(
        kind="quantizer",
        check="the_decoder_reaches_the_vectors",
        part=Detached,
        says="expected codes with a gradient, but they have none: see `vqvae.codes.straight_through`",
    ),
    Case(
        kind="quantizer",
        check="random_numbers_are_those_of_the_step",
        part=Drawing,
        says="draw from `vqvae.codes.step_generator(step, seed, device)`",
    ),
    Case(
        kind="quantizer",
        check="state_changes_at_the_end_of_a_step_alone",
        part=Counting,
        says="expected buffers that a pass leaves alone, but seen changed before end_step",
    ),
    Case(
        kind="quantizer",
        check="copies_go_on_bit_for_bit",
        part=Forgetful,
        says="expected one continued from a state_dict to give the same codes",
    ),
    Case(
        kind="quantizer",
        check="buffers_keep_their_shapes",
        part=Growing,
        says="expected the same buffers after three steps, but seen came, went or changed its shape",
    ),
    Case(kind="quantizer", check="codes_are_quantized_to_themselves", part=Mirrored, says="but 32 of 32 get another"),
    Case(
        kind="quantizer", check="indices_do_not_hang_on_tf32", part=Multiplying, says="see `vqvae.codes.full_precision`"
    ),
]


def error(made, images):
    """Sound, as a metric."""
    return (made - images).abs().mean((1, 2, 3))


def _l2(made, images):
    return (made - images).square().mean()


METRICS = [
    Case(
        kind="metric",
        direction="minimize",
        check="one_number_for_each_image",
        part=lambda made, images: error(made, images).mean(),
        says="expected a tensor (1,) of floats, one number for each image, but got () of torch.float32",
    ),
    Case(
        kind="metric",
        direction="minimize",
        check="an_image_is_measured_by_itself",
        part=lambda made, images: error(made, images) / error(made, images).sum(),
        says="expected images 0 and 2 of a batch to keep their numbers",
    ),
    Case(
        kind="metric",
        direction="minimize",
        check="it_measures_the_same_twice",
        part=lambda made, images: error(made, images) + torch.rand(()),
        says="again, but got",
    ),
    Case(
        kind="metric",
        direction="maximize",
        check="its_direction_is_right",
        part=lambda made, images: error(made, images),
        says="since its direction is maximize, but equal ones have [0.0, 0.0, 0.0]",
    ),
    Case(
        kind="metric",
        direction="minimize",
        check="not_a_number_stays_visible",
        part=lambda made, images: error(made, images).nan_to_num(),
        says="expected no finite number of images that are NaN, but got [0.0, 0.0]",
    ),
    Case(
        kind="metric",
        direction="minimize",
        check="an_evaluation_reports_it",
        part=lambda made, images: error(made, images) * len(made),
        says="at any micro-batch",
    ),
]


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, made, images):
        self.seen += 1
        return _l2(made, images)


LOSSES = [
    Case(
        kind="loss",
        check="a_scalar_with_a_finite_gradient",
        part=lambda made, images: _l2(made, images).sqrt(),
        says="expected a finite gradient, but it holds NaN or infinity (equal images",
    ),
    Case(
        kind="loss",
        check="its_gradient_leads_down",
        part=lambda made, images: 2 * _l2(made, images).detach() - _l2(made, images),
        says="after a step down its gradient, but got",
    ),
    Case(
        kind="loss",
        check="it_remembers_nothing",
        part=Remembering,
        says="expected buffers that stay as they are, but seen changed in a pass",
    ),
    Case(
        kind="loss",
        check="training_goes_on_from_a_checkpoint",
        part=lambda made, images: _l2(made, images) * (1 + torch.rand(())),
        says="does training draw from torch's own generator",
    ),
    Case(
        kind="loss",
        check="it_is_a_mean_over_images",
        part=lambda made, images: (made - images).square().sum(),
        says="of two micro-batches",
    ),
]


def _files(count=30):
    generator = np.random.default_rng(0)
    return [(str(number), b"P6 32 32 255 " + generator.bytes(32 * 32 * 3)) for number in range(count)]


def source(files=_files, total=30):
    def find(config):
        return sources.Source(place="noise", identity="1", total=total, pictures=lambda: iter(files()))

    return find


def by_count(config):
    return source(_files, 30 // config.options.count)(config)


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    count: int = 1


DATA = [
    Case(
        kind="data",
        check="it_says_what_it_has",
        part=source(total=31),
        says="expected the 31 pictures of its total, but it gives 30",
    ),
    Case(
        kind="data",
        check="it_gives_the_same_again",
        part=source(lambda: random.sample(_files(), 30)),
        says="expected the same pictures in the same order, but others came when asked a second time",
    ),
    Case(
        kind="data",
        check="its_pictures_are_cached_and_split",
        part=source(lambda: [*_files(29), ("torn", b"P6")]),
        says="expected pictures that can be read, but 1 can't, of 30: torn",
    ),
    Case(
        kind="data",
        check="options_work_or_are_refused",
        part=by_count,
        config=CountConfig,
        says="expected data.options.count = 0 to work, or to be refused with a ConfigError, but ZeroDivisionError came",
    ),
]

CASES = [*BACKBONES, *QUANTIZERS, *METRICS, *LOSSES, *DATA]


def _check(case):
    promises = {case.check} & set(testing.PROMISES.get(case.kind, ()))
    [check] = [
        check
        for check in testing.checks(case.kind, "broken", case.settings, promises=promises)
        if check.name == case.check
    ]
    return check


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}-{case.check}")
def test_a_part_that_breaks_its_promise_is_caught_and_told_so(case):
    register(case.kind, "broken", config=case.config, direction=case.direction)(case.part)
    problem = _check(case).outcome().problem
    assert case.says in problem
    assert "\n" not in problem


def test_every_check_has_a_part_that_breaks_it():
    every = {
        check.trial for kind in KINDS for check in testing.checks(kind, "any", promises=testing.PROMISES.get(kind, ()))
    }
    assert every == {_check(case).trial for case in CASES}


@pytest.mark.parametrize("kind", ["backbone", "quantizer", "metric", "loss", "data"])
def test_the_sound_part_that_each_broken_one_comes_from_passes(kind):
    parts = {"backbone": Block, "quantizer": Signs, "metric": error, "loss": _l2, "data": source()}
    register(kind, "sound", direction="minimize" if kind == "metric" else None)(parts[kind])
    report = testing.report(kind, "sound")
    assert not report.failed, str(report)
