"""What a study found, written down: a page, files for a paper, or Markdown, by the ending of the target.

All are made of `search.findings`; this module reads the pictures for them and chooses who writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from search import findings, output, records
from search.errors import OutputError, UserError
from search.findings import Findings

LoadPicture = Callable[[Findings, records.Picture], bytes | None]
"""The PNG of a picture; None where it can't be reached."""

PAGES = (".html", ".htm")
MARKDOWN = (".md", ".markdown")


def write(found: Sequence[Findings], target: str) -> list[str]:
    """Report on one or more studies.

    Args:
        found: what each of them found; the first one leads.
        target: a file that ends in .html or .md, or a folder (a name without ending, or with a closing slash) for
            what a paper needs.

    Returns:
        Lines that say what was written.

    Raises:
        UserError: the studies can't be compared, or the target can't be written.
    """
    findings.comparable(found)
    path, kind = Path(target), _kind(target)
    try:
        return kind(found, path)
    except OSError as error:
        raise UserError(f"--to {target}: can't be written: {error.strerror or error}") from None


def _kind(target: str) -> Callable[[Sequence[Findings], Path], list[str]]:
    path = Path(target)
    ending = path.suffix.lower()
    if target.endswith("/") or path.is_dir() or not ending:
        if path.exists() and not path.is_dir():
            raise UserError(f"--to {target}: is a file; expected a folder, or a name that ends in .html or .md")
        return _paper
    if ending in PAGES:
        return _page
    if ending in MARKDOWN:
        return _markdown
    raise UserError(f"--to {target}: ends in {path.suffix}; expected .html, .md, or a folder for a paper")


def _page(found: Sequence[Findings], path: Path) -> list[str]:
    from search import page

    return page.write(list(found), path, pictures())


def _markdown(found: Sequence[Findings], path: Path) -> list[str]:
    from search import markdown

    return markdown.write(list(found), path, pictures())


def _paper(found: Sequence[Findings], path: Path) -> list[str]:
    from search import paper

    return paper.write(list(found), path, pictures())


def pictures() -> LoadPicture:
    """A function that reads pictures below the output roots; a root that does not answer is asked once."""
    silent: set[str] = set()

    def load(of: Findings, picture: records.Picture) -> bytes | None:
        root = of.roots.get(picture.folder.partition("/")[0], of.root)
        if root in silent:
            return None
        try:
            return output.read(root, f"{picture.folder}/{picture.name}.png")
        except FileNotFoundError:
            return None
        except (OSError, OutputError):
            silent.add(root)
            return None

    return load
