"""`Results` -> what was set up: tasks and budgets, models as built, optimizer groups, and how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reports import formatting
from reports.document import Column, Row, Table, TableCell, number_cell, text_cell
from reports.formatting import counted
from reports.results import AccuracyEntry, ModelVariant, Outcome, Results
from suite.records import Measurement
from suite.spec import MATCHED_UNITS, Cell, Reproduction, canonical_json


def configurations_table(results: Results) -> Table | None:
    """Every model as it was built for every task."""
    outcomes = sorted(results.outcomes, key=lambda outcome: _place(results, outcome))
    configurations: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        configurations.setdefault(outcome.cell.configuration_id, []).append(outcome)
    rows = [_configuration_row(results, name, found) for name, found in configurations.items()]
    if not rows:
        return None
    return Table(
        name="configurations",
        title="Models as built",
        caption=(
            "A configuration is a model, a task, their settings, the shell, the precision and the device. Accuracy and "
            "cost of the same configuration are joined by its identifier."
        ),
        row_title="Model",
        columns=(
            Column(title="Configuration", is_text=True),
            Column(title="Parameters"),
            Column(title="Non-embedding"),
            Column(title="Width"),
            Column(title="Layers"),
            Column(title="Device", is_text=True),
            Column(title="Precision", is_text=True),
            Column(title="Settings", is_text=True),
        ),
        rows=tuple(rows),
        is_secondary=True,
    )


def matching_table(results: Results) -> Table | None:
    """The width that was chosen for each model on each task; None if every model had that of the preset."""
    spec = results.spec
    if spec is None or spec.matching is None:
        return None
    unit = MATCHED_UNITS[spec.matching.policy]
    return Table(
        name="matching",
        title=f"Matched by {unit}",
        caption=(
            "Widths were chosen so that on each task all models have the same size, as near as their widths allow. "
            "Depth and settings are as in the preset."
        ),
        row_title="Model",
        columns=(
            Column(title="Width"),
            Column(title=unit.capitalize()),
            Column(title="Target"),
            Column(title="Off by"),
        ),
        rows=tuple(
            Row(
                header=size.model,
                group=size.task,
                series=next((model.index for model in results.models if model.name == size.model), None),
                cells=(
                    number_cell(size.width, formatting.exact_count),
                    number_cell(size.size, formatting.exact_count),
                    number_cell(size.target, formatting.exact_count),
                    TableCell(text=f"{100 * size.residual:+.2f} %", value=size.residual),
                ),
            )
            for size in spec.matched
        ),
    )


def tuning_table(results: Results) -> Table | None:
    """What was spent on tuning and training each model on each task; None if nothing was trained."""
    if not results.accuracy:
        return None
    return Table(
        name="tuning",
        title="Tuning budget",
        caption=(
            "All trials of each model, whether they were selected or not, up to the step at which one diverged; the "
            "time is of those that were measured. Every model starts from the same learning rates; where validation "
            "selects one at an edge, the next one beyond is tried, as often as the preset allows."
        ),
        row_title="Model",
        columns=(
            Column(title="Learning rates"),
            Column(title="Beyond the grid", is_text=True),
            Column(title="Trials"),
            Column(title="Steps"),
            Column(title="Tokens"),
            Column(title="Training time"),
        ),
        rows=tuple(_tuning_row(results, entry) for entry in results.accuracy),
        is_secondary=True,
    )


def tasks_table(results: Results) -> Table | None:
    """Every task with its settings and the budget that all models had on it."""
    rows = []
    for task in results.tasks:
        entries = results.accuracy_on(task)
        cells = [outcome.cell for entry in entries for trial in entry.trials for outcome in trial.outcomes]
        rates = sorted({trial.learning_rate for entry in entries for trial in entry.trials})
        seeds = sorted({cell.seed for cell in cells if cell.seed is not None})
        budgets = [cell.budget.model_dump(mode="json") for cell in cells if cell.budget is not None]
        rows.append(
            Row(
                header=task.label,
                cells=(
                    text_cell(settings_text(cells[0].task.settings)),
                    text_cell(settings_text(_joined(budgets))),
                    text_cell(", ".join(map(formatting.learning_rate, rates))),
                    text_cell(", ".join(map(str, seeds))),
                ),
            )
        )
    if not rows:
        return None
    return Table(
        name="tasks",
        title="Tasks and budgets",
        caption="The budget is the same for every model, but for what a published table says of its rows.",
        row_title="Task",
        columns=(
            Column(title="Settings", is_text=True),
            Column(title="Budget", is_text=True),
            Column(title="Learning rates tried", is_text=True),
            Column(title="Seeds", is_text=True),
        ),
        rows=tuple(rows),
        is_secondary=True,
    )


def optimizer_table(results: Results) -> Table | None:
    """The optimizer's parameter groups of every model; None if no record holds any."""
    groups: list[tuple[ModelVariant, dict[str, Any]]] = []
    for model in results.models:
        of_model: dict[str, dict[str, Any]] = {}
        for entry in results.accuracy:
            measurement = _measurement_of(entry) if entry.model == model else None
            for group in measurement.parameter_groups if measurement is not None else ():
                of_model.setdefault(settings_text(_without_lists(group)), group)
        groups += [(model, group) for group in of_model.values()]
    if not groups:
        return None
    settings = list(dict.fromkeys(key for _, group in groups for key in _without_lists(group)))
    return Table(
        name="optimizer",
        title="Optimizer groups",
        caption="Which parameters decay, and at which learning rate, as the optimizer had them.",
        row_title="Model",
        columns=(
            *(Column(title=key.replace("_", " ").capitalize()) for key in settings),
            Column(title="Parameter tensors", is_text=True),
        ),
        rows=tuple(
            Row(
                header=model.label,
                series=model.index,
                cells=(*(_setting_cell(group.get(key)) for key in settings), _parameter_names_cell(group)),
            )
            for model, group in groups
        ),
        is_secondary=True,
    )


def reproduction_commands(results: Results) -> tuple[str, ...]:
    """Shell commands that run the same again; names are quoted for the shell."""
    spec = results.spec
    commits = sorted(
        {env.git_commit for env in (record.environment for record in results.records) if env and env.git_commit}
    )
    checkout = (f"git checkout {shlex.quote(formatting.visible(commits[0]))}",) if len(commits) == 1 else ()
    if spec is not None:
        models, tasks = list(spec.models), list(spec.tasks)
    else:
        models = list(dict.fromkeys(model.name for model in results.models))
        tasks = sorted({outcome.cell.task.name for outcome in results.outcomes})
    if not models or not tasks:
        return checkout
    command = ["suite", "run", "--models", ",".join(models), "--tasks", ",".join(tasks)]
    if spec is not None:
        if spec.reproduction is not None:
            command = ["suite", "reproduce", spec.reproduction.experiment, *_rows_option(spec.reproduction)]
        command += ["--preset", spec.preset, *_place_options(spec.cells)]
        if spec.matching is not None:
            command += ["--match", str(spec.matching)]
        if set(spec.measure) != {"accuracy", "cost"} and spec.reproduction is None:
            command += ["--measure", ",".join(spec.measure)]
        for section, values in spec.overrides.items():
            for key, value in values.items():
                command += ["--set", f"{section}.{key}={canonical_json(value)}"]
        for plugin in spec.plugins:
            command += ["--plugin", plugin]
    return (*checkout, shlex.join(formatting.visible(word) for word in command))


def _rows_option(reproduction: Reproduction) -> list[str]:
    """The rows, where some were left out."""
    if all(difference.setting != "rows" for difference in reproduction.differences):
        return []
    return ["--rows", ",".join(dict.fromkeys(comparison.row for comparison in reproduction.comparisons))]


def _place_options(cells: Iterable[Cell]) -> list[str]:
    """Seeds, device and precision, where the whole run shares them; tasks may differ in the seeds of their presets."""
    cells = list(cells)
    options = []
    seeds_of_tasks: dict[str, set[int]] = {}
    for cell in cells:
        if cell.seed is not None:
            seeds_of_tasks.setdefault(cell.task.name, set()).add(cell.seed)
    different_seeds = {tuple(sorted(seeds)) for seeds in seeds_of_tasks.values()}
    if len(different_seeds) == 1:
        options += ["--seeds", ",".join(map(str, *different_seeds))]
    for option, values in (
        ("--device", {cell.device for cell in cells}),
        ("--precision", {cell.precision for cell in cells}),
    ):
        if len(values) == 1:
            options += [option, *values]
    return options


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings in one line: key = value, …"""
    return ", ".join(
        f"{key} = {value if isinstance(value, str) else canonical_json(value)}" for key, value in settings.items()
    )


def _joined(settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Settings of the same kind in one; where they differ, all values."""
    values: dict[str, dict[str, Any]] = {}
    for each in settings:
        for key, value in each.items():
            values.setdefault(key, {})[canonical_json(value)] = value
    return {key: " / ".join(found) if len(found) > 1 else next(iter(found.values())) for key, found in values.items()}


def _place(results: Results, outcome: Outcome) -> tuple[int, str, int]:
    """By task, in the order of the tasks, then by model."""
    names = [task.name for task in results.tasks] + [setting.task_name for setting in results.cost_settings]
    cell = outcome.cell
    return names.index(cell.task.name), results.task_label_of[cell.id], results.model_of[cell.id].index


def _configuration_row(results: Results, configuration_id: str, outcomes: list[Outcome]) -> Row:
    cell = outcomes[0].cell
    model = results.model_of[cell.id]
    measurement = next((outcome.measurement for outcome in outcomes if outcome.measurement is not None), None)
    return Row(
        header=model.label,
        series=model.index,
        group=results.task_label_of[cell.id],
        cells=(
            text_cell(configuration_id),
            number_cell(measurement.num_parameters if measurement else None, formatting.exact_count),
            number_cell(measurement.num_non_embedding_parameters if measurement else None, formatting.exact_count),
            number_cell(cell.shell.width, formatting.exact_count),
            number_cell(cell.shell.num_layers, formatting.exact_count),
            text_cell(cell.device),
            text_cell(cell.precision),
            text_cell(settings_text(cell.model.settings)),
        ),
    )


def _tuning_row(results: Results, entry: AccuracyEntry) -> Row:
    outcomes = [outcome for trial in entry.trials for outcome in trial.outcomes]
    measured = [outcome.accuracy for outcome in outcomes if outcome.accuracy is not None]
    wasted_steps = sum(outcome.failure.step or 0 for outcome in outcomes if outcome.failure is not None)
    # All trials of an entry have one batch size and one length.
    wasted_tokens = wasted_steps * next((point.tokens // point.step for a in measured for point in a.curve), 0)
    grid = results.spec.grids.get(entry.task.name) if results.spec is not None else None
    tried = [trial.learning_rate for trial in entry.trials]
    beyond = [rate for rate in tried if grid is not None and rate not in grid.learning_rates]
    return Row(
        header=entry.model.label,
        series=entry.model.index,
        group=entry.task.label,
        cells=(
            number_cell(len(tried), formatting.exact_count),
            text_cell(", ".join(map(formatting.learning_rate, beyond))),
            number_cell(sum(outcome.record is not None for outcome in outcomes), formatting.exact_count),
            number_cell(wasted_steps + sum(accuracy.steps_run for accuracy in measured), formatting.exact_count),
            number_cell(
                wasted_tokens + sum(accuracy.curve[-1].tokens for accuracy in measured), formatting.compact_count
            ),
            number_cell(sum(accuracy.train_seconds for accuracy in measured), formatting.duration),
        ),
    )


def _measurement_of(entry: AccuracyEntry) -> Measurement | None:
    trials = [entry.selected] if entry.selected is not None else list(entry.trials)
    return next(
        (outcome.measurement for trial in trials for outcome in trial.outcomes if outcome.measurement is not None), None
    )


def _without_lists(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if not isinstance(value, (list, tuple))}


def _setting_cell(value: Any) -> TableCell:
    if isinstance(value, (int, float)):
        return number_cell(value, formatting.learning_rate)
    return text_cell("" if value is None else str(value))


def _parameter_names_cell(group: dict[str, Any]) -> TableCell:
    """How many there are, with their names behind it."""
    names = [str(name) for value in group.values() if isinstance(value, (list, tuple)) for name in value]
    return text_cell(counted(len(names), "tensor"), note="\n".join(names))
