"""The command that answers which setting is best: parse, call one function, print."""

from __future__ import annotations

import sys
from typing import Any

import click

from search import cli_compare
from search.errors import UserError
from search.options import (
    Command,
    accept_option,
    address_option,
    json_option,
    plugin_option,
    print_json,
    quiet_option,
    storage_flag,
    storage_option,
    storage_url,
    study_option,
    terminal,
    wait_option,
)


@click.command(cls=Command, epilog="vqsearch finalists --study mamba\nvqsearch finalists --study mamba --seeds 5")
@storage_option
@study_option
@click.option("--top", type=click.IntRange(min=1), help="Settings of the ranking. Default: the study's, else 3.")
@click.option("--seeds", type=click.IntRange(min=1), help="Fresh seeds of each. Default: the study's, else 3.")
@click.option("--include", type=click.Choice(["baselines", "nothing"]), help="Beside them. Default: baselines.")
@click.option("--now", is_flag=True, help="Though the budget is not spent: it ends with the trials there are.")
@click.option("--output", metavar="DIR", help="Where the output root is now, if it has moved.")
@address_option
@wait_option
@plugin_option
@accept_option
@json_option
@quiet_option
def finalists(
    storage: str | None,
    study: str | None,
    top: int | None,
    seeds: int | None,
    include: str | None,
    now: bool,
    output: str | None,
    address: str | None,
    wait_for_nodes: bool,
    plugins: tuple[str, ...],
    accept_code: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Train the best settings and the baselines again on fresh seeds; say which wins on the test split.

    \b
    The test split is what no trial has seen; that it is opened, when and for
    which settings is written to the study. Once all of them have ended the
    command only says what they came to.
    """
    from search import catalog
    from search import compare as comparing
    from search import finalists as judging
    from search import launch as launching
    from search import study as studies
    from search import verdict as verdicts
    from search.progress import View
    from search.storage import open_storage
    from search.text import printable

    url = storage_url(storage)
    store = open_storage(url, create=False)
    if compared := comparing.name_of(store, [study]):
        _of_a_comparison(store, compared, any((top, seeds, include, now, output, address, wait_for_nodes)), as_json)
        return
    loaded, space = catalog.load(store, study)
    if space.transfer is not None:
        raise UserError(
            f"{loaded.study_name}: a transfer trains its best settings at the target, and judges none on a test split; "
            f"vqsearch resume --study {loaded.study_name} says what they came to"
        )
    given = {"finalists.top": top, "finalists.seeds": seeds, "finalists.include": include}
    changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if space.finalists is None:
        changes = {"finalists.top": 3, "finalists.seeds": 3, "finalists.include": "baselines"} | changes
    changes |= judging.closing(loaded, space, now)
    wanted = studies.operational(space, changes)
    if judging.outstanding(wanted, loaded.get_trials(deepcopy=False), loaded.direction):
        ended = launching.resume(
            url=url,
            name=loaded.study_name,
            changes=changes,
            root=output,
            address=address,
            wait_for_nodes=wait_for_nodes,
            plugins=plugins,
            accept_code=accept_code,
            view=View(terminal(), quiet or as_json),
        )
        if ended:
            click.echo(f"go on with: vqsearch finalists{storage_flag(url)} --study {loaded.study_name}", err=as_json)
            sys.exit(128 + ended)
        loaded, space = catalog.load(open_storage(url, create=False), loaded.study_name)
    found = verdicts.judge(loaded, space)
    if as_json:
        print_json(None if found is None else verdicts.as_json(found))
    elif found is None:
        click.echo(f"{loaded.study_name}: no finalist has ended with a value")
    else:
        console = terminal()
        console.print(verdicts.table(found))
        for line in verdicts.lines(found):
            console.print(printable(line), markup=False, highlight=False)


def _of_a_comparison(store: Any, name: str, flags: bool, as_json: bool) -> None:
    """Say what the finalists of all arms came to; training them is part of the comparison itself."""
    if flags:
        raise UserError(
            f"{name}: this is a comparison, whose finalists are trained by it; expected --json at most, or one of its "
            f"studies; vqsearch resume --study {name} --set finalists.seeds=N adds seeds to all arms"
        )
    cli_compare.answer(store, name, as_json)
