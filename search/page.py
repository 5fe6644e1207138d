"""The report as one page: a file that opens offline, without anything beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from search import records
from search.findings import Findings


def write(
    found: Sequence[Findings], file: Path, load_picture: Callable[[Findings, records.Picture], bytes | None]
) -> list[str]:
    """Write the page.

    Args:
        found: what each study found; the first one leads.
        file: where it goes.
        load_picture: the PNG of a picture; None where it can't be reached.

    Returns:
        Lines that say what was written.
    """
    raise NotImplementedError
