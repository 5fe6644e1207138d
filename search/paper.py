"""The report for a paper: a table for LaTeX, one for other programs, figures one column wide, and the methods in words.

Text of a study is text in all of them: escaped for TeX, and never a formula of a spreadsheet.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search import answer, figures, gallery, methods, publish, tables, units
from search.findings import Findings
from search.gallery import LoadPicture
from search.tables import Column
from search.text import printable

LINE = 110
"""Characters of 8 pt that fit side by side on a page of two columns; what does not goes into a further block."""


def write(found: Sequence[Findings], folder: Path, load_picture: LoadPicture) -> list[str]:
    """Write table.tex, table.csv, figure_*.pdf and methods.txt; figures that would be empty are left out.

    Args:
        found: what each study found; the first one leads.
        folder: a new or empty one, or one that a report made.
        load_picture: the PNG of a picture; None where it can't be reached.

    Returns:
        Lines that say what was written, and what was left out and why.

    Raises:
        UserError: the folder holds something else.
        OSError: it can't be written.
    """
    publish.check_folder(folder)
    drawn = dict(gallery.draw(found, load_picture))
    files = {
        "table.tex": table_tex(found).encode(),
        "table.csv": table_csv(found).encode(),
        "methods.txt": methods_text(found).encode(),
        **{f"figure_{name}.pdf": figures.pdf(figure) for name, figure in drawn.items() if figure is not None},
    }
    publish.write_folder(folder, files)
    lines = [f"{printable(str(folder))}: {', '.join(sorted(files))}"]
    return lines + [
        f"no figure_{name}.pdf: {gallery.why_not(found, name)}" for name, figure in drawn.items() if not figure
    ]


def table_tex(found: Sequence[Findings]) -> str:
    """The best trials of each study and its baselines, as a table* of booktabs."""
    chosen = tables.rows(found)
    first = found[0]
    names, quantities, settings = tables.names(chosen), tables.measured(chosen), tables.settings(chosen)
    blocks = [*_blocks(names, quantities), *_blocks(names, settings)]
    breaks = [row for row in range(1, len(chosen)) if chosen[row][0] is not chosen[row - 1][0]]
    tabulars = "\n\n\\medskip\n\n".join(_tabular(block, breaks) for block in blocks)
    studies = answer.listed([each.study for each in found])
    steps = answer.listed(list(dict.fromkeys(f"{each.space.budget.steps:,}" for each in found)))
    caption = (
        f"The best complete trials of {studies} by {units.label(first.metric)}, and the baselines, after {steps} "
        f"optimizer steps on {answer.data(first)}; measured on the validation images, each trained once. Bold: best of "
        "a column."
    )
    return (
        "% Needs \\usepackage{booktabs}.\n"
        "\\begin{table*}\n  \\centering\n  \\footnotesize\n  \\setlength{\\tabcolsep}{3pt}\n"
        f"  \\caption{{{tex(caption)}}}\n  \\label{{tab:{re.sub('[^A-Za-z0-9.-]', '-', first.study)}}}\n  \\medskip\n"
        f"{tabulars}\n\\end{{table*}}\n"
    )


def _blocks(names: Sequence[Column], columns: Sequence[Column]) -> list[list[Column]]:
    """As many columns side by side as fit into a line, and more in further blocks; each begins with the names."""
    blocks: list[list[Column]] = []
    for column in columns:
        if not blocks or sum(map(_width, (*blocks[-1], column))) > LINE:
            blocks.append([*names])
        blocks[-1].append(column)
    return blocks


def _width(column: Column) -> int:
    """Characters with the space after it."""
    first, second = _lines(column)
    return max(map(len, (first + "  " * bool(column.better), second, *column.cells))) + 2


def _lines(column: Column) -> tuple[str, str]:
    """The two lines of a heading: with the unit below, or a field below its section."""
    if column.unit:
        return column.heading, f"({column.unit})"
    section, dot, field = column.heading.rpartition(".")
    return (f"{section}{dot}", field) if dot else (column.heading, "")


def _tabular(columns: Sequence[Column], breaks: Sequence[int]) -> str:
    kinds = "".join("r" if _numeric(column) else "l" for column in columns)
    lines = [f"  \\begin{{tabular*}}{{\\textwidth}}{{@{{\\extracolsep{{\\fill}}}}{kinds}@{{}}}}", "    \\toprule"]
    first, second = zip(*map(_lines, columns), strict=True)
    arrows = [{"↑": " $\\uparrow$", "↓": " $\\downarrow$"}.get(column.arrow, "") for column in columns]
    lines.append(f"    {' & '.join(tex(word) + arrow for word, arrow in zip(first, arrows, strict=True))} \\\\")
    if any(second):
        lines.append(f"    {' & '.join(map(tex, second))} \\\\")
    lines.append("    \\midrule")
    for row in range(len(columns[0].cells)):
        lines += ["    \\addlinespace"] if row in breaks else []
        cells = [tex(column.cells[row]) for column in columns]
        cells = [f"\\textbf{{{cell}}}" if row in c.best else cell for cell, c in zip(cells, columns, strict=True)]
        lines.append(f"    {' & '.join(cells)} \\\\")
    return "\n".join([*lines, "    \\bottomrule", "  \\end{tabular*}"])


def _numeric(column: Column) -> bool:
    return all(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?|-", cell) for cell in column.cells)


_TEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#", "_": "\\_", "%": "\\%",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
    "|": "\\textbar{}", '"': "{\\ttfamily\\char34}", "'": "\\textquotesingle{}", "`": "\\textasciigrave{}",
    "\n": " ", "\t": " ",
}  # fmt: skip


def tex(text: str) -> str:
    """Any text as what LaTeX prints as that text; letters that the default fonts lack by their code point."""
    return re.sub("-(?=-)", "-{}", "".join(_letter(letter) for letter in printable(text)))  # else one long dash


def _letter(letter: str) -> str:
    if letter in _TEX:
        return _TEX[letter]
    # Those of Latin-1 that its fonts can put together; pdflatex stops at what they can't.
    if letter.isascii() or ("À" <= letter <= "ÿ" and letter not in "ÐÞðþ×÷"):
        return letter
    return f"[U+{ord(letter):04X}]"


def table_csv(found: Sequence[Findings]) -> str:
    """All trials of all studies, one in each row, with all digits (RFC 4180); units are in the header."""
    fields = list(dict.fromkeys(name for each in found for t in each.trials for name in t.settings))
    measured = sorted({name for each in found for t in each.trials for name in t.metrics})
    limits = sorted({name for each in found for t in each.trials for name in t.broken})
    first = found[0]
    header = [
        "study", "trial", "state", "origin", "cause", "began", "ended", "training time [s]", "GPUs", "device",
        "last step", f"objective: {first.metric}{_unit(first.metric)}",
        *fields,
        *(f"{name}{_unit(name)}" for name in measured),
        *(f"broken limit: {name} [value / limit - 1]" for name in limits),
    ]  # fmt: skip
    held = io.StringIO()
    out = csv.writer(held, lineterminator="\r\n")
    out.writerow([_cell(name) for name in header])
    for each in found:
        for trial in each.trials:
            values: list[Any] = [
                each.study, trial.number, trial.state, trial.origin, trial.cause,
                trial.began and trial.began.isoformat(), trial.ended and trial.ended.isoformat(),
                trial.seconds, each.space.resources.gpus, trial.device, trial.step, trial.value,
                *(trial.settings.get(name) for name in fields),
                *(trial.metrics.get(name) for name in measured),
                *(trial.broken.get(name) for name in limits),
            ]  # fmt: skip
            out.writerow([_cell(value) for value in values])
    return held.getvalue()


def _unit(metric: str) -> str:
    """In brackets; parts of a whole are written as they were measured, from 0 to 1."""
    unit = units.unit(metric)
    return "" if unit in ("", "%") else f" [{unit}]"


def _cell(value: Any) -> str:
    """A number with all its digits, nothing for None, and text that no spreadsheet takes for a formula."""
    if value is None:
        return ""
    if isinstance(value, (int, float)):  # repr of NumPy's would name its type
        return repr(value if isinstance(value, (bool, int)) else float(value))
    text = printable(str(value))
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text


def methods_text(found: Sequence[Findings]) -> str:
    """Methods and outcome of each study as paragraphs, and the works that they cite."""
    parts = []
    for each in found:
        parts += [f"# {printable(each.study)}"] if len(found) > 1 else []
        parts += [f"{heading}. {text}" for heading, text in methods.paragraphs(each)]
        parts.append(f"Outcome. {' '.join(answer.won(each))}")
    if compared := answer.compared(found):
        parts += ["# Comparison", " ".join(compared)]
    cited = methods.references(parts)
    return "\n\n".join([*parts, "References", *cited]) + "\n"
