"""What a reader of a reproduction finds: paper, ours, verdict, and what was reduced."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from reports import build_report
from reports.document import Report, Row, Table
from suite.records import Record
from suite.spec import Budget, Cell, Comparison, Difference, Ordering, Reproduction, RunSpec, Tolerance
from tests.reports.builders import accuracy, accuracy_cell, diverged, out_of_memory, record, run_spec

SOLVER = [accuracy_cell("mamba", seed=seed) for seed in (0, 1)]
OTHER = [accuracy_cell("s4", seed=seed) for seed in (0, 1)]


def _entry(
    row: str, cells: list[Cell], column: str, published: Any, length: int | None, *, is_reduced: bool = False
) -> Comparison:
    """A published number; one without a length is not tried."""
    ids = tuple(cell.id for cell in cells) if length is not None else ()
    return Comparison(row=row, column=column, published=published, cells=ids, test_length=length, is_reduced=is_reduced)


def _spec(*, is_reduced: bool = False, **changes: Any) -> RunSpec:
    """Two rows tested at 256 and at 512 tokens; a third length is not tried."""
    entry = functools.partial(_entry, is_reduced=is_reduced)
    values: dict[str, Any] = {
        "experiment": "mamba/table9",
        "title": "Copying at two lengths",
        "source": "nobody 2026",
        "claim": "One of them solves it.",
        "choices": ("All of it.",),
        "columns_title": "Length",
        "tolerance": Tolerance(),
        "comparisons": (
            entry("the solver", SOLVER, "2^8", 100.0, 256),
            entry("the solver", SOLVER, "2^9", 100.0, 512),
            entry("the solver", SOLVER, "2^10", 100.0, None),
            entry("the other", OTHER, "2^8", 57.0, 256),
            entry("the other", OTHER, "2^9", "out of memory", 512),
            entry("the other", OTHER, "2^10", 7.0, None),
        ),
        "orderings": (Ordering(better="the solver", worse="the other", columns=("2^8", "2^10")),),
    }
    spec = run_spec([*SOLVER, *OTHER])
    return spec.model_copy(update={"reproduction": Reproduction(**values | changes)})


def _measured(cells: list[Cell], at_256: float, at_512: float) -> list[Record]:
    return [record(cell, accuracy(at_256, by_length={256: at_256, 512: at_512})) for cell in cells]


def _table(report: Report, name: str) -> Table:
    (table,) = [table for table in report.tables if table.name == name]
    return table


def _verdicts(report: Report) -> dict[tuple[str, str], str]:
    return {(row.group, row.header): row.cells[-1].text for row in _table(report, "verdicts").rows}


def _cells(row: Row) -> list[str]:
    return [cell.text for cell in row.cells]


def test_a_number_of_ours_stands_beside_the_papers_with_interval_and_verdict() -> None:
    report = build_report([*_measured(SOLVER, 1.0, 0.6), *_measured(OTHER, 0.57, 0.1)], _spec())
    assert [section.name for section in report.sections][:2] == ["reproduction", "choices"]
    first = _table(report, "verdicts").rows[0]
    assert _cells(first) == ["100.0 %", "97.0–100.0", "100.0 %", "2/2", "reproduced"]
    assert (first.cells[2].low, first.cells[2].high) == (pytest.approx(0.9926, abs=1e-4), 1.0)
    assert _verdicts(report) == {
        ("the solver", "2^8"): "reproduced",
        ("the solver", "2^9"): "differs",
        ("the other", "2^8"): "reproduced",
        ("the other", "2^9"): "not compared",
        ("Order", "the solver, the other: 2^8"): "reproduced",
    }


def test_the_table_looks_like_the_papers() -> None:
    report = build_report([*_measured(SOLVER, 1.0, 0.6), *_measured(OTHER, 0.57, 0.1)], _spec())
    matrix = _table(report, "verdict-matrix")
    assert [column.title for column in matrix.columns] == ["2^8", "2^9"], "columns that nobody tries are left out"
    assert {row.header: _cells(row) for row in matrix.rows} == {
        "the solver": ["✓ 100.0", "✗ 60.0"],
        "the other": ["✓ 57.0", "10.0"],
    }
    assert report.models == ("the solver", "the other"), "the models are called as in the paper"


def test_what_the_budget_leaves_out_is_not_taken_for_what_is_still_to_come() -> None:
    comparisons = (
        Comparison(row="the solver", column="2^8", published=100.0, cells=(SOLVER[0].id,), test_length=256),
        Comparison(row="the other", column="2^8", published="out of memory", cells=()),
    )
    verdicts = _verdicts(build_report([], _spec(comparisons=comparisons, orderings=())))
    assert verdicts == {("", "the solver"): "not run", ("", "the other"): "not tried"}


def test_every_row_is_summed_up_and_all_of_them_first() -> None:
    report = build_report([*_measured(SOLVER, 1.0, 0.6), *_measured(OTHER, 0.57, 0.1)], _spec())
    said = [f"{finding.subject}: {finding.statement}" for finding in report.sections[0].findings]
    assert said == [
        "In all: 3 reproduced, 1 differs, 1 not compared.",
        "the solver: 1 reproduced, 1 differs.",
        "the other: 1 reproduced, 1 not compared.",
        "Order: 1 reproduced.",
    ]


def test_a_rate_that_validation_did_not_select_is_named_where_it_would_have_reproduced_the_number() -> None:
    cells = [accuracy_cell("mamba", learning_rate=rate) for rate in (1e-3, 2e-4)]
    lengths = {"2^8": 256, "2^9": 512, "2^10": 1024}
    comparisons = tuple(_entry("the solver", cells, column, 100.0, length) for column, length in lengths.items())
    reproduction = _spec(comparisons=comparisons, orderings=()).reproduction
    measured = [
        record(cells[0], accuracy(1.0, validation=1.0, by_length={256: 1.0, 512: 0.5, 1024: 0.4})),
        record(cells[1], accuracy(1.0, validation=0.99, by_length={256: 1.0, 512: 1.0, 1024: 0.3})),
    ]
    report = build_report(measured, run_spec(cells).model_copy(update={"reproduction": reproduction}))
    cells_of = {row.header: row.cells[-1] for row in _table(report, "verdicts").rows}
    assert {column: (cell.text, *cell.details) for column, cell in cells_of.items()} == {
        "2^8": ("reproduced",),
        "2^9": ("differs", "reproduced at lr 0.0002"),
        "2^10": ("differs",),
    }
    assert any("1 more would be reproduced" in finding.statement for finding in report.sections[0].findings)


def test_a_run_that_has_just_begun_says_what_it_knows() -> None:
    report = build_report(_measured(SOLVER[:1], 1.0, 1.0), _spec())
    assert _verdicts(report)["the solver", "2^8"] == "reproduced"
    assert _verdicts(report)["the other", "2^8"] == "not run"
    assert any("3 cells of 4 have not been run yet" in text for text in report.sections[0].paragraphs)
    assert set(_verdicts(build_report([], _spec())).values()) == {"not run"}


def test_what_failed_is_no_verdict_unless_the_paper_failed_alike() -> None:
    failed = [record(cell, out_of_memory()) for cell in OTHER] + [record(cell, diverged()) for cell in SOLVER]
    assert _verdicts(build_report(failed, _spec())) == {
        ("the solver", "2^8"): "no result",
        ("the solver", "2^9"): "no result",
        ("the other", "2^8"): "no result",
        ("the other", "2^9"): "reproduced",
        ("Order", "the solver, the other: 2^8"): "no result",
    }


def test_a_length_that_ran_out_of_memory_is_a_result_at_that_length_alone() -> None:
    measured = [
        record(cell, accuracy(0.57, by_length={256: 0.57}, untested={"512": "out of memory"})) for cell in OTHER
    ]
    verdicts = _verdicts(build_report(measured, _spec()))
    assert (verdicts["the other", "2^8"], verdicts["the other", "2^9"]) == ("reproduced", "reproduced")


def test_a_reduced_run_says_so_and_judges_who_solves_it() -> None:
    steps = Difference(setting="budget.steps", published="400,000", here="1,000", factor="÷ 400")
    report = build_report(
        [*_measured(SOLVER, 0.96, 0.6), *_measured(OTHER, 0.2, 0.1)], _spec(is_reduced=True, differences=(steps,))
    )
    wanted_and_verdict = {
        (row.group, row.header): (row.cells[1].text, row.cells[-1].text, row.cells[-1].details)
        for row in _table(report, "verdicts").rows
    }
    assert wanted_and_verdict["the solver", "2^8"] == ("≥ 95 %", "reproduced", ("reduced",))
    assert wanted_and_verdict["the other", "2^8"] == ("< 95 %", "reproduced", ("reduced",))
    assert _cells(_table(report, "differences").rows[0]) == ["400,000", "1,000", "÷ 400"]
    assert any("a reduced size" in text for text in report.sections[0].paragraphs)


def test_a_reduced_run_in_which_nothing_learns_reproduces_nothing() -> None:
    report = build_report([*_measured(SOLVER, 0.1, 0.1), *_measured(OTHER, 0.1, 0.1)], _spec(is_reduced=True))
    verdicts = {(row.group, row.header): row.cells[-1] for row in _table(report, "verdicts").rows}
    assert verdicts["the solver", "2^8"].text == "differs"
    assert verdicts["the other", "2^8"].text == "inconclusive"
    assert verdicts["the other", "2^8"].details == ("reduced", "no row solves it here")


def test_a_verdict_says_what_it_does_without() -> None:
    report = build_report([*_measured(SOLVER[:1], 1.0, 1.0), record(SOLVER[1], diverged())], _spec())
    first = _table(report, "verdicts").rows[0]
    assert first.cells[3].text == "1/2"
    assert first.cells[-1].details == ("1 of 2 seeds failed",)
    report = build_report(_measured(SOLVER[:1], 1.0, 1.0), _spec())
    assert _table(report, "verdicts").rows[0].cells[-1].details == ("1 of 2 cells not run yet",)


def test_seeds_far_apart_are_counted_and_not_averaged() -> None:
    report = build_report([*_measured(SOLVER[:1], 1.0, 1.0), *_measured(SOLVER[1:], 0.07, 0.07)], _spec())
    ours = _table(report, "verdicts").rows[0].cells[2]
    assert (ours.text, ours.details) == ("1/2 solved", ("7.0–100.0",))
    assert _table(report, "verdict-matrix").rows[0].cells[0].text == "~ 1/2 solved"


def test_rows_with_budgets_of_their_own_stand_in_one_table() -> None:
    """A published table gives each row its own number of steps; apart from it they would be different tasks."""
    long, short = accuracy_cell("mamba", budget=Budget(steps=800)), accuracy_cell("s4", budget=Budget(steps=200))
    comparisons = tuple(
        Comparison(row=row, column=column, published=100.0, cells=(cell.id,), test_length=length)
        for row, cell in (("the solver", long), ("the other", short))
        for column, length in (("2^8", 256), ("2^9", 512))
    )
    spec = _spec(comparisons=comparisons, orderings=()).model_copy(update={"cells": (long, short)})
    records = [record(cell, accuracy(0.9)) for cell in (long, short)]
    report = build_report(records, spec)
    assert [column.title for column in _table(report, "accuracy").columns] == ["copying"]
    (tasks,) = _table(report, "tasks").rows
    assert "steps = 800 / 200" in tasks.cells[1].text
    assert len(_table(build_report(records), "accuracy").columns) == 2


def test_it_is_run_again_by_its_own_command() -> None:
    without = Difference(setting="rows", published="6", here="2, without 4")
    (*_, commands) = [section.commands for section in build_report([], _spec(differences=(without,))).sections]
    assert commands == (
        "suite reproduce mamba/table9 --rows 'the solver,the other' --preset quick --seeds 0,1 --device cuda "
        "--precision fp32",
    )
