"""The command line: parse, call one function, print. Heavy packages are imported inside the commands."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from search.errors import UserError, VqsearchError
from vqvae.config import VqvaeError

if TYPE_CHECKING:
    from rich.console import Console

    from search.space import Space

DEFAULT_STORAGE = "sqlite:///vqsearch.db"
DEFAULT_OUTPUT = "./vqsearch-output"


class _Command(click.Command):
    """A command whose help keeps the lines of its example."""

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Example:\n" + "".join(f"  {line.strip()}\n" for line in self.epilog.splitlines()))


class _Group(click.Group):
    command_class = _Command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vqsearch", prog_name="vqsearch")
def cli() -> None:
    """Search the hyperparameters of image tokenizers (VQVAE): Optuna suggests, Ray Tune schedules.

    \b
    vqsearch launch spaces/demo.yaml      search
    vqsearch dashboard                    watch it in a browser
    vqsearch resume                       go on where it stopped
    vqsearch export --to my-model         take the best model away
    vqsearch tokenize my-model FOLDER --to tokens.npz
    """


def storage_option(function: Any) -> Any:
    """`--storage`, the same for every command."""
    return click.option(
        "--storage",
        metavar="URL",
        help="Where studies are kept: sqlite:///FILE, postgresql://..., journal:///FILE. "
        f"Default: the space file's, else $VQSEARCH_STORAGE, else {DEFAULT_STORAGE}.",
    )(function)


study_option = click.option("--study", metavar="NAME", help="The study; needed where the storage holds several.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print the outcome only.")
address_option = click.option(
    "--address", metavar="RAY", help="A Ray cluster to run on (auto or HOST:6379). Default: this machine."
)
wait_option = click.option("--wait-for-nodes", is_flag=True, help="Go on though no node can run a trial yet.")
output_option = click.option(
    "--output", metavar="DIR", help=f"Where checkpoints go: a folder or a bucket URL. Default: {DEFAULT_OUTPUT}."
)


@cli.command(epilog="vqsearch launch spaces/demo.yaml\nvqsearch launch spaces/mamba.yaml --set train.data.path=~/faces")
@click.argument("space", type=click.Path())
@storage_option
@click.option("--study", metavar="NAME", help="Name of the study. Default: the space file's.")
@click.option("--trials", type=click.IntRange(min=1), help="Trials in total. Default: the space file's budget.")
@output_option
@address_option
@wait_option
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the space file.")
@quiet_option
def launch(
    space: str,
    storage: str | None,
    study: str | None,
    trials: int | None,
    output: str | None,
    address: str | None,
    wait_for_nodes: bool,
    overrides: tuple[str, ...],
    quiet: bool,
) -> None:
    """Search the space of a file; go on with its study if there is one."""
    from search import launch as launching
    from search import space as spaces
    from search.progress import View

    loaded = spaces.load(space, overrides, study=study, trials=trials)
    url = _storage(storage, loaded)
    _keep_secrets(storage, address)
    view = View(_console(), quiet)
    ended = launching.launch(
        loaded, url=url, root=output or loaded.output, address=address, wait_for_nodes=wait_for_nodes, view=view
    )
    _finish(ended, url, loaded.study)


@cli.command(epilog="vqsearch resume\nvqsearch resume --storage postgresql://me@db/studies --study mamba --trials 128")
@storage_option
@study_option
@click.option("--trials", type=click.IntRange(min=1), help="A new total of trials.")
@click.option("--output", metavar="DIR", help="Where the output root is now, if it has moved.")
@address_option
@wait_option
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set budget, parallel or resources of the study."
)
@quiet_option
def resume(
    storage: str | None,
    study: str | None,
    trials: int | None,
    output: str | None,
    address: str | None,
    wait_for_nodes: bool,
    overrides: tuple[str, ...],
    quiet: bool,
) -> None:
    """Go on with a study, from its storage alone."""
    from search import launch as launching
    from search import study as studies
    from search.progress import View
    from search.space import assignment
    from search.storage import open_storage

    url = _storage(storage)
    _keep_secrets(storage, address)
    loaded, _ = studies.load(open_storage(url, create=False), study)
    changes = dict(map(assignment, overrides)) | ({} if trials is None else {"budget.trials": trials})
    ended = launching.resume(
        url=url,
        name=loaded.study_name,
        changes=changes,
        root=output,
        address=address,
        wait_for_nodes=wait_for_nodes,
        view=View(_console(), quiet),
    )
    _finish(ended, url, loaded.study_name)


@cli.command(epilog="vqsearch status --study demo")
@storage_option
@study_option
@json_option
def status(storage: str | None, study: str | None, as_json: bool) -> None:
    """Say where a study stands, from its storage alone."""
    from search import progress

    loaded, space = _load(storage, study)
    if as_json:
        trials = [progress.as_json(trial) for trial in loaded.get_trials(deepcopy=False)]
        _print_json({"study": loaded.study_name, "budget": space.source["budget"], "trials": trials})
        return
    for line in progress.summary(loaded, space):
        click.echo(line)


@cli.command(epilog="vqsearch best --top 3")
@storage_option
@study_option
@click.option("--top", type=click.IntRange(min=1), default=1, show_default=True, help="How many.")
@json_option
def best(storage: str | None, study: str | None, top: int, as_json: bool) -> None:
    """Show the best complete trials of a study."""
    from search import progress

    loaded, space = _load(storage, study)
    trials = progress.ranking(loaded)[:top]
    if as_json:
        _print_json([progress.as_json(trial) for trial in trials])
    elif trials:
        console = _console()
        for table in progress.best_table(trials, space, console.width):
            console.print(table)
    else:
        click.echo(f"{loaded.study_name}: no trial is complete yet")


@cli.command(epilog="vqsearch export --study demo --to my-model")
@storage_option
@study_option
@click.option("--trial", "number", type=int, metavar="N", help="Which trial. Default: the best.")
@click.option("--to", "target", required=True, metavar="DIR", help="A folder that is new or empty.")
def export(storage: str | None, study: str | None, number: int | None, target: str) -> None:
    """Take a trained model out of a study: weights, config, and a sheet of reconstructions."""
    from search import models

    loaded, _ = _load(storage, study)
    click.echo(models.export(loaded, number, Path(target)))


@cli.command(epilog="vqsearch reconstruct my-model cat.png dog.jpg --to reconstructions")
@click.argument("model", type=click.Path())
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("--to", "target", required=True, metavar="DIR", help="Folder of the pictures.")
def reconstruct(model: str, images: tuple[str, ...], target: str) -> None:
    """Encode and decode pictures with an exported model; originals beside reconstructions."""
    from search import models

    for line in models.reconstruct(Path(model), [Path(image) for image in images], Path(target)):
        click.echo(line)


@cli.command(epilog="vqsearch tokenize my-model ~/faces --to tokens.npz")
@click.argument("model", type=click.Path())
@click.argument("folder", type=click.Path())
@click.option("--to", "target", required=True, metavar="FILE", help="A new file, read by numpy.load.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    help="Only the pictures that the model's config puts there. Default: all.",
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Pictures at once.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs; auto takes a GPU if there is one.",
)
@quiet_option
def tokenize(model: str, folder: str, target: str, split: str | None, batch: int, device: str, quiet: bool) -> None:
    """Encode every picture below a folder to the indices of a model's codes, for a model of the tokens.

    \b
    The file holds   indices (pictures, rows, columns), names (pictures),
                     codebook_size, resolution, patch, config (JSON)
    and decodes by   vqvae.load(MODEL).decode(torch.from_numpy(indices.astype("int64")))
    """
    from rich.progress import Progress

    from search import models

    console = _console()
    with Progress(console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("encoding", total=None)
        lines = models.tokenize(
            Path(model),
            Path(folder).expanduser(),
            Path(target),
            batch_size=batch,
            device=device,
            split=split or "",
            tell=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for line in lines[-1:] if quiet else lines:
        click.echo(line)


@cli.command(
    epilog="vqsearch train preset:mamba --data ~/faces --to runs/mamba\n"
    "vqsearch train config.yaml --set optimizer.lr=1e-3 --to runs/mine\n"
    "vqsearch train --study demo --trial 7 --to runs/again"
)
@click.argument("config", required=False, type=click.Path())
@click.option("--data", metavar="FOLDER", help="A folder of pictures. Default: what the config says.")
@click.option("--steps", type=click.IntRange(min=1), help="Optimizer steps. Default: what the config says.")
@storage_option
@study_option
@click.option("--trial", "number", type=int, metavar="N", help="Train this trial's setting from scratch.")
@click.option(
    "--to", "target", required=True, metavar="DIR", help="Folder of checkpoints; a second call goes on there."
)
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any field of the config.")
@quiet_option
def train(
    config: str | None,
    data: str | None,
    steps: int | None,
    storage: str | None,
    study: str | None,
    number: int | None,
    target: str,
    overrides: tuple[str, ...],
    quiet: bool,
) -> None:
    """Train one model: of a config file (YAML or JSON), of preset:NAME, or of a study's trial."""
    from search import models
    from search.run_view import RunView
    from search.space import assignment
    from vqvae import conversion

    if (config is None) == (number is None):
        raise click.UsageError("give either a CONFIG or --trial N")
    changes = dict(map(assignment, overrides))
    if data is not None:
        changes |= {"data.source": "folder", "data.path": str(Path(data).expanduser().absolute())}
    if steps is not None:
        changes["steps"] = steps
    if number is not None:
        loaded, space = _load(storage, study)
        settings = conversion.replace(models.config_of(loaded, space, number), changes)
    else:
        settings = models.read_config(config or "", changes)
    view = RunView(_console(), settings, quiet)
    with view.watching():
        stopped = models.train(settings, Path(target), view.say, view.show, view.decoding)
    for line in models.outcome(Path(target), stopped):
        click.echo(line)
    if stopped:
        sys.exit(128 + stopped)


@cli.command(epilog="vqsearch dashboard\nvqsearch dashboard --storage postgresql://me@db/studies --port 8081")
@storage_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port to listen on.")
def dashboard(storage: str | None, host: str, port: int) -> None:
    """Serve the Optuna dashboard of a storage."""
    from search import dashboard as serving
    from search.storage import open_storage

    serving.serve(open_storage(_storage(storage), create=False), host, port, click.echo)


@cli.command(epilog="vqsearch validate spaces/*.yaml")
@click.argument("space", nargs=-1, required=True, type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Set any key of the space file.")
@json_option
def validate(space: tuple[str, ...], overrides: tuple[str, ...], as_json: bool) -> None:
    """Check space files: keys, ranges, baselines, and that every choice builds."""
    from search import launch as launching
    from search import space as spaces

    checked = []
    for path in space:
        loaded = spaces.load(path, overrides)
        launching.check_trainable(loaded)
        checked.append({"file": path, "study": loaded.study, "rungs": list(loaded.rungs), "steps": loaded.budget.steps})
        if not as_json:
            rungs = ", ".join(str(rung) for rung in (*loaded.rungs, loaded.budget.steps))
            click.echo(
                f"{path}: ok; {len(loaded.parameters)} parameters, {loaded.budget.trials} trials, evaluated at {rungs}"
            )
    if as_json:
        _print_json(checked)


def _storage(flag: str | None, space: Space | None = None) -> str:
    return flag or (space and space.storage) or os.environ.get("VQSEARCH_STORAGE") or DEFAULT_STORAGE


def _load(storage: str | None, study: str | None) -> Any:
    from search import study as studies
    from search.storage import open_storage

    return studies.load(open_storage(_storage(storage), create=False), study)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _keep_secrets(storage: str | None, address: str | None) -> None:
    """A cluster's Ray shows the command line of every driver to all of its users."""
    from search.storage import redact

    if storage and address and redact(storage) != storage:
        raise UserError("--storage holds a password that --address would show to the cluster; set $VQSEARCH_STORAGE")


def _finish(signal: int, url: str, name: str) -> None:
    """The last lines of a launch: what it came to, and what to do next."""
    from search import progress
    from search import study as studies
    from search.storage import open_storage, redact

    loaded, space = studies.load(open_storage(url, create=False), name)
    for line in progress.summary(loaded, space):
        click.echo(line)
    flags = f" --storage '{redact(url)}'" if url != _storage(None) else ""
    if signal:
        click.echo(f"go on with: vqsearch resume{flags} --study {name}")
        sys.exit(128 + signal)
    click.echo(f"look at it:  vqsearch dashboard{flags}")
    click.echo(f"take it:     vqsearch export{flags} --study {name} --to DIR")


def main() -> None:
    """Entry point: exit 0, 2 for what the user got wrong, 1 for the rest, 130 for Ctrl-C."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (VqsearchError, VqvaeError) as error:
        click.echo(f"vqsearch: {error}", err=True)
        sys.exit(2 if isinstance(error, (UserError, VqvaeError)) else 1)
