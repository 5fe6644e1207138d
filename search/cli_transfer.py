"""The command that searches narrow and trains wide: parse, call one function, print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from search.errors import SpaceError, UserError
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

if TYPE_CHECKING:
    from search.space import Space


@click.command(
    cls=Command,
    epilog="vqsearch transfer spaces/transfer-demo.yaml\n"
    "vqsearch transfer spaces/transfer.yaml --set train.data.path=~/faces",
)
@click.argument("space", type=click.Path())
@storage_option
@click.option("--study", metavar="NAME", help="Name of the study. Default: the space file's.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials of the search. Default: the space file's budget.")
@click.option("--direct", is_flag=True, help="Search the target itself too, as the study NAME-direct, to compare with.")
@output_option
@address_option
@wait_option
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the space file.")
@plugin_option
@accept_option
@json_option
@quiet_option
@detach_option
def transfer(
    space: str,
    storage: str | None,
    study: str | None,
    trials: int | None,
    direct: bool,
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
    """Search a small model, train the best of its settings at the size that is wanted, say what that saved.

    \b
    The file's transfer says what is smaller while searching. Search and target
    are one study, which the same command, or resume, goes on with.
    """
    from search import launch as launching
    from search import space as spaces
    from search.progress import View

    loaded = spaces.load(space, overrides, study=study, trials=trials, plugins=plugins)
    if loaded.transfer is None:
        raise SpaceError(
            space, "", f"has no transfer, which says what is smaller while searching; vqsearch launch {space}"
        )
    url = storage_url(storage, loaded)
    if detach and (as_json or direct):
        raise UserError(
            "--detach: goes with neither --json nor --direct, whose outcome is printed; expected one of them"
        )
    if detach:
        start_again(["--set", "storage=null"], url, [loaded.study], output or loaded.output)
        return
    for each in (loaded, _direct(loaded)) if direct else (loaded,):
        ended = launching.launch(
            each,
            url=url,
            root=output or each.output,
            address=address,
            wait_for_nodes=wait_for_nodes,
            accept_code=accept_code,
            view=View(terminal(), quiet or as_json),
        )
        if ended:
            say(f"go on with: vqsearch resume{storage_flag(url)} --study {each.study}", err=as_json)
            sys.exit(128 + ended)
    answer(url, loaded.study, as_json)
    if not as_json:
        flags = storage_flag(url)
        say(f"look at it:  vqsearch dashboard{flags}")
        say(f"take it:     vqsearch export{flags} --study {loaded.study} --to DIR")


def _direct(loaded: Space) -> Space:
    """The space that searches the target itself."""
    from search import space as spaces
    from search import transfer as transfers

    assert loaded.transfer is not None, "asked of a transfer"
    return spaces.parse(transfers.direct(loaded.source, loaded.transfer), f"{loaded.document.name}, --direct")


def answer(url: str, name: str, as_json: bool = False) -> None:
    """Say what a transfer came to so far."""
    from search import catalog, gap
    from search.storage import open_storage

    store = open_storage(url, create=False)
    study, space = catalog.load(store, name)
    found: Any = gap.read(study, space, store)
    assert found is not None, "the study of a transfer"
    if as_json:
        print_json(gap.as_json(found))
        return
    if found.landed:
        terminal().print(gap.table(found))
    for line in gap.lines(found):
        say(line)
