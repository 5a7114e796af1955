"""Records -> `Results`: settles attempts, groups cells, names models and tasks apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from reports import formatting
from reports.formatting import is_finite
from reports.results import (
    METRICS,
    AccuracyEntry,
    CostEntry,
    CostSetting,
    Metric,
    ModelVariant,
    Outcome,
    Results,
    TaskVariant,
    Trial,
)
from suite.errors import StoreError
from suite.records import Accuracy, Record
from suite.spec import Cell, Choice, RunSpec, canonical_json


def gather(records: Iterable[Record], spec: RunSpec | None = None) -> Results:
    """Settles attempts, groups cells and names models and tasks apart.

    Models and tasks come in the order of `spec`, and what it does not name after that by name. Cells of `spec` without
    a record are kept as not run.

    Raises:
        StoreError: a record with a metric that this version does not know.
    """
    outcomes = _settle(records, spec.cells if spec is not None else ())
    training_keys = _training_keys(outcomes, spec)
    split_by_shell = _models_in_several_shells(outcomes, training_keys)
    model_keys = {outcome.cell.id: _model_key(outcome.cell, split_by_shell) for outcome in outcomes}
    models = _model_variants(outcomes, model_keys, spec)
    task_labels = _labels_by_key(
        {_task_key(outcome.cell): (outcome.cell.task.name, _task_facets(outcome.cell)) for outcome in outcomes}
    )
    tasks = _task_variants(outcomes, training_keys, spec)
    settings = _cost_settings(outcomes, task_labels, spec)
    model_of = {cell_id: models[key] for cell_id, key in model_keys.items()}
    return Results(
        outcomes=tuple(outcomes),
        models=tuple(models.values()),
        tasks=tuple(tasks.values()),
        cost_settings=tuple(settings.values()),
        accuracy=tuple(_accuracy_entries(outcomes, model_of, training_keys, tasks, spec)),
        costs=tuple(_cost_entries(outcomes, model_of, settings)),
        spec=spec,
        model_of=model_of,
        task_label_of={outcome.cell.id: task_labels[_task_key(outcome.cell)] for outcome in outcomes},
    )


def _settle(records: Iterable[Record], asked: Iterable[Cell]) -> list[Outcome]:
    """One outcome a cell, asked for or not, in an order that does not depend on that of the records."""
    cells = {cell.id: cell for cell in asked}
    attempts: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(record.cell_id, record.cell)
        attempts.setdefault(record.cell_id, []).append(record)
    for tried in attempts.values():
        tried.sort(key=lambda record: (record.started_at, record.attempt))
    outcomes = [Outcome(cell, tuple(attempts.get(cell_id, ()))) for cell_id, cell in cells.items()]
    return sorted(outcomes, key=_position)


def _position(outcome: Outcome) -> tuple[Any, ...]:
    cell = outcome.cell
    return (
        cell.kind,
        cell.task.name,
        cell.model.name,
        cell.learning_rate or 0.0,
        -1 if cell.seed is None else cell.seed,
        cell.length or 0,
        cell.id,
    )


def _without_shell(cell: Cell) -> str:
    return canonical_json([cell.model.model_dump(mode="json"), cell.precision, cell.device])


def _shell(cell: Cell) -> str:
    return canonical_json(cell.shell.model_dump(mode="json"))


def _models_in_several_shells(outcomes: Sequence[Outcome], training_keys: Mapping[str, str]) -> set[str]:
    """Models that occur more than once under the same task and budget, or the same cost setting and length."""
    shells: dict[tuple[str, str], set[str]] = {}
    for cell in (outcome.cell for outcome in outcomes):
        place = canonical_json([training_keys[cell.id], cell.kind, cell.length, cell.batch_size])
        shells.setdefault((_without_shell(cell), place), set()).add(_shell(cell))
    return {model for (model, _), found in shells.items() if len(found) > 1}


def _model_key(cell: Cell, split_by_shell: set[str]) -> str:
    model = _without_shell(cell)
    return model + _shell(cell) if model in split_by_shell else model


def _task_key(cell: Cell) -> str:
    return canonical_json([cell.task.model_dump(mode="json"), cell.protocol])


def _training_keys(outcomes: Sequence[Outcome], spec: RunSpec | None) -> dict[str, str]:
    """Cell id -> what cells share that are to be compared: the task and the budget.

    In a published table it is the task and the column: there every row has the budget that was published of it.
    """
    columns = spec.reproduction.column_of if spec is not None and spec.reproduction is not None else {}
    keys = {}
    for cell in (outcome.cell for outcome in outcomes):
        budget = cell.budget.model_dump(mode="json") if cell.budget is not None else None
        keys[cell.id] = canonical_json([_task_key(cell), columns.get(cell.id, budget)])
    return keys


def _setting_key(cell: Cell) -> str:
    return canonical_json([_task_key(cell), cell.batch_size])


def _labels_by_key(named: Mapping[str, tuple[str, Mapping[str, str]]], always: Iterable[str] = ()) -> dict[str, str]:
    """Key -> name, with those facets in brackets in which things of that name differ.

    A facet of `always` is also named where it differs between things of different names.
    """
    differing_everywhere = {facet for facet in always if len({facets.get(facet) for _, facets in named.values()}) > 1}
    labels = {}
    for key, (name, facets) in named.items():
        namesakes = [other for other_name, other in named.values() if other_name == name]
        told = [
            f"{facet}={value}"
            for facet, value in facets.items()
            if facet in differing_everywhere or len({other.get(facet) for other in namesakes}) > 1
        ]
        labels[key] = f"{name} ({', '.join(told)})" if told else name
    return labels


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else canonical_json(value)
    return flat


def _choice_facets(choice: Choice) -> dict[str, str]:
    source = {"source": choice.source_sha256[:8]} if choice.source_sha256 else {}
    return _flat(choice.settings) | {"version": str(choice.version)} | source


def _task_facets(cell: Cell) -> dict[str, str]:
    return _choice_facets(cell.task) | {"protocol": str(cell.protocol)}


def _model_variants(
    outcomes: Sequence[Outcome], keys: Mapping[str, str], spec: RunSpec | None
) -> dict[str, ModelVariant]:
    named: dict[str, tuple[str, Mapping[str, str]]] = {}
    rows = spec.reproduction.row_of if spec is not None and spec.reproduction is not None else {}
    for cell in (outcome.cell for outcome in outcomes):
        key = keys[cell.id]
        shell = _flat(cell.shell.model_dump(mode="json")) if key != _without_shell(cell) else {}
        place = {"precision": cell.precision, "device": cell.device}
        name = rows.get(cell.id, cell.model.name)
        named[key] = (name, _choice_facets(cell.model) | shell | place)
    labels = _labels_by_key(named, always=("precision", "device"))
    asked = tuple(dict.fromkeys(rows.values())) or (spec.models if spec is not None else ())
    ordered = sorted(named, key=_order_of(asked, named, labels))
    return {key: ModelVariant(labels[key], named[key][0], index) for index, key in enumerate(ordered)}


def _task_variants(
    outcomes: Sequence[Outcome], training_keys: Mapping[str, str], spec: RunSpec | None
) -> dict[str, TaskVariant]:
    named: dict[str, tuple[str, Mapping[str, str]]] = {}
    measured: dict[str, list[Accuracy]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        if cell.kind == "accuracy":
            key = training_keys[cell.id]
            budget = _flat(cell.budget.model_dump(mode="json")) if cell.budget is not None else {}
            named[key] = (cell.task.name, _task_facets(cell) | budget)
            measured.setdefault(key, []).extend([outcome.accuracy] if outcome.accuracy is not None else [])
    labels = _labels_by_key(named)
    ordered = sorted(named, key=_order_of(spec.tasks if spec is not None else (), named, labels))
    return {
        key: TaskVariant(
            label=labels[key],
            name=named[key][0],
            index=index,
            metric=_metric_of(measured[key]),
            baseline=next((accuracy.baseline for accuracy in measured[key] if is_finite(accuracy.baseline)), None),
            solved_at=_solved_at(measured[key]),
        )
        for index, key in enumerate(ordered)
    }


def _metric_of(measured: Sequence[Accuracy]) -> Metric | None:
    names = sorted({accuracy.metric for accuracy in measured})
    for name in names:
        if name not in METRICS:
            known = ", ".join(METRICS)
            raise StoreError(f"A record is judged by the metric '{formatting.visible(name)}'. Known: {known}")
    if len(names) > 1:
        raise StoreError(f"Records of one task are judged by different metrics: {', '.join(names)}")
    return METRICS[names[0]] if names else None


def _solved_at(measured: Sequence[Accuracy]) -> float | None:
    """What the task says, or what its metric says where it does not."""
    stated = next((accuracy.solved_at for accuracy in measured if accuracy.solved_at is not None), None)
    metric = _metric_of(measured)
    return stated if stated is not None or metric is None else metric.solved_at


def _cost_settings(
    outcomes: Sequence[Outcome], task_labels: Mapping[str, str], spec: RunSpec | None
) -> dict[str, CostSetting]:
    cells = {_setting_key(outcome.cell): outcome.cell for outcome in outcomes if outcome.cell.kind == "cost"}
    named: dict[str, tuple[str, Mapping[str, str]]] = {key: (cell.task.name, {}) for key, cell in cells.items()}
    labels = {
        key: f"{task_labels[_task_key(cell)]} · batch {cell.batch_size}" if cell.batch_size else cell.task.name
        for key, cell in cells.items()
    }
    ordered = sorted(cells, key=_order_of(spec.tasks if spec is not None else (), named, labels))
    return {
        key: CostSetting(labels[key], cells[key].task.name, cells[key].batch_size or 1, index)
        for index, key in enumerate(ordered)
    }


def _order_of(
    asked: Sequence[str], named: Mapping[str, tuple[str, Mapping[str, str]]], labels: Mapping[str, str]
) -> Callable[[str], tuple[int, str, str, str]]:
    position = {name: index for index, name in enumerate(asked)}
    return lambda key: (position.get(named[key][0], len(position)), named[key][0], labels[key], key)


def _accuracy_entries(
    outcomes: Sequence[Outcome],
    model_of: Mapping[str, ModelVariant],
    training_keys: Mapping[str, str],
    tasks: Mapping[str, TaskVariant],
    spec: RunSpec | None,
) -> list[AccuracyEntry]:
    places = {cell.id: place for place, cell in enumerate(spec.cells if spec is not None else ())}

    def trial(rate: float, outcomes: Sequence[Outcome], metric: Metric | None) -> Trial:
        return Trial(rate, tuple(outcomes), metric, min(places.get(each.cell.id, len(places)) for each in outcomes))

    grouped: dict[tuple[ModelVariant, TaskVariant], dict[float, list[Outcome]]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        if cell.kind == "accuracy":
            place = model_of[cell.id], tasks[training_keys[cell.id]]
            grouped.setdefault(place, {}).setdefault(cell.learning_rate or 0.0, []).append(outcome)
    entries = [
        AccuracyEntry(
            model=model,
            task=task,
            configuration_id=next(iter(by_rate.values()))[0].cell.configuration_id,
            trials=tuple(trial(rate, by_rate[rate], task.metric) for rate in sorted(by_rate)),
        )
        for (model, task), by_rate in grouped.items()
    ]
    return sorted(entries, key=lambda entry: (entry.task.index, entry.model.index))


def _cost_entries(
    outcomes: Sequence[Outcome], model_of: Mapping[str, ModelVariant], settings: Mapping[str, CostSetting]
) -> list[CostEntry]:
    grouped: dict[tuple[ModelVariant, CostSetting], dict[int, Outcome]] = {}
    for outcome in outcomes:
        cell = outcome.cell
        if cell.kind == "cost":
            place = model_of[cell.id], settings[_setting_key(cell)]
            grouped.setdefault(place, {})[cell.length or 0] = outcome
    entries = [
        CostEntry(
            model=model,
            setting=setting,
            configuration_id=next(iter(by_length.values())).cell.configuration_id,
            outcomes={length: by_length[length] for length in sorted(by_length)},
        )
        for (model, setting), by_length in grouped.items()
    ]
    return sorted(entries, key=lambda entry: (entry.setting.index, entry.model.index))
