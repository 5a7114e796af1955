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
    """Marks the best number of each column among the rows, and all that read the same.

    `higher_is_better` has one entry a column; None leaves a column unmarked. A single number is not the best of
    anything.
    """
    best_texts: list[set[str]] = []
    for position, higher in enumerate(higher_is_better):
        numbers = [
            (cell.value, cell.text)
            for cell in (row.cells[position] for row in rows)
            if cell.status == "value" and isinstance(cell.value, (int, float))
        ]
        if higher is None or len(numbers) < 2 or len({text for _, text in numbers}) == 1:
            best_texts.append(set())
        else:
            best_texts.append({(max if higher else min)(numbers)[1]})
    return tuple(
        replace(
            row,
            cells=tuple(
                replace(cell, is_best=cell.status == "value" and cell.text in best)
                for cell, best in zip(row.cells, best_texts, strict=True)
            ),
        )
        for row in rows
    )


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
    kind: Literal["lines", "scatter", "bars"]
    x: Axis
    y: Axis
    """Of bars, the values; their x axis is not drawn."""
    series: tuple[Series, ...]
    failures: tuple[FailureMark, ...] = ()
    references: tuple[ReferenceLine, ...] = ()
    frontier: tuple[tuple[float, float], ...] = ()
    """The corners of the best trade-offs in a scatter, by rising x."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Panels that are read together."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a report."""

    name: str
    title: str
    paragraphs: tuple[str, ...] = ()
    points: tuple[str, ...] = ()
    """Statements set as a list."""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    commands: tuple[str, ...] = ()
    """Shell commands, one a line."""


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
