"""YAML as in version 1.2, with the line of every key: what PyYAML alone does not give.

PyYAML follows version 1.1, where ``1e-3`` is text, ``on`` is a boolean and ``1:30`` is ninety; and it
lets the last of two equal keys win without a word.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from search.errors import SpaceError

Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """The safe loader with the scalars of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML reads it from the class)


_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


class _Dumper(yaml.SafeDumper):
    """The safe dumper of what `parse` reads back as the same: text that would be something else in 1.2 is quoted."""

    def ignore_aliases(self, _data: Any) -> bool:
        """Nothing is an alias: equal lists are written out."""
        return True


def _text(dumper: _Dumper, value: str) -> yaml.ScalarNode:
    loader: Any = _Loader("")
    plain = loader.resolve(yaml.ScalarNode, value, (True, False)) == "tag:yaml.org,2002:str"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, True))

TAGS: Mapping[str, type[yaml.Node]] = {
    "tag:yaml.org,2002:map": yaml.MappingNode,
    "tag:yaml.org,2002:seq": yaml.SequenceNode,
    **{f"tag:yaml.org,2002:{kind}": yaml.ScalarNode for kind in ("str", "int", "float", "bool", "null")},
}
"""What a document may hold: nothing that makes a Python object."""

MAX_VALUES = 100_000
"""Values of a document, its aliases expanded: ten lines of aliases of aliases make billions."""

MAX_DEPTH = 100
"""Mappings and lists in one another; Python's own stack ends at several hundred."""

TOO_DEEP = f"more than {MAX_DEPTH} mappings and lists in one another"


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed file.

    Attributes:
        name: the file as the user named it.
        value: mappings, lists, text, numbers, booleans and None.
        lines: path of keys and indices -> line, counted from 1.
        flags: path of a key -> the command-line flag that set it.
    """

    name: str
    value: Any
    lines: Mapping[Path, int] = field(default_factory=dict)
    flags: Mapping[Path, str] = field(default_factory=dict)

    def where(self, path: Path) -> str:
        """The flag that set the key at `path`, else ``file:line`` of it or of the nearest one above it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.flags:
                return self.flags[path[:length]]
            if path[:length] in self.lines:
                return f"{self.name}:{self.lines[path[:length]]}"
        return self.name

    def error(self, path: Iterable[str | int], problem: str) -> SpaceError:
        """The error for the key at `path`."""
        path = tuple(path)
        return SpaceError(self.where(path), dotted(path), problem)


def parse(text: str, name: str) -> Document:
    """Parse one YAML document.

    Args:
        text: the document.
        name: the file it came from, for messages.

    Raises:
        SpaceError: no YAML, a duplicate key, a key that is not text, a value that does not fit its tag, or more
            values or levels than any space has; with its line.
    """
    lines: dict[Path, int] = {}
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        where = f"{name}:{text[: error.position].count(chr(10)) + 1}"
        raise SpaceError(where, "", f"this is no valid YAML: it holds the character U+{error.character:04X}") from None
    try:
        node = loader.get_single_node()
        value = None if node is None else _construct(loader, node, (), (), lines, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise SpaceError(where, "", f"this is no valid YAML: {error.problem or error.context}") from None
    except RecursionError:  # of PyYAML's parser, before anything is constructed
        raise SpaceError(f"{name}:{loader.line + 1}", "", TOO_DEEP) from None
    finally:
        loader.dispose()
    return Document(name=name, value=value, lines=lines)


def _construct(
    loader: _Loader,
    node: yaml.Node,
    path: Path,
    above: tuple[yaml.Node, ...],
    lines: dict[Path, int],
    name: str,
) -> Any:
    line = lines.setdefault(path, node.start_mark.line + 1)
    if node.tag not in TAGS:
        raise _refusal(name, node, path, f"the tag {node.tag} is not allowed")
    if not isinstance(node, TAGS[node.tag]):
        raise _refusal(name, node, path, f"this is no {_kind(node)}")
    if len(lines) > MAX_VALUES:
        top = lines[path[:1]]
        raise SpaceError(f"{name}:{top}", "", f"more than {MAX_VALUES} values, those of aliases counted each time")
    if isinstance(node, yaml.ScalarNode):
        return _scalar(loader, node, path, name)
    if any(node is each for each in above):
        raise SpaceError(f"{name}:{line}", dotted(path), "this alias stands inside of what it refers to")
    if len(above) >= MAX_DEPTH:
        raise _refusal(name, node, (), TOO_DEEP)
    above = (*above, node)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = _key(loader, key_node, path, name)
            line = key_node.start_mark.line + 1
            if key in mapping:
                first = lines[(*path, key)]
                raise SpaceError(
                    f"{name}:{line}", dotted((*path, key)), f"this key stands here a second time; first in line {first}"
                )
            lines[(*path, key)] = line
            mapping[key] = _construct(loader, value_node, (*path, key), above, lines, name)
        return mapping
    return [_construct(loader, item, (*path, index), above, lines, name) for index, item in enumerate(node.value)]


def _key(loader: _Loader, node: yaml.Node, path: Path, name: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in TAGS or _scalar(loader, node, path, name) is None:
        raise _refusal(name, node, path, "a key must be text")
    return str(node.value)


def _scalar(loader: _Loader, node: yaml.Node, path: Path, name: str) -> Any:
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError):  # also of text without a tag: Python reads no integers of 5000 digits
        raise _refusal(name, node, path, f"{textwrap.shorten(node.value, 40)!r} is no {_kind(node)}") from None


def _kind(node: yaml.Node) -> str:
    return str(node.tag.rpartition(":")[2])


def _refusal(name: str, node: yaml.Node, path: Path, problem: str) -> SpaceError:
    return SpaceError(f"{name}:{node.start_mark.line + 1}", dotted(path), problem)


def dump(value: Mapping[str, Any]) -> str:
    """The text of a document: mappings a key a line, lists within a line."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return text


def scalar(text: str) -> Any:
    """One value as a space file would read it; lists and mappings in YAML's flow style too."""
    return parse(text, "").value


def dotted(path: Path) -> str:
    """A path as people write it: ``baselines[0].model.depth``."""
    words = ""
    for part in path:
        words += f"[{part}]" if isinstance(part, int) else f".{part}" if words else part
    return words
