"""How initial weights, learning rates, weight decay and residuals follow width and depth, so that settings transfer.

A family is all models that differ in width and depth alone. What was tuned at the base of a family holds for the rest
of it where each parameter is treated by its role, with m its fan-in / its fan-in at the base width [1-3]. Head size,
state size, kernels, groups, patch, codes, resolution, batch, steps and warm-up stay the same.

- Roles are read off the shapes, at the base width and at twice it, on the meta device: `classify`.
- Learning rates and weight decay are those of the optimizer's groups. Nothing is multiplied in the forward pass, so
  compiled code and checkpoints stay as they are; residual branches alone are, by one plain number: `scale_residuals`.
- At the base all factors are 1, and weights and updates are bit for bit those of the kind `standard`. Hence initial
  weights are not drawn anew: what the layers have drawn is scaled by a power of m. That gives the table's standard
  deviations because the layers draw what grows with the width at fan_in^-1/2 (of a transposed convolution the true
  fan-in, which is not the one that PyTorch takes) and all else free of the width: positions at 0.02, the decay rates
  and step sizes of scans from fixed ranges, codebooks at code_dim^-1/2. What is neither, such as SimVQ's map and the
  logits of gumbel with PyTorch's own draw, has one size in all of a family. A plug-in has to draw so too; PyTorch's
  defaults for Linear and Conv2d do, that for ConvTranspose2d does not. `vqvae.coordinates` shows it.
- AdamW's epsilon is at most 1e-12: gradients shrink with the width, and many of A_log, of the codebook fall below 1e-8.

[1] Yang et al. 2022, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer",
    arXiv 2203.03466 (muP)
[2] Everett et al. 2024, "Scaling Exponents Across Parameterizations and Optimizers", arXiv 2407.05872
[3] Vankadara et al. 2024, "On Feature Learning in Structured State Space Models"
[4] Wang, Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size", arXiv 2405.13698
[5] Dey et al. 2025, "Don't be lazy: CompleteP enables compute-efficient deep transformers", arXiv 2505.01618
"""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vqvae.config import TRANSFER_EPSILON, ConfigError
from vqvae.layers import Downsample, Upsample

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from vqvae.config import OptimizerConfig, TrainConfig

ROLES = {
    "input": "from a size that stays to the width: patches, codes to tokens, positions, a discriminator's first layer",
    "depthwise": "convolutions of each channel by itself, however many channels there are",
    "vector": "gains, biases, A_log, dt_bias, D: one number a channel or a head",
    "hidden": "from the width to the width",
    "bottleneck": "from the width to the code",
    "readout": "from the width to a size that stays: pixels, a discriminator's logits",
    "fixed": "what knows nothing of the width: the codebook, layers inside a quantizer, the final convolution",
}
"""Role of a parameter -> what plays it."""


class Rule(NamedTuple):
    """Exponents of m for the parameters of a role."""

    std: float = 0.0
    """Of the initial standard deviation / the one that the layer draws."""
    lr: float = 0.0
    """Of Adam's learning rate."""
    weight_decay: float = 0.0
    """Of the weight decay, where there is any (see `vqvae.optimizer.decayed`): lr x weight decay stays the same [4]."""


_SAME = dict.fromkeys(ROLES, Rule())
_FROM_WIDTH = ("hidden", "bottleneck", "readout")
_ALIGNED, _UNALIGNED = Rule(lr=-1, weight_decay=1), Rule(lr=-0.5, weight_decay=0.5)

TABLE: dict[str, dict[str, Rule]] = {
    "standard": _SAME,
    "mup": {**_SAME, **dict.fromkeys(_FROM_WIDTH, _ALIGNED), "readout": Rule(std=-0.5, lr=-1, weight_decay=1)},
    "sp-full-align": {**_SAME, **dict.fromkeys(_FROM_WIDTH, _ALIGNED)},
    "sp-no-align": {**_SAME, **dict.fromkeys(_FROM_WIDTH, _UNALIGNED)},
}
"""Kind of parametrization -> role -> rule: muP [1, table 3]; standard initial weights with learning rates that assume
full or no alignment of updates and activations [2]. mup starts the readout smaller; the bottleneck, whose outputs are
normed or rounded to codes, never."""


class UnclassifiedError(ConfigError):
    """A model that can't be transferred: a parameter whose role can't be told, or blocks that take no residual scale.

    Attributes:
        parameter: its dotted name; "" where it is no single one.
    """

    def __init__(self, key: str, problem: str, parameter: str = "") -> None:
        super().__init__(key, problem)
        self.parameter = parameter


class Place(NamedTuple):
    """Where a parameter stands in a model."""

    role: str
    """One of `ROLES`."""
    base_fan_in: int
    """Values that one output sees at the base width; 1 of what is no map."""


class Factors(NamedTuple):
    """What one parameter's settings are multiplied by."""

    std: float
    lr: float
    weight_decay: float


def classify(build: Callable[[int], nn.Module], base_width: int) -> dict[str, Place]:
    """The place of every parameter, by its name.

    A module says by an attribute `parameter_roles` (name of a parameter below it -> role) what shapes don't tell: of a
    parameter that is no weight of a layer of torch's, or the bottleneck. Such a parameter lies as in `nn.Linear`: its
    first axis is its output.

    Args:
        build: gives the model at a width; it is called twice, on the meta device.
        base_width: of the family.

    Raises:
        UnclassifiedError: a parameter whose role can't be told, or a role that is declared and can't be.
        ConfigError: no model of the base width can be built.
    """
    narrow, wide = (_at(build, width, base_width) for width in (base_width, 2 * base_width))
    declared, twice = _declared(narrow), {name: (owner, parameter) for name, owner, parameter in _owned(wide)}
    places: dict[str, Place] = {}
    for name, owner, parameter in _owned(narrow):
        if name not in twice or twice[name][1].ndim != parameter.ndim:
            raise _unclassified(name, parameter, f"it has no counterpart at twice the width of {base_width}")
        role = declared.get(name) or _role(name, (owner, parameter), twice.pop(name))
        places[name] = Place(role, _fan_in(name, owner, parameter))
        twice.pop(name, None)
    for name, (_, parameter) in twice.items():
        raise _unclassified(name, parameter, f"it has no counterpart at the width of {base_width}")
    return places


def factors(model: nn.Module, places: Mapping[str, Place], kind: str) -> dict[str, Factors]:
    """What the settings of each parameter are multiplied by, by its name: m to the powers of `TABLE`.

    Args:
        model: of any width of the family.
        places: of its parameters, as `classify` gives them.
        kind: of `TABLE`.
    """
    found = {}
    for name, owner, parameter in _owned(model):
        role, base_fan_in = places[name]
        m = _fan_in(name, owner, parameter) / base_fan_in
        found[name] = Factors(*(m**exponent for exponent in TABLE[kind][role]))
    return found


@torch.no_grad()
def initialize(model: nn.Module, places: Mapping[str, Place], kind: str) -> None:
    """Scales the weights that a model was built with to those of a kind; at the base they stay bit for bit."""
    scales = factors(model, places, kind)
    for name, parameter in model.named_parameters():
        if scales[name].std != 1:
            parameter.mul_(scales[name].std)


def scale_residuals(blocks: Iterable[nn.Module], scale: float) -> None:
    """Multiplies what residual branches add to the trunk, all `depth` of them, by base depth / depth [5, alpha = 1].

    Args:
        blocks: each with an attribute `residual_scale`, its own or of modules in it: a float by which its forward pass
            multiplies its branches, or None where they are right at any depth.
        scale: the factor.

    Raises:
        UnclassifiedError: a block without one, or no blocks.
    """
    found = False
    for block in blocks:
        inside = [module for module in block.modules() if hasattr(module, "residual_scale")]
        if not inside and not isinstance(block, Downsample | Upsample):
            raise _undeep(f"{type(block).__name__} has no residual_scale")
        for module in inside:
            if isinstance(module.residual_scale, float):
                module.residual_scale *= scale  # type: ignore[assignment] # plain: neither weight nor buffer
        found = True
    if not found:
        raise _undeep("the backbone has no blocks")


def _undeep(why: str) -> UnclassifiedError:
    return UnclassifiedError("parametrization.base_depth", f"must be 0 or model.depth, since {why}")


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    *,
    decayed: Collection[str],
    multipliers: Mapping[str, float],
    scales: Mapping[str, Factors],
) -> list[dict[str, Any]]:
    """Groups for AdamW: one for each pair of learning rate and weight decay that occurs.

    Args:
        model: what is trained.
        lr: peak learning rate.
        weight_decay: its decay.
        decayed: names of the parameters that it shrinks.
        multipliers: of the learning rates of some parameters, by name.
        scales: what `factors` gives; {} for 1 everywhere.

    Returns:
        ``params``, ``lr`` and ``weight_decay`` of each.
    """
    same = Factors(1.0, 1.0, 1.0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = scales.get(name, same)
            rate = lr * multipliers.get(name, 1.0) * scale.lr
            decay = weight_decay * scale.weight_decay if name in decayed else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def adam(config: TrainConfig) -> OptimizerConfig:
    """The optimizer's settings of a run, its epsilon as its parametrization wants it."""
    if config.parametrization.kind == "standard":
        return config.optimizer
    return dataclasses.replace(config.optimizer, epsilon=min(config.optimizer.epsilon, TRANSFER_EPSILON))


def _at(build: Callable[[int], nn.Module], width: int, base_width: int) -> nn.Module:
    try:
        with unallocated():
            return build(width)
    except ConfigError as error:
        raise ConfigError(
            "parametrization.base_width",
            f"must be such that it and twice it are widths of this model, but got {base_width}, and at {width} {error}",
        ) from None


def _owned(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Each parameter once, with its name and the module that holds it, in the order of `named_parameters`."""
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        yield name, modules[name.rpartition(".")[0]], parameter


def _declared(model: nn.Module) -> dict[str, str]:
    there = {name for name, _ in model.named_parameters()}
    found = {}
    for prefix, module in model.named_modules():
        for name, role in getattr(module, "parameter_roles", {}).items():
            full = f"{prefix}.{name}" if prefix else name
            if role not in ROLES or full not in there:
                raise UnclassifiedError(
                    "parametrization.kind",
                    f"must be standard, since parameter_roles of {type(module).__name__} must map parameters of it to "
                    f"{', '.join(ROLES)}, but got {name!r}: {role!r}",
                    full,
                )
            found[full] = role
    return found


def _is_map(name: str, owner: nn.Module) -> bool:
    """Whether a parameter is the weight of a layer of torch's whose axes are known."""
    leaf = name.rpartition(".")[2]
    if isinstance(owner, nn.MultiheadAttention):
        return leaf in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
    return leaf == "weight" and isinstance(owner, kinds)


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _fan_in(name: str, owner: nn.Module, parameter: Tensor) -> int:
    """Values that one output of a map sees; a map that is none of torch's lies as those of `nn.Linear`."""
    if _is_map(name, owner) and isinstance(owner, _TRANSPOSED):  # (in, out / groups, kernel)
        return parameter.shape[0] // owner.groups * parameter.shape[2:].numel()
    return parameter.shape[1:].numel()


def _outputs(owner: nn.Module, parameter: Tensor) -> int:
    return parameter.shape[1] * owner.groups if isinstance(owner, _TRANSPOSED) else parameter.shape[0]


def _role(name: str, narrow: tuple[nn.Module, Tensor], wide: tuple[nn.Module, Tensor]) -> str:
    """The role of a parameter that nobody has declared, from it and its owner at two widths."""
    (owner, parameter), (wide_owner, wider) = narrow, wide
    grows = [now != then for now, then in zip(parameter.shape, wider.shape, strict=True)]
    if _is_map(name, owner):
        more_inputs = _fan_in(name, owner, parameter) != _fan_in(name, wide_owner, wider)
        more_outputs = _outputs(owner, parameter) != _outputs(wide_owner, wider)
        if more_inputs:
            return "hidden" if more_outputs else "readout"
        grouped = getattr(wide_owner, "groups", 1) > 1
        return "fixed" if not more_outputs else "depthwise" if grouped else "input"
    if isinstance(owner, nn.Embedding) and not grows[0]:
        return "input" if grows[1] else "fixed"
    if sum(size > 1 for size in wider.shape) <= 1:
        return "vector"
    if not any(grows):
        return "fixed"
    leaf = name.rpartition(".")[2]
    raise _unclassified(
        name,
        parameter,
        f'it is no weight of a layer of torch\'s; its module may say parameter_roles = {{"{leaf}": ROLE}}',
    )


def _unclassified(name: str, parameter: Tensor, why: str) -> UnclassifiedError:
    return UnclassifiedError(
        "parametrization.kind",
        f"must be standard, since the role of {name} {tuple(parameter.shape)} can't be told: {why}",
        name,
    )


@contextmanager
def unallocated() -> Iterator[None]:
    """Modules that are built inside have shapes and no values, and no random number is drawn for them."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Draws no weights: on the meta device there are none, but torch imports its compiler, in seconds, to say so."""

    def __torch_function__(
        self, function: Any, _types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if getattr(function, "__name__", "") in ("normal_", "uniform_", "trunc_normal_"):
            return arguments[0] if arguments else options["tensor"]
        return function(*arguments, **options)
