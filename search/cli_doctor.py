"""The command that looks whether a search can run here: parse, call one function, print."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import TYPE_CHECKING

import click

from search.options import (
    Command,
    json_option,
    output_option,
    plugin_option,
    print_json,
    say,
    storage_option,
    storage_url,
    terminal,
)

if TYPE_CHECKING:
    from rich.console import Console

    from search.checkup import Finding

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


@click.command(cls=Command, epilog="vqsearch doctor\nvqsearch doctor spaces/mamba.yaml --output /scratch/runs --json")
@click.argument("space", required=False, type=click.Path())
@storage_option
@output_option
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the space file.")
@plugin_option
@json_option
def doctor(
    space: str | None,
    storage: str | None,
    output: str | None,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    as_json: bool,
) -> None:
    """Look whether this machine can run a search: GPUs, files of weights, disks, storage, clock, limits.

    \b
    With a space file or a comparison it checks what that needs, and the file
    itself as validate does. Each line says ok, warning or error, and below it
    what mends it; an error exits with 2. What it writes, to see whether it may,
    is removed again.
    """
    from search import doctor as looking

    found = []
    console = None if as_json else terminal()
    url = functools.partial(storage_url, storage)
    for each in looking.examine(space, overrides, url=url, root=output, plugins=plugins):
        found.append(each)
        if console is not None:
            _show(console, each)
    count = {status: sum(each.status == status for each in found) for status in STYLES}
    if as_json:
        checks = [dataclasses.asdict(each) for each in found]
        print_json({"errors": count["error"], "warnings": count["warning"], "checks": checks})
    else:
        errors, warnings = _counted(count["error"], "error"), _counted(count["warning"], "warning")
        say(f"{errors}, {warnings}, {count['ok']} ok")
    sys.exit(2 if count["error"] else 0)


def _show(console: Console, finding: Finding) -> None:
    from rich.text import Text

    from search.text import one_line

    line = Text.assemble((f"{finding.status:<7}", STYLES[finding.status]), f"  {finding.name:<13}  ")
    console.print(line.append(one_line(finding.said)), soft_wrap=True)
    if finding.mend:
        console.print(Text(f"{'':24}mend: {one_line(finding.mend)}"), soft_wrap=True)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"
