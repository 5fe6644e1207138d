"""Files of a report put where they were asked for: all of them or none, and never in place of what is not ours.

A folder of ours holds `.vqsearch-report` with the names of what was written there; a text of ours begins with `MARK`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from search.errors import UserError

LIST = ".vqsearch-report"
"""File that says which files of a folder are ours."""

MARK = "<!-- vqsearch report -->"
"""First line of a Markdown report."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds what a report did not write.

    Raises:
        UserError: it holds files and no list of ours, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is a file; expected a folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LIST).is_file():
        raise UserError(
            f"--to {folder}: holds files that vqsearch report did not write; expected a new or empty folder, or one "
            "that a report made"
        )


def check_file(file: Path) -> None:
    """Refuse a Markdown file that is no report.

    Raises:
        UserError: it does not begin as a report does, or is a folder.
    """
    if file.is_dir():
        raise UserError(f"--to {file}: is a folder; expected a file")
    if file.exists() and not file.read_bytes().startswith(MARK.encode()):
        raise UserError(
            f"--to {file}: is there already and no vqsearch report; expected a new file, or one of a report"
        )


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder; those of an earlier report that are not among them go, all others stay.

    Raises:
        UserError: see `check_folder`.
        OSError: it can't be written.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    held = folder / LIST
    before = held.read_text(encoding="utf-8").splitlines() if held.is_file() else []
    # The list first, with all names, so that whatever a kill leaves here is known to be ours.
    write_file(held, "".join(f"{name}\n" for name in sorted({*before, *files})).encode())
    for name, content in files.items():
        write_file(folder / name, content)
    for name in set(before) - set(files):
        # The list may have been edited: nothing outside the folder goes, and no folder.
        if Path(name).name == name and name != LIST and (folder / name).is_file():
            (folder / name).unlink()
    write_file(held, "".join(f"{name}\n" for name in sorted(files)).encode())


def write_file(file: Path, content: bytes) -> None:
    """Write a file as a whole or not at all.

    Raises:
        OSError: it can't be written.
    """
    part = file.with_name(f"{file.name}.part-{uuid.uuid4().hex[:8]}")
    try:
        part.write_bytes(content)
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
