"""From an experiment to a RunSpec: the cells of every row and column, in the order in which they tell most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import Field

from suite.errors import UsageError, unknown
from suite.plan import Request, plan
from suite.registry import SHARED_SECTIONS, Registry
from suite.reproduction.differences import Training, Trainings, differences, is_reduced
from suite.reproduction.experiment import Column, Experiment, ExperimentRow, Size
from suite.spec import (
    Cell,
    Comparison,
    Device,
    Ordering,
    Precision,
    Published,
    Reproduction,
    RunSpec,
    Seed,
    Settings,
    canonical_json,
)

Overrides = dict[str, dict[str, Any]]

_SWEEP = ("learning_rates", "num_seeds")
"""Settings of `preset` that mean something here: a published grid is not extended, and nothing is timed or matched."""


class ReproductionRequest(Settings):
    """What a user asks of an experiment."""

    experiment: str
    """As the command calls it."""
    preset: str = "quick"
    rows: tuple[str, ...] | None = None
    """Labels; None takes all."""
    seeds: tuple[Seed, ...] | None = None
    device: Device | None = None
    precision: Precision | None = None
    plugins: tuple[str, ...] = ()
    overrides: Overrides = Field(default_factory=dict)
    """Section -> settings that differ from the experiment's; a section is as in a Request."""


def plan_reproduction(experiment: Experiment, request: ReproductionRequest, registry: Registry) -> RunSpec:
    """All cells of an experiment in the size that is asked for, and what they are to be compared with.

    Cells of the first seed come before those of the second, and of a row's first learning rate before its second; among
    them the cheapest first. So a report can be written at any time, and says most about what can be known soonest.

    Raises:
        SuiteError: a preset, row, name, setting or device does not exist or does not fit.
    """
    rows = _rows(experiment, request.rows)
    _refuse_what_no_row_uses(experiment, rows, request.overrides)
    here = _trainings(experiment, rows, request, registry)
    as_published = request.model_copy(update={"preset": "paper", "seeds": None, "overrides": {}})
    published = _trainings(experiment, rows, as_published, registry)
    comparisons = [
        _comparison(row, column, said, here.get((row.label, column)), published)
        for row in rows
        for column, said in zip(experiment.columns, experiment.published(row), strict=True)
    ]
    return RunSpec(
        models=tuple(dict.fromkeys(row.model for row in rows)),
        tasks=(experiment.task,),
        preset=request.preset,
        measure=("accuracy",),
        plugins=request.plugins,
        overrides=request.overrides,
        cells=_in_order(here.values()),
        reproduction=Reproduction(
            experiment=request.experiment,
            title=experiment.title,
            source=experiment.source,
            claim=experiment.claim,
            choices=experiment.choices,
            columns_title=experiment.columns_title,
            tolerance=experiment.tolerance,
            comparisons=tuple(comparisons),
            orderings=_orderings(experiment, rows),
            differences=differences(experiment, here, published),
        ),
    )


def _rows(experiment: Experiment, labels: Sequence[str] | None) -> tuple[ExperimentRow, ...]:
    """Those that are asked for, in the order of the table."""
    if labels is None:
        return experiment.rows
    if not labels:
        raise UsageError(f"No rows were given. There are: {', '.join(experiment.labels)}")
    for label in labels:
        if label not in experiment.labels:
            raise unknown("row", label, experiment.labels, where="in this experiment")
    return tuple(row for row in experiment.rows if row.label in labels)


def _refuse_what_no_row_uses(experiment: Experiment, rows: Sequence[ExperimentRow], overrides: Overrides) -> None:
    models = {row.model for row in experiment.rows}
    for section in overrides:
        if section not in (known := {experiment.task, *models, *SHARED_SECTIONS}):
            raise unknown("section", section, known, where="in this experiment")
        if section in models and all(row.model != section for row in rows):
            with_it = ", ".join(row.label for row in experiment.rows if row.model == section)
            raise UsageError(
                f"'{section}' has settings but is in none of the rows of this run. Add one of {with_it}, or leave its "
                "settings out"
            )
    for key in overrides.get("preset", {}):
        if key not in _SWEEP:
            raise unknown("setting", key, _SWEEP, where="in preset of a reproduction")


def _trainings(
    experiment: Experiment, rows: Sequence[ExperimentRow], request: ReproductionRequest, registry: Registry
) -> Trainings:
    """What each row does for each column that the size has."""
    size = experiment.size(request.preset)
    trainings: Trainings = {}
    for row in rows:
        # Columns that are only tests of one training share its cells.
        planned: dict[str, tuple[Cell, ...]] = {}
        for name, column in size.named_columns(experiment.columns).items():
            key = canonical_json(column.model_dump(mode="json", exclude={"test_length"}))
            if key not in planned:
                request_of_row = _request_of_row(experiment, size, row, column, request)
                planned[key] = plan(request_of_row, registry).cells
            trainings[row.label, name] = Training(planned[key], column.test_length)
    return trainings


def _comparison(
    row: ExperimentRow, column: str, published: Published, training: Training | None, as_published: Trainings
) -> Comparison:
    """An entry of the table; without cells where this run has no such column or its budget no such test."""
    if training is None or not training.is_tested:
        return Comparison(row=row.label, column=column, published=published, cells=())
    return Comparison(
        row=row.label,
        column=column,
        published=published,
        cells=tuple(cell.id for cell in training.cells),
        test_length=training.test_length,
        is_reduced=is_reduced(training, as_published[row.label, column]),
    )


def _request_of_row(
    experiment: Experiment, size: Size, row: ExperimentRow, column: Column, request: ReproductionRequest
) -> Request:
    """The run of one row for one column: the size, then the row, the column and the user each have their say."""
    of_row = row.size(request.preset)
    sweep = {
        "learning_rates": of_row.learning_rates or size.learning_rates,
        "num_seeds": size.num_seeds,
    }
    overrides: Overrides = {
        experiment.task: {"test_lengths": size.test_lengths} if size.test_lengths else {},
        row.model: row.settings | of_row.settings,
        "shell": size.shell | of_row.shell | column.shell,
        "budget": size.budget | of_row.budget | column.budget,
        "preset": {key: value for key, value in sweep.items() if value is not None},
    }
    overrides[experiment.task] |= size.settings | column.settings
    for section in overrides:
        overrides[section] |= request.overrides.get(section, {})
    return Request(
        models=(row.model,),
        tasks=(experiment.task,),
        preset=request.preset,
        seeds=request.seeds,
        device=request.device,
        precision=request.precision,
        measure=("accuracy",),
        plugins=request.plugins,
        overrides=overrides,
    )


def _in_order(trainings: Iterable[Training]) -> tuple[Cell, ...]:
    """Every cell once: by seed, then by learning rate, each in the order given, then by what it costs."""
    ranks: dict[str, tuple[int, int, int]] = {}
    cells: dict[str, Cell] = {}
    for training in trainings:
        seeds, rates = (list(dict.fromkeys(values)) for values in zip(*map(_sweep_of, training.cells), strict=True))
        for cell in training.cells:
            seed, rate = _sweep_of(cell)
            cells[cell.id] = cell
            ranks[cell.id] = seeds.index(seed), rates.index(rate), _cost(cell)
    return tuple(sorted(cells.values(), key=lambda cell: ranks[cell.id]))


def _sweep_of(cell: Cell) -> tuple[int | None, float | None]:
    return cell.seed, cell.learning_rate


def _cost(cell: Cell) -> int:
    """Grows with the work of training, by which cells are put in order and nothing else."""
    budget, length = cell.budget, cell.task.settings.get("length", 1)
    if budget is None or not isinstance(length, int):
        return 0
    return budget.steps * budget.batch_size * length * cell.shell.num_layers * cell.shell.width


def _orderings(experiment: Experiment, rows: Sequence[ExperimentRow]) -> tuple[Ordering, ...]:
    """Between the rows that are run."""
    labels = {row.label for row in rows}
    return tuple(
        Ordering(better=ordering.better, worse=worse, columns=ordering.columns or experiment.columns)
        for ordering in experiment.orderings
        for worse in ordering.worse
        if {ordering.better, worse} <= labels
    )
