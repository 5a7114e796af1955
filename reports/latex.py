"""The tables of a report as LaTeX (booktabs). Text of unknown origin is set as it reads and can run no command."""

from __future__ import annotations

import re

from reports.document import Column, Report, Row, Table, TableCell
from reports.formatting import visible

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"{\textquotesingle}",
    "`": r"\textasciigrave{}",
    "*": "{*}",
    "[": "{[}",
    "]": "{]}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "·": r"\textperiodcentered{}",
    "×": r"\texttimes{}",
    "±": r"\textpm{}",
    "µ": r"\textmu{}",
    "…": r"\ldots{}",
    "−": r"\textminus{}",
}
_LAST_PLAIN = "\u017f"
_WITHOUT_GLYPH = frozenset("ĦħĸĿŀŉŦŧſ")
"""Beyond most Latin letters, characters have no glyph in a paper's font and are written as their code point."""

_PREAMBLE = "% Needs \\usepackage{booktabs} and \\usepackage[T1]{fontenc}, \\usepackage{textcomp} before LaTeX 2020."


def render_latex(report: Report) -> str:
    r"""One `table` environment for each table, to be taken in with \input."""
    return "\n\n".join([_PREAMBLE, *(_table(table) for table in report.tables)]) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX sets as it reads."""
    return re.sub("-(?=-)", "-{}", "".join(_escaped(character) for character in visible(text)))


def _escaped(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    has_glyph = character <= _LAST_PLAIN and character not in _WITHOUT_GLYPH
    return character if has_glyph else rf"\texttt{{U+{ord(character):04X}}}"


def _table(table: Table) -> str:
    num_columns = 1 + len(table.columns)
    alignment = "l" + "".join(_alignment(column, position, table) for position, column in enumerate(table.columns))
    units = [escape(column.unit) for column in table.columns]
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{escape(table.title)}. {escape(table.caption)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        _line([escape(table.row_title), *(escape(column.title) for column in table.columns)]),
        *([_line(["", *units])] if any(units) else []),
    ]
    for group, rows in table.groups:
        lines.append(r"\midrule")
        if group:
            lines.append(rf"\multicolumn{{{num_columns}}}{{l}}{{\textit{{{escape(group)}}}}} \\")
        lines += [_row(row) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _alignment(column: Column, position: int, table: Table) -> str:
    if not column.is_text:
        return "r"
    longest = max((len(row.cells[position].text) for row in table.rows), default=0)
    return r"p{0.3\linewidth}" if longest > 30 else "l"


def _row(row: Row) -> str:
    return _line([escape(row.header), *(_cell(cell) for cell in row.cells)])


def _cell(cell: TableCell) -> str:
    shown = escape(cell.text)
    if cell.is_best:
        shown = rf"\textbf{{{shown}}}"
    elif cell.status in ("failed", "not_run"):
        shown = rf"\textit{{{shown}}}"
    small = ", ".join(escape(detail) for detail in cell.details)
    return rf"{shown} {{\scriptsize ({small})}}" if small else shown


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
