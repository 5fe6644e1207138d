"""A trainer of one's own, named ``FILE.py:FUNCTION``: it takes the place of `vqvae.train.train` in a search.

    @dataclass(frozen=True, kw_only=True)
    class MyOptions:
        width: int = 64

    @vqvae.trainer(config=MyOptions, metrics={"val/accuracy": "maximize"})
    def train(config, resume, stop):          # a TrainConfig: config.options.width, config.steps, config.rungs, ...
        ...
        yield Progress(step=..., metrics={...}, evaluated=True, checkpoint=write)

    trainer = trainers.load("my_train.py:train")

What it promises is written down in docs/plugins.md and kept by `vqvae.contract.follow`. An undecorated function has no
options and measures metrics that are known here. This module uses the standard library only.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from vqvae import config as settings
from vqvae import plugins
from vqvae.config import ConfigError, Options, TrainConfig
from vqvae.plugins import Plugin, PluginError

Function = Callable[[TrainConfig, Path | None, Callable[[], bool]], Iterator[Any]]
"""Takes the run, a checkpoint's folder to go on from, and what says between steps whether to stop; gives reports, each
a `vqvae.train.Progress`."""

Costs = Callable[[TrainConfig], Mapping[str, float]]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ATTACHED = "__vqvae_trainer__"

RECORD = "trainer.json"
"""File that lies with the checkpoints of a trainer, beside what it writes: who trained, and what was last measured."""


class CostsError(PluginError):
    """The costs of a trainer raise for a run, or are no mapping of names to finite numbers."""


@dataclass(frozen=True, kw_only=True)
class _Attached:
    config: type | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    costs: Costs | None = None


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """A function that trains, and what is known of it."""

    name: str
    """FILE.py:FUNCTION, the file absolute."""
    sha256: str
    """Of the file's content."""
    function: Function
    options: type | None = None
    """The dataclass of its options; None where it has none."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """What each of its evaluations measures -> minimize, maximize or "", for a diagnostic."""
    costs: Costs | None = None
    """Quantities of a run that are known before it, such as its parameters."""

    def settled(self, config: TrainConfig) -> TrainConfig:
        """The config with the trainer's own dataclass in place of its options.

        Raises:
            ConfigError: an option that it does not have, or a value that it refuses.
        """
        given: Any = config.options
        if not isinstance(given, Options):
            return config
        if self.options is None:
            if given:
                raise ConfigError("options", f"must be empty, since {self.name} has none, but got {given!r}")
            return config
        return dataclasses.replace(config, options=plugins.options_as(self.options, given, "options"))

    def quantities(self, config: TrainConfig) -> dict[str, float]:
        """What its `costs` say of a run; nothing without them.

        Raises:
            ConfigError: options that it refuses.
            CostsError: they raise, or are no mapping of names to finite numbers.
        """
        run = self.settled(config)
        try:
            found = self.costs(run) if self.costs else {}
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's code does becomes one line
            raise CostsError(f"{self.name}: costs raised {type(error).__name__}: {error}".partition("\n")[0]) from error
        sound = isinstance(found, Mapping) and all(
            isinstance(name, str) and isinstance(value, (int, float)) and math.isfinite(value)
            for name, value in found.items()
        )
        if not sound:
            raise CostsError(f"{self.name}: costs must give a mapping of names to finite numbers, but gave {found!r}")
        return {name: float(value) for name, value in found.items()}


def trainer(
    *,
    config: type | None = None,
    metrics: Mapping[str, Literal["minimize", "maximize", ""]] | None = None,
    costs: Costs | None = None,
) -> Callable[[_Function], _Function]:
    """A decorator that tells of a function ``train(config, resume, stop)`` what a search can't see in it.

    Args:
        config: a frozen keyword-only dataclass of its options, as in `vqvae.register`; a space file sets and searches
            them as ``options.NAME``.
        metrics: what each of its evaluations measures, ``val/NAME`` -> minimize, maximize or, for a diagnostic, "".
        costs: takes the run, its options settled, and gives quantities that are known before any training, such as
            ``{"parameters": ...}``, which a space file may limit under ``constraints``.

    Raises:
        PluginError: a dataclass that is none, a name that is none, or a metric that is known to be better elsewise.
    """
    if config is not None:
        plugins.require_plain("trainer", config)
    for name, direction in (metrics or {}).items():
        if not re.fullmatch(r"val/[A-Za-z][A-Za-z0-9_.-]*", str(name)):
            raise PluginError(
                f"trainer: a metric must be named val/NAME, of letters, digits, '_', '.' and '-', but got {name!r}"
            )
        if direction not in ("minimize", "maximize", ""):
            raise PluginError(
                f"trainer: the direction of {name} must be minimize, maximize or '', but got {direction!r}"
            )
        known = settings.METRICS.get(name, direction)
        if known != direction:
            raise PluginError(
                f"trainer: the direction of {name} is {known!r} here, but got {direction!r}; expected another name"
            )

    def attach(function: _Function) -> _Function:
        setattr(function, _ATTACHED, _Attached(config=config, metrics=dict(metrics or {}), costs=costs))
        return function

    return attach


def parts(reference: str) -> tuple[str, str]:
    """File and function of ``FILE.py:FUNCTION``.

    Raises:
        PluginError: it is of no such form.
    """
    path, _, function = str(reference).rpartition(":")
    if not path or not function.isidentifier():
        raise PluginError(f"must be FILE.py:FUNCTION, but got {reference!r}")
    return path, function


def load(reference: str) -> Trainer:
    """Runs a file and takes the trainer in it.

    Args:
        reference: ``FILE.py:FUNCTION``.

    Raises:
        PluginError: no such form, a file that fails, or no such function in it.
    """
    path, function = parts(reference)
    return find(plugins.load(path), function)


def find(plugin: Plugin, function: str) -> Trainer:
    """A trainer of a file, which runs unless it has; its metrics are known from now on.

    Raises:
        PluginError: the file fails, there is no such function, or it takes something else.
    """
    name, module = f"{plugin.path}:{function}", sys.modules[plugins.run(plugin).module]
    found = getattr(module, function, None)
    if not callable(found) or isinstance(found, type):
        there = [
            key for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
        ]  # fmt: skip
        raise PluginError(f"{plugin.path}: has no function {function!r}; expected one of {', '.join(there) or 'none'}")
    try:
        inspect.signature(found).bind(TrainConfig(), None, bool)
    except TypeError:
        raise PluginError(f"{name}: must take (config, resume, stop), but takes {inspect.signature(found)}") from None
    attached = getattr(found, _ATTACHED, _Attached())
    settings.METRICS.update(attached.metrics)
    return Trainer(
        name=name,
        sha256=plugin.sha256,
        function=found,
        options=attached.config,
        metrics=attached.metrics,
        costs=attached.costs,
    )


def options(of: Trainer | None) -> dict[str, Any]:
    """The options of a trainer -> their types; ours has none."""
    return typing.get_type_hints(of.options) if of and of.options else {}
