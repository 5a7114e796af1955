"""A plan counts what a run does, and takes the time of a moment of it."""

from __future__ import annotations

from typing import Any

import pytest

from suite import estimate as engine
from suite.estimate import Estimate, Seconds, Share, estimate, shares, total
from suite.plan import Request, plan
from suite.registry import Registry
from suite.reproduction.experiment import load_experiment
from suite.reproduction.planning import ReproductionRequest, plan_reproduction
from suite.spec import RunSpec
from tests.suite.builders import FAULTY

REGISTRY = Registry([FAULTY])


def planned(**fields: Any) -> RunSpec:
    request = {"models": ["faulty"], "tasks": ["echo"], "device": "cpu", **fields}
    return plan(Request.parse(request, where="run"), REGISTRY)


def share(**changes: Any) -> Share:
    (found,) = shares(planned(**changes), REGISTRY)
    return found


def test_cells_steps_and_tokens_are_those_of_the_run() -> None:
    spec = planned(models=["faulty", "gru"], tasks=["mqar", "echo"], seeds=[0, 1], measure=["accuracy"])
    parts = shares(spec, REGISTRY)
    assert [(part.task, part.model) for part in parts] == [
        (task, model) for task in ("mqar", "echo") for model in ("faulty", "gru")
    ]
    assert sum(part.num_cells for part in parts) == len(spec.cells)
    echo = parts[-1]
    assert (echo.num_steps, echo.num_tokens) == (2 * 4, 2 * 4 * 4 * 8)


@pytest.mark.parametrize(
    ("table", "places"),
    [
        # Three rows have one model, and all columns are tests of one training.
        ("mamba/table2", [("induction_heads", row) for row in ("MHA-Abs", "MHA-RoPE", "MHA-xPos", "Hyena")]),
        # Each column is a training of its own.
        ("zoology/mqar", [(column, row) for column in ("64 / 4, 64", "512 / 64, 64") for row in ("H3", "Mamba")]),
    ],
)
def test_the_parts_of_a_published_table_are_its_rows_and_what_they_are_trained_for(
    table: str, places: list[tuple[str, str]]
) -> None:
    rows = tuple(dict.fromkeys(row for _, row in places))
    request = ReproductionRequest(experiment=table, rows=rows, device="cpu")
    spec = plan_reproduction(load_experiment(table), request, REGISTRY)
    parts = shares(spec, REGISTRY)
    assert [(part.task, part.model) for part in parts] == places
    assert sum(part.num_cells for part in parts) == len(spec.cells)
    assert sum(part.num_steps for part in parts) == sum(cell.budget.steps for cell in spec.cells if cell.budget)
    for part in parts:
        assert len({cell.configuration_id for cell in part.training}) == 1


@pytest.mark.parametrize(("rates", "num_further"), [([1e-3, 1e-2], 2 * 3), ([1e-3], 0)])
def test_an_extended_grid_adds_every_seed_for_each_rate_at_most(rates: list[float], num_further: int) -> None:
    sweep = {"preset": {"learning_rates": rates, "max_extensions": 2}}
    assert share(seeds=[0, 1, 2], overrides=sweep).num_further_cells == num_further


def test_a_cell_that_is_over_in_a_moment_is_measured_all_the_same() -> None:
    found = estimate(share(overrides={"echo": {"seconds": 0.01}}), REGISTRY)
    assert found.failure is None
    # 4 steps, 2 validations and a test of one batch each.
    assert 7 * 0.01 < found.cell.low < found.cell.middle < found.cell.high
    assert found.timing.middle > 0


def test_validations_that_leave_no_room_between_them_do_not_keep_a_long_cell_going(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "MOMENT_SECONDS", 0.1)
    monkeypatch.setattr("suite.accuracy._SECONDS_BETWEEN_NEWS", 0.03)
    long = {"echo": {"seconds": 0.01}, "budget": {"steps": 100_000, "evaluate_every": 1}}
    found = estimate(share(measure=["accuracy"], overrides=long), REGISTRY)
    # A step, and a validation of one batch behind each.
    assert found.cell.low > 2 * 100_000 * 0.01 / 1.25


def test_a_long_cell_is_stopped_after_a_moment_and_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MOMENT_SECONDS", 0.3)
    monkeypatch.setattr("suite.accuracy._SECONDS_BETWEEN_NEWS", 0.1)
    long = {"echo": {"seconds": 0.01}, "budget": {"steps": 100_000, "evaluate_every": 100_000}}
    found = estimate(share(measure=["accuracy"], overrides=long), REGISTRY)
    assert found.cell.low > 100_000 * 0.01 / 1.25


@pytest.mark.parametrize(
    ("fault", "said"),
    [("memory", "out of memory"), ("nan", "the loss became nan"), ("raise", "RuntimeError: the branch broke")],
)
def test_a_model_that_cannot_be_measured_says_why(fault: str, said: str) -> None:
    failure = estimate(share(overrides={"faulty": {"fault": fault}}), REGISTRY).failure
    assert failure is not None
    assert said in failure


def test_cells_are_shared_out_and_costs_follow_one_after_the_other() -> None:
    part = share(seeds=[*range(8)], overrides={"preset": {"learning_rates": [1e-3, 1e-2], "max_extensions": 1}})
    found = Estimate(cell=Seconds(1, 2, 3), timing=Seconds(10, 20, 30))
    # 16 cells, and 8 more where the grid is extended.
    assert total([(part, found)], 4, 4) == Seconds(16 / 4 + 10, 32 / 4 + 20, 72 / 4 + 30)
    assert total([(part, found)], 4, 1) == Seconds(16 / 4 + 10, 32 / 4 + 20, 72 + 30)


def test_a_run_takes_as_long_as_its_longest_cell() -> None:
    part = share(seeds=[0], measure=["accuracy"])
    assert total([(part, Estimate(cell=Seconds(1, 2, 3)))], 4, 4) == Seconds(1, 2, 3)


def test_what_could_not_be_measured_is_left_out() -> None:
    part = share(seeds=[0])
    assert total([(part, Estimate(failure="out of memory"))], 2, 2) == Seconds(0, 0, 0)
