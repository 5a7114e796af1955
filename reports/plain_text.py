"""A report as plain text: aligned columns, folded to the width of a terminal. No markup, no escape sequences."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from reports.document import Column, Report, Row, Section, Table, TableCell
from reports.formatting import visible

_WIDTH = 120
_WIDEST_TEXT = 44
"""A text column is wrapped at this width."""

_GAP = "  "


def render_text(report: Report, *, width: int = _WIDTH) -> str:
    """The report for a terminal `width` characters wide. A star marks what its captions call bold."""
    lines = [visible(report.title)]
    if report.subtitle:
        lines.append(visible(report.subtitle))
    for section in (section for section in report.sections if section.has_text):
        lines += ["", "", visible(section.title), "=" * _display_width(visible(section.title))]
        lines += _section_lines(section, width)
    return "\n".join(lines) + "\n"


def _section_lines(section: Section, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in section.paragraphs:
        lines += ["", *textwrap.wrap(visible(paragraph), width)]
    if section.findings:
        lines.append("")
        for finding in section.findings:
            said = visible(f"{finding.subject}: {finding.statement}")
            lines += textwrap.wrap(said, width, initial_indent="- ", subsequent_indent="  ")
    if section.commands:
        lines += ["", *(f"    {visible(command)}" for command in section.commands)]
    for table in section.tables:
        if table.title != section.title:
            lines += ["", visible(table.title), "-" * _display_width(visible(table.title))]
        lines.append("")
        for block in _column_blocks(table, width):
            lines += [*_block_lines(table, block), ""]
        has_best = any(cell.is_best for row in table.rows for cell in row.cells)
        lines += textwrap.wrap(visible(table.caption) + (" (* stands for bold.)" if has_best else ""), width)
    return lines


def _column_blocks(table: Table, width: int) -> list[list[int]]:
    """The positions of the columns, in as many blocks as it takes to stay within the width; at least one in each."""
    left = _header_width(table)
    blocks: list[list[int]] = [[]]
    used = left
    for position, column in enumerate(table.columns):
        needed = len(_GAP) + sum(_column_widths(column, position, table.rows))
        if blocks[-1] and used + needed > width:
            blocks.append([])
            used = left
        blocks[-1].append(position)
        used += needed
    return blocks


def _block_lines(table: Table, positions: Sequence[int]) -> list[str]:
    left = _header_width(table)
    widths = [_column_widths(table.columns[position], position, table.rows) for position in positions]
    titles = [visible(table.columns[position].title) for position in positions]
    units = [visible(table.columns[position].unit) for position in positions]
    are_text = [table.columns[position].is_text for position in positions]

    def heading(first: str, texts: Sequence[str]) -> str:
        shown = [
            _left(text, value + detail) if is_text or detail else _right(text, value)
            for text, (value, detail), is_text in zip(texts, widths, are_text, strict=True)
        ]
        return _GAP.join([_left(first, left), *shown]).rstrip()

    lines = [heading(visible(table.row_title), titles)]
    if any(units):
        lines.append(heading("", units))
    lines.append("─" * (left + sum(len(_GAP) + value + detail for value, detail in widths)))
    for group, rows in table.groups:
        if group:
            lines.append(visible(group))
        for row in rows:
            header = ("  " if group else "") + visible(row.header)
            cells = [
                _cell_lines(row.cells[position], is_text) for position, is_text in zip(positions, are_text, strict=True)
            ]
            for line in range(max(len(cell) for cell in cells)):
                shown = [
                    _placed(cell[line] if line < len(cell) else ("", ""), width, is_text)
                    for cell, width, is_text in zip(cells, widths, are_text, strict=True)
                ]
                lines.append(_GAP.join([_left(header if line == 0 else "", left), *shown]).rstrip())
    return lines


def _cell_lines(cell: TableCell, is_text: bool) -> list[tuple[str, str]]:
    """(value, small print) of each line of a cell."""
    value = visible(cell.text) + ("*" if cell.is_best else "")
    details = f" ({', '.join(visible(detail) for detail in cell.details)})" if cell.details else ""
    if not is_text:
        return [(value, details)]
    return [(line, "") for line in textwrap.wrap(value + details, _WIDEST_TEXT)] or [("", "")]


def _placed(line: tuple[str, str], widths: tuple[int, int], is_text: bool) -> str:
    value, details = line
    return (_left if is_text else _right)(value, widths[0]) + _left(details, widths[1])


def _header_width(table: Table) -> int:
    headers = [("  " if row.group else "") + visible(row.header) for row in table.rows]
    return max(_display_width(header) for header in [*headers, visible(table.row_title)])


def _column_widths(column: Column, position: int, rows: Sequence[Row]) -> tuple[int, int]:
    """Of the values and of the small print beside them."""
    lines = [line for row in rows for line in _cell_lines(row.cells[position], column.is_text)]
    values = max((_display_width(value) for value, _ in lines), default=0)
    details = max((_display_width(detail) for _, detail in lines), default=0)
    title = max(_display_width(visible(column.title)), _display_width(visible(column.unit)))
    return max(values, title - details), details


def _display_width(text: str) -> int:
    """Columns that a terminal gives the text: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
    )


def _left(text: str, width: int) -> str:
    return text + " " * (width - _display_width(text))


def _right(text: str, width: int) -> str:
    return " " * (width - _display_width(text)) + text
