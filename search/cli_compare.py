"""The command that compares: parse, call one function, print."""

from __future__ import annotations

import sys
from typing import Any

import click

from search.errors import UserError
from search.options import (
    Command,
    accept_option,
    address_option,
    detach_option,
    json_option,
    output_option,
    plugin_option,
    print_json,
    quiet_option,
    say,
    start_again,
    storage_flag,
    storage_option,
    storage_url,
    terminal,
    wait_option,
)


@click.command(
    cls=Command,
    epilog="vqsearch compare spaces/fair-demo.yaml\nvqsearch compare spaces/fair.yaml --set train.data.path=~/faces",
)
@click.argument("comparison", type=click.Path())
@storage_option
@click.option("--trials", type=click.IntRange(min=1), help="Trials of each arm. Default: the file's budget.")
@output_option
@address_option
@wait_option
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the file.")
@plugin_option
@accept_option
@json_option
@quiet_option
@detach_option
def compare(
    comparison: str,
    storage: str | None,
    trials: int | None,
    output: str | None,
    address: str | None,
    wait_for_nodes: bool,
    overrides: tuple[str, ...],
    plugins: tuple[str, ...],
    accept_code: bool,
    as_json: bool,
    quiet: bool,
    detach: bool,
) -> None:
    """Search every arm of a comparison, judge the best of each on the test split, say which wins.

    \b
    The arms share images, steps, batch size and budget; what else the file
    holds equal is proven before anything runs. Their trials take turns. Each
    arm is a study of its own, COMPARISON-ARM; the same command, or resume
    --study COMPARISON, goes on.
    """
    from search import compare as comparing
    from search import comparison as comparisons
    from search.progress import View

    loaded = comparisons.load(comparison, overrides, trials=trials, plugins=plugins)
    url = storage_url(storage, loaded.common)
    if detach and as_json:
        raise UserError("--json and --detach: the outcome is written to a log; expected one of them")
    if detach:
        names = list(loaded.studies.values())
        start_again(["--set", "storage=null"], url, names, output or loaded.common.output, shown=loaded.name)
        return
    ended = comparing.run(
        loaded,
        url=url,
        root=output or loaded.common.output,
        address=address,
        wait_for_nodes=wait_for_nodes,
        accept_code=accept_code,
        view=View(terminal(), quiet or as_json),
    )
    finish(ended, url, loaded.name, as_json)


def finish(signal: int, url: str, name: str, as_json: bool = False) -> None:
    """The last lines of a comparison: which arm won, and what to do next."""
    from search.storage import open_storage

    flags = storage_flag(url)
    if signal:
        say(f"go on with: vqsearch resume{flags} --study {name}", err=as_json)
        sys.exit(128 + signal)
    answer(open_storage(url, create=False), name, as_json)
    if not as_json:
        say(f"look at it:  vqsearch report{flags} --study {name} --to {name}.html")
        say(f"            vqsearch dashboard{flags}")


def answer(store: Any, name: str, as_json: bool = False) -> None:
    """Say which arm won, as far as that is known."""
    from search import compare as comparing
    from search import ranking

    found = ranking.rank(comparing.load(store, name))
    if as_json:
        print_json(None if found is None else ranking.as_json(found))
        return
    assert found is not None, "the arms of one comparison"
    console = terminal()
    console.print(ranking.table(found))
    for line in ranking.lines(found):
        say(line)
