"""Parts from outside: backbones, quantizers, terms of the loss, metrics, sources of pictures, by a name of their own.

    @dataclass(frozen=True, kw_only=True)
    class WindowConfig:
        window: int = 4

    @vqvae.register("backbone", "windowed", config=WindowConfig)
    class WindowedBlock(nn.Module):            # tokens (b, n, c) to (b, n, c)
        def __init__(self, config):            # a ModelConfig: config.width, config.options.window, ...
            ...

    plugins.load("my_model.py")
    config = replace(TrainConfig(), {"model.backbone": "windowed", "model.options.window": 8})

A config holds options as they were given, so that it can be read, compared and stored where the plug-in is not loaded.
When the part is built they are checked by its dataclass, and the part finds an instance of that in their place.

A name that is not known is looked for among the entry points of installed packages: ``vqvae.backbones``,
``vqvae.quantizers``, ``vqvae.losses``, ``vqvae.metrics`` and ``vqvae.data``. What an entry point leads to has to
register its part. This module uses the standard library only.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import linecache
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from vqvae import config as settings
from vqvae.config import ConfigError, Options, VqvaeError
from vqvae.conversion import from_dict

_Part = TypeVar("_Part")
_Config = TypeVar("_Config")


class PluginError(VqvaeError):
    """A plug-in that can't be loaded or registered."""


class UnknownPartError(ConfigError):
    """A part of a name that is neither ours nor registered; a file that has it may not have run."""


@dataclass(frozen=True)
class _Kind:
    home: str
    """The module that holds parts of this kind and says by `admit` what it takes; it lies above this one, so it is
    named here and imported when it is needed."""
    entries: str
    """Its dictionary of them."""
    key: str
    """The field of TrainConfig that names them."""
    group: str
    """Of entry points."""


KINDS = {
    "backbone": _Kind("vqvae.model", "BACKBONES", "model.backbone", "vqvae.backbones"),
    "quantizer": _Kind("vqvae.quantize", "QUANTIZERS", "quantizer.kind", "vqvae.quantizers"),
    "loss": _Kind("vqvae.losses", "TERMS", "loss.terms", "vqvae.losses"),
    "metric": _Kind("vqvae.metrics", "MEASURES", "evaluation.metrics", "vqvae.metrics"),
    "data": _Kind("vqvae.sources", "SOURCES", "data.source", "vqvae.data"),
}
"""What can be registered."""

WITH_OPTIONS = ("backbone", "quantizer", "data")
"""Kinds of which a run has one, so that its options need no name."""


@dataclass(frozen=True)
class _Entered:
    config: type | None
    by: str
    """The file, or module, that registered it."""


_ENTERED: dict[tuple[str, str], _Entered] = {}


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """A Python file, as it was when it was read."""

    path: str
    """Absolute."""
    content: bytes = dataclasses.field(repr=False)

    @functools.cached_property
    def sha256(self) -> str:
        """Of the content, in hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def module(self) -> str:
        """Name in `sys.modules` of what ran."""
        stem = re.sub(r"\W", "_", Path(self.path).stem)
        return f"vqvae_plugin_{stem}_{self.sha256[:12]}"


_LOADED: dict[str, Plugin] = {}
"""By hash."""


def register(
    kind: str,
    name: str,
    *,
    config: type | None = None,
    direction: Literal["minimize", "maximize", ""] | None = None,
) -> Callable[[_Part], _Part]:
    """A decorator that gives a part of one's own the name by which a config asks for it.

    Args:
        kind: what it is, and so what is decorated:
            backbone: a block, which is a module class or a function that takes a `ModelConfig` and gives a module from
            tokens (b, n, c) to (b, n, c), of which `patch_backbone` makes encoder and decoder; or a whole `Backbone`;
            quantizer: a class derived from `Quantizer` that takes a `QuantizerConfig`;
            loss: a function from the images that were made and the originals, (b, 3, h, w) in [-1, 1], to a scalar; or
            a module class, made without arguments, whose `forward` is that function; its weight is loss.terms.NAME;
            metric: a function of the same two to one number for each image, (b); evaluation.metrics lists its name;
            data: a function from a `DataConfig` to a `Source`.
        name: letters, digits, "_" and "-".
        config: of a backbone, quantizer or source: a frozen keyword-only dataclass of its options, whose
            `__post_init__` raises ValueError or ConfigError; fields are int, float, bool, str or tuples (tuple[int,
            ...]) of them, each with a default.
        direction: of a metric: in which it is better; "" for a diagnostic.

    Raises:
        PluginError: another kind, a name that is taken, a part or dataclass that is none.
    """
    what = f"{kind} {name!r}"
    if kind not in KINDS:
        raise PluginError(f"{what}: its kind must be one of {', '.join(KINDS)}, but got {kind!r}")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(name)):
        raise PluginError(f"{what}: its name must be letters, digits, '_' and '-', a letter first, but got {name!r}")
    if config is not None:
        _require_options(what, kind, config)
    directions = (None,) if kind != "metric" else ("minimize", "maximize", "")
    if direction not in directions:
        said = "minimize, maximize or ''" if kind == "metric" else "left out, since it is no metric"
        raise PluginError(f"{what}: direction must be {said}, but got {direction!r}")

    def enter(part: _Part) -> _Part:
        home = importlib.import_module(KINDS[kind].home)
        entries = getattr(home, KINDS[kind].entries)
        if name in entries or name in getattr(home, "RESERVED", ()):
            there = _ENTERED.get((kind, name))
            raise PluginError(f"{what}: this name is taken by {there.by if there else 'vqvae'}; expected another one")
        try:
            entries[name] = home.admit(part)
        except TypeError as error:
            raise PluginError(f"{what}: {error}") from None
        if direction is not None:
            settings.METRICS[f"val/{name}"] = direction
        module = str(getattr(part, "__module__", ""))
        by = str(getattr(sys.modules.get(module), "__file__", module or "another plug-in"))
        _ENTERED[kind, name] = _Entered(config, by)
        return part

    return enter


def _require_options(what: str, kind: str, config: type) -> None:
    if kind not in WITH_OPTIONS:
        raise PluginError(f"{what}: a {kind} takes no config; expected one of a {', '.join(WITH_OPTIONS)}")
    require_plain(what, config)


def require_plain(what: str, config: type) -> None:
    """Makes sure that a dataclass can hold options, see `register`.

    Args:
        what: whose options they are, for messages.
        config: the dataclass.

    Raises:
        PluginError: it can't.
    """
    frozen = dataclasses.is_dataclass(config) and isinstance(config, type) and config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    if not frozen:
        raise PluginError(f"{what}: config must be a frozen dataclass, but got {config!r}")
    plain = (int, float, bool, str)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        hint = hints[field.name]
        if hint not in (*plain, *(tuple[each, ...] for each in plain)):  # type: ignore[valid-type]
            raise PluginError(
                f"{what}: {config.__name__}.{field.name} must be int, float, bool, str or tuple[one of them, ...], "
                f"but got {hint!r}"
            )
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise PluginError(f"{what}: {config.__name__}.{field.name} must have a default")


def find(kind: str, entries: Mapping[str, Any], name: str, besides: tuple[str, ...] = ()) -> Any:
    """An entry of the dictionary of a kind, which an installed package may add now.

    Args:
        kind: of `KINDS`.
        entries: the dictionary.
        name: of the entry.
        besides: names that are known to whoever asks, for the message.

    Raises:
        UnknownPartError: no such part.
        PluginError: an entry point of this name fails.
    """
    if name not in entries:
        enter_installed(kind, name)
    if name not in entries:
        raise UnknownPartError(KINDS[kind].key, f"must be one of {', '.join((*besides, *entries))}, but got {name!r}")
    return entries[name]


def installed() -> frozenset[tuple[str, str]]:
    """Kind and name of what entry points of installed packages declare; nothing is imported."""
    points = importlib.metadata.entry_points()
    return frozenset((kind, point.name) for kind, each in KINDS.items() for point in points.select(group=each.group))


def enter_installed(kind: str, name: str) -> bool:
    """Imports what the entry point of an installed package leads to; whether there was one that was not known.

    Raises:
        PluginError: it fails.
    """
    home = importlib.import_module(KINDS[kind].home)
    if name in getattr(home, KINDS[kind].entries) or name in getattr(home, "RESERVED", ()):
        return False
    group = KINDS[kind].group
    for point in importlib.metadata.entry_points(group=group, name=name):
        where = f"entry point {group}: {name} = {point.value}"
        try:
            point.load()
        except Exception as error:  # whatever another package does becomes one line
            raise PluginError(f"{where}: {_line(error)}") from error
        if (kind, name) not in _ENTERED:
            raise PluginError(f"{where}: registers no {kind} {name!r}")
        return True
    return False


def has(kind: str, name: str) -> bool:
    """Whether a part of this name was registered here, rather than being one of ours."""
    return (kind, name) in _ENTERED


def options(kind: str, name: str) -> dict[str, Any] | None:
    """Options of a part -> their types; None of a part that is not known here, such as one of a plug-in not loaded.

    Nothing is imported to find out.
    """
    entered = _ENTERED.get((kind, name))
    if entered is not None:
        return {} if entered.config is None else typing.get_type_hints(entered.config)
    home = sys.modules.get(KINDS[kind].home)
    return {} if name in getattr(home, KINDS[kind].entries, ()) else None


def settled(kind: str, config: _Config) -> _Config:
    """The section of a config that names a part, with the part's own dataclass in place of its options.

    Args:
        kind: backbone, quantizer or data.
        config: `ModelConfig`, `QuantizerConfig` or `DataConfig`; the part it names is registered.

    Raises:
        ConfigError: an option that the part does not have, or a value that it refuses.
    """
    section, _, field = KINDS[kind].key.partition(".")
    given, name = getattr(config, "options"), getattr(config, field)  # noqa: B009 - any of three classes
    if not isinstance(given, Options):
        return config
    entered = _ENTERED.get((kind, name))
    if entered is None or entered.config is None:
        if given:
            raise ConfigError(f"{section}.options", f"must be empty, since {kind} {name} has none, but got {given!r}")
        return config
    made = options_as(entered.config, given, f"{section}.options")
    return typing.cast("_Config", dataclasses.replace(typing.cast("Any", config), options=made))


def options_as(kind: type, given: Mapping[str, Any], key: str) -> Any:
    """Options as an instance of the dataclass that knows them.

    Args:
        kind: the dataclass.
        given: the options.
        key: where they stand in a config.

    Raises:
        ConfigError: an option that it does not have, or a value that it refuses.
    """
    try:
        return from_dict(given, kind)
    except ConfigError as error:
        raise error.within(key) from None
    except ValueError as error:
        raise ConfigError(key, str(error)) from None


def load(path: str | Path) -> Plugin:
    """Runs a Python file, so that what it registers is there; a file whose content has run already does nothing.

    Its module has a name of its own and what lies beside it can't be imported: the hash stands for all of the code.

    Raises:
        PluginError: it can't be read, or it raises; the message has file and line.
    """
    plugin = read(path)
    run(plugin)
    return plugin


def read(path: str | Path) -> Plugin:
    """Reads a Python file, and runs nothing.

    Raises:
        PluginError: it can't be read.
    """
    file = Path(path)
    try:
        file = file.expanduser().absolute()
        if ".." in file.parts:  # behind a link that leads elsewhere than by its name
            file = file.resolve()
        if file.exists() and not file.is_file():  # a device may have no end
            raise PluginError(f"{file}: this is no file; expected a Python file that can be read")
        return Plugin(path=str(file), content=file.read_bytes())
    except (OSError, ValueError, RuntimeError) as error:  # the last two: a null in the path, no such user behind a ~
        why = getattr(error, "strerror", None) or error
        raise PluginError(f"{file}: {why}; expected a Python file that can be read") from None


def run(plugin: Plugin) -> Plugin:
    """Runs what was read, here or on another machine, unless the same content has run in this process.

    Returns:
        What ran first of this content, so that its `module` is in `sys.modules`.

    Raises:
        PluginError: it raises; the message has file and line.
    """
    if plugin.sha256 in _LOADED:
        return _LOADED[plugin.sha256]
    module = types.ModuleType(plugin.module)
    module.__file__ = file = plugin.path
    # Tracebacks show what ran, though the file has changed since or lies on another machine; no time, no check.
    lines = plugin.content.decode(errors="replace").splitlines(keepends=True)
    linecache.cache[file] = (len(plugin.content), None, lines, file)
    before = set(_ENTERED)
    sys.modules[module.__name__] = module  # dataclasses look their annotations up there
    try:
        exec(compile(plugin.content, file, "exec"), module.__dict__)  # what was hashed is what runs
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        for kind, name in _ENTERED.keys() - before:
            _withdraw(kind, name)
        raise PluginError(f"{file}:{_line_number(error, file)}: {_line(error)}") from error
    _LOADED[plugin.sha256] = plugin
    return plugin


def ran(sha256: str) -> Plugin | None:
    """What ran in this process with this hash."""
    return _LOADED.get(sha256)


def loaded() -> tuple[Plugin, ...]:
    """All that ran in this process, in its order, for another process to run."""
    return tuple(_LOADED.values())


def _withdraw(kind: str, name: str) -> None:
    home = importlib.import_module(KINDS[kind].home)
    del getattr(home, KINDS[kind].entries)[name], _ENTERED[kind, name]
    if kind == "metric":
        del settings.METRICS[f"val/{name}"]


def _line_number(error: BaseException, file: str) -> int:
    """The line of `file` at which it went wrong."""
    if isinstance(error, SyntaxError) and error.filename == file and error.lineno:
        return error.lineno
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return next((line for line in reversed(lines) if line), 1)


def _line(error: BaseException) -> str:
    """One line; our own errors speak for themselves."""
    words = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().splitlines()
    first = words[0] if words else ""
    if isinstance(error, VqvaeError):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
