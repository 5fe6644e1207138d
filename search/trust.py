"""Which code the user of this machine has named: a study says what it needs, and only a person says what may run.

A file is named by writing it into a space file, or by giving it to a command. What was named is kept in the user's own
folder, $XDG_STATE_HOME/vqsearch/code (else ~/.local/state/vqsearch/code): a file for each hash, with the paths by which
it was named. So a study that comes from another machine, or from another person, runs nothing here before someone has
looked at it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from vqvae.plugins import Plugin


def remember(plugin: Plugin) -> None:
    """Keep that the user named a file; where nothing can be kept, a resume asks for its name again."""
    with contextlib.suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if plugin.path not in _paths(folder / plugin.sha256):
            with (folder / plugin.sha256).open(
                "a", encoding="ascii"
            ) as file:  # a line of two commands at once stays whole
                file.write(f"{json.dumps(plugin.path)}\n")


def knows(sha256: str) -> bool:
    """Whether the user has named a file with this content."""
    with contextlib.suppress(OSError, RuntimeError):
        return (_folder() / sha256).is_file()
    return False


def knows_place(path: str) -> bool:
    """Whether the user has named the file at an absolute path, whatever it held then."""
    with contextlib.suppress(OSError, RuntimeError):
        return any(path in _paths(file) for file in _folder().iterdir())
    return False


def _paths(file: Path) -> list[str]:
    found = []
    with contextlib.suppress(FileNotFoundError):
        for line in file.read_text(encoding="ascii", errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a disk that was full
                found.append(str(json.loads(line)))
    return found


def _folder() -> Path:
    """As the XDG Base Directory Specification has it, to which a relative path is none.

    Raises:
        RuntimeError: the user has no home.
    """
    given = os.environ.get("XDG_STATE_HOME", "")
    state = Path(given) if os.path.isabs(given) else Path("~/.local/state").expanduser()
    return state / "vqsearch" / "code"
