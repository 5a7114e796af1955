"""Static figures for a paper."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from reports import build_report, save_figures
from reports.document import Report
from tests.reports.builders import accuracy, accuracy_cell, cost, cost_cell, out_of_memory, record


@pytest.fixture(scope="module")
def report() -> Report:
    return build_report(
        [
            record(accuracy_cell(model), accuracy(0.9, validation=[0.2, 0.9], by_length={256: 0.9, 512: 0.5}))
            for model in ("_mamba", "$x$ & \\frac{1}{0}")
        ]
        + [record(cost_cell("_mamba", length=length), cost(length=length)) for length in (256, 512)]
        + [record(cost_cell("_mamba", length=1024), out_of_memory())]
    )


def test_every_chart_is_written_in_every_format(report: Report, tmp_path: Path) -> None:
    written = save_figures(report, tmp_path / "figures")
    assert {path.name for path in written} == {
        f"{chart.name}.{suffix}" for chart in report.charts for suffix in ("svg", "pdf")
    }
    assert all(path.read_bytes()[:5] in (b"%PDF-", b"<?xml") for path in written)


def test_names_stand_in_a_figure_as_they_are(report: Report, tmp_path: Path) -> None:
    save_figures(report, tmp_path, ["svg"])
    drawn = (tmp_path / "learning-curves.svg").read_text(encoding="utf-8")
    assert "_mamba" in drawn
    assert "$x$ &amp; \\frac{1}{0}" in drawn


def test_the_same_report_gives_the_same_bytes(report: Report, tmp_path: Path) -> None:
    first, second = (save_figures(report.only("length"), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_report_without_charts_gives_no_figures(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert save_figures(build_report([]), tmp_path) == []
