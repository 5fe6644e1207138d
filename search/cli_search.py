"""The commands around a search and its study: parse, call one function, print."""

from __future__ import annotations

import sys

import click

from search.options import (
    Command,
    address_option,
    again,
    detach_option,
    json_option,
    output_option,
    print_json,
    quiet_option,
    say,
    storage_flag,
    storage_option,
    storage_url,
    study_option,
    terminal,
    wait_option,
)


@click.command(
    cls=Command,
    epilog="vqsearch launch spaces/demo.yaml\nvqsearch launch spaces/mamba.yaml --set train.data.path=~/faces",
)
@click.argument("space", type=click.Path())
@storage_option
@click.option("--study", metavar="NAME", help="Name of the study. Default: the space file's.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials in total. Default: the space file's budget.")
@output_option
@address_option
@wait_option
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the space file.")
@click.option("--extend", metavar="OLD", help="Open a new study that takes over what trials of OLD lie in the space.")
@quiet_option
@detach_option
def launch(
    space: str,
    storage: str | None,
    study: str | None,
    trials: int | None,
    output: str | None,
    address: str | None,
    wait_for_nodes: bool,
    overrides: tuple[str, ...],
    extend: str | None,
    quiet: bool,
    detach: bool,
) -> None:
    """Search the space of a file; go on with its study if there is one."""
    from search import launch as launching
    from search import space as spaces
    from search.progress import View

    loaded = spaces.load(space, overrides, study=study, trials=trials)
    url = storage_url(storage, loaded)
    if detach:
        _detach(["--set", "storage=null"], url, loaded.study, output or loaded.output)
        return
    view = View(terminal(), quiet)
    ended = launching.launch(
        loaded,
        url=url,
        root=output or loaded.output,
        address=address,
        wait_for_nodes=wait_for_nodes,
        extend=extend,
        view=view,
    )
    _finish(ended, url, loaded.study)


@click.command(
    cls=Command,
    epilog="vqsearch resume\nvqsearch resume --storage postgresql://me@db/studies --study mamba --trials 128",
)
@storage_option
@study_option
@click.option("--trials", type=click.IntRange(min=1), help="A new total of trials.")
@click.option("--steps", type=click.IntRange(min=1), help="Longer trials, where none is complete (not with cosine).")
@click.option("--output", metavar="DIR", help="Where the output root is now, if it has moved.")
@address_option
@wait_option
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set budget, parallel, resources, keep or log of the study.",
)
@quiet_option
@detach_option
def resume(
    storage: str | None,
    study: str | None,
    trials: int | None,
    steps: int | None,
    output: str | None,
    address: str | None,
    wait_for_nodes: bool,
    overrides: tuple[str, ...],
    quiet: bool,
    detach: bool,
) -> None:
    """Go on with a study, from its storage alone."""
    from search import asking
    from search import launch as launching
    from search import study as studies
    from search.progress import View
    from search.space import assignment
    from search.storage import open_storage

    url = storage_url(storage)
    loaded, _ = studies.load(open_storage(url, create=False), study)
    changes = dict(map(assignment, overrides)) | ({} if trials is None else {"budget.trials": trials})
    if told := asking.go_on(loaded._storage, loaded.study_name, bool(changes or output or steps)):
        say(f"{loaded.study_name}: {told}")
        return
    if detach:
        _detach([], url, loaded.study_name, output)
        return
    ended = launching.resume(
        url=url,
        name=loaded.study_name,
        changes=changes,
        root=output,
        steps=steps,
        address=address,
        wait_for_nodes=wait_for_nodes,
        view=View(terminal(), quiet),
    )
    _finish(ended, url, loaded.study_name)


@click.command(cls=Command, epilog="vqsearch validate spaces/*.yaml")
@click.argument("space", nargs=-1, required=True, type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the space file.")
@json_option
def validate(space: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check space files: keys, ranges, baselines, and that every choice builds."""
    from search import curves
    from search import launch as launching
    from search import space as spaces

    checked = []
    for path in space:
        loaded = spaces.load(path, overrides)
        launching.check_trainable(loaded)
        curves.check(loaded, loaded.output or "")
        checked.append({"file": path, "study": loaded.study, "rungs": list(loaded.rungs), "steps": loaded.budget.steps})
        if not as_json:
            rungs = ", ".join(str(rung) for rung in (*loaded.rungs, loaded.budget.steps))
            say(f"{path}: ok; {len(loaded.parameters)} parameters, {loaded.budget.trials} trials, evaluated at {rungs}")
    if as_json:
        print_json(checked)


def _detach(more: list[str], url: str, name: str, root: str | None) -> None:
    """Run this command again where no terminal can end it."""
    from search import detach

    log = detach.log_of(url, name, root)
    process, began = detach.start([*again(click.get_current_context()), *more], url, log)
    say(f"{name}: process {process.pid} opens the study; its log: {log}")
    if not detach.wait_until_open(process, url, name):
        with log.open("rb") as file:
            file.seek(began)
            click.echo(file.read().decode(errors="replace"), err=process.returncode != 0, nl=False)
        sys.exit(process.returncode if process.returncode >= 0 else 128 - process.returncode)
    flags = storage_flag(url)
    say(f"{name}: the search runs, with or without this terminal")
    say(f"watch it:  tail -f '{log}'")
    say(f"look at:   vqsearch status{flags} --study {name}")
    say(f"stop it:   vqsearch stop{flags} --study {name}")


def _finish(signal: int, url: str, name: str) -> None:
    """The last lines of a launch: what it came to, and what to do next."""
    from search import standing
    from search import study as studies
    from search.storage import open_storage

    loaded, space = studies.load(open_storage(url, create=False), name)
    for line in standing.summary(loaded, space):
        say(line)
    flags = storage_flag(url)
    if signal:
        say(f"go on with: vqsearch resume{flags} --study {name}")
        sys.exit(128 + signal)
    say(f"look at it:  vqsearch dashboard{flags}")
    if space.finalists is not None:
        say(f"who won:     vqsearch finalists{flags} --study {name}")
    say(f"take it:     vqsearch export{flags} --study {name} --to DIR")
