"""The exceptions of the search; each message says what, where, which value and what was expected.

VqsearchError                 exit 1
├── UserError                 exit 2: something the user can mend
│   ├── SpaceError            a space file
│   ├── StudyError            a study or trial that is not there, or is another one
│   ├── StorageError          a storage that can't be reached or read
│   ├── OutputError           an output root or a file in it
│   ├── ResourceError         more than the cluster has
│   └── LeaseError            another driver runs the study
└── SearchError               the search can't go on, though nothing was wrong with what was asked
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class VqsearchError(Exception):
    """Base of all errors of the search."""


class UserError(VqsearchError):
    """Something the user can mend; the command line prints the message alone and exits with 2."""


class SpaceError(UserError):
    """A space file that can't work.

    Attributes:
        where: ``file:line`` (or the flag) that holds the mistake.
        key: dotted key, "" for the file as a whole.
    """

    def __init__(self, where: str, key: str, problem: str) -> None:
        super().__init__(": ".join(part for part in (where, key, problem) if part))
        self.where = where
        self.key = key


class StudyError(UserError):
    """A study or trial that is not there, or is not the one that was asked for."""


class StorageError(UserError):
    """A storage that can't be reached, written or understood."""


class OutputError(UserError):
    """An output root, or a checkpoint in it, that can't be reached."""


class ResourceError(UserError):
    """A trial that asks for more than the cluster has."""


class LeaseError(UserError):
    """A study that another driver is running."""


class SearchError(VqsearchError):
    """A search that ended before its budget for a reason outside what was asked."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """What can't be written while the context lasts is an OutputError that names the target."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{target}: can't be written: {error.strerror or error}") from None
