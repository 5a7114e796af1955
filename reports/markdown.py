"""A report as GitHub-flavoured Markdown. Text of unknown origin cannot format, link, or break out of a cell."""

from __future__ import annotations

import re

from reports.document import Report, Row, Section, Table, TableCell
from reports.formatting import visible

_FORMATTING = re.compile(r"[\\`*_\[\]|~$]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_ADDRESS = re.compile(r":(?=\S)|(?<=\bwww)\.", re.IGNORECASE)
_REFERENCE = re.compile(r"@|#(?=\d)")
_BLOCK_START = re.compile(r"^(\d*)([#+=.)-])")


def render_markdown(report: Report) -> str:
    """The report as Markdown, tables as pipe tables."""
    lines = [f"# {escape(report.title)}"]
    if report.subtitle:
        lines += ["", escape(report.subtitle)]
    for section in (section for section in report.sections if section.has_text):
        lines += ["", f"## {escape(section.title)}", *_section_lines(section)]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text that reads as itself, on one line: no formatting, no block, no address, mention or issue that links."""
    shown = _FORMATTING.sub(lambda found: "\\" + found[0], visible(text))
    shown = "".join(_ENTITIES.get(character, character) for character in shown)
    shown = _REFERENCE.sub(lambda found: f"{found[0]}<!-- -->", shown)
    shown = _ADDRESS.sub(lambda found: f"&#{ord(found[0])};", shown)
    return _BLOCK_START.sub(r"\1\\\2", shown.lstrip())


def _section_lines(section: Section) -> list[str]:
    lines: list[str] = []
    for paragraph in section.paragraphs:
        lines += ["", escape(paragraph)]
    if section.findings:
        lines += ["", *(f"- **{escape(found.subject)}**: {escape(found.statement)}" for found in section.findings)]
    if section.commands:
        fence = "`" * (1 + max([2, *(len(run) for command in section.commands for run in re.findall("`+", command))]))
        lines += ["", f"{fence}sh", *(visible(command) for command in section.commands), fence]
    for table in section.tables:
        lines += ["", f"### {escape(table.title)}"] if table.title != section.title else []
        lines += ["", *_table_lines(table), "", escape(table.caption)]
    return lines


def _table_lines(table: Table) -> list[str]:
    is_grouped = any(row.group for row in table.rows)
    headings = [
        escape(column.title) + (f"<br>{escape(column.unit)}" if column.unit else "") for column in table.columns
    ]
    alignments = [":--" if column.is_text else "--:" for column in table.columns]
    first = ["Group"] if is_grouped else []
    return [
        _line([*first, escape(table.row_title), *headings]),
        _line([*([":--"] if is_grouped else []), ":--", *alignments]),
        *(_row_line(row, is_grouped) for row in table.rows),
    ]


def _row_line(row: Row, is_grouped: bool) -> str:
    first = [escape(row.group)] if is_grouped else []
    return _line([*first, escape(row.header), *(_cell_text(cell) for cell in row.cells)])


def _cell_text(cell: TableCell) -> str:
    shown = escape(cell.text)
    if cell.is_best:
        shown = f"**{shown}**"
    elif cell.status in ("failed", "not_run"):
        shown = f"*{shown}*"
    return " ".join([shown, f"({', '.join(map(escape, cell.details))})"]) if cell.details else shown


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
