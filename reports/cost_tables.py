"""`Results` -> what it cost: throughput, memory, and both against length."""

from __future__ import annotations

from reports import formatting
from reports.document import Column, Row, Table, TableCell, number_cell, text_cell, with_best_marked
from reports.failures import NOT_RUN, failed_cell
from reports.quantities import (
    FIRST_TRAINING_STEP,
    GENERATION_LATENCY,
    GENERATION_THROUGHPUT,
    INFERENCE_MEMORY,
    INFERENCE_THROUGHPUT,
    SLOW_GENERATION_LATENCY,
    STATE_SIZE,
    TRAINING_MEMORY,
    TRAINING_THROUGHPUT,
    Quantity,
)
from reports.results import CostEntry, CostSetting, Outcome, Results
from suite.records import Measurement

_THROUGHPUT = (
    TRAINING_THROUGHPUT,
    INFERENCE_THROUGHPUT,
    GENERATION_THROUGHPUT,
    GENERATION_LATENCY,
    SLOW_GENERATION_LATENCY,
    FIRST_TRAINING_STEP,
)
_MEMORY = (TRAINING_MEMORY, INFERENCE_MEMORY, STATE_SIZE)
_BY_LENGTH = (
    TRAINING_THROUGHPUT,
    INFERENCE_THROUGHPUT,
    GENERATION_THROUGHPUT,
    TRAINING_MEMORY,
    INFERENCE_MEMORY,
    STATE_SIZE,
)


def throughput_table(results: Results) -> Table | None:
    """Every model at the reference length of each cost setting; None if no cost was asked for."""
    rows: list[Row] = []
    for setting in results.cost_settings:
        entries, length = results.costs_under(setting), _shown_length(results, setting)
        group = [
            Row(
                header=entry.model.label,
                series=entry.model.index,
                group=_group_label(entries, length),
                cells=(
                    *(cost_cell(entry, length, quantity) for quantity in _THROUGHPUT),
                    _implementations_cell(entry, length),
                ),
            )
            for entry in entries
        ]
        higher_is_better = [quantity.higher_is_better for quantity in _THROUGHPUT[:-1]]
        rows += with_best_marked(group, [*higher_is_better, None, None])
    if not rows:
        return None
    return Table(
        name="throughput",
        title="Throughput",
        caption=(
            "Tokens of the whole batch per second of the median call after warm-up, with the 95 % bootstrap interval "
            "of the median (none below six samples), at the longest length that most models finished. Training: "
            "forward, backward and optimizer step. Inference: forward over all positions at once. Generation: one "
            "token for each sequence, step by step. The first step includes what compilation and autotuning no earlier "
            "cell had paid for. Bold: the best of its group, and all whose interval overlaps with its. Where models "
            "ran on implementations of different quality, their order is not that of the architectures."
        ),
        row_title="Model",
        columns=(*(_column(quantity) for quantity in _THROUGHPUT), Column(title="Ran on", is_text=True)),
        rows=tuple(rows),
    )


def memory_table(results: Results) -> Table | None:
    """Parameters, peaks and generation state at the reference length of each cost setting."""
    rows: list[Row] = []
    for setting in results.cost_settings:
        entries, length = results.costs_under(setting), _shown_length(results, setting)
        group = [
            Row(
                header=entry.model.label,
                series=entry.model.index,
                group=_group_label(entries, length),
                cells=(
                    *_parameter_cells(entry, length),
                    *(cost_cell(entry, length, quantity) for quantity in _MEMORY),
                ),
            )
            for entry in entries
        ]
        rows += with_best_marked(group, [None, None, *(quantity.higher_is_better for quantity in _MEMORY)])
    if not rows:
        return None
    return Table(
        name="memory",
        title="Memory",
        caption=(
            "Peak: most memory in use during the timed calls, over what was in use before the model was built. "
            "Generation state: what one sequence must keep to go on. Bold: least of its group."
        ),
        row_title="Model",
        columns=(
            Column(title="Parameters"),
            Column(title="Non-embedding parameters"),
            *(_column(quantity) for quantity in _MEMORY),
        ),
        rows=tuple(rows),
    )


def cost_by_length_tables(results: Results) -> list[Table]:
    """For each cost setting with several lengths: quantities and models × lengths."""
    tables = []
    for setting in results.cost_settings:
        lengths = results.cost_lengths(setting)
        if len(lengths) < 2:
            continue
        rows = [row for quantity in _BY_LENGTH for row in _rows_by_length(results, setting, lengths, quantity)]
        tables.append(
            Table(
                name=f"cost-by-length-{setting.index}",
                title=f"Cost by length: {setting.label}",
                caption="The same quantities at every length that was measured. Bold: best, and all overlapping it.",
                row_title="Model",
                columns=tuple(Column(title=f"{length:,}", unit="tokens") for length in lengths),
                rows=tuple(rows),
                is_secondary=True,
            )
        )
    return tables


def cost_cell(entry: CostEntry, length: int, quantity: Quantity) -> TableCell:
    """One quantity at one length, or why there is none."""
    outcome = entry.outcomes.get(length)
    if outcome is None:
        return TableCell(status="absent")
    if outcome.cost is None:
        return _unmeasured(outcome)
    estimate = quantity.read(outcome.cost, entry.setting.batch_size)
    if estimate is None:
        return TableCell(text="not measurable", status="absent")
    interval = estimate.interval
    shown = f"{quantity.write(interval.low)}–{quantity.write(interval.high)}" if interval is not None else ""
    return number_cell(estimate.value, quantity.write, shown, interval=interval)


def implementations_text(measurement: Measurement) -> str:
    """Operation and the implementations that really ran, in one line."""
    return "; ".join(
        f"{operation}: {' + '.join(sorted(ran))}" for operation, ran in sorted(measurement.implementations.items())
    )


def _column(quantity: Quantity) -> Column:
    return Column(title=quantity.title, unit=quantity.unit)


def _unmeasured(outcome: Outcome) -> TableCell:
    return failed_cell(outcome.failure) if outcome.failure is not None else NOT_RUN


def _shown_length(results: Results, setting: CostSetting) -> int:
    return results.reference_length(setting) or results.cost_lengths(setting)[0]


def _group_label(entries: list[CostEntry], length: int) -> str:
    """The setting, the length, and the tokens before generation where they are others than the length."""
    contexts = {cost.generation_context for entry in entries if (cost := entry.cost(length)) is not None}
    after = f" · generation after {' or '.join(f'{context:,}' for context in sorted(contexts))}"
    return f"{entries[0].setting.label} · {length:,} tokens{after if contexts - {length} else ''}"


def _implementations_cell(entry: CostEntry, length: int) -> TableCell:
    measurement = entry.outcomes[length].measurement if length in entry.outcomes else None
    return text_cell(implementations_text(measurement) if measurement is not None else "")


def _parameter_cells(entry: CostEntry, length: int) -> tuple[TableCell, TableCell]:
    measurement = entry.outcomes[length].measurement if length in entry.outcomes else None
    if measurement is None:
        measurement = next((outcome.measurement for outcome in entry.outcomes.values() if outcome.measurement), None)
    if measurement is None:
        return TableCell(status="absent"), TableCell(status="absent")
    return (
        number_cell(measurement.num_parameters, formatting.exact_count),
        number_cell(measurement.num_non_embedding_parameters, formatting.exact_count),
    )


def _rows_by_length(results: Results, setting: CostSetting, lengths: list[int], quantity: Quantity) -> list[Row]:
    """The rows of one quantity; none if it was measured nowhere."""
    entries = results.costs_under(setting)
    rows = [
        Row(
            header=entry.model.label,
            series=entry.model.index,
            group=_quantity_label(entries, lengths, quantity),
            cells=tuple(cost_cell(entry, length, quantity) for length in lengths),
        )
        for entry in entries
    ]
    if not any(cell.value is not None for row in rows for cell in row.cells):
        return []
    return list(with_best_marked(rows, [quantity.higher_is_better] * len(lengths)))


def _quantity_label(entries: list[CostEntry], lengths: list[int], quantity: Quantity) -> str:
    label = f"{quantity.title}, {quantity.unit}" if quantity.unit else quantity.title
    contexts = [cost.generation_context for entry in entries for length in lengths if (cost := entry.cost(length))]
    if quantity.is_of_generation and contexts and max(contexts) < lengths[-1]:
        return f"{label}, after at most {max(contexts):,} tokens"
    return label
