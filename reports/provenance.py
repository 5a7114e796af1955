"""`Results` -> where the numbers come from: what really ran, the data that was seen, the machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from reports import formatting
from reports.document import Column, Row, Table, TableCell, number_cell, text_cell
from reports.formatting import counted, listed
from reports.results import ModelVariant, Results, TaskVariant
from suite.records import Environment, Record


def implementations_table(results: Results) -> Table | None:
    """The implementation of every operation that really ran, by model; None if nothing was measured."""
    ran: dict[ModelVariant, dict[str, set[str]]] = {}
    steps: dict[ModelVariant, set[str]] = {}
    places: dict[ModelVariant, set[tuple[str, str]]] = {}
    for outcome in results.outcomes:
        if outcome.measurement is None:
            continue
        model = results.model_of[outcome.cell.id]
        places.setdefault(model, set()).add((outcome.cell.device, outcome.cell.precision))
        if outcome.measurement.accuracy is not None:
            not_graphed = outcome.measurement.accuracy.steps_not_graphed
            steps.setdefault(model, set()).add("replayed as one CUDA graph" if not_graphed is None else "called")
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
            Column(title="Training steps", is_text=True),
            *(Column(title=name, is_text=True) for name in names),
        ),
        rows=tuple(
            Row(
                header=model.label,
                series=model.index,
                cells=(
                    text_cell(", ".join(sorted({device for device, _ in places[model]}))),
                    text_cell(", ".join(sorted({precision for _, precision in places[model]}))),
                    text_cell(" + ".join(sorted(steps.get(model, ())))),
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
