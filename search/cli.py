"""The command line: every command, and what its errors become."""

from __future__ import annotations

import sys

import click

from search import (
    cli_clean,
    cli_compare,
    cli_coordinates,
    cli_doctor,
    cli_judge,
    cli_look,
    cli_models,
    cli_search,
    cli_slurm,
    cli_steer,
    cli_transfer,
)
from search.errors import UserError, VqsearchError
from vqvae.config import VqvaeError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vqsearch", prog_name="vqsearch")
def cli() -> None:
    """Search the hyperparameters of image tokenizers (VQVAE): Optuna suggests, Ray Tune schedules.

    \b
    vqsearch doctor                          can this machine run a search?
    vqsearch launch spaces/demo.yaml         search
    vqsearch dashboard                       watch it in a browser
    vqsearch resume                          go on where it stopped
    vqsearch compare spaces/fair-demo.yaml   which tokenizer is best, each tuned
    vqsearch transfer spaces/transfer.yaml   search a small model for a large one
    vqsearch export --to my-model            take the best model away
    vqsearch tokenize my-model FOLDER --to tokens.npz
    """


for command in (
    cli_search.launch,
    cli_compare.compare,
    cli_transfer.transfer,
    cli_search.resume,
    cli_slurm.slurm,
    cli_steer.stop,
    cli_steer.pause,
    cli_steer.prune,
    cli_steer.enqueue,
    cli_look.status,
    cli_look.best,
    cli_judge.finalists,
    cli_look.dashboard,
    cli_look.report,
    cli_search.validate,
    cli_search.init,
    cli_doctor.doctor,
    cli_clean.clean,
    cli_clean.delete,
    cli_models.export,
    cli_models.reconstruct,
    cli_models.tokenize,
    cli_models.train,
    cli_coordinates.coordinates,
):
    cli.add_command(command)


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
        from search.code import hinted
        from search.text import printable

        click.echo(f"vqsearch: {printable(hinted(str(error), error))}", err=True)
        sys.exit(2 if isinstance(error, (UserError, VqvaeError)) else 1)
