"""The commands around one model: parse, call one function, print."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from search.options import (
    Command,
    accept_option,
    json_option,
    load,
    plugin_option,
    print_json,
    quiet_option,
    say,
    storage_option,
    study_option,
    terminal,
)


@click.command(cls=Command, epilog="vqsearch export --study demo --to my-model")
@storage_option
@study_option
@click.option("--trial", "number", type=int, metavar="N", help="Which trial. Default: the best.")
@plugin_option
@accept_option
@click.option("--to", "target", required=True, metavar="DIR", help="A folder that is new or empty.")
def export(
    storage: str | None, study: str | None, number: int | None, plugins: tuple[str, ...], accept_code: bool, target: str
) -> None:
    """Take a trained model out of a study: weights, config, and a sheet of reconstructions."""
    from search import code, models

    loaded, space = load(storage, study)
    if not space.trainer:  # of another trainer's checkpoint nothing is read but its bytes
        code.require(loaded.study_name, space.plugins, plugins, accept_code)
    say(models.export(loaded, number, Path(target)))
    if space.plugins and not space.trainer:
        flags = "".join(f" --plugin '{file.path}'" for file in space.plugins)
        say(f"reconstruct: vqsearch reconstruct '{target}' PICTURE{flags} --to DIR")


@click.command(
    cls=Command,
    epilog="vqsearch reconstruct my-model cat.png dog.jpg --to reconstructions\n"
    "vqsearch reconstruct my-model ~/faces --to reconstructions --json",
)
@click.argument("model", type=click.Path())
@click.argument("images", nargs=-1, required=True, type=click.Path(), metavar="PICTURE...")
@click.option("--to", "target", required=True, metavar="DIR", help="Folder of the sheets.")
@click.option(
    "--lpips-trunk",
    "trunk",
    default="",
    metavar="FILE",
    help="torchvision's AlexNet weights, for LPIPS. Default: the model's own or torch.hub's, or without LPIPS.",
)
@plugin_option
@json_option
def reconstruct(
    model: str, images: tuple[str, ...], target: str, trunk: str, plugins: tuple[str, ...], as_json: bool
) -> None:
    """Encode and decode pictures with an exported model, and make a sheet of each.

    \b
    DIR/NAME.reconstruction.png shows   the original, the reconstruction,
                                        their difference x 4, the codes

    A folder stands for all pictures below it.
    """
    from search import code
    from search import reconstruct as making

    code.name_all(plugins)
    found = making.reconstruct(
        Path(model), [Path(image) for image in images], Path(target), trunk, lambda line: say(line, err=True)
    )
    if as_json:
        print_json([each.as_json() for each in found])
        return
    for each in found:
        say(each.line())


@click.command(cls=Command, epilog="vqsearch tokenize my-model ~/faces --to tokens.npz")
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
@plugin_option
@quiet_option
def tokenize(
    model: str,
    folder: str,
    target: str,
    split: str | None,
    batch: int,
    device: str,
    plugins: tuple[str, ...],
    quiet: bool,
) -> None:
    """Encode every picture below a folder to the indices of a model's codes, for a model of the tokens.

    \b
    The file holds   indices (pictures, rows, columns), names (pictures),
                     codebook_size, resolution, patch, config (JSON)
    and decodes by   vqvae.load(MODEL).decode(torch.from_numpy(indices.astype("int64")))
    """
    from rich.progress import Progress

    from search import code, models

    code.name_all(plugins)
    console = terminal()
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
        say(line)


@click.command(
    cls=Command,
    epilog="vqsearch train preset:mamba --data ~/faces --to runs/mamba\n"
    "vqsearch train config.yaml --set optimizer.lr=1e-3 --to runs/mine\n"
    "vqsearch train --study demo --trial 7 --gpus 4 --to runs/again",
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
@click.option(
    "--gpus",
    type=click.IntRange(min=1),
    metavar="N",
    help="GPUs of this machine that share each batch; the model is that of one, and either can go on with the other's "
    "run. Default: one, if there is one.",
)
@plugin_option
@accept_option
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
    gpus: int | None,
    plugins: tuple[str, ...],
    accept_code: bool,
    quiet: bool,
) -> None:
    """Train one model: of a config file (YAML or JSON), of preset:NAME, or of a study's trial."""
    from search import code, models, trainer
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
        loaded, space = load(storage, study)
        trainer.require_ours(space, "vqsearch train trains")
        code.require(loaded.study_name, space.plugins, plugins, accept_code, others=True)
        settings = conversion.replace(models.config_of(loaded, space, number), changes)
    else:
        code.name_all(plugins)
        settings = models.read_config(config or "", changes)
    if gpus is not None:
        models.require_gpus(settings, gpus)
    view = RunView(terminal(), settings, quiet)
    with view.watching():
        stopped = models.train(settings, Path(target), view.say, view.show, view.decoding, gpus or 1)
    for line in models.outcome(Path(target), stopped):
        say(line)
    if stopped:
        sys.exit(128 + stopped)
