"""The commands that remove what lies on the disk: parse, ask, call one function, print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from search.errors import UserError
from search.options import Command, say, storage_option, storage_url, study_option

if TYPE_CHECKING:
    from search.cleaning import Found

yes_option = click.option("--yes", "-y", is_flag=True, help="Don't ask.")


@click.command(cls=Command, epilog="vqsearch clean --study demo --dry-run")
@storage_option
@study_option
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@yes_option
def clean(storage: str | None, study: str | None, dry_run: bool, yes: bool) -> None:
    """Remove files of a study that none of its trials needs: what the space file's keep, and killed runs, left over."""
    from search import cleaning
    from search.storage import open_storage

    url = storage_url(storage)
    found = cleaning.find(open_storage(url, create=False), study)
    for each in found.rubbish:
        say(f"{_size(each.size):>9}  {each.folder}: {each.why}")
    if not found.rubbish:
        say(f"{found.study}: nothing in {found.root} to remove")
        return
    total = f"{_size(found.size)} in {_files(found)}"
    if dry_run:
        say(f"{found.study}: {total} would go from {found.root}")
        return
    _confirm(f"Remove {total} from {found.root}?", yes)
    removed = cleaning.clean(open_storage(url), found.study)
    say(f"{found.study}: {_size(removed.size)} in {_files(removed)} removed from {removed.root}")


@click.command(cls=Command, epilog="vqsearch delete demo")
@click.argument("study")
@storage_option
@click.option("--keep-files", is_flag=True, help="Leave checkpoints and pictures where they are.")
@yes_option
def delete(study: str, storage: str | None, keep_files: bool, yes: bool) -> None:
    """Delete a study: its trials in the storage, and its folder below the output root."""
    from search import cleaning
    from search.storage import open_storage

    url = storage_url(storage)
    found = cleaning.whole(open_storage(url, create=False), study, keep_files)
    files = f" and {_size(found.size)} in {_files(found)} in {found.root}/{study}" if found.rubbish else ""
    what = f"{found.trials} {'trial' if found.trials == 1 else 'trials'}{files}"
    _confirm(f"Delete {study}: {what}?", yes)
    cleaning.delete(open_storage(url), study, keep_files)
    say(f"{study}: {what} deleted")


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} Expected --yes, since nobody can be asked here")
    from search.text import printable

    click.confirm(printable(question), abort=True)


def _files(found: Found) -> str:
    return f"{found.files} {'file' if found.files == 1 else 'files'}"


def _size(size: float) -> str:
    """Bytes as people say them.

    >>> _size(1536)
    '1.5 kB'
    """
    if size < 1000:
        return f"{size:.0f} B"
    for unit in ("kB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
