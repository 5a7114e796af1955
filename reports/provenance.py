"""`Results` -> where the numbers come from: what really ran, the data, the machine, how to run it again."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable
from typing import Any

from reports import formatting
from reports.document import Column, Row, Table, TableCell, number_cell, text_cell
from reports.formatting import counted, listed
from reports.results import AccuracyEntry, ModelVariant, Outcome, Results, TaskVariant
from suite.records import Environment, Measurement, Record
from suite.spec import Cell, canonical_json


def implementations_table(results: Results) -> Table | None:
    """The implementation of every operation that really ran, by model; None if nothing was measured."""
    ran: dict[ModelVariant, dict[str, set[str]]] = {}
    places: dict[ModelVariant, set[tuple[str, str]]] = {}
    for outcome in results.outcomes:
        if outcome.measurement is None:
            continue
        model = results.model_of[outcome.cell.id]
        places.setdefault(model, set()).add((outcome.cell.device, outcome.cell.precision))
        operations = ran.setdefault(model, {})
        for operation, implementations in outcome.measurement.implementations.items():
            operations.setdefault(operation, set()).update(implementations)
    if not ran:
        return None
    names = sorted({name for operations in ran.values() for name in operations})
    return Table(
        name="implementations",
        title="What really ran",
        caption="The implementations that the measured cells report, not those that were asked for.",
        row_title="Model",
        columns=(
            Column(title="Device", is_text=True),
            Column(title="Precision", is_text=True),
            *(Column(title=name, is_text=True) for name in names),
        ),
        rows=tuple(
            Row(
                header=model.label,
                series=model.index,
                cells=(
                    text_cell(", ".join(sorted({device for device, _ in places[model]}))),
                    text_cell(", ".join(sorted({precision for _, precision in places[model]}))),
                    *(text_cell(" + ".join(sorted(ran[model].get(name, ())))) for name in names),
                ),
            )
            for model in sorted(ran, key=lambda model: model.index)
        ),
    )


def data_table(results: Results) -> Table | None:
    """Whether all models saw the same data, by task; None without an accuracy measurement."""
    rows = [_data_row(results, task) for task in results.tasks if task.metric is not None]
    if not rows:
        return None
    return Table(
        name="data",
        title="Did all models see the same data?",
        caption=(
            "Digests of the data drawn, compared between models, and between learning rates, wherever task, settings, "
            "budget and seed are the same. Only seeds that at least two models were measured with can be compared, and "
            "only models that were tested at every length, since others drew fewer batches."
        ),
        row_title="Task",
        columns=(
            Column(title="Same data", is_text=True),
            Column(title="Models"),
            Column(title="Seeds compared"),
            Column(title="Digests by seed", is_text=True),
        ),
        rows=tuple(rows),
    )


def differing_data(results: Results) -> list[str]:
    """Labels of the tasks on which some models saw different data."""
    return [task.label for task in results.tasks if _seeds_that_differ(_digests(results, task))]


def environment_table(records: Iterable[Record]) -> Table | None:
    """The machine and the software behind the records; several values stand with the number of their cells."""
    environments = [record.environment for record in records if record.environment is not None]
    if not environments:
        return None
    rows = []
    described = [describe_environment(environment) for environment in environments]
    for name in dict.fromkeys(name for description in described for name in description):
        values = Counter(description.get(name, "not installed") for description in described)
        rows.append(Row(header=name, cells=(text_cell(_with_counts(values)),)))
    return Table(
        name="environment",
        title="Machine and software",
        caption=f"As {counted(len(environments), 'cell')} found it.",
        row_title="What",
        columns=(Column(title="Value", is_text=True),),
        rows=tuple(rows),
    )


def describe_environment(environment: Environment) -> dict[str, str]:
    """Every property of a machine and its software, in words."""
    gpu = environment.gpu or "none"
    if environment.git_commit is None:
        code = "not in a git checkout"
    else:
        code = environment.git_commit + (" with uncommitted changes" if environment.git_dirty else "")
    described = {
        "GPU": gpu,
        "GPU memory": formatting.byte_size(environment.gpu_memory_bytes),
        "GPU driver": environment.gpu_driver or formatting.ABSENT,
        "CPU": environment.cpu,
        "Cores": str(environment.num_cores),
        "Threads used": str(environment.num_threads),
        "Memory": formatting.byte_size(environment.memory_bytes),
        "Operating system": environment.operating_system,
        "Git commit": code,
        "Python": environment.python,
    }
    if environment.gpu is None:
        described = {name: value for name, value in described.items() if name not in ("GPU memory", "GPU driver")}
    return described | {name: environment.versions[name] for name in sorted(environment.versions)}


def configurations_table(results: Results) -> Table | None:
    """Every model as it was built for every task."""
    rows = []
    seen: set[str] = set()
    for outcome in sorted(results.outcomes, key=lambda outcome: _place(results, outcome)):
        cell = outcome.cell
        if cell.configuration_id not in seen:
            seen.add(cell.configuration_id)
            rows.append(_configuration_row(results, cell))
    if not rows:
        return None
    return Table(
        name="configurations",
        title="Models as built",
        caption="Accuracy and cost are joined by the configuration's identifier, a digest of everything in its row.",
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
    )


def tasks_table(results: Results) -> Table | None:
    """Every task with its settings and the budget that all models had on it."""
    rows = []
    for task in results.tasks:
        entries = results.accuracy_on(task)
        cells = [outcome.cell for entry in entries for trial in entry.trials for outcome in trial.outcomes]
        rates = sorted({trial.learning_rate for entry in entries for trial in entry.trials})
        seeds = sorted({cell.seed for cell in cells if cell.seed is not None})
        budget = cells[0].budget
        rows.append(
            Row(
                header=task.label,
                cells=(
                    text_cell(settings_text(cells[0].task.settings)),
                    text_cell(settings_text(budget.model_dump(mode="json")) if budget is not None else ""),
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
        caption="The budget is the same for every model.",
        row_title="Task",
        columns=(
            Column(title="Settings", is_text=True),
            Column(title="Budget", is_text=True),
            Column(title="Learning rates tried", is_text=True),
            Column(title="Seeds", is_text=True),
        ),
        rows=tuple(rows),
    )


def optimizer_table(results: Results) -> Table | None:
    """The optimizer's parameter groups of every model; None if no record holds any."""
    rows: list[Row] = []
    for model in results.models:
        described: dict[str, TableCell] = {}
        for entry in results.accuracy:
            measurement = _measurement_of(entry) if entry.model == model else None
            for group in measurement.parameter_groups if measurement is not None else ():
                cell = _parameter_group_cell(group)
                described.setdefault(canonical_json([cell.text, cell.note]), cell)
        rows += [Row(header=model.label, series=model.index, cells=(cell,)) for cell in described.values()]
    if not rows:
        return None
    return Table(
        name="optimizer",
        title="Optimizer groups",
        caption="Which parameters decay, and at what learning rate, as the optimizer had them.",
        row_title="Model",
        columns=(Column(title="Group", is_text=True),),
        rows=tuple(rows),
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
        command += ["--preset", spec.preset, *_place_options(spec.cells)]
        for plugin in spec.plugins:
            command += ["--plugin", plugin]
    return (*checkout, shlex.join(formatting.visible(word) for word in command))


def _place_options(cells: Iterable[Cell]) -> list[str]:
    """Seeds, device and precision, where the whole run shares them."""
    cells = list(cells)
    options = []
    seeds = sorted({cell.seed for cell in cells if cell.seed is not None})
    if seeds:
        options += ["--seeds", ",".join(map(str, seeds))]
    for option, values in (
        ("--device", {cell.device for cell in cells}),
        ("--precision", {cell.precision for cell in cells}),
    ):
        if len(values) == 1:
            options += [option, *values]
    return options


def settings_text(settings: Any) -> str:
    """Settings in one line: key = value, …"""
    return ", ".join(
        f"{key} = {value if isinstance(value, str) else canonical_json(value)}" for key, value in settings.items()
    )


def _digests(results: Results, task: TaskVariant) -> dict[int, dict[str, set[str]]]:
    """Seed -> digest -> the models that saw it, of every seed that two models were measured with."""
    digests: dict[int, dict[str, set[str]]] = {}
    for entry in results.accuracy_on(task):
        for outcome in (outcome for trial in entry.trials for outcome in trial.outcomes):
            # A model that could not be tested at some length drew fewer batches: its digest has to differ.
            if outcome.accuracy is not None and outcome.cell.seed is not None and not outcome.accuracy.untested:
                by_digest = digests.setdefault(outcome.cell.seed, {})
                by_digest.setdefault(outcome.accuracy.data_sha256, set()).add(entry.model.label)
    return {
        seed: by_digest for seed, by_digest in sorted(digests.items()) if len(set[str]().union(*by_digest.values())) > 1
    }


def _seeds_that_differ(digests: dict[int, dict[str, set[str]]]) -> list[int]:
    return [seed for seed, by_digest in digests.items() if len(by_digest) > 1]


def _data_row(results: Results, task: TaskVariant) -> Row:
    digests = _digests(results, task)
    differing = _seeds_that_differ(digests)
    if not digests:
        answer = text_cell("nothing to compare")
    elif differing:
        odd = min(digests[differing[0]].values(), key=len)
        seeds = listed([str(seed) for seed in differing])
        answer = TableCell(
            text="no", value="no", status="failed", details=(f"seed {seeds}: {listed(sorted(odd))} differ",)
        )
    else:
        answer = text_cell("yes")
    models = {model for by_digest in digests.values() for labels in by_digest.values() for model in labels}
    shown = "; ".join(f"{seed}: {', '.join(digest[:12] for digest in found)}" for seed, found in digests.items())
    return Row(
        header=task.label,
        cells=(
            answer,
            number_cell(len(models), formatting.exact_count),
            number_cell(len(digests), formatting.exact_count),
            text_cell(shown),
        ),
    )


def _with_counts(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return " · ".join(f"{value} ({counted(number, 'cell')})" for value, number in values.most_common())


def _place(results: Results, outcome: Outcome) -> tuple[str, int]:
    return results.task_label_of[outcome.cell.id], results.model_of[outcome.cell.id].index


def _configuration_row(results: Results, cell: Cell) -> Row:
    model = results.model_of[cell.id]
    measurement = next(
        (
            outcome.measurement
            for outcome in results.outcomes
            if outcome.measurement is not None and outcome.cell.configuration_id == cell.configuration_id
        ),
        None,
    )
    return Row(
        header=model.label,
        series=model.index,
        group=results.task_label_of[cell.id],
        cells=(
            text_cell(cell.configuration_id),
            number_cell(measurement.num_parameters if measurement else None, formatting.exact_count),
            number_cell(measurement.num_non_embedding_parameters if measurement else None, formatting.exact_count),
            number_cell(cell.shell.width, formatting.exact_count),
            number_cell(cell.shell.num_layers, formatting.exact_count),
            text_cell(cell.device),
            text_cell(cell.precision),
            text_cell(settings_text(cell.model.settings)),
        ),
    )


def _measurement_of(entry: AccuracyEntry) -> Measurement | None:
    trials = [entry.selected] if entry.selected is not None else list(entry.trials)
    return next(
        (outcome.measurement for trial in trials for outcome in trial.outcomes if outcome.measurement is not None), None
    )


def _parameter_group_cell(group: dict[str, Any]) -> TableCell:
    """Single values as they are; a list of names as its length, with the names behind it."""
    lists = {key: value for key, value in group.items() if isinstance(value, (list, tuple))}
    single = settings_text({key: value for key, value in group.items() if key not in lists})
    return TableCell(
        text=single or formatting.ABSENT,
        value=single or None,
        details=tuple(f"{key}: {len(value)}" for key, value in lists.items()),
        note="\n".join(str(name) for value in lists.values() for name in value),
    )
