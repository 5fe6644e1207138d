"""What a source of pictures promises: the same pictures under the same names, whenever it is asked."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqvae import data, plugins, sources
from vqvae.checks import CheckFailed, Subject, expect, listed, odd_values
from vqvae.config import ConfigError, VqvaeError
from vqvae.conversion import replace

if TYPE_CHECKING:
    from vqvae.sources import Source

MOST = 1000
"""Pictures whose names are looked at; only of a source with fewer are all decoded and split."""


def it_says_what_it_has(subject: Subject) -> None:
    """It gives a `Source`: a place for messages, an identity, the number of pictures or 0, and the pictures."""
    source: Any = sources.find(subject.config.data)
    expect(isinstance(source, sources.Source), "a vqvae.sources.Source", f"got {source!r}")
    for name in ("place", "identity"):
        value = getattr(source, name)
        expect(isinstance(value, str) and bool(value), f"{name} to be text", f"got {value!r}")
    whole = isinstance(source.total, int) and source.total >= 0
    expect(whole, "total to be a whole number, 0 where it is not known", f"got {source.total!r}")
    found = _first(source)
    expect(bool(found), "pictures", "it gives none")
    if source.total and len(found) < MOST:
        expect(len(found) == source.total, f"the {source.total} pictures of its total", f"it gives {len(found)}")
    for name, content in found:
        expect(isinstance(name, str) and bool(name), "a name for each picture", f"got {name!r}")
        there = isinstance(content, (Path, bytes))
        expect(there, f"picture {name!r} to be a pathlib.Path or bytes", f"got {type(content).__name__}")
    names = [name for name, _ in found]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    expect(not twice, "names of which no two are equal", f"{listed(twice)} comes twice")


def _first(source: Source) -> list[tuple[str, Path | bytes]]:
    return list(itertools.islice(source.pictures(), MOST))


def it_gives_the_same_again(subject: Subject) -> None:
    """Asked again it has the same identity and the same pictures in the same order: cache and splits hang on it."""
    one, other = (sources.find(subject.config.data) for _ in range(2))
    expect(one.identity == other.identity, f"the identity {one.identity!r} again", f"got {other.identity!r}")
    for again, when in ((one, "a second time"), (other, "by another call")):
        expect(_first(one) == _first(again), "the same pictures in the same order", f"others came when asked {when}")


def its_pictures_are_cached_and_split(subject: Subject) -> None:
    """Its pictures can be read, and some train while others are held out; checked where they are few."""
    source = sources.find(subject.config.data)
    if len(_first(source)) >= MOST:
        return
    with tempfile.TemporaryDirectory() as folder:
        splits = data.load(dataclasses.replace(subject.config.data, cache=folder))
        count = len(splits.train) + len(splits.validation) + len(splits.test)
        unread = [f"{each}" for each in splits.skipped]
    expect(
        not unread, "pictures that can be read", f"{len(unread)} can't, of {count + len(unread)}: {listed(unread, 1)}"
    )


def options_work_or_are_refused(subject: Subject) -> None:
    """An option it does not have, and a value it can't work with, is a ConfigError or DataError."""
    key = "data.options.no_such_option"
    try:
        sources.require(replace(subject.config, {key: 1}).data)
    except ConfigError as error:
        expect(error.key.startswith("data.options"), f"{key} to be refused by its key", f"got {error}")
    settled = plugins.settled("data", subject.config.data).options
    for name in plugins.options("data", subject.name) or {}:
        for value in odd_values(getattr(settled, name)):
            try:
                _first(sources.find(replace(subject.config, {f"data.options.{name}": value}).data))
            except VqvaeError:
                continue
            except Exception as error:
                raise CheckFailed(
                    f"expected data.options.{name} = {value!r} to work, or to be refused with a ConfigError, "
                    f"but {type(error).__name__} came: {error}"
                ) from error


CHECKS = (it_says_what_it_has, it_gives_the_same_again, its_pictures_are_cached_and_split, options_work_or_are_refused)
"""Of every source of pictures."""
