"""A report as one CSV table in long form, a line for every cell: for machines, and safe in a spreadsheet."""

from __future__ import annotations

import csv
import io

from reports.document import Report
from reports.formatting import visible, visible_lines

COLUMNS = ("table", "group", "row", "column", "unit", "value", "low", "high", "text", "details", "status", "note")
"""`value`, `low` and `high` are plain numbers in base units: shares, seconds, bytes, tokens per second."""

_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def render_csv(report: Report) -> str:
    """Every cell of every table. Text that a spreadsheet would take for a formula is preceded by an apostrophe."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in report.tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                writer.writerow(
                    [
                        table.name,
                        _text(row.group),
                        _text(row.header),
                        _text(column.title),
                        _text(column.unit),
                        _number(cell.value),
                        _number(cell.low),
                        _number(cell.high),
                        _text(cell.text),
                        _text("; ".join(cell.details)),
                        cell.status,
                        _inert(visible_lines(cell.note)),
                    ]
                )
    return written.getvalue()


def _text(text: str) -> str:
    return _inert(visible(text))


def _inert(text: str) -> str:
    return f"'{text}" if text.lstrip().startswith(_FORMULA_STARTS) else text


def _number(value: float | str | None) -> str:
    return repr(value) if isinstance(value, (int, float)) else ""
