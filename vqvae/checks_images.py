"""What a metric and a term of the loss promise: both look at images that were made and at the originals.

Axes: b images, h and w rows and columns of pixels.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vqvae import metrics, plugins
from vqvae.checks import Subject, during, expect, listed
from vqvae.checks_model import pictures, training_goes_on_from_a_checkpoint
from vqvae.config import METRICS
from vqvae.losses import TERMS
from vqvae.model import build_model
from vqvae.pictures import to_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

RESOLUTIONS = (16, 32, 64)
"""Pixels along each side of the images that are measured."""


def _measure(subject: Subject) -> Callable[[Tensor, Tensor], Tensor]:
    measure: Callable[[Tensor, Tensor], Tensor] = plugins.find("metric", metrics.MEASURES, subject.name)
    return measure


def _pair(count: int, size: int, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    references = 2 * torch.rand(count, 3, size, size) - 1
    return (references + noise * torch.randn_like(references)).clamp(-1, 1), references


def one_number_for_each_image(subject: Subject) -> None:
    """It gives a finite number for each image, (b), of any size; of flat images and of equal ones too."""
    measure = _measure(subject)
    cases = {f"{count} of {size} pixels": _pair(count, size) for count in (1, 3) for size in RESOLUTIONS}
    cases["two that are equal"] = (pictures(subject.config),) * 2
    cases["black ones, of white ones"] = -torch.ones(2, 3, 32, 32), torch.ones(2, 3, 32, 32)
    cases["gray ones, equal"] = (torch.zeros(2, 3, 32, 32),) * 2
    for what, (made, references) in cases.items():
        with during(f"images: {what}"):
            values: Any = measure(made, references)
        there = isinstance(values, torch.Tensor) and values.shape == (len(made),) and values.is_floating_point()
        got = f"{tuple(values.shape)} of {values.dtype}" if isinstance(values, torch.Tensor) else repr(values)
        expect(there, f"a tensor ({len(made)},) of floats, one number for each image", f"got {got} (images: {what})")
        expect(bool(values.isfinite().all()), "finite numbers", f"got {values.tolist()} (images: {what})")


def an_image_is_measured_by_itself(subject: Subject) -> None:
    """The number of an image does not depend on the others, nor on the order, nor on how many there are."""
    measure, (made, references) = _measure(subject), _pair(3, 32)
    values, changed = measure(made, references), made.clone()
    changed[1] = -changed[1]
    after = measure(changed, references)
    expect(
        torch.equal(values[[0, 2]], after[[0, 2]]),
        f"images 0 and 2 of a batch to keep their numbers {values[[0, 2]].tolist()} when image 1 changes",
        f"they became {after[[0, 2]].tolist()}",
    )
    alone = torch.cat([measure(made[i : i + 1], references[i : i + 1]) for i in range(3)])
    expect(
        torch.allclose(values, alone, rtol=1e-4, atol=1e-6),
        f"the numbers {alone.tolist()} that the images have alone",
        f"in a batch they have {values.tolist()}",
    )


def it_measures_the_same_twice(subject: Subject) -> None:
    """The same images have the same number at any time: nothing is drawn or remembered, and no image is changed."""
    measure, (made, references) = _measure(subject), _pair(2, 32)
    copies = made.clone(), references.clone()
    first, second = measure(made, references), measure(made, references)
    expect(torch.equal(first, second), f"the numbers {first.tolist()} again", f"got {second.tolist()}")
    kept = torch.equal(copies[0], made) and torch.equal(copies[1], references)
    expect(kept, "images that stay as they are", "they were changed in place")


def its_direction_is_right(subject: Subject) -> None:
    """Equal images are the best by its direction, and better than noisy ones; "" says nothing of it."""
    measure, direction = _measure(subject), METRICS.get(f"val/{subject.name}")
    expect(direction in ("minimize", "maximize", ""), "a direction", f"it has {direction!r}: give it to register")
    if not direction:
        return
    references = pictures(subject.config, 3)
    noise = torch.randn_like(references)
    equal, noisy = (measure((references + s * noise).clamp(-1, 1), references) for s in (0.0, 0.5))
    better = equal > noisy if direction == "maximize" else equal < noisy
    expect(
        bool(better.all()),
        f"equal images to be better than noisy ones, since its direction is {direction}",
        f"equal ones have {equal.tolist()}, noisy ones {noisy.tolist()}",
    )


def not_a_number_stays_visible(subject: Subject) -> None:
    """Of images that hold NaN the number is not finite, so that a model that diverged never looks good."""
    references = pictures(subject.config)
    values = _measure(subject)(torch.full_like(references, math.nan), references)
    expect(not bool(values.isfinite().any()), "no finite number of images that are NaN", f"got {values.tolist()}")


def an_evaluation_reports_it(subject: Subject) -> None:
    """An evaluation that asks for it reports its mean as val/NAME, the same at any micro-batch."""
    config, size = subject.config, subject.config.data.resolution
    model = build_model(config).eval()
    held_out = torch.randint(256, (4, size, size, 3), dtype=torch.uint8).numpy()
    means = [metrics.evaluate(model, held_out, config.evaluation, count).metrics[subject.name] for count in (1, 4)]
    expect(
        math.isclose(*means, rel_tol=1e-4, abs_tol=1e-6),
        f"{means[1]:g} at any micro-batch",
        f"{means[0]:g} at one of 1",
    )
    with torch.no_grad():
        images = to_images(held_out)
        own = _measure(subject)(model(images).images.clamp(-1, 1), images).mean().item()
    expect(math.isclose(means[1], own, rel_tol=1e-4, abs_tol=1e-6), f"the mean, {own:g}", f"reported {means[1]:g}")


METRIC_CHECKS = (
    one_number_for_each_image,
    an_image_is_measured_by_itself,
    it_measures_the_same_twice,
    its_direction_is_right,
    not_a_number_stays_visible,
    an_evaluation_reports_it,
)
"""Of every metric."""


def _term(subject: Subject) -> Callable[[Tensor, Tensor], Tensor]:
    part = plugins.find("loss", TERMS, subject.name)
    made: Callable[[Tensor, Tensor], Tensor] = part() if isinstance(part, type) else part
    return made


def _gradient(term: Callable[[Tensor, Tensor], Tensor], made: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    made = made.detach().requires_grad_()
    value: Any = term(made, images)
    scalar = isinstance(value, torch.Tensor) and value.shape == () and value.is_floating_point()
    got = f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, torch.Tensor) else repr(value)
    expect(scalar, "a scalar tensor of a float type", f"got {got}")
    expect(value.requires_grad, "a gradient with respect to the images that were made, its first argument", "none")
    gradient = torch.autograd.grad(value, made, materialize_grads=True)[0]
    for what, tensor in (("value", value), ("gradient", gradient)):
        expect(bool(tensor.isfinite().all()), f"a finite {what}", "it holds NaN or infinity")
    return value.detach(), gradient


def a_scalar_with_a_finite_gradient(subject: Subject) -> None:
    """It gives a finite scalar with a finite gradient: of noisy images, of flat ones, of equal ones, in bfloat16."""
    term, (made, images) = _term(subject), _pair(2, 32)
    cases = {
        "noisy images": (made, images),
        "equal images: the root and the norm have no finite gradient at zero": (images, images),
        "flat images": (torch.zeros_like(images), torch.zeros_like(images)),
        "images of torch.bfloat16, as autocast makes them": (made.bfloat16(), images),
    }
    for what, (one, other) in cases.items():
        with during(what), torch.autocast("cpu", torch.bfloat16, enabled=one.dtype == torch.bfloat16):
            _gradient(term, one, other)
    _, gradient = _gradient(term, made, images)
    expect(bool(gradient.any()), "a gradient with respect to the images that were made", "it is zero everywhere")


def its_gradient_leads_down(subject: Subject) -> None:
    """A small step against its gradient makes it smaller."""
    term, (made, images) = _term(subject), _pair(2, 32)
    value, gradient = _gradient(term, made, images)
    length = gradient.norm().clamp(min=1e-12)
    steps = [made - size * gradient / length for size in (1.0, 0.1, 0.01)]
    best = min(float(term(step, images)) for step in steps)
    expect(best < value.item(), f"less than {value.item():.6g} after a step down its gradient", f"got {best:.6g}")


def it_remembers_nothing(subject: Subject) -> None:
    """It gives the same twice and changes neither images nor buffers: a checkpoint does not hold them."""
    term, (made, images) = _term(subject), _pair(2, 32)
    copies, state = (made.clone(), images.clone()), {}
    if isinstance(term, nn.Module):
        state = {name: value.clone() for name, value in term.state_dict().items()}
    values = [term(made, images).item() for _ in range(2)]
    expect(values[0] == values[1], f"the same value {values[0]:.6g} of the same images", f"got {values[1]:.6g} then")
    kept = torch.equal(copies[0], made) and torch.equal(copies[1], images)
    expect(kept, "images that stay as they are", "they were changed in place")
    after = term.state_dict() if isinstance(term, nn.Module) else {}
    moved = [name for name, value in state.items() if not torch.equal(value, after[name])]
    expect(not moved, "buffers that stay as they are", f"{listed(moved)} changed in a pass")


def it_is_a_mean_over_images(subject: Subject) -> None:
    """Its value of a batch is the mean of those of its halves, so that the micro-batch does not matter."""
    term, (made, images) = _term(subject), _pair(4, 32)
    whole = term(made, images).item()
    halves = sum(term(made[part], images[part]).item() for part in (slice(0, 2), slice(2, 4))) / 2
    close = math.isclose(whole, halves, rel_tol=1e-4, abs_tol=1e-7)
    expect(close, f"the mean {halves:.6g} of two micro-batches", f"the whole has {whole:.6g}")


LOSS_CHECKS = (
    a_scalar_with_a_finite_gradient,
    its_gradient_leads_down,
    it_remembers_nothing,
    training_goes_on_from_a_checkpoint,
)
"""Of every term of the loss."""

LOSS_PROMISES = (it_is_a_mean_over_images,)
"""Of terms that say so."""
