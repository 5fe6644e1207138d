"""The commands around a search and its study: parse, call one function, print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from search import cli_transfer
from search.options import (
    Command,
    accept_option,
    address_option,
    detach_option,
    json_option,
    load_driven,
    output_option,
    plugin_option,
    print_json,
    quiet_option,
    say,
    start_again,
    storage_flag,
    storage_option,
    storage_url,
    study_option,
    terminal,
    wait_option,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from search.space import Space


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
@plugin_option
@accept_option
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
    plugins: tuple[str, ...],
    accept_code: bool,
    quiet: bool,
    detach: bool,
) -> None:
    """Search the space of a file; go on with its study if there is one."""
    from search import launch as launching
    from search import space as spaces
    from search.progress import View

    loaded = spaces.load(space, overrides, study=study, trials=trials, plugins=plugins)
    if loaded.transfer is not None:
        raise loaded.document.error(("transfer",), f"this is a search for a larger model: vqsearch transfer {space}")
    url = storage_url(storage, loaded)
    if detach:
        start_again(["--set", "storage=null"], url, [loaded.study], output or loaded.output)
        return
    view = View(terminal(), quiet)
    ended = launching.launch(
        loaded,
        url=url,
        root=output or loaded.output,
        address=address,
        wait_for_nodes=wait_for_nodes,
        extend=extend,
        accept_code=accept_code,
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
@plugin_option
@accept_option
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
    plugins: tuple[str, ...],
    accept_code: bool,
    quiet: bool,
    detach: bool,
) -> None:
    """Go on with a study, or with all arms of a comparison, from the storage alone."""
    from search import asking, catalog, cli_compare
    from search import compare as comparing
    from search import launch as launching
    from search.progress import View
    from search.space import assignment
    from search.storage import open_storage

    url = storage_url(storage)
    store = open_storage(url, create=False)
    compared = comparing.name_of(store, [study])
    loaded, name = load_driven(storage, study)
    changes = dict(map(assignment, overrides)) | ({} if trials is None else {"budget.trials": trials})
    changed = bool(changes or output or steps or plugins or accept_code)
    if told := asking.go_on(loaded._storage, loaded.study_name, changed):
        say(f"{name}: {told}")
        return
    if detach:
        names = [str(each) for each in catalog.expand(store, [name])]
        start_again([], url, names, output, shown=name)
        return
    ended = launching.resume(
        url=url,
        name=name,
        changes=changes,
        root=output,
        steps=steps,
        address=address,
        wait_for_nodes=wait_for_nodes,
        plugins=plugins,
        accept_code=accept_code,
        view=View(terminal(), quiet),
    )
    if compared:
        cli_compare.finish(ended, url, compared)
    else:
        _finish(ended, url, name)


@click.command(cls=Command, epilog="vqsearch validate spaces/*.yaml\nvqsearch validate --cost spaces/mamba.yaml")
@click.argument("space", nargs=-1, required=True, type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the space file.")
@click.option(
    "--cost", is_flag=True, help="Train the smallest and the largest model for seconds: speed, memory, hours."
)
@plugin_option
@json_option
def validate(
    space: tuple[str, ...], overrides: tuple[str, ...], cost: bool, plugins: tuple[str, ...], as_json: bool
) -> None:
    """Check space files and comparisons: keys, ranges, baselines, that every choice builds, what is held equal.

    \b
    With --cost also what the search will take: hours of this machine's GPU
    (else of its CPU's cores) with pruning and without, and what will not fit.
    It reads no images, and writes nothing.
    """
    from search import comparison

    checked = []
    for path in space:
        look = _validate_comparison if comparison.is_comparison(path) else _validate_space
        found, lines, searches = look(path, overrides, plugins)
        checked.append(found)
        for line in () if as_json else lines:
            say(line)
        if cost:
            found["cost"] = _cost(searches, as_json)
    if as_json:
        print_json(checked)


@click.command(cls=Command, epilog="vqsearch init ~/faces > faces.yaml")
@click.argument("folder", type=click.Path())
@click.option("--no-cost", is_flag=True, help="Do not estimate what the search will take.")
def init(folder: str, no_cost: bool) -> None:
    """Look at a folder of pictures and at this machine; write a space file to begin with.

    \b
    The file goes to the standard output, with what was found and why each
    value was chosen; the estimated cost goes to the standard error.
    """
    from pathlib import Path

    from search import beginning, survey, yaml12
    from search import cost as costing
    from search import space as spaces

    seen = survey.look(folder, lambda line: say(line, err=True))
    text = beginning.write(seen, beginning.hardware(), beginning.has_lpips())
    document = yaml12.parse(text, "vqsearch init")
    loaded = spaces.check(dict(document.value), document, Path.cwd())
    _require_runnable(loaded)
    click.echo(text, nl=False)
    if not no_cost:
        for line in costing.lines({"": costing.cost_of(loaded, lambda line: say(line, err=True))}):
            say(line, err=True)


def _cost(searches: Mapping[str, Space], as_json: bool) -> dict[str, Any]:
    """Probe what some searches take, those of the arms of a comparison together, and print it."""
    from search import cost as costing
    from search import trainer

    for each in searches.values():
        trainer.require_ours(each, "--cost times")
    costs = {arm: costing.cost_of(each, lambda line: say(line, err=True)) for arm, each in searches.items()}
    if not as_json:
        terminal().print(costing.table(costs))
        for line in costing.lines(costs):
            say(line)
    return costing.as_json(costs)


def _validate_space(
    path: str, overrides: tuple[str, ...], plugins: tuple[str, ...]
) -> tuple[dict[str, Any], list[str], Mapping[str, Space]]:
    from search import space as spaces

    loaded = spaces.load(path, overrides, plugins=plugins)
    _require_runnable(loaded)
    found = {"file": path, "study": loaded.study, "rungs": list(loaded.rungs), "steps": loaded.budget.steps}
    rungs = ", ".join(str(rung) for rung in (*loaded.rungs, loaded.budget.steps))
    words = f"{len(loaded.parameters)} parameters, {loaded.budget.trials} trials, evaluated at {rungs}"
    return found, [f"{path}: ok; {words}", *_sizes(loaded)], {"": loaded}


def _sizes(loaded: Space) -> list[str]:
    """What a transfer trains at its two sizes, of the first settings of the space."""
    if loaded.transfer is None:
        return []
    from search import launch as launching
    from search.transfer import words
    from vqvae.model import count_parameters

    small, large = (f"{count_parameters(config):,}" for config in launching.sizes(loaded))
    beside = " and the baselines" if loaded.baselines and loaded.transfer.include == "baselines" else ""
    return [
        f"  searched with {small} parameters for a target of {large}: {words(loaded.transfer)}",
        f"  settings that are trained at the target: the best {loaded.transfer.top}{beside}",
    ]


def _validate_comparison(
    path: str, overrides: tuple[str, ...], plugins: tuple[str, ...]
) -> tuple[dict[str, Any], list[str], Mapping[str, Space]]:
    from search import comparison, equality

    loaded = comparison.load(path, overrides, plugins=plugins)
    for each in loaded.arms.values():
        _require_runnable(each)
    proof = equality.prove(loaded)
    found = {
        "file": path,
        "comparison": loaded.name,
        "equal": {name: list(ends) for name, ends in proof.equal.items()},
        "free": list(proof.free),
        "arms": {
            arm: {
                "study": proof.arms[arm].study,
                "parameters": len(proof.arms[arm].parameters),
                "ranges": {name: list(ends) for name, ends in each.ranges.items()},
                "counted": each.counted,
                "within": each.within,
            }
            for arm, each in proof.found.items()
        },
    }
    return found, equality.lines(path, loaded, proof), proof.arms


def _require_runnable(loaded: Space) -> None:
    from search import curves
    from search import launch as launching

    launching.check_trainable(loaded)
    curves.check(loaded, loaded.output or "")


def _finish(signal: int, url: str, name: str) -> None:
    """The last lines of a launch: what it came to, and what to do next."""
    from search import catalog, standing
    from search.storage import open_storage

    loaded, space = catalog.load(open_storage(url, create=False), name)
    for line in standing.summary(loaded, space):
        say(line)
    flags = storage_flag(url)
    if not signal and space.transfer is not None:
        cli_transfer.answer(url, name)
    if signal:
        say(f"go on with: vqsearch resume{flags} --study {name}")
        sys.exit(128 + signal)
    say(f"look at it:  vqsearch dashboard{flags}")
    if space.finalists is not None:
        say(f"who won:     vqsearch finalists{flags} --study {name}")
    say(f"take it:     vqsearch export{flags} --study {name} --to DIR")
