"""The report for a repository: GitHub's Markdown, with its figures as PNGs in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from search import answer, contest, disagreement, figures, gallery, landing, methods, publish, tables
from search.findings import Findings, ranked
from search.gallery import LoadPicture
from search.ranking import Ranking
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
    ranking = ranked(found)
    compared, captions, why = disagreement.draw(found, ranking, load_picture) if ranking else ({}, {}, "")
    missing += [f"no pictures of the arms side by side: {why}"] if why else []
    pictures |= {name: figures.png(figure) for name, figure in compared.items()}
    publish.write_folder(folder, {f"{name}.png": png for name, png in pictures.items()})
    publish.write_file(file, text(found, folder.name, list(pictures), captions).encode())
    return [f"{printable(str(file))}, with {answer.count(len(pictures), 'picture')} in {folder.name}", *missing]


def text(
    found: Sequence[Findings], folder: str, pictures: Sequence[str], captions: Mapping[str, str] | None = None
) -> str:
    """The report.

    Args:
        found: what each study found.
        folder: of the pictures, relative to the report.
        pictures: names of those that there are.
        captions: of those of a comparison, by their names: what they show.
    """
    several, ranking = len(found) > 1, ranked(found)
    about = "which arm won" if ranking else "what the search found"
    whose = ranking.tie.comparison if ranking else answer.listed([each.study for each in found])
    lines = [publish.MARK, f"# {_escaped(whose)}: {about}", ""]
    lines += _contest(found, ranking, folder, captions or {}) if ranking else []
    lines += [f"{_escaped(line)}\n" for line in answer.compared(found)]
    for each in found:
        lines += [f"## {_escaped(each.study)}", ""] if several else []
        lines += [_escaped(answer.searched(each)), "", *_bullets([*answer.won(each), *answer.cost(each)])]
    for each in (one for one in found if one.gap):
        of = f" of {_escaped(each.study)}" if several else ""
        lines += [f"## At the target{of}", "", *(f"{_escaped(line)}\n" for line in landing.said(each))]
        lines += [*_columns(landing.settings(each)), *_bullets(landing.caveats(each))]
    judged = [each for each in found if each.verdict]
    for each in judged:
        of = f" of {_escaped(each.study)}" if several else ""
        shown = _columns(contest.contenders(each))
        lines += [f"## Finalists{of}", "", *shown, *_columns(contest.contender_settings(each)), contest.HALF, ""]
    if judged and not ranking:
        lines += ["## Finalists seed by seed", "", *_columns(contest.seeds(found))]
    lines += ["## Best trials", "", *_table(found)]
    own = [name for name in pictures if name not in (captions or {})]
    lines += ["## Figures", "", *_figures(found, folder, own)]
    for each in found:
        of = f" of {_escaped(each.study)}" if several else ""
        lines += [f"## Failures{of}", "", *_failures(each)]
        lines += [f"## Methods{of}", "", *_methods(each)]
        lines += [f"## To repeat the search{of}", "", *_repeat(each)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _contest(found: Sequence[Findings], ranking: Ranking, folder: str, captions: Mapping[str, str]) -> list[str]:
    """Which arm won, by what, and what that does not show."""
    shown = [
        line
        for name, caption in captions.items()
        for line in (f"![{name}]({quote(f'{folder}/{name}.png')})", "", f"*{_escaped(caption)}*", "")
    ]
    equal = [f"{term}: {text}" for term, text in contest.equalities(found, ranking) if text]
    return [
        *_bullets(contest.said(ranking)),
        "## The arms",
        "",
        *_columns(contest.arms(ranking)),
        f"Bold: the best on the test split and what ties with it. {contest.HALF} {contest.DROP}",
        "",
        *_columns(contest.arm_settings(ranking)),
        "## Every pair of arms",
        "",
        *(_columns(contest.pairs(ranking)) or ["Fewer than two arms are ranked.", ""]),
        "## What was held equal",
        "",
        *_bullets(equal),
        "## What this does not show",
        "",
        *_bullets(contest.caveats(found, ranking)),
        "## The arms in pictures",
        "",
        *(shown or ["There are none.", ""]),
        "## Every finalist seed by seed",
        "",
        *(_columns(contest.seeds(found)) or ["None has a value on the test split.", ""]),
        "## The searches",
        "",
        contest.SEARCHES,
        "",
    ]


def _columns(columns: Sequence[Column]) -> list[str]:
    """A table; nothing where it has no rows."""
    if not columns or not columns[0].cells:
        return []
    lines = [
        _row([_heading(column) for column in columns]),
        _row(["---:" if column.numeric and place else "---" for place, column in enumerate(columns)]),
    ]
    for row in range(len(columns[0].cells)):
        cells = [(_inline(column.cells[row]), row in column.best) for column in columns]
        lines.append(_row([f"**{cell}**" if bold else cell for cell, bold in cells]))
    return [*lines, ""]


def _bullets(sentences: Sequence[str]) -> list[str]:
    return [*(f"- {_escaped(sentence)}" for sentence in sentences), ""]


def _table(found: Sequence[Findings]) -> list[str]:
    chosen = tables.rows(found)
    if not chosen:
        return ["No trial that keeps the limits is complete.", ""]
    named = tables.names(chosen)
    lines = [*_columns([*named, *tables.measured(chosen)]), *_columns([*named, *tables.settings(chosen)])]
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
