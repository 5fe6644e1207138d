"""Text from elsewhere, shown as the text it is: it neither styles the terminal nor commands it.

Names, labels and reasons come from storages that others may write to. What a terminal would obey (escape sequences,
carriage returns, marks that turn the direction of writing) is shown as Python would write it, and brackets are
brackets.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment


def printable(text: str) -> str:
    """The text with everything but letters, marks, spaces and line ends written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def one_line(text: str) -> str:
    """The same with line ends and tabs as escapes too, for where a line must stay one."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


class PlainConsole(Console):
    """A rich console whose styles are those of our own code alone."""

    def __init__(self) -> None:
        super().__init__(highlight=False, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich's, with the text of every segment made printable, and of letters that the terminal has."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(self._known(printable(segment.text)), segment.style)

    def _known(self, text: str) -> str:
        encoding = self.encoding
        return text if encoding.startswith("utf") else text.encode(encoding, "backslashreplace").decode(encoding)
