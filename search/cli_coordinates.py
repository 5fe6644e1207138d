"""The command that checks whether settings transfer over width or depth: parse, call one function, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from search.errors import UserError
from search.options import Command, json_option, plugin_option, print_json, quiet_option, say, terminal

if TYPE_CHECKING:
    from search.coordinate_check import Asked, Check

KINDS = ("standard", "mup", "sp-full-align", "sp-no-align")


@click.command(
    cls=Command,
    epilog="vqsearch coordinates spaces/mamba.yaml --sizes 64,128,256 --set train.data.resolution=64 --to check.png\n"
    "vqsearch coordinates config.yaml --sizes 64,128,256 --kind sp-full-align\n"
    "vqsearch coordinates preset:attention-tiny --plugin mine.py --set model.backbone=mine --json",
)
@click.argument("source", metavar="SPACE|CONFIG", type=click.Path())
@click.option(
    "--sizes",
    metavar="N,N,...",
    help="Widths (or depths), two or more. Default: the base, twice and four times that, as far as they can be built.",
)
@click.option(
    "--along",
    type=click.Choice(["width", "depth"]),
    default="width",
    show_default=True,
    help="What the sizes are.",
)
@click.option(
    "--steps", type=click.IntRange(min=1), default=2, show_default=True, help="Optimizer steps of each model; few."
)
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Models of each size.")
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    help="Judge this parametrization; its base is the smallest size where the config has none. Default: the config's.",
)
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any field of the config or space file."
)
@plugin_option
@click.option("--to", "target", metavar="FILE", help="Write the picture there: .png, .svg or .pdf.")
@json_option
@quiet_option
def coordinates(
    source: str,
    sizes: str | None,
    along: Literal["width", "depth"],
    steps: int,
    seeds: int,
    kind: str | None,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    target: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Check whether what a few steps change stays alike as a model grows: whether its learning rate transfers.

    \b
    Of a space file the first baseline is checked, or else the first value of
    each field; of a config file or preset:NAME, that one. The images are
    bundled photographs. `standard` is measured beside the parametrization.
    It exits with 0 where every role holds, with 1 where one does not, and
    with 2 on what you can mend.
    """
    from search import coordinate_check, coordinate_view

    wanted = _numbers(sizes)
    picture = Path(target).expanduser() if target is not None else None
    if picture is not None:
        coordinate_view.require_target(picture)
    asked = coordinate_check.read(source, overrides, plugins)
    found = _measure(asked, wanted, along, steps, seeds, kind, quiet or as_json)
    if picture is not None:
        coordinate_view.write(found, picture)
    if as_json:
        print_json(found.as_json())
    elif quiet:
        say(coordinate_view.verdict(found))
    else:
        say(coordinate_view.heading(found))
        terminal().print(coordinate_view.table(found))
        for line in coordinate_view.lines(found):
            say(line)
        if picture is not None:
            say(f"picture: {picture}")
    sys.exit(0 if found.judged.holds else 1)


def _measure(
    asked: Asked,
    sizes: tuple[int, ...],
    along: Literal["width", "depth"],
    steps: int,
    seeds: int,
    kind: str | None,
    silent: bool,
) -> Check:
    from rich.progress import Progress

    from search import coordinate_check

    console = terminal()
    with Progress(console=console, transient=True, disable=silent or not console.is_terminal) as bar:
        task = bar.add_task("measuring", total=None)
        return coordinate_check.check(
            asked,
            sizes=sizes,
            along=along,
            steps=steps,
            seeds=seeds,
            kind=kind,
            tell=lambda done, total, what: bar.update(task, completed=done, total=total, description=what),
        )


def _numbers(text: str | None) -> tuple[int, ...]:
    """The sizes of the command line; () where it names none."""
    if text is None:
        return ()
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UserError(f"--sizes {text}: expected whole numbers from 1, such as 64,128,256")
    return found
