"""The vocabulary between those who build a report and those who render it: tables, charts, sections.

Builders decide what is said and how numbers read; renderers decide how it looks. Text in here may come from anyone's
plugin or stack trace: every renderer makes it inert on its way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from reports.formatting import ABSENT, Format
from reports.statistics import Interval


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One value of a table, for people and for machines."""

    text: str = ABSENT
    value: float | str | None = None
    """What it sorts by, in base units; None sorts last."""
    low: float | None = None
    high: float | None = None
    """The 95 % interval of `value`, where there is one."""
    details: tuple[str, ...] = ()
    """What belongs in small print beside it: interval, seeds, learning rate."""
    note: str = ""
    """Longer text behind it, such as why it failed."""
    status: Literal["value", "failed", "not_run", "absent"] = "value"
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class Column:
    """What stands in one column."""

    title: str
    unit: str = ""
    explanation: str = ""
    is_text: bool = False
    """Text is set flush left, numbers flush right."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table; `cells` fit the table's columns."""

    header: str
    cells: tuple[TableCell, ...]
    group: str = ""
    """Rows of one group stand together under its name."""
    series: int | None = None
    """The model's position, for its colour."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a row header and columns."""

    name: str
    """Identifier: lower case, digits and hyphens."""
    title: str
    caption: str
    """How its numbers came about."""
    row_title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    is_secondary: bool = False
    """Whether a page may keep it folded: its gist stands elsewhere, or few will look for it."""

    @property
    def groups(self) -> list[tuple[str, list[Row]]]:
        """The rows by group, both in their order."""
        grouped: dict[str, list[Row]] = {}
        for row in self.rows:
            grouped.setdefault(row.group, []).append(row)
        return list(grouped.items())


def text_cell(text: str, *details: str, note: str = "") -> TableCell:
    """A cell that sorts by what it says."""
    return TableCell(text=text or ABSENT, value=text or None, details=details, note=note)


def number_cell(value: float | None, write: Format, *details: str, interval: Interval | None = None) -> TableCell:
    """A cell with one number; empty details are left out."""
    text = write(value)
    if text == ABSENT:
        return TableCell(status="absent")
    return TableCell(
        text=text,
        value=value,
        low=interval.low if interval is not None else None,
        high=interval.high if interval is not None else None,
        details=tuple(detail for detail in details if detail),
    )


def with_best_marked(rows: Sequence[Row], higher_is_better: Sequence[bool | None]) -> tuple[Row, ...]:
    """Marks the best number of each column, and every other that reads the same or whose interval overlaps with its.

    Nothing is marked where that would be everything. `higher_is_better` has one entry a column; None leaves a column
    unmarked.
    """
    columns = [[row.cells[position] for row in rows] for position in range(len(higher_is_better))]
    marked = [_best_marked(cells, higher) for cells, higher in zip(columns, higher_is_better, strict=True)]
    return tuple(replace(row, cells=tuple(column[position] for column in marked)) for position, row in enumerate(rows))


def _best_marked(cells: Sequence[TableCell], higher_is_better: bool | None) -> list[TableCell]:
    numbers = [(cell.value, cell) for cell in cells if cell.status == "value" and isinstance(cell.value, (int, float))]
    if higher_is_better is None or not numbers:
        return list(cells)
    _, best = (max if higher_is_better else min)(numbers, key=lambda number: number[0])
    if all(_cannot_be_told_apart(cell, best) for _, cell in numbers):
        return list(cells)
    return [replace(cell, is_best=cell.status == "value" and _cannot_be_told_apart(cell, best)) for cell in cells]


def _cannot_be_told_apart(cell: TableCell, best: TableCell) -> bool:
    if cell.text == best.text:
        return True
    if cell.low is None or cell.high is None or best.low is None or best.high is None:
        return False
    return cell.low <= best.high and best.low <= cell.high


@dataclass(frozen=True)
class Point:
    """A value, optionally with the range that it was seen in."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    title: str = ""
    """What a reader is told who points at it."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The points of one model."""

    label: str
    index: int
    """The model's position: its colour, marker and dashes."""
    points: tuple[Point, ...]
    is_single_seed: bool = False
    """A thin line behind the one that stands for the model."""


@dataclass(frozen=True)
class FailureMark:
    """A place on the x axis where a model was tried and failed."""

    x: float
    index: int
    title: str


@dataclass(frozen=True)
class ReferenceLine:
    """A level that models are compared with."""

    y: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis means and how it is divided."""

    title: str
    write: Format
    """Writes a tick."""
    scale: Literal["linear", "log2", "log10"] = "linear"
    low: float | None = None
    high: float | None = None
    """Fixed ends; None: from the data."""
    is_reversed: bool = False
    """Small values stand up or right, so that better is always that way."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One coordinate system."""

    title: str
    subtitle: str = ""
    kind: Literal["lines", "scatter", "bars"]
    x: Axis
    y: Axis
    """Of bars, the values; their x axis is not drawn."""
    series: tuple[Series, ...]
    failures: tuple[FailureMark, ...] = ()
    references: tuple[ReferenceLine, ...] = ()
    frontier: tuple[tuple[float, float], ...] = ()
    """The corners of the best trade-offs in a scatter, by rising x."""

    @property
    def xs(self) -> list[float]:
        """Every place on the x axis at which something is drawn."""
        points = [point.x for series in self.series for point in series.points]
        return points + [failure.x for failure in self.failures]

    @property
    def ys(self) -> list[float]:
        """Every height at which something is drawn, ends of whiskers included."""
        points = [point for series in self.series for point in series.points]
        ends = [end for point in points for end in (point.low, point.high) if end is not None]
        return [point.y for point in points] + ends + [reference.y for reference in self.references]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels that are read together."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Finding:
    """What can be said about something."""

    subject: str
    statement: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    commands: tuple[str, ...] = ()
    """Shell commands, one a line."""

    @property
    def has_text(self) -> bool:
        """Whether anything is left of it where there are no charts."""
        return bool(self.paragraphs or self.findings or self.tables or self.commands)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is rendered: to a terminal, a file or a page."""

    title: str
    subtitle: str
    models: tuple[str, ...]
    """The labels of the models, by their position."""
    sections: tuple[Section, ...]

    def only(self, *names: str) -> Report:
        """The report with none but the sections of these names, in its own order."""
        return replace(self, sections=tuple(section for section in self.sections if section.name in names))

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]

    @property
    def charts(self) -> list[Chart]:
        return [chart for section in self.sections for chart in section.charts]
