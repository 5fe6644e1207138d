"""Configs to and from dictionaries, dotted names and text: the fields of `vqvae.config` as a user spells them.

    config = replace(TrainConfig(), {"optimizer.lr": 1e-3})
    config == from_dict(to_dict(config))

This module uses the standard library only, so that a command line can read it without loading torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from vqvae.config import ConfigError, Options, TrainConfig, require


def fields(kind: type = TrainConfig, prefix: str = "") -> dict[str, Any]:
    """Dotted name of every field -> its type, the nested dataclasses unfolded.

    >>> fields()["optimizer.lr"]
    <class 'float'>
    """
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        annotation = hints[item.name]
        name = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(annotation):
            found |= fields(typing.cast("type", annotation), f"{name}.")
        else:
            found[name] = annotation
    return found


def convert(key: str, value: Any, annotation: Any) -> Any:
    """`value` as the type of a field: whole numbers pass as floats and lists as tuples, nothing else bends.

    Raises:
        ConfigError: of another type, NaN included.
    """
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):  # a number or one word
        kind, words = typing.get_args(annotation)
        (word,) = typing.get_args(words)
        if value == word:
            return word
        try:
            return convert(key, value, kind)
        except ConfigError as error:
            raise ConfigError(key, error.problem.replace(", but got", f" or {word}, but got")) from None
    if annotation is Any:  # the option of a plug-in that is not loaded here
        return Options({key: value})[key]
    if annotation is Options:
        require(isinstance(value, Mapping), key, "a mapping", value)
        try:
            return Options(value)
        except ConfigError as error:
            raise error.within(key) from None
    if typing.get_origin(annotation) is tuple:
        require(isinstance(value, (list, tuple)), key, "a list", value)
        return tuple(convert(key, item, typing.get_args(annotation)[0]) for item in value)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is float:
        require(number and not math.isnan(value), key, names[float], value)
        return float(value)
    if annotation is int:
        require(number and math.isfinite(value) and value == int(value), key, names[int], value)
        return int(value)
    require(isinstance(value, annotation), key, names[annotation], value)
    return value


def from_dict(values: Mapping[str, Any], kind: type = TrainConfig) -> Any:
    """A config from nested mappings, such as parsed YAML or JSON; what is absent keeps its default.

    Args:
        values: field -> value, or nested mapping for a part.
        kind: the dataclass to make; `TrainConfig` by default.

    Raises:
        ConfigError: an unknown field, a wrong type or a value out of range, with its dotted key.
    """
    hints = typing.get_type_hints(kind)
    known = {item.name for item in dataclasses.fields(kind)}
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(str(key), unknown(str(key), known))
        if dataclasses.is_dataclass(hints[key]):
            require(isinstance(value, Mapping), key, "a mapping of fields", value)
            try:
                arguments[key] = from_dict(value, typing.cast("type", hints[key]))
            except ConfigError as error:
                raise error.within(key) from None
        else:
            arguments[key] = convert(key, value, hints[key])
    return kind(**arguments)


def unknown(key: str, known: Iterable[str]) -> str:
    """The words for a key that is not among `known`, with the nearest one that is."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"unknown field; did you mean {near[0]}?" if near else f"unknown field; known are {', '.join(sorted(known))}"


def to_dict(config: Any) -> dict[str, Any]:
    """The nested dictionary of a config, of JSON types only (tuples become lists)."""
    return {
        item.name: (
            to_dict(value)
            if dataclasses.is_dataclass(value := getattr(config, item.name))
            else {name: _json(each) for name, each in value.items()}
            if isinstance(value, Options)
            else _json(value)
        )
        for item in dataclasses.fields(config)
    }


def _json(value: Any) -> Any:
    return [_json(item) for item in value] if isinstance(value, tuple) else value


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names to nested dictionaries: ``{"a.b": 1}`` to ``{"a": {"b": 1}}``."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return nested


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with those of `changes` laid over them; neither is changed."""
    result = dict(values)
    for key, value in changes.items():
        before = result.get(key)
        both = isinstance(before, Mapping) and isinstance(value, Mapping)
        result[key] = merged(typing.cast("Mapping[str, Any]", before), value) if both else value
    return result


def replace(config: TrainConfig, flat: Mapping[str, Any]) -> TrainConfig:
    """`config` with some fields set, named by their dotted names; all are set before anything is checked.

    Raises:
        ConfigError: as in `from_dict`.
    """
    result: TrainConfig = from_dict(merged(to_dict(config), nest(flat)))
    return result
