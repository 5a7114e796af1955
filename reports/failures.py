"""`Results` -> what is missing: the cells that failed, with their reason, and those that were never run."""

from __future__ import annotations

from collections import Counter

from reports import formatting
from reports.document import Column, Row, Table, TableCell, number_cell, text_cell
from reports.results import Outcome, Results
from suite.records import Failure, Record
from suite.spec import Cell

FAILURE_TITLES = {
    "out_of_memory": "out of memory",
    "diverged": "diverged",
    "crashed": "crashed",
    "timed_out": "timed out",
    "error": "error",
}
"""How a kind of failure is called in a report."""

NOT_RUN = TableCell(text="not run", status="not_run")
"""Stands for a cell that was asked for and never tried."""


def failed_cell(failure: Failure) -> TableCell:
    """Stands where a measurement should be."""
    return TableCell(text=FAILURE_TITLES[failure.kind], note=failure.message, status="failed")


def failures_table(results: Results) -> Table | None:
    """Every cell at which an attempt failed, also where a later attempt succeeded; None if none did."""
    rows = [_failure_row(results, outcome) for outcome in results.outcomes if _failed_attempts(outcome)]
    if not rows:
        return None
    return Table(
        name="failures",
        title="Failures",
        caption="The latest failure at each cell and what came of it. Failed cells are left out of every mean.",
        row_title="Model",
        columns=(
            Column(title="Task", is_text=True),
            Column(title="Cell", is_text=True),
            Column(title="What happened", is_text=True),
            Column(title="Message", is_text=True),
            Column(title="Step"),
            Column(title="Attempts"),
        ),
        rows=tuple(sorted(rows, key=lambda row: (row.series, row.cells[0].text))),
    )


def not_run_table(results: Results) -> Table | None:
    """Cells that were asked for and have no record, counted by model and task; None if there are none."""
    missing = Counter(
        (results.model_of[outcome.cell.id], results.task_label_of[outcome.cell.id], outcome.cell.kind)
        for outcome in results.with_status("not_run")
    )
    if not missing:
        return None
    rows = [
        Row(
            header=model.label,
            series=model.index,
            cells=(text_cell(task), text_cell(kind), number_cell(number, formatting.exact_count)),
        )
        for (model, task, kind), number in sorted(missing.items(), key=lambda item: (item[0][0].index, item[0][1:]))
    ]
    return Table(
        name="not-run",
        title="Not run",
        caption="Cells that were asked for and have no record yet. Continuing the run measures them.",
        row_title="Model",
        columns=(Column(title="Task", is_text=True), Column(title="Kind", is_text=True), Column(title="Cells")),
        rows=tuple(rows),
    )


def describe_cell(cell: Cell) -> str:
    """What sets a cell apart from others of its model and task."""
    if cell.kind == "cost":
        return f"cost, {formatting.exact_count(cell.length)} tokens, batch {cell.batch_size}"
    return f"seed {cell.seed}, lr {formatting.learning_rate(cell.learning_rate)}"


def _failed_attempts(outcome: Outcome) -> list[Record]:
    return [record for record in outcome.attempts if record.failure is not None]


def _failure_row(results: Results, outcome: Outcome) -> Row:
    record = _failed_attempts(outcome)[-1]
    failure = record.failure
    assert failure is not None
    model = results.model_of[outcome.cell.id]
    mended = ("measured by another attempt",) if outcome.status == "measured" else ()
    return Row(
        header=model.label,
        series=model.index,
        cells=(
            text_cell(results.task_label_of[outcome.cell.id]),
            text_cell(describe_cell(outcome.cell)),
            text_cell(FAILURE_TITLES[failure.kind], *mended),
            text_cell(failure.message, note=failure.details or ""),
            number_cell(failure.step, formatting.exact_count),
            number_cell(len(outcome.attempts), formatting.exact_count),
        ),
    )
