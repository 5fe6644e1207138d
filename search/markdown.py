"""The report for a repository: GitHub's Markdown, with its figures as PNGs in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from search import answer, figures, gallery, methods, publish, tables
from search.findings import Findings
from search.gallery import LoadPicture
from search.tables import Column
from search.text import printable

NUMBERS = 40
"""Numbers of trials that are listed for one kind of failure."""


def write(found: Sequence[Findings], file: Path, load_picture: LoadPicture) -> list[str]:
    """Write the report, and its figures to the folder STEM_files beside it.

    Args:
        found: what each study found; the first one leads.
        file: a new one, or a report of ours.
        load_picture: the PNG of a picture; None where it can't be reached.

    Returns:
        Lines that say what was written, and what was left out and why.

    Raises:
        UserError: the file or the folder holds something else.
        OSError: they can't be written.
    """
    folder = file.with_name(f"{file.stem}_files")
    publish.check_file(file)
    publish.check_folder(folder)
    drawn = dict(gallery.draw(found, load_picture))
    pictures = {name: figures.png(figure) for name, figure in drawn.items() if figure is not None}
    missing = [f"no {name}.png: {gallery.why_not(found, name)}" for name in drawn if name not in pictures]
    publish.write_folder(folder, {f"{name}.png": png for name, png in pictures.items()})
    publish.write_file(file, text(found, folder.name, list(pictures)).encode())
    return [f"{printable(str(file))}, with {answer.count(len(pictures), 'picture')} in {folder.name}", *missing]


def text(found: Sequence[Findings], folder: str, pictures: Sequence[str]) -> str:
    """The report.

    Args:
        found: what each study found.
        folder: of the pictures, relative to the report.
        pictures: names of those that there are.
    """
    several = len(found) > 1
    lines = [publish.MARK, f"# {_escaped(answer.listed([each.study for each in found]))}: what the search found", ""]
    lines += [f"{_escaped(line)}\n" for line in answer.compared(found)]
    for each in found:
        lines += [f"## {_escaped(each.study)}", ""] if several else []
        lines += [_escaped(answer.searched(each)), "", *_bullets([*answer.won(each), *answer.cost(each)])]
    lines += ["## Best trials", "", *_table(found)]
    lines += ["## Figures", "", *_figures(found, folder, pictures)]
    for each in found:
        of = f" of {_escaped(each.study)}" if several else ""
        lines += [f"## Failures{of}", "", *_failures(each)]
        lines += [f"## Methods{of}", "", *_methods(each)]
        lines += [f"## To repeat the search{of}", "", *_repeat(each)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _bullets(sentences: Sequence[str]) -> list[str]:
    return [*(f"- {_escaped(sentence)}" for sentence in sentences), ""]


def _table(found: Sequence[Findings]) -> list[str]:
    chosen = tables.rows(found)
    if not chosen:
        return ["No trial that keeps the limits is complete.", ""]
    lines = []
    for columns in (tables.measured(chosen), tables.settings(chosen)):
        whole = [*tables.names(chosen), *columns]
        lines.append(_row([_heading(column) for column in whole]))
        lines.append(_row(["---", *["---:"] * (len(whole) - 1)]))
        for row in range(len(chosen)):
            cells = [_inline(column.cells[row]) for column in whole]
            lines.append(_row([f"**{c}**" if row in w.best else c for c, w in zip(cells, whole, strict=True)]))
        lines.append("")
    return [*lines, "Bold: best of a column. Arrows point to the better values.", ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(column: Column) -> str:
    unit = f" ({_inline(column.unit)})" if column.unit else ""
    return f"{_inline(column.heading)}{unit}{f' {column.arrow}' if column.arrow else ''}"


def _figures(found: Sequence[Findings], folder: str, pictures: Sequence[str]) -> list[str]:
    lines = []
    for name in pictures:
        kind, _, place = name.partition("_")
        of = f" {_escaped(found[int(place or 1) - 1].study)}." if len(found) > 1 and kind in gallery.OF_ONE else ""
        caption = gallery.CAPTIONS[kind]
        lines += [f"![{kind}]({quote(f'{folder}/{name}.png')})", "", f"*{_escaped(caption)}*{of}", ""]
    return lines or ["No trial has been measured yet.", ""]


def _failures(findings: Findings) -> list[str]:
    found = answer.failures(findings)
    if not found:
        return ["None, besides trials that were stopped at rungs.", ""]
    lines = [_row(["what happened", "trials", "which"]), _row(["---", "---:", "---"])]
    for why, numbers in found:
        more = ", ..." if len(numbers) > NUMBERS else ""
        lines.append(_row([_inline(why), f"{len(numbers):,}", ", ".join(map(str, numbers[:NUMBERS])) + more]))
    return [*lines, ""]


def _methods(findings: Findings) -> list[str]:
    parts = methods.paragraphs(findings)
    lines = [line for heading, words in parts for line in (f"**{heading}.** {_escaped(words)}", "")]
    return [*lines, *_bullets(methods.references([words for _, words in parts]))]


def _repeat(findings: Findings) -> list[str]:
    name = _escaped(f"{findings.study}.yaml")
    commands = "\n".join(f"# {what}\n{command}" for what, command in answer.commands(findings))
    return [
        f"The space file, {name}:",
        "",
        *_code("yaml", findings.yaml),
        "",
        *_code("bash", commands),
        "",
    ]


def _code(language: str, code: str) -> list[str]:
    """A block with a fence that its text does not hold."""
    clean = printable(code).rstrip("\n")
    longest = max((len(run) for run in re.findall("`+", clean)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}{language}", clean, fence]


def _escaped(words: str) -> str:
    """Any text as Markdown that shows that text, in a paragraph, a heading or an item of a list."""
    inline = _inline(words)
    # A beginning that Markdown would take for a list's, a heading's or a rule's.
    listed = re.match(r"(\d*)([-+=.)])(?=\s|$|-|=)", inline)
    return f"{listed[1]}\\{inline[listed.end(1) :]}" if listed else inline


def _inline(words: str) -> str:
    """Any text as Markdown that shows that text where it begins no line, such as in a cell of a table."""
    clean = " ".join(printable(words).split())
    clean = clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~$#!])", r"\\\1", clean).replace("://", "\\://")
