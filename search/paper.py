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

from search import answer, contest, disagreement, figures, gallery, methods, publish, tables, units
from search.findings import Findings, ranked
from search.gallery import LoadPicture
from search.ranking import Ranking
from search.tables import Column
from search.text import printable

LINE = 110
"""Characters of 8 pt that fit side by side on a page of two columns; what does not goes into a further block."""


def write(found: Sequence[Findings], folder: Path, load_picture: LoadPicture) -> list[str]:
    """Write table.tex, table.csv, figure_*.pdf and methods.txt; figures that would be empty are left out.

    The tables are of the best trials; of a comparison they are of its arms, and its trials are in trials.tex and
    trials.csv. Finalists are in finalists.tex and, seed by seed, in finalists.csv.

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
    ranking = ranked(found)
    drawn = dict(gallery.draw(found, load_picture))
    compared, _, why = disagreement.draw(found, ranking, load_picture) if ranking else ({}, {}, "")
    trials = "trials" if ranking else "table"
    judged = [each for each in found if each.verdict]
    files = {
        f"{trials}.tex": table_tex(found).encode(),
        f"{trials}.csv": table_csv(found).encode(),
        "methods.txt": methods_text(found).encode(),
        **({"table.tex": arms_tex(found, ranking).encode()} if ranking else {}),
        **({"table.csv": arms_csv(ranking).encode()} if ranking else {}),
        **({"finalists.tex": "\n".join(map(finalists_tex, judged)).encode()} if judged else {}),
        **({"finalists.csv": finalists_csv(judged).encode()} if judged else {}),
        **{f"figure_{name}.pdf": figures.pdf(figure) for name, figure in (drawn | compared).items() if figure},
    }
    publish.write_folder(folder, files)
    lines = [f"{printable(str(folder))}: {', '.join(sorted(files))}"]
    lines += [f"no pictures of the arms side by side: {why}"] if why else []
    return lines + [
        f"no figure_{name}.pdf: {gallery.why_not(found, name)}" for name, figure in drawn.items() if not figure
    ]


def arms_tex(found: Sequence[Findings], ranking: Ranking) -> str:
    """The arms of a comparison and the setting that stands for each, as a table* of booktabs."""
    first = found[0]
    columns, settings = contest.arms(ranking), contest.arm_settings(ranking)
    blocks = [*_blocks(columns[:1], columns[1:]), *_blocks(settings[:1], settings[1:])]
    caption = (
        f"The arms of {ranking.tie.comparison}, each with the setting that validation chose among its finalists, on "
        f"the test split after {first.space.budget.steps:,} optimizer steps on {answer.data(first)}. {contest.HALF} "
        "Bold: the best and what ties with it. Intervals are not corrected for their number."
    )
    return _table(blocks, (), caption, ranking.tie.comparison)


def finalists_tex(found: Findings) -> str:
    """The settings among a study's finalists, as a table* of booktabs."""
    columns, settings = contest.contenders(found), contest.contender_settings(found)
    blocks = [*_blocks(columns[:1], columns[1:]), *_blocks(settings[:1], settings[1:])]
    caption = (
        f"The finalists of {found.study}, trained again on fresh seeds and judged on the test split. {contest.HALF} "
        "Bold: the best and what ties with it."
    )
    return _table(blocks, (), caption, f"{found.study}-finalists")


def table_tex(found: Sequence[Findings]) -> str:
    """The best trials of each study and its baselines, as a table* of booktabs."""
    chosen = tables.rows(found)
    first = found[0]
    names, quantities, settings = tables.names(chosen), tables.measured(chosen), tables.settings(chosen)
    blocks = [*_blocks(names, quantities), *_blocks(names, settings)]
    breaks = [row for row in range(1, len(chosen)) if chosen[row][0] is not chosen[row - 1][0]]
    studies = answer.listed([each.study for each in found])
    steps = answer.listed(list(dict.fromkeys(f"{each.space.budget.steps:,}" for each in found)))
    on = "" if first.space.trainer else "measured on the validation images, "
    caption = (
        f"The best complete trials of {studies} by {units.label(first.metric)}, and the baselines, after {steps} "
        f"optimizer steps on {answer.data(first)}; {on}each trained once. Bold: best of a column."
    )
    return _table(blocks, breaks, caption, first.study)


def _table(blocks: Sequence[Sequence[Column]], breaks: Sequence[int], caption: str, label: str) -> str:
    """Blocks of columns below one another; breaks are rows before which there is some space."""
    tabulars = "\n\n\\medskip\n\n".join(_tabular(block, breaks) for block in blocks)
    return (
        "% Needs \\usepackage{booktabs}.\n"
        "\\begin{table*}\n  \\centering\n  \\footnotesize\n  \\setlength{\\tabcolsep}{3pt}\n"
        f"  \\caption{{{tex(caption)}}}\n  \\label{{tab:{re.sub('[^A-Za-z0-9.-]', '-', label)}}}\n  \\medskip\n"
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
    kinds = "".join("r" if column.numeric else "l" for column in columns)
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


_TEX = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "$": "\\$", "&": "\\&", "#": "\\#", "_": "\\_", "%": "\\%",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
    "|": "\\textbar{}", '"': "{\\ttfamily\\char34}", "'": "\\textquotesingle{}", "`": "\\textasciigrave{}",
    "±": "$\\pm$", "\n": " ", "\t": " ",
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
    rows = []
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
            rows.append(values)
    return _csv(header, rows)


def arms_csv(ranking: Ranking) -> str:
    """The arms of a comparison, one in each row, with all digits; what an arm lacks is empty."""
    metrics = list(dict.fromkeys(name for each in ranking.ranked for name in each.representative.means))
    costs = list(dict.fromkeys(name for each in ranking.ranked for name in each.representative.costs))
    header = [
        "arm", "study", "not ranked because", "finalist", "seeds", "behind the best", "low", "high", "tie", "drop",
        *(f"test/{name}{end}{_unit(name)}" for name in metrics for end in ("", " low", " high")),
        *(f"{name}{_unit(name)}" for name in costs), "search [h]", "finalists [h]", "GPUs",
    ]  # fmt: skip
    behind = ranking.behind if ranking.winner else {}
    rows: list[list[Any]] = []
    for each in ranking.arms:
        best, lead = each.representative if each.verdict else None, behind.get(each.name)
        means = [best.means.get(name) if best else None for name in metrics]
        rows.append(
            [
                each.name, each.study, each.why_not, best and best.of, best and len(best.seeds),
                *((lead.value, lead.low, lead.high, lead.tie) if lead else (None,) * 4), each.drop if best else None,
                *(value for one in means for value in ((one.value, one.low, one.high) if one else (None,) * 3)),
                *(best.costs.get(name) if best else None for name in costs),
                each.search_hours, each.finalist_hours, each.gpus,
            ]
        )  # fmt: skip
    return _csv(header, rows)


def finalists_csv(found: Sequence[Findings]) -> str:
    """All finalists with a value, one in each row, with all digits: what each seed measured on both splits."""
    judged = [(each, one) for each in found if each.verdict for one in each.verdict.contenders]
    metrics = list(dict.fromkeys(name for _, one in judged for name in one.values))
    fields = list(dict.fromkeys(name for _, one in judged for name in one.settings))
    header = [
        "study", "setting of", "baseline", "seed", "trial", f"objective: {found[0].metric}{_unit(found[0].metric)}",
        *(f"test/{name}{_unit(name)}" for name in metrics), *fields,
    ]  # fmt: skip
    rows: list[list[Any]] = [
        [
            each.study, one.of, one.baseline, seed, one.trials[place], one.validation[place],
            *(float(one.values[name][place].mean()) if name in one.values else None for name in metrics),
            *(one.settings.get(name) for name in fields),
        ]
        for each, one in judged
        for place, seed in enumerate(one.seeds)
    ]  # fmt: skip
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    held = io.StringIO()
    out = csv.writer(held, lineterminator="\r\n")
    out.writerows([_cell(value) for value in row] for row in (header, *rows))
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
    if ranking := ranked(found):
        parts += [f"{heading}. {text}" for heading, text in methods.comparison(found, ranking)]
        parts.append(f"Outcome. {' '.join(contest.said(ranking))}")
    for each in found:
        parts += [f"# {printable(each.study)}"] if len(found) > 1 else []
        parts += [f"{heading}. {text}" for heading, text in methods.paragraphs(each)]
        parts.append(f"Outcome. {' '.join(answer.won(each))}")
    if compared := answer.compared(found):
        heading = ["# The searches side by side", contest.SEARCHES] if ranking else ["# Comparison"]
        parts += [*heading, " ".join(compared)]
    cited = methods.references(parts)
    return "\n\n".join([*parts, "References", *cited]) + "\n"
