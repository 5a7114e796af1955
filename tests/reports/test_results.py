"""Records come to the right results: selection, attempts, failures, names."""

from __future__ import annotations

import random

import pytest

from reports.gathering import gather
from reports.results import AccuracyEntry
from suite.errors import StoreError
from suite.records import Failure
from suite.spec import Budget, Choice, ShellSettings
from tests.reports.builders import (
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
)


def _only_entry(*records: object) -> AccuracyEntry:
    (entry,) = gather(records).accuracy  # type: ignore[arg-type]
    return entry


def test_the_learning_rate_is_selected_on_validation_and_not_on_the_test() -> None:
    entry = _only_entry(
        record(accuracy_cell(learning_rate=1e-3), accuracy(test=0.50, validation=0.90)),
        record(accuracy_cell(learning_rate=3e-3), accuracy(test=0.99, validation=0.80)),
    )
    assert entry.selected is not None
    assert entry.selected.learning_rate == 1e-3
    assert entry.mean == 0.50


def test_the_best_validation_counts_and_not_the_last() -> None:
    entry = _only_entry(
        record(accuracy_cell(learning_rate=1e-3), accuracy(test=0.6, validation=[0.2, 0.95, 0.1])),
        record(accuracy_cell(learning_rate=3e-3), accuracy(test=0.7, validation=[0.2, 0.5, 0.9])),
    )
    assert entry.selected is not None
    assert entry.selected.learning_rate == 1e-3


def test_selection_goes_by_the_mean_over_seeds() -> None:
    entry = _only_entry(
        record(accuracy_cell(learning_rate=1e-3, seed=0), accuracy(0.1, validation=1.0)),
        record(accuracy_cell(learning_rate=1e-3, seed=1), accuracy(0.1, validation=0.0)),
        record(accuracy_cell(learning_rate=3e-3, seed=0), accuracy(0.2, validation=0.6)),
        record(accuracy_cell(learning_rate=3e-3, seed=1), accuracy(0.4, validation=0.6)),
    )
    assert entry.selected is not None
    assert entry.selected.learning_rate == 3e-3
    assert entry.reported_scores == {0: 0.2, 1: 0.4}


def test_fewer_bits_per_byte_are_better() -> None:
    entry = _only_entry(
        record(accuracy_cell(learning_rate=1e-3), accuracy(2.0, metric="bits_per_byte")),
        record(accuracy_cell(learning_rate=3e-3), accuracy(1.5, metric="bits_per_byte")),
    )
    assert entry.mean == 1.5


def test_a_learning_rate_does_not_win_by_its_survivors() -> None:
    entry = _only_entry(
        record(accuracy_cell(learning_rate=1e-3, seed=0), accuracy(0.6)),
        record(accuracy_cell(learning_rate=1e-3, seed=1), accuracy(0.6)),
        record(accuracy_cell(learning_rate=1e-2, seed=0), accuracy(0.9)),
        record(accuracy_cell(learning_rate=1e-2, seed=1), diverged()),
    )
    assert entry.selected is not None
    assert entry.selected.learning_rate == 1e-3


def test_every_learning_rate_is_kept() -> None:
    entry = _only_entry(
        *(record(accuracy_cell(learning_rate=rate), accuracy(0.5)) for rate in (1e-2, 1e-4)),
        record(accuracy_cell(learning_rate=1e-3), diverged()),
    )
    assert [trial.learning_rate for trial in entry.trials] == [1e-4, 1e-3, 1e-2]
    assert [trial.num_failed for trial in entry.trials] == [0, 1, 0]


def test_the_edge_of_a_grid_is_told_from_its_inside() -> None:
    def entry(*scores: float) -> AccuracyEntry:
        rates = (1e-4, 1e-3, 1e-2)
        return _only_entry(
            *(
                record(accuracy_cell(learning_rate=rate), accuracy(score))
                for rate, score in zip(rates, scores, strict=True)
            )
        )

    assert entry(0.1, 0.2, 0.3).is_at_edge_of_grid
    assert entry(0.3, 0.2, 0.1).is_at_edge_of_grid
    assert not entry(0.1, 0.3, 0.2).is_at_edge_of_grid


def test_the_latest_measurement_wins_over_earlier_and_over_later_failures() -> None:
    cell = accuracy_cell()
    attempts = [
        record(cell, out_of_memory(), started_at="2026-01-01T00:00:00+00:00"),
        record(cell, accuracy(0.3), started_at="2026-01-02T00:00:00+00:00"),
        record(cell, accuracy(0.6), started_at="2026-01-03T00:00:00+00:00"),
        record(cell, diverged(), started_at="2026-01-04T00:00:00+00:00"),
    ]
    random.Random(1).shuffle(attempts)
    (outcome,) = gather(attempts).outcomes
    assert outcome.status == "measured"
    assert outcome.accuracy is not None
    assert outcome.accuracy.test[0].token_accuracy == 0.6
    assert len(outcome.attempts) == 4


def test_a_cell_that_always_failed_keeps_its_latest_reason() -> None:
    cell = cost_cell()
    (outcome,) = gather(
        [
            record(cell, diverged(), started_at="2026-01-01T00:00:00+00:00"),
            record(cell, out_of_memory(), started_at="2026-01-02T00:00:00+00:00"),
        ]
    ).outcomes
    assert outcome.status == "failed"
    assert outcome.failure is not None
    assert outcome.failure.kind == "out_of_memory"


def test_a_record_without_the_measurement_of_its_kind_is_a_failure() -> None:
    (outcome,) = gather([record(accuracy_cell(), cost())]).outcomes
    assert outcome.status == "failed"
    assert outcome.failure == Failure(kind="error", message="the record holds no measurement of its cell")


def test_cells_that_were_asked_for_and_have_no_record_are_not_run() -> None:
    cells = [accuracy_cell(seed=0), accuracy_cell(seed=1), cost_cell()]
    results = gather([record(cells[0], accuracy(0.5))], run_spec(cells))
    assert [outcome.status for outcome in results.outcomes].count("not_run") == 2
    assert results.accuracy[0].trials[0].num_not_run == 1


def test_accuracy_and_cost_of_one_configuration_are_joined_and_of_another_are_not() -> None:
    same, other = Choice(name="mamba", settings={"state_size": 16}), Choice(name="mamba", settings={"state_size": 64})
    results = gather(
        [record(accuracy_cell(same), accuracy(0.5)), record(cost_cell(same), cost()), record(cost_cell(other), cost())]
    )
    (joined,) = results.joined(results.accuracy[0])
    assert joined.configuration_id == accuracy_cell(same).configuration_id


def test_namesakes_are_named_apart_by_what_differs() -> None:
    small, large = (Choice(name="mamba", settings={"state_size": size, "expand": 2}) for size in (16, 64))
    results = gather([record(accuracy_cell(choice), accuracy(0.5)) for choice in (small, large, "gru")])
    assert [model.label for model in results.models] == ["gru", "mamba (state_size=16)", "mamba (state_size=64)"]


def test_precision_is_named_where_models_differ_in_it() -> None:
    results = gather(
        [
            record(accuracy_cell("gru", precision="fp32"), accuracy(0.5)),
            record(accuracy_cell("mamba", precision="bf16"), accuracy(0.5)),
        ]
    )
    assert [model.label for model in results.models] == ["gru (precision=fp32)", "mamba (precision=bf16)"]


def test_a_model_in_two_shells_on_one_task_is_two_rows() -> None:
    cells = [accuracy_cell(shell=ShellSettings(width=width)) for width in (64, 128)]
    results = gather([record(cell, accuracy(0.5)) for cell in cells])
    assert [model.label for model in results.models] == ["mamba (width=128)", "mamba (width=64)"]


def test_models_whose_widths_were_matched_stay_one_row_each() -> None:
    cells = [
        accuracy_cell("gru", "copying", shell=ShellSettings(width=80)),
        accuracy_cell("gru", "recall", shell=ShellSettings(width=96)),
        accuracy_cell("mamba", "copying", shell=ShellSettings(width=64)),
    ]
    results = gather([record(cell, accuracy(0.5)) for cell in cells])
    assert [model.label for model in results.models] == ["gru", "mamba"]


def test_two_budgets_of_a_task_are_two_columns_and_never_mixed() -> None:
    cells = [accuracy_cell(budget=Budget(steps=steps)) for steps in (100, 400)]
    results = gather([record(cell, accuracy(score)) for cell, score in zip(cells, (0.2, 0.8), strict=True)])
    assert [task.label for task in results.tasks] == ["copying (steps=100)", "copying (steps=400)"]
    assert [entry.mean for entry in results.accuracy] == [0.2, 0.8]


def test_models_and_tasks_come_in_the_order_in_which_they_were_asked_for() -> None:
    cells = [accuracy_cell(model, task) for task in ("recall", "copying") for model in ("s4", "gru", "mamba")]
    results = gather([record(cell, accuracy(0.5)) for cell in cells], run_spec(cells))
    assert [model.label for model in results.models] == ["s4", "gru", "mamba"]
    assert [task.label for task in results.tasks] == ["recall", "copying"]


def test_the_order_of_the_records_does_not_matter() -> None:
    records, spec = realistic_run()
    shuffled = random.Random(2).sample(records, len(records))
    assert gather(records, spec) == gather(shuffled, spec)


def test_the_score_at_the_trained_length_is_shown_first() -> None:
    entry = _only_entry(record(accuracy_cell(), accuracy(0.9, by_length={64: 0.99, 256: 0.9, 1024: 0.2})))
    assert entry.reported_length == 256
    assert entry.mean == 0.9


def test_scores_that_are_no_numbers_are_left_out() -> None:
    spoilt = accuracy(0.9).model_copy(
        update={"test": [evaluation(0.9).model_copy(update={"token_accuracy": float("nan")})]}
    )
    entry = _only_entry(record(accuracy_cell(seed=0), spoilt), record(accuracy_cell(seed=1), accuracy(0.5)))
    assert entry.reported_scores == {1: 0.5}


def test_the_reference_length_is_the_longest_that_most_models_finished() -> None:
    results = gather(
        [record(cost_cell(model, length=length), cost(length=length)) for model in ("a", "b") for length in (256, 1024)]
        + [record(cost_cell("a", length=4096), cost(length=4096)), record(cost_cell("b", length=4096), out_of_memory())]
    )
    assert results.reference_length(results.cost_settings[0]) == 1024


def test_an_unknown_metric_is_refused_by_name() -> None:
    with pytest.raises(StoreError, match="'mystery'"):
        gather([record(accuracy_cell(), accuracy(0.5).model_copy(update={"metric": "mystery"}))])
