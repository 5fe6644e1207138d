"""What the commands share: their options, where the storage is, and how they print.

Heavy packages are imported inside functions, so that `vqsearch --help` is there at once.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from search.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from search.space import Space

DEFAULT_STORAGE = "sqlite:///vqsearch.db"
DEFAULT_OUTPUT = "./vqsearch-output"


class Command(click.Command):
    """A command whose help keeps the lines of its example."""

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example, a command a line."""
        if self.epilog:
            formatter.write_paragraph()
            formatter.write("Example:\n" + "".join(f"  {line.strip()}\n" for line in self.epilog.splitlines()))


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


def storage_url(flag: str | None, space: Space | None = None) -> str:
    """The URL of the storage: the flag, else the space file's, else the environment's, else the default."""
    return flag or (space and space.storage) or os.environ.get("VQSEARCH_STORAGE") or DEFAULT_STORAGE


def load(storage: str | None, study: str | None) -> Any:
    """A study to look at, and its space."""
    from search import study as studies
    from search.storage import open_storage

    return studies.load(open_storage(storage_url(storage), create=False), study)


def terminal() -> Console:
    """Where to print what is more than a line."""
    from rich.console import Console

    return Console(highlight=False)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2))


def keep_secrets(storage: str | None, address: str | None) -> None:
    """A cluster's Ray shows the command line of every driver to all of its users."""
    from search.storage import redact

    if storage and address and redact(storage) != storage:
        raise UserError("--storage holds a password that --address would show to the cluster; set $VQSEARCH_STORAGE")
