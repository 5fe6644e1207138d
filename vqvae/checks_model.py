"""What holds for a whole model, whichever of its parts comes from outside.

Axes: b images, h and w rows and columns of pixels.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vqvae import checkpoint, plugins
from vqvae.checkpoint import TrainingState
from vqvae.checks import CheckFailed, Subject, during, expect, listed, odd_values
from vqvae.config import ConfigError, TrainConfig
from vqvae.conversion import replace
from vqvae.learner import Learner
from vqvae.model import VQVAE, build_model, count_parameters, roles
from vqvae.parametrization import UnclassifiedError

if TYPE_CHECKING:
    from torch import Tensor

NEAR = 0.05
"""Norm of what bfloat16 changes about an image / norm of the image, at most."""

AGREEING = 0.8
"""Part of the indices, at least, that are the same in bfloat16."""


def pictures(config: TrainConfig, count: int = 2) -> Tensor:
    """Random images (b, 3, h, w) in [-1, 1] of the size of a run."""
    return 2 * torch.rand(count, 3, config.data.resolution, config.data.resolution) - 1


def decoding_the_indices_gives_the_reconstruction(subject: Subject) -> None:
    """`model.decode(model.encode(images))` is what the forward pass makes of the images, bit for bit."""
    for more in ({}, {"model__final_convolution": True, "model__overlap": 0.5}):
        config = subject.changed(**more)
        model, images, rows = build_model(config).eval(), pictures(config), config.data.resolution // config.model.patch
        with torch.no_grad():
            made, quantized = model(images)
        indices = model.encode(images)
        expect(
            indices.shape == (2, rows, rows) and indices.dtype == torch.int64,
            f"indices (2, {rows}, {rows}) of torch.int64",
            f"got {tuple(indices.shape)} of {indices.dtype}",
        )
        expect(
            torch.equal(indices.flatten(1), quantized.indices),
            "encode to give the indices of the forward pass",
            "they differ: does evaluation mode draw random numbers?",
        )
        expect(made.shape == images.shape, f"images {tuple(images.shape)}", f"got {tuple(made.shape)}")
        decoded = model.decode(indices)
        expect(
            torch.equal(decoded, made),
            "decoded images that are those of the forward pass, bit for bit",
            f"they differ by up to {(decoded - made).abs().max():.3g}",
        )


def every_parameter_learns(subject: Subject) -> None:
    """In the first steps of training each parameter gets a gradient that is finite and, once at least, not zero."""
    config = subject.changed(model__final_convolution=True)
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    silent, images = set(trained), pictures(config, 4)
    for step in range(1, 4):  # what starts behind a zero has to wait for it
        model.quantizer.begin_step(step, 3, 0)
        made, quantized = model(images)
        loss = (made - images).square().mean() + sum(quantized.losses.values())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        wild = [name for name, each in trained.items() if each.grad is not None and not each.grad.isfinite().all()]
        expect(not wild, "finite gradients", f"those of {listed(wild)} hold NaN or infinity in step {step}")
        silent = {name for name in silent if trained[name].grad is None or not bool(trained[name].grad.any())}  # type: ignore[union-attr]
        optimizer.step()
        model.quantizer.end_step()
        if not silent:
            return
    expect(
        False,
        "a gradient for every parameter",
        f"none reaches {listed(sorted(silent))} in 3 steps: is it used in forward, and nothing detached on the way? "
        "(What is not to be trained has requires_grad=False, or is a buffer.)",
    )


def the_seed_settles_every_weight(subject: Subject) -> None:
    """`torch.manual_seed` settles all weights that a model starts from; evaluation draws no random numbers."""

    def built(seed: int) -> dict[str, Tensor]:
        torch.default_generator.manual_seed(seed)
        return build_model(subject.config).state_dict()

    first, again, other = built(3), built(3), built(4)
    loose = [name for name in first if not torch.equal(first[name], again[name])]
    expect(
        not loose,
        "the same weights from the same seed",
        f"{listed(loose)} differ: draw them from torch's generator, not from numpy's or random's",
    )
    expect(any(not torch.equal(first[name], other[name]) for name in first), "other weights from another seed", "none")
    model, images = build_model(subject.config).eval(), pictures(subject.config)
    with torch.no_grad():
        made, once_more = model(images).images, model(images).images
    expect(torch.equal(made, once_more), "the same images twice in evaluation mode", "they differ")


def it_is_counted_without_memory(subject: Subject) -> None:
    """On the meta device, where a search counts parameters, it is built with the same sizes and holds nothing."""
    config, before = subject.changed(model__final_convolution=True), torch.get_rng_state()
    with during("under `with torch.device('meta')`: no values there to read, so no .item() and no numpy in __init__"):
        count = count_parameters(config)
        with torch.device("meta"):
            empty = build_model(config)
    expect(torch.equal(torch.get_rng_state(), before), "no random numbers to be drawn by counting", "some are")
    tensors = {**dict(empty.named_parameters()), **dict(empty.named_buffers())}
    held = [name for name, tensor in tensors.items() if not tensor.is_meta]
    expect(not held, "every tensor to follow torch's default device", f"{listed(held)} name a device of their own")
    model = build_model(config)
    real = sum(each.numel() for each in model.parameters())
    expect(count == real, f"the {real:,} parameters that the built model has", f"counted {count:,}")
    expect(
        empty.quantizer.codebook_size == model.quantizer.codebook_size,
        f"the codebook_size of the built model, {model.quantizer.codebook_size}",
        f"got {empty.quantizer.codebook_size}",
    )


def a_copy_and_a_state_dict_give_the_same_model(subject: Subject) -> None:
    """`copy.deepcopy` and `load_state_dict` into a new model give the same images, bit for bit."""
    model, images = build_model(subject.config).eval(), pictures(subject.config)
    loaded = build_model(subject.config).eval()
    loaded.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        made = model(images).images
        for way, other in (("copy.deepcopy", copy.deepcopy(model)), ("a state_dict", loaded)):
            expect(
                torch.equal(other(images).images, made),
                f"the same images from {way}",
                "they differ: what a part computes with must be a parameter, a buffer or in its config",
            )


def a_saved_model_is_loaded_with_its_options(subject: Subject) -> None:
    """`vqvae.load` of a saved model gives the same config, with all options, and the same images, bit for bit."""
    # A loaded model learns nothing, and torch multiplies by weights without gradients in another order.
    model, images = build_model(subject.config).eval().requires_grad_(False), pictures(subject.config)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "model"
        with during("safetensors keeps each tensor once: two names can't share one, as tied weights do"):
            checkpoint.save_model(model, subject.config, place, {})
        config, loaded = checkpoint.load_config(place), checkpoint.load(place)
    whole = replace(subject.config, checkpoint.options(subject.config))
    expect(config == whole, f"the config {whole!r}", f"got {config!r}")
    with torch.no_grad():
        expect(
            torch.equal(loaded(images).images, model(images).images),
            "the same images from the loaded model",
            "they differ: what a part computes with must be a parameter, a persistent buffer or in its config",
        )


def _trained(learner: Learner, until: int) -> list[dict[str, float]]:
    """The terms of each step up to `until`, on images that are a function of the step."""
    config, terms = learner.config, []
    while learner.step < until:
        generator = torch.Generator().manual_seed(learner.step)
        size = config.data.resolution
        images = 2 * torch.rand(config.batch_size, 3, size, size, generator=generator) - 1
        found = learner.advance(lambda part, images=images: images[part])  # type: ignore[misc]
        terms.append({name: value.item() for name, value in found.items()})
    return terms


def training_goes_on_from_a_checkpoint(subject: Subject) -> None:
    """Training that goes on from a checkpoint has the losses and ends at the weights of one never stopped, bit for bit.

    Other draws from torch's generator than in the first run come between: a checkpoint does not hold its state.
    """
    config, half = subject.config, subject.config.steps // 2
    learner = Learner(config, torch.device("cpu"))
    _trained(learner, half)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "checkpoint"
        with during("safetensors keeps each tensor once: two names can't share one, as tied weights do"):
            checkpoint.save(TrainingState(step=half, config=config, tensors=learner.tensors()), place)
        expected = _trained(learner, config.steps)
        torch.default_generator.manual_seed(1)
        state = checkpoint.read(place)
    resumed = Learner(state.config, torch.device("cpu"))
    resumed.restore(state.step, learner.micro_batch, state.tensors)
    found = _trained(resumed, config.steps)
    why = (
        "does training draw from torch's own generator, as dropout does, or keep what it learns in a plain attribute? "
        "(A quantizer draws from `vqvae.codes.step_generator`.)"
    )
    for step, (before, after) in enumerate(zip(expected, found, strict=True), half + 1):
        for name, value in before.items():
            expect(
                value == after[name],
                f"the {name} of step {step} after a resume at step {half} to be {value!r}, as without",
                f"it is {after[name]!r}: {why}",
            )
    one, other = learner.model.state_dict(), resumed.model.state_dict()
    apart = [name for name in one if not torch.equal(one[name], other[name])]
    expect(not apart, "the same weights after a resume", f"{listed(apart)} differ: {why}")


def bfloat16_stays_near(subject: Subject) -> None:
    """Under bfloat16 autocast it runs, its codes stay float32, and its images and indices are nearly the same."""
    model, images = build_model(subject.config).eval(), pictures(subject.config)
    indices = model.encode(images)
    expected = model.decode(indices)
    entering: list[Tensor] = []
    model.quantizer.register_forward_pre_hook(lambda _, vectors: entering.extend(vectors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, quantized = model(images)
        narrow = model.decode(indices)
    for what, tensor in (("vectors that enter the quantizer", entering[0]), ("codes", quantized.codes)):
        expect(tensor.dtype == torch.float32, f"{what} of torch.float32", f"they are {tensor.dtype}")
    far = ((narrow - expected).norm() / expected.norm()).item()
    expect(far < NEAR, f"images within {NEAR:.0%} of those in float32", f"they are {far:.1%} away")
    same = (quantized.indices == indices.flatten(1)).float().mean().item()
    expect(same > AGREEING, f"at least {AGREEING:.0%} of the indices as in float32", f"{same:.0%} are")


def every_parameter_has_a_role(subject: Subject) -> None:
    """Each parameter has its role in a transfer to other widths, or is refused by name; see `vqvae.parametrization`."""
    config, names = subject.config, [name for name, _ in build_model(subject.config).named_parameters()]
    try:
        places = roles(config)
    except UnclassifiedError as error:
        expect(
            error.parameter in names and error.parameter in str(error),
            "a refusal that names the parameter whose role can't be told",
            f"got {error}",
        )
        return
    except ConfigError:  # no such model at twice the width
        return
    lost = [name for name in names if name not in places]
    expect(not lost, "a role for every parameter", f"{listed(lost)} have none")
    wide = {"model.width": 2 * config.model.width, "parametrization.base_width": config.model.width}
    wider = build_model(replace(config, wide | {"parametrization.kind": "mup"}))
    expect(bool(wider(pictures(config)).images.isfinite().all()), "finite images at twice the width", "they are not")


def options_work_or_are_refused(subject: Subject) -> None:
    """An option it does not have, and a value it can't work with, is a ConfigError with its key, before training."""
    section, kind = plugins.KINDS[subject.kind].key.partition(".")[0], subject.kind
    build_model(subject.config)  # which finds the part, if an installed package has it
    key = f"{section}.options.no_such_option"
    try:
        count_parameters(replace(subject.config, {key: 1}))
    except ConfigError as error:
        expect(error.key.startswith(f"{section}.options"), f"{key} to be refused by its key", f"got {error}")
    else:
        expect(False, f"{key} to be refused", "the model was built with it")
    options = plugins.options(kind, subject.name) or {}
    settled = getattr(plugins.settled(kind, getattr(subject.config, section)), "options")  # noqa: B009 - two classes
    for name in options:
        for value in odd_values(getattr(settled, name)):
            config = replace(subject.config, {f"{section}.options.{name}": value})
            try:
                count_parameters(config)
            except ConfigError:
                continue
            except Exception as error:
                raise _unrefused(section, name, value, error, "counted") from error
            try:
                _step(build_model(config), config)
            except Exception as error:
                raise _unrefused(section, name, value, error, "trained") from error


def _step(model: VQVAE, config: TrainConfig) -> None:
    made, quantized = model(pictures(config))
    torch.autograd.backward(torch.stack([made.square().mean(), *quantized.losses.values()]).sum())


def _unrefused(section: str, name: str, value: Any, error: Exception, when: str) -> CheckFailed:
    return CheckFailed(
        f"expected {section}.options.{name} = {value!r} to work, or to be refused with a ConfigError when the model is "
        f"built (raise ValueError in __post_init__ of the dataclass of its options), but {type(error).__name__} came "
        f"as the model was {when}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    )


CHECKS = (
    decoding_the_indices_gives_the_reconstruction,
    every_parameter_learns,
    the_seed_settles_every_weight,
    it_is_counted_without_memory,
    a_copy_and_a_state_dict_give_the_same_model,
    a_saved_model_is_loaded_with_its_options,
    training_goes_on_from_a_checkpoint,
    bfloat16_stays_near,
    every_parameter_has_a_role,
    options_work_or_are_refused,
)
"""Of every backbone and every quantizer."""
