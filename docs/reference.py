"""The references among these pages, written from the code: docs/space-file.md and docs/commands.md.

python docs/reference.py            writes them
python docs/reference.py --check    changes nothing; where they are stale, shows the difference and exits 1

A key, an option or a command without words of its own is an error that names it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import itertools
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from search import comparison, parameters, schema, space, units, yaml12
from search.cli import cli
from search.errors import SpaceError
from search.study import OPERATIONAL
from vqvae import config as trainer
from vqvae.config import ConfigError, TrainConfig

FOLDER = Path(__file__).parent

WRITTEN = "<!-- Written by docs/reference.py from the code: change it there. -->"

SPACE_FILE = """\
# Every key of a space file

A space file says what is searched, on what and under which budget; `vqsearch validate FILE` checks it. Numbers are
those of YAML 1.2, relative paths start at the file's folder, and `--set KEY=VALUE` of a command sets any key by its
dotted name. Keys marked *may change* may be set anew by `vqsearch resume --set KEY=VALUE`; every other one belongs to
the study.
"""

TRAIN = """\
Any field of the training config: `train: {ema_decay: 0.999}`, or `train: {model: {width: 256}}` for one of a section.
*Searched with* says which [distributions](#search) a field takes under `search:`. Papers and tests:
[trainer.md](trainer.md).
"""

SEARCH = """\
A dotted field of the tables under [train](#train), without `train.`, and one distribution. `float`, `int` or `choice`
says which; the other keys stand beside it.
"""

CONSTRAINTS = """\
`NAME: {min: , max: }`, one of the two or both, above 0. A trial outside its limits is infeasible, and the sampler
learns how far outside. By what is known of a model before it trains, it is refused before it trains.
"""

METRICS = """\
What may be `objective.metric`, measured with the averaged weights on held-out images; see
[trainer.md](trainer.md#metrics).
"""

BASELINES = """\
A list of settings, `{FIELD: VALUE}` of searched fields within their ranges, that are tried before any suggestion. A
field that is left out is suggested.
"""

COMPARISON = """\
A comparison file has the keys above but `study`, and these. `vqsearch compare FILE` runs it, `vqsearch validate FILE`
proves what it holds equal. `finalists` is `{finalists}` where it is silent.
"""

COMMANDS = """\
# Every command

`vqsearch COMMAND --help` says the same. A command exits with 0, with 2 after one line on what the user can mend, with
1 on what went wrong otherwise, and with 130 after Ctrl-C. `$VQSEARCH_STORAGE` holds the storage where no flag and no
space file names one, `$VQSEARCH_DASHBOARD_PASSWORD` the dashboard's password.
"""

DISTRIBUTIONS = {
    "float": ("{float: [5.0e-5, 2.0e-3], log: true}", "optimizer.lr", "Any number from low to high."),
    "int": ("{int: [2, 14]}", "model.depth", "Whole numbers from low to high."),
    "choice": (
        "{choice: [1024, 4096, 16384]}",
        "quantizer.codebook_size",
        "One of a list; numbers keep their order, which samplers and plots use. Lists need labels: "
        "`{choice: {fsq1k: [8, 5, 5, 5]}}`.",
    ),
    "log": (
        "{int: [64, 512], log: true}",
        "model.width",
        "Beside float or int: equal factors are equally likely; low must be above 0. Default: false.",
    ),
    "step": (
        "{float: [0.0, 2.0], step: 0.5}",
        "model.overlap",
        "Beside float or int, without log: the grid, from low. Default: 1 for int, none for float.",
    ),
    "when": (
        "{float: [0.99, 0.999], when: {quantizer.update: ema}}",
        "quantizer.ema_decay",
        "Beside any: searched only where another searched choice has this value, or one of a list of them.",
    ),
}
"""Key of a distribution -> example, the field it is of, meaning; every example is parsed when the page is written."""

ARMS = {
    "train": "Joined to the common one, key by key. Not {common}.",
    "search": "Added to the common one; a field of `null` takes a common one away.",
    "baselines": "Tried after the common ones.",
}


class UndocumentedError(Exception):
    """Something on these pages has no words of its own in the code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or look whether they are stale; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 where a page is stale")
    stale = False
    check = parser.parse_args(arguments).check
    for name, page in pages().items():
        path = FOLDER / name
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        stale |= before != page
        if not check:
            path.write_text(page, encoding="utf-8")
        for line in difflib.unified_diff(
            before.splitlines(), page.splitlines(), f"docs/{name}", "the code", lineterm="", n=0
        ):
            print(line)
    if check and stale:
        print("stale: write them anew with python docs/reference.py")
    return int(check and stale)


def pages() -> dict[str, str]:
    """File name -> content.

    Raises:
        UndocumentedError: naming every key, option and command without words.
    """
    return {"space-file.md": space_file(), "commands.md": commands()}


def space_file() -> str:
    """Every key of a space file and of a comparison file."""
    sections = {"The file": _keys("", schema.File)}
    for name, field in schema.File.model_fields.items():
        if part := _part(field.annotation):
            sections[name] = f"{_lead(part)}\n{_keys(f'{name}.', part)}"
            for inner, below in part.model_fields.items():
                if within := _part(below.annotation):
                    sections[f"{name}.{inner}"] = f"{_lead(within)}\n{_keys(f'{name}.{inner}.', within)}"
    sections["metrics"] = f"{METRICS}\n" + _table(
        ("metric", "what", "unit", "direction"),
        (
            (f"`{name}`", units.label(name), units.unit(name), better or "either: it is a diagnostic")
            for name, better in trainer.METRICS.items()
        ),
    )
    sections["train"] = f"{TRAIN}\n{_train('', TrainConfig)}"
    for name, kind in typing.get_type_hints(TrainConfig).items():
        if dataclasses.is_dataclass(kind):
            sections[f"train.{name}"] = f"{_lead(kind)}\n{_train(f'{name}.', typing.cast('type', kind))}"
    sections["search"] = f"{SEARCH}\n{_distributions()}"
    sections["constraints"] = f"{CONSTRAINTS}\n" + _table(
        ("quantity", "what", "unit", "known before training"),
        (
            (f"`{name}`", units.label(name), units.unit(name), "yes" if name in comparison.QUANTITIES else "")
            for name in space.quantities()
        ),
    )
    sections["baselines"] = BASELINES
    sections["Comparison files"] = _comparison()
    return _page(SPACE_FILE, sections)


def commands() -> str:
    """Every command with its options and its example."""
    root = click.Context(cli, info_name="vqsearch", terminal_width=100)
    return _page(COMMANDS, {name: _command(command, name, root) for name, command in cli.commands.items()})


def _page(introduction: str, sections: Mapping[str, str]) -> str:
    contents = " · ".join(f"[{name}](#{anchor(name)})" for name in sections)
    parts = [f"{WRITTEN}\n{introduction}\n{contents}\n", *(f"## {name}\n\n{text}" for name, text in sections.items())]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def anchor(heading: str) -> str:
    """What GitHub calls a heading in an address."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _lead(kind: Any) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split()) + "\n"


def meanings(kind: type) -> dict[str, str]:
    """Field -> the text that follows it in the source of its class.

    Raises:
        UndocumentedError: naming every field without one.
    """
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    found, fields = {}, []
    for before, after in itertools.pairwise([*definition.body, ast.Pass()]):
        if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            fields.append(before.target.id)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                found[before.target.id] = " ".join(str(after.value.value).replace("``", "`").split())
    hints = typing.get_type_hints(kind)
    whole = {name for name in fields if dataclasses.is_dataclass(hints[name]) or _part(hints[name])}
    if silent := [name for name in fields if name not in found and name not in whole]:
        where = f"{kind.__module__}.{kind.__qualname__}"
        raise UndocumentedError(f"no line with its meaning follows {', '.join(f'{where}.{name}' for name in silent)}")
    return found


def _part(annotation: Any) -> type[BaseModel] | None:
    """The model of a key that is a section of fixed keys; those of a mapping stand under names of its own."""
    origin = typing.get_origin(annotation)
    kinds = typing.get_args(annotation) if origin in (typing.Union, types.UnionType) else (annotation,)
    return next((kind for kind in kinds if inspect.isclass(kind) and issubclass(kind, BaseModel)), None)


def _keys(prefix: str, kind: type[BaseModel]) -> str:
    """The table of a part of the file that pydantic checks."""
    words = meanings(kind)

    def row(name: str, field: FieldInfo) -> tuple[str, ...]:
        if part := _part(field.annotation):
            silent = "required" if field.is_required() else "none" if field.default is None else "its defaults"
            meaning = words.get(name) or _lead(part).strip()
            return f"`{prefix}{name}`", f"[mapping](#{anchor(prefix + name)})", silent, "", meaning
        default = "required" if field.is_required() else _value(field.default)
        if name in ("train", "search", "constraints", "baselines"):
            return f"`{name}`", f"[{_kind(field.annotation)}](#{anchor(name)})", default, "", words[name]
        changes = "may change" if prefix + name in OPERATIONAL else ""
        return f"`{prefix}{name}`", _allowed(field), default, changes, words[name]

    head = ("key", "value", "default", "later", "meaning")
    return _table(head, (row(name, field) for name, field in kind.model_fields.items()))


def _allowed(field: FieldInfo) -> str:
    """Type and range of a key that pydantic checks."""
    phrases = {
        "ge": "at least {:,}",
        "gt": "above {:,}",
        "le": "at most {:,}",
        "lt": "below {:,}",
        "min_length": "{:,} characters or more",
        "max_length": "at most {:,} characters",
    }
    bounds = ((phrase, getattr(limit, name, None)) for limit in field.metadata for name, phrase in phrases.items())
    return ", ".join(
        [_kind(field.annotation), *(phrase.format(bound) for phrase, bound in bounds if bound is not None)]
    )


def _kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(inner)}" if len(inner) > 1 else inner[0]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_kind(each) for each in inner if each is not type(None))
    if origin in (tuple, list):
        return f"list of {_kind(inner[0])}" + ("s" if inner[0] is not str else "")
    if inspect.isclass(origin or annotation) and issubclass(origin or annotation, Mapping):
        return "mapping"
    if annotation is schema.CodeFile:
        return "path"
    return {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation]


def _value(value: Any) -> str:
    """A default as YAML."""
    plain = list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
    return "none" if value is None else f"`{json.dumps(plain)}`"


def _train(prefix: str, kind: type) -> str:
    """The table of a dataclass of `vqvae.config`."""
    words, hints = meanings(kind), typing.get_type_hints(kind)
    rows = []
    refused: dict[str, list[str]] = {}
    for field in dataclasses.fields(kind):
        name, annotation = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(annotation):
            continue
        searched = {float: "float, choice", int: "int, choice"}.get(annotation, "choice")
        if why := parameters.UNSEARCHABLE.get(name):
            why = f"the search sets it itself; {why}" if name in parameters.FIXED else why
            refused.setdefault(why, []).append(f"`{name}`")
            searched = "no"
        default = _value(getattr(kind(), field.name))
        rows.append((f"`{name}`", values(kind, field.name), default, searched, words[field.name]))
    table = _table(("field", "value", "default", "searched with", "meaning"), rows)
    reasons = "".join(f"- {', '.join(names)}: {why}.\n" for why, names in refused.items())
    return f"{table}\nNo search varies\n{reasons}" if reasons else table


def values(kind: type, name: str) -> str:
    """Type and range of a field, the range as the dataclass says it when it refuses values."""
    annotation = typing.get_type_hints(kind)[name]
    kinds = (annotation, *typing.get_args(annotation))
    if annotation is bool or _kind(annotation) == "mapping":
        return _kind(annotation)
    far: tuple[Any, ...] = (-1.0, 0.123, float("inf")) if float in kinds else (-1, 2**62) if int in kinds else ("?",)
    if typing.get_origin(annotation) is tuple:
        far = tuple((each,) for each in far)
    expected = dict.fromkeys(filter(None, (_refusal(kind, name, value) for value in far)))
    if any(words.startswith("one of") for words in expected):
        return next(iter(expected))
    return ", ".join([_kind(annotation), *expected])


def _refusal(kind: Callable[..., Any], name: str, value: Any) -> str | None:
    """What a dataclass expects instead of a value, without the numbers of the other fields; None if it takes it."""
    try:
        kind(**{name: value})
    except ConfigError as error:
        expected = error.problem.removeprefix("must be ").rpartition(", but got")[0]
        return re.sub(r" \((\w+ is )?[\d.]+\)", "", expected)
    return None


def _distributions() -> str:
    """The keys of a distribution, each example tried."""
    hints = typing.get_type_hints(parameters.Parameter)
    known = {*typing.get_args(hints["kind"]), *(hints.keys() - {"name", "kind", "low", "high", "choices"})}
    if known != set(DISTRIBUTIONS):
        missing = ", ".join(sorted(known ^ set(DISTRIBUTIONS)))
        raise UndocumentedError(f"docs/reference.py: DISTRIBUTIONS and search.parameters.Parameter differ in {missing}")
    rows = []
    for name, (example, field, meaning) in DISTRIBUTIONS.items():
        text = f"{field}: {example}\nquantizer.update: {{choice: [gradient, ema]}}"
        document = yaml12.parse(text, "docs/reference.py")
        try:
            parameters.parse(document.value, TrainConfig(), document)
        except SpaceError as error:
            raise UndocumentedError(f"the example of {name} is wrong: {error}") from None
        rows.append((f"`{name}`", f"`{field}: {example}`", meaning))
    return _table(("key", "example", "meaning"), rows)


def _comparison() -> str:
    rows = [("`comparison`", "text", "required", "Its name: letters, digits, '_' and '-'. Studies are NAME-ARM.")]
    rule = "`same`, `free`, a number or `{min: , max: }`"
    for name in comparison.QUANTITIES:
        default = comparison.DEFAULT[name]
        rows.append((f"`equal.{name}`", rule, f"`{default}`", f"What all arms have in common: {units.label(name)}."))
    if set(ARMS) != set(comparison.JOINED):
        raise UndocumentedError(f"docs/reference.py: ARMS says nothing of {set(comparison.JOINED) - set(ARMS)}")
    refused = "; ".join(f"`{field}`: {why}" for field, why in comparison.COMMON.items())
    for name, meaning in ARMS.items():
        kind = "list" if name == "baselines" else "mapping"
        rows.append((f"`arms.NAME.{name}`", kind, "that of all", meaning.replace("{common}", f"({refused})")))
    finalists = ", ".join(f"{key}: {value}" for key, value in comparison.FINALISTS.items())
    introduction = COMPARISON.replace("{finalists}", f"{{{finalists}}}")
    return f"{introduction}\n" + _table(("key", "value", "default", "meaning"), rows)


def _command(command: click.Command, name: str, root: click.Context) -> str:
    context = click.Context(command, info_name=name, parent=root, terminal_width=100)
    records = {each: each.get_help_record(context) for each in command.params if isinstance(each, click.Option)}
    silent = [f"{name} {option.opts[0]}" for option, record in records.items() if not (record and record[1])]
    silent += [name] if not command.help else []
    silent += [f"{name}, its example"] if not command.epilog else []
    if silent:
        raise UndocumentedError(f"no help of the command {', '.join(silent)}")
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    rows = ((f"`{flag}`", " ".join(text.split())) for flag, text in filter(None, records.values()))
    options = _table(("option", "meaning"), rows)
    example = "\n".join(line.strip() for line in (command.epilog or "").splitlines())
    return f"```\n{usage}\n```\n\n{_help(command.help or '')}\n{options}\nExample:\n\n```console\n{example}\n```\n"


def _help(text: str) -> str:
    """The help of a command; what click keeps line by line becomes a block."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    blocks = (f"```\n{each[2:]}\n```" if each.startswith("\b\n") else each for each in paragraphs)
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    sys.exit(main())
