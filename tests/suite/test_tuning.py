"""The grid is extended where its best learning rate is at an edge, for as long as the records ask for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from suite.records import Record
from suite.spec import Budget, Cell, Grid, RunSpec
from suite.tuning import extended
from tests.reports.builders import accuracy, accuracy_cell, cost, cost_cell, diverged, record, run_spec

GRID = (1e-3, 1e-2, 1e-1)


def asked(
    *models: str, grid: tuple[float, ...] = GRID, max_extensions: int = 2, seeds: tuple[int, ...] = (0, 1)
) -> RunSpec:
    cells = [accuracy_cell(model, seed=seed, learning_rate=rate) for model in models for seed in seeds for rate in grid]
    grids = {"copying": Grid(learning_rates=grid, max_extensions=max_extensions)}
    return run_spec(cells).model_copy(update={"grids": grids})


def run(spec: RunSpec, scores: Mapping[float, float | None], **changes: Any) -> list[Record]:
    """A record of every cell: the score that its learning rate gives, or divergence."""

    def outcome(cell: Cell) -> Any:
        score = scores[cell.learning_rate or 0.0]
        return diverged() if score is None else accuracy(score, **changes)

    return [record(cell, outcome(cell)) for cell in spec.cells]


def rates(spec: RunSpec) -> list[float]:
    return sorted({cell.learning_rate or 0.0 for cell in spec.cells})


@pytest.mark.parametrize(
    ("scores", "further"),
    [
        ({1e-3: 0.3, 1e-2: 0.5, 1e-1: 0.4}, []),
        ({1e-3: 0.3, 1e-2: 0.4, 1e-1: 0.5}, [1.0]),
        ({1e-3: 0.5, 1e-2: 0.4, 1e-1: 0.3}, [1e-4]),
        ({1e-3: 0.5, 1e-2: None, 1e-1: None}, [1e-4]),
        ({1e-3: 0.3, 1e-2: 0.4, 1e-1: None}, []),
        # The first of equals; no mistakes left to mend; nothing measured at all.
        ({1e-3: 0.5, 1e-2: 0.5, 1e-1: 0.4}, []),
        ({1e-3: 0.5, 1e-2: 0.9, 1e-1: 1.0}, []),
        ({1e-3: None, 1e-2: None, 1e-1: None}, []),
    ],
)
def test_the_next_rate_lies_past_the_edge_that_is_best(
    scores: Mapping[float, float | None], further: list[float]
) -> None:
    spec = asked("mamba")
    after = extended(spec, run(spec, scores))
    assert sorted(set(rates(after)) - set(GRID)) == further
    assert len(after.cells) == len(spec.cells) + 2 * len(further)


def test_less_bits_per_byte_are_better() -> None:
    spec = asked("mamba")
    records = run(spec, {1e-3: 3.0, 1e-2: 2.0, 1e-1: 1.5}, metric="bits_per_byte")
    assert max(rates(extended(spec, records))) == 1.0


def test_nothing_is_asked_before_all_trials_of_the_model_are_done() -> None:
    spec = asked("mamba", "gru")
    of_mamba = [each for each in run(spec, {1e-3: 0.3, 1e-2: 0.4, 1e-1: 0.5}) if each.cell.model.name == "mamba"]
    assert extended(spec, of_mamba[1:]) == spec
    (further,) = {cell.model.name for cell in extended(spec, of_mamba).cells if cell.learning_rate == 1.0}
    assert further == "mamba"


def test_a_trial_that_was_stopped_at_its_goal_is_good_enough() -> None:
    spec = asked("mamba")
    scores = {1e-3: 0.3, 1e-2: 0.4, 1e-1: 0.999}
    assert extended(spec, run(spec, scores, stopped_early=True)) == spec


def test_extensions_end_at_the_limit_or_where_a_rate_inside_wins() -> None:
    def rounds(scores: Mapping[float, float | None]) -> list[float]:
        spec = asked("mamba")
        while (after := extended(spec, run(spec, scores))) != spec:
            spec = after
        return rates(spec)

    assert rounds({1e-3: 0.1, 1e-2: 0.2, 1e-1: 0.3, 1.0: 0.4, 10.0: 0.5}) == [*GRID, 1.0, 10.0]
    assert rounds({1e-3: 0.1, 1e-2: 0.2, 1e-1: 0.3, 1.0: 0.2}) == [*GRID, 1.0]


def test_the_same_records_lead_to_the_same_cells_from_the_start() -> None:
    spec = asked("mamba")
    scores = {1e-3: 0.1, 1e-2: 0.2, 1e-1: 0.3, 1.0: 0.4, 10.0: 0.5}
    once = extended(spec, run(spec, scores))
    twice = extended(once, run(once, scores))
    assert extended(spec, run(twice, scores)) == twice
    assert extended(twice, run(twice, scores)) == twice


def test_a_factor_that_is_not_round_gives_rates_that_read_well() -> None:
    spec = asked("mamba", grid=(3e-4, 1e-3, 3e-3))
    assert rates(extended(spec, run(spec, {3e-4: 0.1, 1e-3: 0.2, 3e-3: 0.3})))[-1] == 0.009
    assert rates(extended(spec, run(spec, {3e-4: 0.3, 1e-3: 0.2, 3e-3: 0.1})))[0] == 9e-5


@pytest.mark.parametrize(("grid", "max_extensions"), [((1e-2,), 2), (GRID, 0)])
def test_one_rate_is_no_grid_and_no_extension_is_made_unasked(grid: tuple[float, ...], max_extensions: int) -> None:
    spec = asked("mamba", grid=grid, max_extensions=max_extensions)
    assert extended(spec, run(spec, dict(zip(grid, (0.1, 0.2, 0.3), strict=False)))) == spec


def test_a_run_from_before_grids_were_written_down_is_left_as_it_is() -> None:
    spec = asked("mamba").model_copy(update={"grids": {}})
    assert extended(spec, run(spec, {1e-3: 0.1, 1e-2: 0.2, 1e-1: 0.3})) == spec


def test_costs_and_other_budgets_are_no_trials() -> None:
    spec = asked("mamba")
    other = accuracy_cell("mamba", learning_rate=1e-3, budget=Budget(steps=7))
    timed = cost_cell("mamba")
    spec = spec.model_copy(update={"cells": (*spec.cells, other, timed)})
    records = run(asked("mamba"), {1e-3: 0.1, 1e-2: 0.2, 1e-1: 0.3})
    after = extended(spec, [*records, record(timed, cost()), record(other, accuracy(1.0))])
    assert [cell.learning_rate for cell in after.cells if cell.budget == other.budget] == [1e-3]
    assert len(after.cells) == len(spec.cells) + 2
