"""The commands that steer a search: parse, call one function, print. What they ask reaches a driver on any machine."""

from __future__ import annotations

import click

from search.options import (
    Command,
    accept_option,
    load,
    load_driven,
    plugin_option,
    say,
    storage_flag,
    storage_option,
    storage_url,
    study_option,
)


@click.command(cls=Command, epilog="vqsearch stop --study demo")
@storage_option
@study_option
@click.option("--no-wait", is_flag=True, help="Don't wait until the driver has ended.")
def stop(storage: str | None, study: str | None, no_wait: bool) -> None:
    """Stop the driver of a study; its running trials save a checkpoint and go on with the next one."""
    import time

    from search import asking

    loaded, shown = load_driven(storage, study)
    name, store = loaded.study_name, loaded._storage
    holder = asking.running(store, name, shown)
    say(f"{shown}: asking process {holder.pid} on {holder.host} to stop")
    if no_wait:
        asking.request(store, name, holder, "stop")
        return
    if told := asking.ask(store, name, holder, "stop"):
        say(f"{shown}: {told}")
    while asking.runs(store, name, holder):
        time.sleep(asking.WAIT_S)
    say(f"{shown}: stopped; go on with: vqsearch resume{storage_flag(storage_url(storage))} --study {shown}")


@click.command(cls=Command, epilog="vqsearch pause --study demo")
@storage_option
@study_option
def pause(storage: str | None, study: str | None) -> None:
    """Free the GPUs for a while: running trials save a checkpoint, none starts, the driver stays."""
    from search import asking
    from search.errors import StudyError

    loaded, shown = load_driven(storage, study)
    name, store = loaded.study_name, loaded._storage
    holder = asking.running(store, name, shown)
    say(f"{shown}: asking process {holder.pid} on {holder.host} to pause")
    told = asking.ask(store, name, holder, "pause")
    if told is None:
        raise StudyError(f"{shown}: the driver has ended; vqsearch resume --study {shown} goes on")
    say(f"{shown}: {told}")
    say(f"go on with: vqsearch resume{storage_flag(storage_url(storage))} --study {shown}")


@click.command(cls=Command, epilog="vqsearch prune 12 --study demo")
@click.argument("trial", type=int)
@storage_option
@study_option
def prune(trial: int, storage: str | None, study: str | None) -> None:
    """Stop a trial that runs or waits; it is PRUNED, and keeps its curve."""
    from search import asking

    loaded, _ = load(storage, study)
    say(f"{loaded.study_name}: {asking.prune(loaded, trial)}")


@click.command(cls=Command, epilog="vqsearch enqueue optimizer.lr=1e-3 quantizer.codebook_size=512 --study demo")
@click.argument("settings", nargs=-1, required=True, metavar="FIELD=VALUE...")
@storage_option
@study_option
@plugin_option
@accept_option
def enqueue(
    settings: tuple[str, ...], storage: str | None, study: str | None, plugins: tuple[str, ...], accept_code: bool
) -> None:
    """Try settings of your own next; the sampler chooses the parameters that are not given."""
    from search import asking, code, lease, parameters
    from search import launch as launching
    from search import study as studies

    loaded, space = load(storage, study)
    name, store = loaded.study_name, loaded._storage
    labels = asking.settings(space, settings)
    there = code.require(name, space.plugins, plugins, accept_code)
    launching.check_settings(studies.operational(space, {}, there), labels, "enqueue")
    number = asking.enqueue(loaded, labels)
    rest = "" if len(labels) == len(space.parameters) else "; the sampler chooses the rest"
    say(f"{name}: trial {number} waits: {parameters.settings(labels)}{rest}")
    driver = lease.driver(store, name)
    resume = f"vqsearch resume{storage_flag(storage_url(storage))} --study {name}"
    missing = -asking.room(loaded, space)
    if missing > 0:
        first = f"once the driver on {driver.host} has ended, " if driver else ""
        total = space.budget.trials
        say(f"the budget of {total} trials has no room for it; {first}{resume} --trials {total + missing}")
    elif driver is None:
        say(f"no driver runs; it is among the first with: {resume}")
