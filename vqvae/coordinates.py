"""The coordinate check: do a few steps change a wide model's activations as much as a narrow one's?

    rows = coordinates(config, sizes=(64, 128, 256), steps=2, seeds=2)
    for trend in trends(rows):
        print(trend.role, trend.change, trend.holds)

Where settings transfer, what some steps change of an activation does not hang on the width (Yang et al. 2022, appendix
D.1): the slope of its logarithm against that of the width is near 0. Where they do not, it grows in proportion to the
width, and a rate that suits the narrow model is too large for the wide one.

Of the trunk all of the change is measured, at the end of the blocks of each half. Of a layer it is what its own new
weights add to its outputs, (W - W_0) x at the inputs x of now: so that a role is judged by its own rule, whatever the
layers before it do.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from vqvae.config import DataConfig, GanConfig, TrainConfig, require
from vqvae.data import load
from vqvae.learner import Learner
from vqvae.model import VQVAE, roles
from vqvae.pictures import to_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

IMAGES = 8
"""Bundled photographs that a check trains on, where it is given none."""

LIMITS = {"trunk": 0.2, "input": 0.2, "depthwise": 0.2, "hidden": 0.2, "bottleneck": 0.45, "readout": 0.45}
"""Role -> greatest slope of the change, up or down, at which settings are taken to transfer. What reads from the width
alone is allowed more: over a few steps its inputs and its weights come to point the same way more and more."""


@dataclass(frozen=True, kw_only=True)
class Coordinate:
    """What became of the outputs of one module."""

    size: int
    """Width, or depth, of the model."""
    seed: int
    step: int
    """Optimizer steps done, at least 1."""
    role: str
    """Of the module's weight (`vqvae.parametrization.ROLES`); trunk for the last block of encoder and of decoder."""
    module: str
    """Its dotted name."""
    before: float
    """Root mean square of its outputs at the initial weights."""
    change: float
    """Root mean square of what the steps changed: of the trunk, of all of it; else of what the module's own new weights
    add."""
    gain: float
    """`before` / root mean square of what the module saw; NaN where it saw no tensor."""


@dataclass(frozen=True, kw_only=True)
class ModuleTrend:
    """How the outputs of one module follow the size of the model."""

    module: str
    """Its dotted name; of the trunk encoder or decoder, whose last block has another name at another depth."""
    change: float
    """Slope of log(change) against log(size), of the last step, over all seeds."""
    before: float
    """The same of their initial size."""
    gain: float
    """The same of that size / that of the inputs: near 0 where the weights are drawn at fan-in^-1/2, or follow no
    width."""


@dataclass(frozen=True, kw_only=True)
class Trend:
    """How the outputs of one role's modules follow the size of the model."""

    role: str
    change: float
    """Slope of log(change) against log(size), of the last step, over all modules and seeds."""
    before: float
    """The same of their initial size."""
    modules: int
    """How many there are, in the smallest model."""
    holds: bool
    """The slope of the change lies within `LIMITS`."""
    means: tuple[tuple[int, float], ...]
    """Each size, rising, and the geometric mean of the change there."""
    each: tuple[ModuleTrend, ...]
    """Of every module that changes at all sizes, the one whose slope is farthest from 0 first."""


def coordinates(
    config: TrainConfig,
    sizes: Sequence[int],
    steps: int = 2,
    seeds: int = 2,
    along: Literal["width", "depth"] = "width",
    images: Tensor | None = None,
) -> Iterator[Coordinate]:
    """Trains a config's model at several widths (or depths) for a few steps on one batch and measures its activations.

    The learning rate is `config.optimizer.lr` from the first step on; perceptual and adversarial terms are off, blocks
    are not compiled, and all is in float32. Outputs are those of the evaluation mode.

    Args:
        config: the model and its parametrization.
        sizes: two or more; widths or depths.
        steps: of each model; few, since a rate that is large for one size soon overshoots there and not elsewhere.
        seeds: of weights; as many models of each size.
        along: what `sizes` are.
        images: (b, 3, h, w) in [-1, 1], of the config's resolution; bundled photographs, if None.

    Yields:
        For each model and step all of its modules.

    Raises:
        ConfigError: fewer than two sizes, or one of which no model can be built.
        UnclassifiedError: a parameter whose role can't be told.
    """
    require(len(set(sizes)) > 1, "sizes", f"two or more {along}s", tuple(sizes))
    if images is None:
        photographs = load(DataConfig(resolution=config.data.resolution)).train
        images = to_images(photographs[torch.linspace(0, len(photographs) - 1, IMAGES).long().numpy()])
    for size in sizes:
        for seed in range(seeds):
            yield from _measured(_plain(config, along, size, seed, steps, len(images)), size, images)


def trends(rows: Iterable[Coordinate]) -> list[Trend]:
    """How each role's activations follow the size: the verdict of a check.

    A module counts where it changes at every size, and a role where it has such a module; the means are taken of
    logarithms.
    """
    rows = list(rows)
    last = max(row.step for row in rows)
    sizes = sorted({row.size for row in rows})
    found = []
    for role in LIMITS:
        mine = [row for row in rows if row.role == role and row.step == last and row.change > 0 < row.before]
        if {row.size for row in mine} == set(sizes):
            change, before = _means(mine, "change"), _means(mine, "before")
            slope = _slope(change)
            found.append(
                Trend(
                    role=role,
                    change=slope,
                    before=_slope(before),
                    modules=len({row.module for row in mine if row.size == sizes[0]}),
                    holds=abs(slope) <= LIMITS[role],
                    means=tuple((size, math.exp(mean)) for size, mean in change),
                    each=_each(mine, sizes),
                )
            )
    return found


def _each(rows: Sequence[Coordinate], sizes: Sequence[int]) -> tuple[ModuleTrend, ...]:
    """Of one role's rows, those of each module by themselves."""
    by_name: dict[str, list[Coordinate]] = {}
    for row in rows:
        by_name.setdefault(row.module.partition(".")[0] if row.role == "trunk" else row.module, []).append(row)
    found = [
        ModuleTrend(
            module=name,
            change=_slope(_means(part, "change")),
            before=_slope(_means(part, "before")),
            gain=_slope(_means(part, "gain")),
        )
        for name, part in by_name.items()
        if {row.size for row in part} == set(sizes)
    ]
    return tuple(sorted(found, key=lambda each: -abs(each.change)))


def _means(rows: Sequence[Coordinate], name: Literal["change", "before", "gain"]) -> list[tuple[int, float]]:
    """Each size, rising, and the mean there of the logarithms of what was measured."""
    return [
        (size, _log_mean(getattr(row, name) for row in rows if row.size == size))
        for size in sorted({row.size for row in rows})
    ]


def _plain(config: TrainConfig, along: str, size: int, seed: int, steps: int, images: int) -> TrainConfig:
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **{along: size}),  # type: ignore[arg-type]
        loss=dataclasses.replace(config.loss, perceptual=0.0, l2=config.loss.l2 or float(not config.loss.l1)),
        gan=GanConfig(),
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=0, schedule="constant"),
        seed=seed,
        steps=steps,
        rungs=(),
        batch_size=images,
        micro_batch="auto",
        precision="float32",
        compile="never",
    )


def _measured(config: TrainConfig, size: int, images: Tensor) -> Iterator[Coordinate]:
    device = torch.device("cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu")
    learner, images = Learner(config, device), images.to(device)
    model, modules = learner.model, _modules(learner.model, config)
    initial = copy.deepcopy(model).eval()
    codes = initial.encode(images)
    before = {seen.module: seen for seen in _outputs(initial, initial, modules, images, codes)}
    for step in range(1, config.steps + 1):
        learner.advance(lambda part: images[part])
        for name, added, output, _ in _outputs(model, initial, modules, images, codes):
            first = before[name]
            change = output - first.output if modules[name] == "trunk" else added
            yield Coordinate(
                size=size,
                seed=config.seed,
                step=step,
                role=modules[name],
                module=name,
                before=_rms(first.output),
                change=_rms(change),
                gain=_rms(first.output) / first.seen if first.seen else math.nan,
            )


def _modules(model: VQVAE, config: TrainConfig) -> dict[str, str]:
    """Name of each module that is measured -> its role."""
    places = roles(config)
    last = {
        id(part[-1]) for part in (list(getattr(half, "blocks", ())) for half in (model.encoder, model.decoder)) if part
    }
    found = {name: "trunk" for name, module in model.named_modules() if id(module) in last}
    for parameter, place in places.items():
        if place.role in LIMITS and not parameter.endswith("positions"):  # positions are added, and no module's output
            found.setdefault(parameter.rpartition(".")[0], place.role)
    return found


class _Call(NamedTuple):
    """What one call of a module gave."""

    module: str
    added: Tensor
    """What its new weights add to its outputs."""
    output: Tensor
    seen: float
    """Root mean square of its first input; 0 where that is no tensor."""


@torch.no_grad()
def _outputs(model: VQVAE, initial: VQVAE, modules: dict[str, str], images: Tensor, codes: Tensor) -> list[_Call]:
    """The calls of all modules, each as often as it is called.

    The encoder sees the images, and the decoder the codes that they had at first: a vector that passes from one code to
    another changes all that the decoder does, however small its step was, and would hide what the weights do.
    """
    found: list[_Call] = []

    def keep(name: str, twin: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            now, then = (
                each[0] if isinstance(each, tuple) else each for each in (output, twin.forward(*inputs, **named))
            )
            first = next((each for each in (*inputs, *named.values()) if isinstance(each, Tensor)), None)
            seen = 0.0 if first is None else _rms(first.float())
            found.append(_Call(name, now.float() - then.float(), now.float(), seen))

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(keep(name, initial.get_submodule(name)), with_kwargs=True)
        for name in modules
    ]
    training = model.training
    model.eval()
    model.encode(images)
    model.decode(codes)
    model.train(training)
    for handle in handles:
        handle.remove()
    return found


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _log_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return sum(logarithms) / len(logarithms)


def _slope(points: Sequence[tuple[int, float]]) -> float:
    """Of the least-squares line through (log size, value)."""
    mean = sum(math.log(size) for size, _ in points) / len(points)
    distances = [math.log(size) - mean for size, _ in points]
    products = (distance * value for distance, (_, value) in zip(distances, points, strict=True))
    return sum(products) / sum(distance**2 for distance in distances)
