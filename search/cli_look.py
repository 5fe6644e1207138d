"""The commands that look at a study: parse, call one function, print."""

from __future__ import annotations

import functools

import click

from search.errors import UserError
from search.options import (
    Command,
    json_option,
    load,
    print_json,
    storage_flag,
    storage_option,
    storage_url,
    study_option,
    terminal,
)


@click.command(cls=Command, epilog="vqsearch status --study demo\nvqsearch status --watch")
@storage_option
@study_option
@click.option("--watch", "watching", is_flag=True, help="Go on showing it until the study is over.")
@json_option
def status(storage: str | None, study: str | None, watching: bool, as_json: bool) -> None:
    """Say where a study, or a comparison, stands, from its storage alone."""
    from optuna.storages import get_storage

    from search import watch
    from search.storage import open_storage

    if watching and as_json:
        raise UserError("--watch and --json: one goes on, the other answers once; expected one of them")
    url = storage_url(storage)
    store = get_storage(open_storage(url, create=False))

    look = functools.partial(
        watch.look, store, study, lambda name: f"vqsearch resume{storage_flag(url)} --study {name}"
    )
    if as_json:
        print_json(look().as_json())
    elif watching:
        watch.watch(look, terminal())
    else:
        terminal().print(look())


@click.command(
    cls=Command,
    epilog="vqsearch best --top 3\nvqsearch best --yaml > best.yaml\nvqsearch train best.yaml --to runs/best",
)
@storage_option
@study_option
@click.option("--top", type=click.IntRange(min=1), help="How many.  [default: 1]")
@click.option("--trial", "number", type=int, metavar="N", help="This trial. Default: the best.")
@json_option
@click.option("--yaml", "as_yaml", is_flag=True, help="Print the config of one trial, which vqsearch train takes.")
def best(
    storage: str | None, study: str | None, top: int | None, number: int | None, as_json: bool, as_yaml: bool
) -> None:
    """Show the best complete trials of a study, or any one."""
    from search import best as showing

    for one, other, both in (
        ("--top", "--trial", top is not None and number is not None),
        ("--json", "--yaml", as_json and as_yaml),
        ("--top", "--yaml", (top or 1) > 1 and as_yaml),
    ):
        if both:
            raise UserError(f"{one} and {other}: can't be had together; expected one of them")
    loaded, space = load(storage, study)
    trials = showing.chosen(loaded, number, top or 1)
    if as_json:
        print_json([showing.as_json(trial, space) for trial in trials])
    elif not trials:
        nothing = f"{loaded.study_name}: no trial is complete yet; --trial N shows another one"
        if as_yaml:
            raise UserError(nothing)
        click.echo(nothing)
    elif as_yaml:
        click.echo(showing.as_yaml(loaded, space, trials[0]), nl=False)
    else:
        console = terminal()
        for part in showing.table(loaded, space, trials, console.width):
            console.print(part)


@click.command(
    cls=Command,
    epilog="vqsearch dashboard\n"
    "vqsearch dashboard --storage postgresql://me@db/studies --study demo --port 8081\n"
    "vqsearch dashboard --host 0.0.0.0 --password-file ~/.dashboard-password",
)
@storage_option
@click.option("--study", metavar="NAME", help="Name the page of this study. Default: the list of all.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; one that other machines reach needs a password.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0 for a free one.")
@click.option("--write", is_flag=True, help="Let people edit notes and delete studies; else they can only look.")
@click.option(
    "--password-file",
    metavar="FILE",
    help="A file whose first line people must know. Default: $VQSEARCH_DASHBOARD_PASSWORD, else no password.",
)
def dashboard(
    storage: str | None, study: str | None, host: str, port: int, write: bool, password_file: str | None
) -> None:
    """Serve the Optuna dashboard of a storage: curves, settings, notes and pictures of its studies."""
    from search import login

    word = login.password(password_file)
    if word is None and not login.is_loopback(host):
        raise UserError(
            f"--host {host}: other machines reach this address, and the dashboard asks nobody who they are; expected "
            f"--password-file FILE or ${login.VARIABLE}"
        )
    from search import catalog
    from search import dashboard as serving
    from search.storage import open_storage

    opened = open_storage(storage_url(storage), create=False)
    shown = catalog.load(opened, study)[0]._study_id if study is not None else None
    serving.serve(serving.listen(opened, host, port, password=word, write=write), shown, click.echo)


@click.command(
    cls=Command,
    epilog="vqsearch report --study demo --to report.html\n"
    "vqsearch report --study mamba --study attention --to report.html\n"
    "vqsearch report --study fair --to report.html\n"
    "vqsearch report --study demo --to report.md\n"
    "vqsearch report --study demo --to paper/",
)
@storage_option
@click.option(
    "--study",
    "names",
    multiple=True,
    metavar="NAME",
    help="A study, or a comparison for all of its arms; needed where the storage holds several studies. Give it again "
    "to compare studies.",
)
@click.option(
    "--to",
    "target",
    required=True,
    metavar="FILE|DIR",
    help="A page (.html), Markdown with its pictures (.md), or a folder with table, figures and methods of a paper.",
)
def report(storage: str | None, names: tuple[str, ...], target: str) -> None:
    """Write down what was searched, what won, by how much, what it cost, and how to repeat it.

    \b
    Of a comparison: which arm won, with intervals and ties, what was held
    equal, and what that does not show.
    """
    from search import catalog, findings
    from search import report as reporting
    from search.storage import open_storage

    url = storage_url(storage)
    store = open_storage(url, create=False)
    loaded = [catalog.load(store, name) for name in catalog.expand(store, names or (None,))]
    found = [findings.read(*each, url) for each in loaded]
    for line in reporting.write(found, target):
        click.echo(line)
