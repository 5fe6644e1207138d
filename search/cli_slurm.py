"""The command that makes a job of Slurm of a search: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path

import click

from search.options import Command, output_option, plugin_option, say, storage_option, storage_url


@click.command(
    cls=Command,
    epilog="vqsearch slurm spaces/mamba.yaml --nodes 4 --gpus-per-node 8 --time 24:00:00 "
    "--storage journal:///shared/me/studies.journal --output /shared/me/output --submit\n"
    "vqsearch slurm spaces/mamba.yaml --gpus-per-node 4 --time 8:00:00 --setup 'module load cuda' > search.sh",
)
@click.argument("space", type=click.Path())
@click.option("--nodes", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Nodes of the job.")
@click.option(
    "--gpus-per-node", "gpus", type=click.IntRange(0, 64), default=1, show_default=True, help="GPUs of each node."
)
@click.option("--time", required=True, metavar="TIME", help="Time limit of the job, such as 24:00:00 or 2-00.")
@storage_option
@output_option
@click.option("--study", metavar="NAME", help="Name of the study. Default: the space file's.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials in total. Default: the file's budget.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the file.")
@click.option(
    "--cpus-per-task",
    "cpus",
    type=click.IntRange(min=1),
    help="Cores of each node. Default: what the trials ask for that its GPUs take at once.",
)
@click.option("--mem", "memory", default="", metavar="SIZE", help="Memory of each node, such as 64G.")
@click.option("--partition", default="", metavar="NAME", help="Partition of the cluster.")
@click.option("--account", default="", metavar="NAME", help="Account that pays.")
@click.option("--sbatch", "options", multiple=True, metavar="OPTION", help="Any other option of sbatch: --qos=high.")
@click.option("--setup", multiple=True, metavar="LINE", help="A line of shell that comes first: module load cuda.")
@click.option("--container", default="", metavar="IMAGE", help="An Apptainer image in which all of it runs.")
@plugin_option
@click.option("--shared", is_flag=True, help="All nodes see the same paths, though their file systems do not say so.")
@click.option("--submit", is_flag=True, help="Submit the job in place of printing its script.")
def slurm(
    space: str,
    nodes: int,
    gpus: int,
    time: str,
    storage: str | None,
    output: str | None,
    study: str | None,
    trials: int | None,
    overrides: tuple[str, ...],
    cpus: int | None,
    memory: str,
    partition: str,
    account: str,
    options: tuple[str, ...],
    setup: tuple[str, ...],
    container: str,
    plugins: tuple[str, ...],
    shared: bool,
    submit: bool,
) -> None:
    """Print a batch script for Slurm that searches a space, or compares several; or submit it.

    \b
    The job starts a Ray with a token of its own on its nodes. Five minutes before its
    time is up its trials save and stop, and it goes back to the queue by itself, as often
    as the search needs. Storage, output and files have to be where all nodes see them.
    """
    from search import comparison, slurm
    from search import launch as launching
    from search import space as spaces
    from search.errors import UserError
    from search.options import DEFAULT_OUTPUT, storage_file

    words = [word for value in overrides for word in ("--set", value)]
    words += [] if trials is None else ["--trials", str(trials)]
    words += [word for file in plugins for word in ("--plugin", str(Path(file).expanduser().absolute()))]
    if comparison.is_comparison(space):
        if study is not None:
            raise UserError("--study: a comparison names its studies itself; expected none")
        compared = comparison.load(space, overrides, trials=trials, plugins=plugins)
        command, name, common = "compare", compared.name, compared.common
        loaded = next(iter(compared.arms.values()))
    else:
        common = loaded = spaces.load(space, overrides, study=study, trials=trials, plugins=plugins)
        command, name = "launch" if loaded.transfer is None else "transfer", loaded.study
        words += [] if study is None else ["--study", study]
        launching.check_trainable(loaded)
    url = storage_url(storage, common)
    job = slurm.Job(
        nodes=nodes,
        gpus=gpus,
        time=time,
        cpus=cpus,
        memory=memory,
        partition=partition,
        account=account,
        options=options,
        setup=setup,
        container=container,
        shared=shared,
    )
    search = slurm.Search(
        command=command,
        name=name,
        file=Path(space),
        space=loaded,
        arguments=tuple(words),
        url=url,
        storage_file=storage_file(url),
        root=output or common.output or DEFAULT_OUTPUT,
    )
    text = slurm.script(job, search, Path.cwd())
    if not submit:
        click.echo(text, nl=False)
        return
    number = slurm.submit(text)
    say(f"{name}: job {number} waits for {nodes} {'node' if nodes == 1 else 'nodes'}")
    say(f"watch it:  tail -F {slurm.LOG.replace('%j', number)}")
    say(f"stop it:   scancel --batch --signal=TERM {number}")
