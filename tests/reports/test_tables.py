"""What a reader finds in the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from reports import build_report, render
from reports.document import Report, Row, Table, TableCell
from reports.formatting import ABSENT
from suite.records import Accuracy, Evaluation, Failure, Record, SliceScore
from suite.spec import Grid, MatchedSize, Matching
from tests.reports.builders import (
    ENVIRONMENT,
    accuracy,
    accuracy_cell,
    cost,
    cost_cell,
    diverged,
    evaluation,
    out_of_memory,
    realistic_run,
    record,
    run_spec,
    timing,
)


def _table(report: Report, name: str) -> Table:
    (table,) = [table for table in report.tables if table.name == name]
    return table


def _names(report: Report) -> list[str]:
    return [table.name for table in report.tables]


def _row(table: Table, header: str, group: str | None = None) -> Row:
    (row,) = [row for row in table.rows if row.header == header and group in (None, row.group)]
    return row


def _cell(table: Table, header: str, column: str, group: str | None = None) -> TableCell:
    titles = [found.title for found in table.columns]
    return _row(table, header, group).cells[titles.index(column)]


def test_accuracy_is_shown_with_interval_solved_seeds_and_learning_rate() -> None:
    report = build_report(
        [record(accuracy_cell(seed=seed), accuracy(score)) for seed, score in enumerate((0.96, 0.99))]
    )
    cell = _cell(_table(report, "accuracy"), "mamba", "copying")
    assert cell.text == "97.5 %"
    assert cell.details == ("78.4–100.0", "2/2 solved", "lr 0.001")
    assert cell.value == pytest.approx(0.975)
    assert cell.high == 1.0


def _seeds(scores: Sequence[float], **changes: Any) -> list[Record]:
    return [record(accuracy_cell(seed=seed), accuracy(score, **changes)) for seed, score in enumerate(scores)]


def test_seeds_of_which_some_solve_the_task_are_counted_and_never_averaged() -> None:
    report = build_report(_seeds((0.99, 0.07, 1.0, 0.09, 0.98)))
    cell = _cell(_table(report, "accuracy"), "mamba", "copying")
    assert cell.text == "3/5 solved"
    assert cell.details == ("23–88 % of seeds", "others 7.0–9.0", "lr 0.001")
    assert (cell.value, cell.low) == (pytest.approx(0.6), pytest.approx(0.231, abs=1e-3))
    training = _row(_table(report, "training"), "mamba").cells
    assert [cell.text for cell in training[3:7]] == ["—", "—", "7.0–100.0", "3/5"]
    assert "mamba solved it with 3 of 5 seeds (95 % interval 23.1–88.2)" in report.sections[0].findings[0].statement


def test_at_each_length_seeds_are_counted_where_they_fall_apart() -> None:
    lengths = [{256: 1.0, 512: 1.0}, {256: 0.99, 512: 0.1}]
    report = build_report(
        [record(accuracy_cell(seed=seed), accuracy(1.0, by_length=found)) for seed, found in enumerate(lengths)]
    )
    row = _row(_table(report, "accuracy-by-length-0"), "mamba")
    assert [(cell.text, cell.details) for cell in row.cells] == [
        ("99.5 %", ("99.0–100.0",)),
        ("1/2 solved", ("10.0–100.0",)),
    ]


def test_seeds_that_miss_by_a_little_are_averaged() -> None:
    report = build_report(_seeds((0.99, 0.90, 0.80)))
    assert _cell(_table(report, "accuracy"), "mamba", "copying").text == "89.7 %"


def test_a_task_says_from_which_score_on_it_is_solved() -> None:
    report = build_report(_seeds((0.75, 0.85), solved_at=0.8))
    table = _table(report, "accuracy")
    assert "1/2 solved" in _cell(table, "mamba", "copying").details
    assert "Solved is 80.0 % or better." in table.caption
    text = build_report(_seeds((1.5, 1.9), metric="bits_per_byte", solved_at=1.6))
    assert "1/2 solved" in _cell(_table(text, "accuracy"), "mamba", "copying").details
    assert "1/2" in _cell(_table(text, "training"), "mamba", "Solved").text


def test_nothing_counts_as_solved_in_bits_per_byte_if_the_task_does_not_say_so() -> None:
    report = build_report(_seeds((0.5, 0.6), metric="bits_per_byte"))
    assert "2 seeds" in _cell(_table(report, "accuracy"), "mamba", "copying").details
    assert "Solved is" not in _table(report, "accuracy").caption


def test_steps_tokens_and_time_to_solve_are_medians_over_the_seeds_that_got_there() -> None:
    curves = [[0.1, 0.97, 1.0], [0.1, 0.2, 0.96], [0.1, 0.99, 1.0], [0.1, 0.1, 0.1]]
    report = build_report(
        [record(accuracy_cell(seed=seed), accuracy(curve[-1], validation=curve)) for seed, curve in enumerate(curves)]
    )
    row = [_cell(_table(report, "training"), "mamba", what) for what in ("Steps", "Tokens", "Time")]
    assert [cell.value for cell in row] == [100, 100 * 32 * 256, 3.0]


def test_all_trials_count_as_budget_and_rates_beyond_the_grid_are_named() -> None:
    cells = [accuracy_cell(seed=seed, learning_rate=rate) for seed in (0, 1) for rate in (1e-3, 1e-2, 1e-1)]
    records = [record(cell, accuracy(0.5, steps_run=50)) for cell in cells[:-1]] + [record(cells[-1], diverged())]
    grid = Grid(learning_rates=(1e-3, 1e-2), max_extensions=2)
    report = build_report(records, run_spec(cells).model_copy(update={"grids": {"copying": grid}}))
    table = _table(report, "tuning")
    assert [cell.text for cell in _row(table, "mamba").cells[:4]] == ["3", "0.1", "6", "370"]
    assert _cell(table, "mamba", "Tokens").value == (5 * 50 + 120) * 32 * 256


def test_a_matching_is_shown_with_what_is_left_of_it_and_run_again_by_the_command() -> None:
    cells = [accuracy_cell(model) for model in ("mamba", "gru")]
    matched = (
        MatchedSize(model="mamba", task="copying", width=64, size=65_472, target=65_472),
        MatchedSize(model="gru", task="copying", width=68, size=65_800, target=65_472),
    )
    spec = run_spec(cells).model_copy(update={"matching": Matching(policy="parameters"), "matched": matched})
    report = build_report([record(cell, accuracy(0.5)) for cell in cells], spec)
    assert [cell.text for cell in _row(_table(report, "matching"), "gru").cells] == [
        "68",
        "65,800",
        "65,472",
        "+0.50 %",
    ]
    assert "equally many non-embedding parameters" in report.sections[0].paragraphs[0]
    assert "--match parameters" in report.sections[-1].commands[-1]


def test_one_seed_has_no_interval() -> None:
    report = build_report([record(accuracy_cell(), accuracy(0.5))])
    cell = _cell(_table(report, "accuracy"), "mamba", "copying")
    assert cell.details == ("0/1 solved", "lr 0.001")
    assert cell.low is None


def test_a_seed_that_failed_is_told_beside_the_mean_of_the_others() -> None:
    report = build_report([record(accuracy_cell(seed=0), accuracy(0.9)), record(accuracy_cell(seed=1), diverged())])
    assert "1 of 2 seeds failed" in _cell(_table(report, "accuracy"), "mamba", "copying").details


def test_the_share_of_sequences_without_a_mistake_stands_beside_that_of_tokens() -> None:
    scores = {"copying": accuracy(0.5), "text": accuracy(2.0, metric="bits_per_byte")}
    report = build_report([record(accuracy_cell(task=task), score) for task, score in scores.items()])
    rows = {row.group: row for row in _table(report, "training").rows}
    (position,) = [i for i, column in enumerate(_table(report, "training").columns) if column.title == "Whole"]
    assert rows["copying"].cells[position].value == scores["copying"].test[0].sequence_accuracy
    assert rows["copying"].cells[position].value != scores["copying"].test[0].token_accuracy
    assert rows["text"].cells[position].status == "absent"


def test_a_seed_that_diverged_counts_as_one_that_has_not_solved_it() -> None:
    seeds = [accuracy_cell(seed=seed) for seed in range(3)]
    outcomes = (accuracy(1.0), diverged(), out_of_memory())
    report = build_report([record(cell, outcome) for cell, outcome in zip(seeds, outcomes, strict=True)])
    assert "1/2 solved" in _cell(_table(report, "accuracy"), "mamba", "copying").details
    assert _cell(_table(report, "training"), "mamba", "Solved").text == "1/2"
    assert "1 diverged" in report.sections[0].findings[0].statement


def test_a_model_that_always_failed_stands_with_its_reason() -> None:
    report = build_report([record(accuracy_cell("mamba"), diverged()), record(accuracy_cell("gru"), accuracy(0.5))])
    cell = _cell(_table(report, "accuracy"), "mamba", "copying")
    assert (cell.text, cell.status) == ("diverged", "failed")
    assert cell.note == "the loss became nan at step 120"


def test_a_model_that_was_never_run_is_shown_as_not_run() -> None:
    cells = [accuracy_cell("mamba"), accuracy_cell("gru")]
    report = build_report([record(cells[0], accuracy(0.5))], run_spec(cells))
    assert _cell(_table(report, "accuracy"), "gru", "copying").text == "not run"
    assert _cell(_table(report, "not-run"), "gru", "Cells").value == 1


def test_the_best_of_several_is_marked_and_a_single_one_is_not() -> None:
    several = build_report(
        [record(accuracy_cell(model), accuracy(score)) for model, score in (("a", 0.5), ("b", 0.7), ("c", 0.70001))]
    )
    marked = [row.header for row in _table(several, "accuracy").rows if row.cells[0].is_best]
    assert marked == ["b", "c"]
    single = build_report([record(accuracy_cell(), accuracy(0.5))])
    assert not any(row.cells[0].is_best for row in _table(single, "accuracy").rows)


def test_what_the_interval_of_the_best_does_not_set_apart_is_marked_with_it() -> None:
    scores = {"sure": (0.90, 0.91, 0.92), "unsure": (0.60, 0.95, 0.80), "worse": (0.10, 0.11, 0.12)}
    report = build_report(
        [
            record(accuracy_cell(model, seed=seed), accuracy(score))
            for model, of_seeds in scores.items()
            for seed, score in enumerate(of_seeds)
        ]
    )
    marked = [row.header for row in _table(report, "accuracy").rows if row.cells[0].is_best]
    assert marked == ["sure", "unsure"]


def test_where_nothing_is_set_apart_nothing_is_marked() -> None:
    report = build_report(
        [
            record(accuracy_cell(model, seed=seed), accuracy(score))
            for model, of_seeds in {"a": (0.1, 0.9), "b": (0.2, 0.7)}.items()
            for seed, score in enumerate(of_seeds)
        ]
    )
    assert not any(row.cells[0].is_best for row in _table(report, "accuracy").rows)


def test_least_bits_per_byte_are_the_best() -> None:
    report = build_report(
        [
            record(accuracy_cell(model), accuracy(score, metric="bits_per_byte", baseline=8.0))
            for model, score in (("a", 1.5), ("b", 1.9))
        ]
    )
    table = _table(report, "accuracy")
    assert [row.header for row in table.rows if row.cells[0].is_best] == ["a"]
    assert "lower is better" in table.columns[0].unit


def test_a_blind_model_is_the_last_row_and_never_the_best() -> None:
    report = build_report([record(accuracy_cell(model), accuracy(0.01, baseline=0.07)) for model in ("a", "b")])
    last = _table(report, "accuracy").rows[-1]
    assert last.header == "cannot see the sequence"
    assert last.cells[0].text == "7.0 %"
    assert not last.cells[0].is_best


def test_throughput_comes_from_the_median_and_carries_its_interval() -> None:
    samples = [0.9, 0.95, 1.0, 1.0, 1.0, 1.05, 1.1, 9.0]
    measured = cost(length=1000, batch_size=8, training=timing(1.0, 8000, samples=samples))
    report = build_report([record(cost_cell(length=1000), measured)])
    cell = _cell(_table(report, "throughput"), "mamba", "Training")
    assert cell.value == 8000.0
    assert cell.low is not None
    assert cell.high is not None
    assert cell.low <= 8000.0 <= cell.high < 8000 / 0.9 + 1


def test_latency_is_what_one_sequence_waits_for_a_token() -> None:
    report = build_report([record(cost_cell(), cost(generation=timing(0.002, 8)))])
    assert _cell(_table(report, "throughput"), "mamba", "Per token").value == pytest.approx(0.002, rel=0.01)


def test_slow_tokens_are_told_beside_the_median_one() -> None:
    samples = [0.001] * 18 + [0.1] * 2
    report = build_report([record(cost_cell(), cost(generation=timing(0.001, 8, samples=samples)))])
    table = _table(report, "throughput")
    assert _cell(table, "mamba", "Per token").text == "1.00 ms"
    assert _cell(table, "mamba", "Per token, 95 %").text == "100 ms"


def test_memory_shows_peaks_state_and_parameters() -> None:
    report = build_report([record(cost_cell(), cost(peak=4_404_019, state_bytes=512), num_parameters=74_112)])
    row = _row(_table(report, "memory"), "mamba")
    assert [cell.text for cell in row.cells] == ["74,112", "72,064", "4.2 MiB", "1 MiB", "512 B"]


def test_memory_that_cannot_be_measured_says_so() -> None:
    report = build_report([record(cost_cell(), cost(peak=None))])
    assert _cell(_table(report, "memory"), "mamba", "Peak memory, training").text == "not measurable"


def test_out_of_memory_stands_at_its_length() -> None:
    report = build_report(
        [
            record(cost_cell(length=256), cost(length=256)),
            record(cost_cell(length=1024), out_of_memory()),
        ]
    )
    cell = _cell(_table(report, "cost-by-length-0"), "mamba", "1,024", group="Training, tokens/s")
    assert (cell.text, cell.status) == ("out of memory", "failed")


def test_a_test_length_that_was_not_reached_gives_its_reason() -> None:
    report = build_report(
        [record(accuracy_cell(), accuracy(0.9, by_length={256: 0.9, 512: 0.8}, untested={"4096": "out of memory"}))]
    )
    table = _table(report, "accuracy-by-length-0")
    assert _cell(table, "mamba", "4,096").text == "not tested"
    assert "mamba at 4,096 tokens: out of memory" in table.caption


def test_learning_rates_that_were_tried_are_all_shown_and_the_selected_is_marked() -> None:
    report = build_report(
        [
            record(accuracy_cell(learning_rate=1e-3), accuracy(0.3, validation=0.4)),
            record(accuracy_cell(learning_rate=1e-2), accuracy(0.2, validation=0.6)),
            record(accuracy_cell(learning_rate=1e-1), diverged()),
        ]
    )
    row = _row(_table(report, "learning-rates"), "mamba")
    assert [cell.text for cell in row.cells] == ["40.0 %", "60.0 %", "diverged"]
    assert [cell.is_best for cell in row.cells] == [False, True, False]


def test_failures_keep_reason_step_and_number_of_attempts() -> None:
    cell = accuracy_cell(seed=3)
    report = build_report([record(cell, out_of_memory()), record(cell, diverged(7), started_at="2027-01-01")])
    row = _row(_table(report, "failures"), "mamba")
    assert [found.text for found in row.cells] == [
        "copying",
        "seed 3, lr 0.001",
        "diverged",
        "the loss became nan at step 7",
        "7",
        "2",
    ]


def test_a_failure_that_a_later_attempt_mended_is_still_shown() -> None:
    cell = accuracy_cell()
    crash = Failure(kind="crashed", message="signal 9")
    report = build_report([record(cell, crash), record(cell, accuracy(0.5), started_at="2027-01-01")])
    assert _cell(_table(report, "failures"), "mamba", "What happened").details == ("measured by another attempt",)
    assert _cell(_table(report, "accuracy"), "mamba", "copying").text == "50.0 %"


def test_a_run_without_failures_says_so() -> None:
    text = render(build_report([record(accuracy_cell(), accuracy(0.5))]), "text")
    assert "no attempt failed" in text


def test_equal_digests_mean_the_same_data() -> None:
    report = build_report([record(accuracy_cell(model), accuracy(0.5, data="one")) for model in ("a", "b")])
    assert _cell(_table(report, "data"), "copying", "Same data").text == "yes"


def test_a_differing_digest_is_named_with_model_and_seed_and_leads_to_a_caution() -> None:
    report = build_report(
        [record(accuracy_cell(model), accuracy(0.5, data="other" if model == "c" else "one")) for model in "abc"]
    )
    cell = _cell(_table(report, "data"), "copying", "Same data")
    assert cell.text == "no"
    assert cell.details == ("seed 0: c differ",)
    assert any(finding.subject == "Caution" for finding in report.sections[0].findings)


def test_digests_of_different_seeds_and_of_untested_lengths_are_not_compared() -> None:
    report = build_report(
        [
            record(accuracy_cell("a", seed=0), accuracy(0.5, data="of seed 0")),
            record(accuracy_cell("b", seed=1), accuracy(0.5, data="of seed 1")),
            record(accuracy_cell("c", seed=1), accuracy(0.5, data="cut short", untested={"4096": "out of memory"})),
        ]
    )
    assert _cell(_table(report, "data"), "copying", "Same data").text == "nothing to compare"


def test_what_really_ran_is_shown_by_model_and_operation() -> None:
    report = build_report(
        [
            record(accuracy_cell("mamba"), accuracy(0.5), implementations={"selective_scan": ["triton"]}),
            record(cost_cell("mamba"), cost(), implementations={"selective_scan": ["cuda"]}),
        ]
    )
    assert _cell(_table(report, "implementations"), "mamba", "selective_scan").text == "cuda + triton"


def test_timings_on_a_reference_implementation_are_not_left_to_be_ranked() -> None:
    report = build_report(
        [
            record(cost_cell("slow"), cost(), implementations={"selective_scan": ["reference"]}),
            record(cost_cell("fast"), cost(), implementations={"selective_scan": ["triton"]}),
        ]
    )
    (finding,) = [found for found in report.sections[0].findings if "reference" in found.subject]
    assert finding.statement.startswith("slow (selective_scan)")


def test_differing_machines_are_shown_with_their_number_of_cells() -> None:
    other = ENVIRONMENT.model_copy(update={"gpu": "NVIDIA A100", "git_dirty": True})
    report = build_report(
        [
            record(accuracy_cell(seed=0), accuracy(0.5)),
            record(accuracy_cell(seed=1), accuracy(0.5)),
            record(accuracy_cell(seed=2), accuracy(0.5), environment=other),
        ]
    )
    table = _table(report, "environment")
    assert _cell(table, "GPU", "Value").text == "NVIDIA H100 80GB HBM3 (2 cells) · NVIDIA A100 (1 cell)"
    assert "with uncommitted changes" in _cell(table, "Git commit", "Value").text


def test_parameters_that_do_not_decay_are_counted_and_named() -> None:
    table = _table(build_report([record(accuracy_cell(), accuracy(0.5))]), "optimizer")
    assert [row.cells[0].text for row in table.rows] == ["0.1", "0"]
    assert table.rows[1].cells[-1].text == "2 tensors"
    assert "layers.0.A_log" in table.rows[1].cells[-1].note


def test_loss_by_position_has_a_column_for_each_bucket() -> None:
    measured = accuracy(1.5, metric="bits_per_byte")
    losses = [(0, 0, 3.0), (1, 1, 2.5), (2, 3, 2.0)]
    tested = evaluation(1.5, metric="bits_per_byte", loss_by_position=losses)
    report = build_report([record(accuracy_cell(), measured.model_copy(update={"test": [tested]}))])
    table = _table(report, "loss-by-position-0")
    assert [column.title for column in table.columns] == ["0", "1", "2–3"]
    assert [cell.text for cell in table.rows[0].cells] == ["3.000", "2.500", "2.000"]


def test_accuracy_by_slice_has_a_line_for_each_test_length_and_model() -> None:
    def tested(length: int, *scores: tuple[str, float, float]) -> Evaluation:
        slices = [
            SliceScore(name=name, num_sequences=8, num_scored=16, token_accuracy=tokens, sequence_accuracy=sequences)
            for name, tokens, sequences in scores
        ]
        return evaluation(0.5, length=length, slices=slices)

    def measured(*test: Evaluation) -> Accuracy:
        return accuracy(0.5, by_length={each.length: 0.5 for each in test}).model_copy(update={"test": list(test)})

    report = build_report(
        [
            record(accuracy_cell("a", seed=0), measured(tested(64, ("4 pairs", 1.0, 1.0)))),
            record(accuracy_cell("a", seed=1), measured(tested(64, ("4 pairs", 0.5, 0.2)))),
            record(
                accuracy_cell("b", seed=0),
                measured(tested(64, ("4 pairs", 0.25, 0.25)), tested(128, ("8 pairs", 0.75, 0.5))),
            ),
        ]
    )
    table = _table(report, "accuracy-by-slice-0")
    assert [column.title for column in table.columns] == ["4 pairs", "8 pairs"]
    assert [(row.group, row.header) for row in table.rows] == [
        ("64 tokens", "a"),
        ("64 tokens", "b"),
        ("128 tokens", "b"),
    ]
    first, second, third = ([(cell.text, *cell.details) for cell in row.cells] for row in table.rows)
    assert first == [("75.0 %", "60.0 % whole"), (ABSENT,)]
    assert second == [("25.0 %",), (ABSENT,)]
    assert third == [(ABSENT,), ("75.0 %", "50.0 % whole")]


def test_a_task_without_slices_has_no_table_of_them() -> None:
    report = build_report([record(accuracy_cell(), accuracy(0.5))])
    assert all(section.name != "slices" for section in report.sections)


def test_the_command_that_runs_it_again_is_quoted_for_the_shell() -> None:
    cells = [accuracy_cell("mamba; rm -rf /", "copying", seed=seed) for seed in (0, 1)]
    report = build_report([record(cell, accuracy(0.5)) for cell in cells], run_spec(cells, preset="quick"))
    (section,) = [section for section in report.sections if section.name == "reproduce"]
    assert section.commands[-1] == (
        "suite run --models 'mamba; rm -rf /' --tasks copying --preset quick --seeds 0,1 --device cuda --precision fp32"
    )


def test_an_order_that_the_seeds_do_not_settle_is_called_so() -> None:
    def statement(*scores: tuple[str, list[float]]) -> str:
        report = build_report(
            [
                record(accuracy_cell(model, seed=seed), accuracy(score))
                for model, of_seeds in scores
                for seed, score in enumerate(of_seeds)
            ]
        )
        return report.sections[0].findings[0].statement

    assert "could be chance" in statement(("a", [0.2, 0.9]), ("b", [0.5, 0.5]))
    assert "more than the seeds explain" in statement(("a", [0.90, 0.91, 0.92]), ("b", [0.10, 0.12, 0.11]))
    assert "too few seeds" in statement(("a", [0.9]), ("b", [0.1]))


def test_a_gap_in_speed_is_told_with_its_interval_and_an_uneven_one_is_not_told() -> None:
    def statement(*of_models: list[float]) -> str:
        report = build_report(
            [
                record(cost_cell(model), cost(training=timing(1.0, 2048, samples=samples)))
                for model, samples in zip("ab", of_models, strict=False)
            ]
        )
        (finding,) = [found for found in report.sections[0].findings if found.subject.startswith("Training")]
        return finding.statement

    steady = [1.0 + 0.01 * position for position in range(10)]
    assert statement(steady, [2 * second for second in steady]).startswith(
        "a is fastest with 1.96k tokens/s, 2.00× the throughput of b, the slowest (95 % interval 1.9"
    )
    assert "timings too uneven" in statement(steady, list(reversed(steady)))
    assert "too few timings" in statement([1.0, 1.0], [9.0, 9.0])


def test_a_best_model_that_beats_nothing_is_called_so() -> None:
    report = build_report([record(accuracy_cell(model), accuracy(0.05, baseline=0.07)) for model in ("a", "b")])
    assert "None of them beats a model that cannot see the sequence (7.0 %)" in report.sections[0].findings[0].statement


def test_the_realistic_run_has_every_table() -> None:
    report = build_report(*realistic_run())
    assert set(_names(report)) == {
        "accuracy",
        "accuracy-by-length-0",
        "accuracy-by-length-1",
        "training",
        "tuning",
        "throughput",
        "memory",
        "cost-by-length-0",
        "cost-by-length-1",
        "cost-by-length-2",
        "loss-by-position-2",
        "learning-rates",
        "failures",
        "not-run",
        "implementations",
        "data",
        "environment",
        "tasks",
        "configurations",
        "optimizer",
    }
    for table in report.tables:
        assert all(len(row.cells) == len(table.columns) for row in table.rows), table.name


def test_a_report_can_be_narrowed_to_some_of_its_sections() -> None:
    report = build_report(*realistic_run()).only("accuracy", "summary")
    assert [section.name for section in report.sections] == ["summary", "accuracy"]
