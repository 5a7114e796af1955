"""Two result folders side by side."""

from __future__ import annotations

import random

from reports import compare, render
from reports.document import Report, Table, TableCell
from suite.records import Record
from suite.spec import Choice
from tests.reports.builders import (
    ENVIRONMENT,
    accuracy,
    accuracy_cell,
    cost,
    cost_cell,
    out_of_memory,
    realistic_run,
    record,
    timing,
)


def _table(report: Report, name: str) -> Table:
    (table,) = [table for table in report.tables if table.name == name]
    return table


def _cells(table: Table, position: int = 0) -> dict[str, TableCell]:
    titles = [column.title for column in table.columns]
    return dict(zip(titles, table.rows[position].cells, strict=True))


def _timed(seconds: float, *, seed: int, num_samples: int = 20) -> Record:
    draw = random.Random(seed)
    samples = [seconds * (1 + abs(draw.gauss(0, 0.01))) for _ in range(num_samples)]
    timed = timing(seconds, 2048, samples=samples)
    return record(cost_cell(), cost(training=timed, inference=timed, generation=timed))


def test_a_slowdown_of_a_fifth_is_called_slower() -> None:
    cells = _cells(_table(compare([_timed(1.0, seed=1)], [_timed(1.2, seed=2)]), "throughput"))
    assert cells["Verdict"].text == "slower"
    assert cells["Ratio"].text.startswith("0.83")
    assert cells["Ratio"].low is not None


def test_a_speedup_is_called_faster() -> None:
    cells = _cells(_table(compare([_timed(1.0, seed=1)], [_timed(0.5, seed=2)]), "throughput"))
    assert cells["Verdict"].text == "faster"


def test_the_same_speed_is_no_difference() -> None:
    table = _table(compare([_timed(1.0, seed=1)], [_timed(1.0, seed=2)]), "throughput")
    assert [row.cells[-1].text for row in table.rows] == ["no difference shown"] * 3


def test_a_change_smaller_than_machines_drift_is_no_difference() -> None:
    cells = _cells(_table(compare([_timed(1.0, seed=1)], [_timed(1.02, seed=1)]), "throughput"))
    assert cells["Verdict"].text == "no difference shown"


def test_too_few_samples_give_no_verdict() -> None:
    a, b = _timed(1.0, seed=1, num_samples=3), _timed(9.0, seed=2, num_samples=3)
    assert _cells(_table(compare([a], [b]), "throughput"))["Verdict"].text == "too few samples"


def test_the_same_records_are_identical() -> None:
    records = [found for found in realistic_run()[0] if found.cell.task.name == "long_range_lm"]
    report = compare(records, records)
    accuracy_verdicts = {row.cells[-1].text for row in _table(report, "accuracy").rows}
    throughput_verdicts = {row.cells[-1].text for row in _table(report, "throughput").rows}
    assert accuracy_verdicts == {"identical"}
    assert throughput_verdicts == {"no difference shown"}


def _with_scores(*scores: float, metric: str = "token_accuracy") -> list[Record]:
    return [record(accuracy_cell(seed=seed), accuracy(score, metric=metric)) for seed, score in enumerate(scores)]


def test_an_accuracy_that_rose_on_every_seed_is_better() -> None:
    cells = _cells(_table(compare(_with_scores(0.50, 0.60, 0.55), _with_scores(0.60, 0.71, 0.66)), "accuracy"))
    assert cells["Verdict"].text == "better"
    assert cells["Difference"].text == "+10.7 points"
    assert cells["Difference"].details[-1] == "3 shared seeds"


def test_fewer_bits_per_byte_are_better() -> None:
    a, b = (_with_scores(*scores, metric="bits_per_byte") for scores in ((2.0, 2.1, 2.0), (1.5, 1.61, 1.49)))
    assert _cells(_table(compare(a, b), "accuracy"))["Verdict"].text == "better"
    assert _cells(_table(compare(b, a), "accuracy"))["Verdict"].text == "worse"


def test_what_the_seeds_do_not_settle_is_no_difference() -> None:
    cells = _cells(_table(compare(_with_scores(0.2, 0.9, 0.5), _with_scores(0.9, 0.3, 0.6)), "accuracy"))
    assert cells["Verdict"].text == "no difference shown"


def test_one_seed_gives_no_verdict() -> None:
    cells = _cells(_table(compare(_with_scores(0.2), _with_scores(0.9)), "accuracy"))
    assert cells["Verdict"].text == "too few seeds"


def test_cells_of_one_side_and_new_failures_are_listed_and_have_no_verdict() -> None:
    both = cost_cell("both")
    report = compare(
        [record(both, cost()), record(cost_cell("only a"), cost())],
        [record(both, out_of_memory()), record(cost_cell("only b"), cost())],
    )
    table = _table(report, "unmatched")
    found = {row.header: tuple(cell.text for cell in row.cells) for row in table.rows}
    assert found == {
        "both": ("cost", "measured", "out of memory", "1"),
        "only a": ("cost", "measured", "not there", "1"),
        "only b": ("cost", "not there", "measured", "1"),
    }
    assert "throughput" not in [found.name for found in report.tables]


def test_a_draft_of_a_single_file_plugin_is_compared_with_its_next() -> None:
    drafts = [Choice(name="mine", source_sha256=digit * 64) for digit in "ab"]
    a, b = ([record(accuracy_cell(draft), accuracy(0.5))] for draft in drafts)
    assert len(_table(compare(a, b), "accuracy").rows) == 1


def test_another_version_of_a_plugin_is_not_compared() -> None:
    versions = [Choice(name="mine", version=version) for version in (1, 2)]
    a, b = ([record(accuracy_cell(version), accuracy(0.5))] for version in versions)
    report = compare(a, b)
    assert "accuracy" not in [table.name for table in report.tables]
    assert len(_table(report, "unmatched").rows) == 2


def test_differing_environments_are_shown_and_warned_of() -> None:
    other = ENVIRONMENT.model_copy(update={"gpu": "NVIDIA A100", "versions": {**ENVIRONMENT.versions, "torch": "2.12"}})
    report = compare(
        [record(accuracy_cell(), accuracy(0.5))], [record(accuracy_cell(), accuracy(0.5), environment=other)]
    )
    rows = {row.header: [cell.text for cell in row.cells] for row in _table(report, "environment").rows}
    assert rows == {"GPU": ["NVIDIA H100 80GB HBM3", "NVIDIA A100"], "torch": ["2.11.0+cu130", "2.12"]}
    assert "GPU and torch" in render(report, "text")


def test_the_same_environment_is_not_mentioned() -> None:
    records = [record(accuracy_cell(), accuracy(0.5))]
    assert "environment" not in [table.name for table in compare(records, records).tables]
