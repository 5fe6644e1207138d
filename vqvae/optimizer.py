"""AdamW over the right parameters, its schedule, and the moving average of the weights."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vqvae.parametrization import param_groups

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vqvae.config import OptimizerConfig, TrainConfig
    from vqvae.parametrization import Factors


def learning_rate_factor(update: int, config: TrainConfig) -> float:
    """Learning rate of an update / peak; a pure function, over the whole of `config.steps`.

    Linear warm-up reaches 1 at update `warmup_steps`. Then cosine (Loshchilov & Hutter 2017, eq. 5, without
    restarts), wsd (warm-up, stable, decay: Hu et al. 2024, eq. 1, its decay linear) or constant.

    Args:
        update: from 1 to `config.steps`.
        config: optimizer and steps are read.

    Returns:
        A factor from 0 to 1; cosine and wsd end at `final_lr_ratio` exactly.
    """
    settings, warmup = config.optimizer, config.optimizer.warmup_steps
    if update < warmup:
        return update / warmup
    stable = {"cosine": 0.0, "wsd": 1 - settings.decay_fraction, "constant": 1.0}[settings.schedule]
    start = max(warmup, stable * config.steps)
    if update <= start:
        return 1.0
    done = (update - start) / (config.steps - start)
    left = (1 + math.cos(math.pi * done)) / 2 if settings.schedule == "cosine" else 1 - done
    return settings.final_lr_ratio + (1 - settings.final_lr_ratio) * left


def decayed(model: nn.Module) -> set[str]:
    """Names of the parameters that weight decay shrinks: the matrices of dense layers and of full convolutions.

    Codebook, norms, biases, positions, A_log, D, dt_bias and depthwise convolutions are left alone.
    """
    return {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.ConvTranspose2d)
        and getattr(module, "groups", 1) == 1
    }


def build_optimizer(
    model: nn.Module,
    config: OptimizerConfig,
    fast: Collection[Tensor] = (),
    multiplier: float = 1.0,
    scales: Mapping[str, Factors] | None = None,
) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter 2019, algorithm 2) with decay on `decayed(model)` only.

    Learning rates are tensors on the model's device, so that changing one neither waits nor compiles anything anew.

    Args:
        model: what is trained.
        config: of the optimizer.
        fast: parameters with a learning rate of their own, and without decay: those of the codebook.
        multiplier: their learning rate / that of the rest.
        scales: what the parametrization multiplies each parameter's settings by.
    """
    apart = {id(parameter) for parameter in fast}
    own = {name: multiplier for name, parameter in model.named_parameters() if id(parameter) in apart}
    groups = param_groups(
        model,
        config.lr,
        config.weight_decay,
        decayed=decayed(model) - own.keys(),
        multipliers=own,
        scales=scales or {},
    )
    for group in groups:
        group |= {"lr": torch.tensor(group["lr"], device=group["params"][0].device), "peak_lr": group["lr"]}
    return torch.optim.AdamW(groups, betas=(config.beta1, config.beta2), eps=config.epsilon, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets every group to its peak x factor, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(group["peak_lr"] * factor)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The state of an optimizer as named tensors: ``<parameter>/<moment>``."""
    return {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, into an optimizer that was built alike.

    Raises:
        KeyError: a tensor of a parameter that the model does not have.
    """
    parameters = dict(model.named_parameters())
    moments: dict[Tensor, dict[str, Any]] = {}
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        moments.setdefault(parameter, {})[key] = value.to(parameter.device)
    optimizer.state.update(moments)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Moves the average towards the weights by 1 - min(decay, (1 + step) / (10 + step)), and copies the buffers.

    The decay warms up, so that the average of a short run does not remember its random start.

    Args:
        average: a copy of the model.
        model: the one that trains.
        step: optimizer steps done.
        decay: of one step, in the long run; 0 copies the weights.
    """
    decay = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, buffer in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)
