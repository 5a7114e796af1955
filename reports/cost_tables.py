"""`Results` -> what it cost: throughput, memory, and both against length."""

from __future__ import annotations

from reports import formatting
from reports.accuracy_tables import NOT_RUN, failed_cell
from reports.document import Column, Row, Table, TableCell, number_cell, text_cell, with_best_marked
from reports.quantities import (
    FIRST_TRAINING_STEP,
    GENERATION_LATENCY,
    GENERATION_THROUGHPUT,
    INFERENCE_MEMORY,
    INFERENCE_THROUGHPUT,
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
        length = _shown_length(results, setting)
        group = [
            _row(
                entry,
                length,
                (
                    *(cost_cell(entry, length, quantity) for quantity in _THROUGHPUT),
                    _implementations_cell(entry, length),
                ),
            )
            for entry in results.costs_under(setting)
        ]
        rows += with_best_marked(group, [*(quantity.higher_is_better for quantity in _THROUGHPUT), None])
    if not rows:
        return None
    return Table(
        name="throughput",
        title="Throughput",
        caption=(
            "Tokens of the whole batch per second of the median call after warm-up, with the 95 % bootstrap interval "
            "of the median (none below six samples), at the longest length that most models finished. Training: "
            "forward, backward and optimizer step. Inference: forward over all positions at once. Generation: one "
            "token for each sequence, step by step, after as many tokens unless another number stands beside it. The first step includes compilation and autotuning. Bold: best of "
            "its group. Where models ran on implementations of different quality, their order is not that of the "
            "architectures."
        ),
        row_title="Model",
        columns=(*(_column(quantity) for quantity in _THROUGHPUT), Column(title="Ran on", is_text=True)),
        rows=tuple(rows),
    )


def memory_table(results: Results) -> Table | None:
    """Parameters, peaks and generation state at the reference length of each cost setting."""
    rows: list[Row] = []
    for setting in results.cost_settings:
        length = _shown_length(results, setting)
        group = [
            _row(
                entry,
                length,
                (*_parameter_cells(entry, length), *(cost_cell(entry, length, quantity) for quantity in _MEMORY)),
            )
            for entry in results.costs_under(setting)
        ]
        rows += with_best_marked(group, [None, None, *(quantity.higher_is_better for quantity in _MEMORY)])
    if not rows:
        return None
    return Table(
        name="memory",
        title="Memory",
        caption=(
            "Peak: most memory in use during the timed calls, over what was in use before the model was built. "
            "Generation state: what one sequence must keep to go on, after as many tokens unless another number stands "
            "beside it. Bold: least of its group."
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
                caption="The same quantities at every length that was measured. Bold: best of its group.",
                row_title="Model",
                columns=tuple(Column(title=f"{length:,}", unit="tokens") for length in lengths),
                rows=tuple(rows),
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
    interval, context = estimate.interval, outcome.cost.generation_context
    shown = f"{quantity.write(interval.low)}–{quantity.write(interval.high)}" if interval is not None else ""
    after = f"after {context:,} tokens" if quantity.is_of_generation and context != length else ""
    return number_cell(estimate.value, quantity.write, shown, after, interval=interval)


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


def _row(entry: CostEntry, length: int, cells: tuple[TableCell, ...]) -> Row:
    group = f"{entry.setting.label} · {length:,} tokens"
    return Row(header=entry.model.label, series=entry.model.index, group=group, cells=cells)


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
    rows = [
        Row(
            header=entry.model.label,
            series=entry.model.index,
            group=f"{quantity.title}, {quantity.unit}" if quantity.unit else quantity.title,
            cells=tuple(cost_cell(entry, length, quantity) for length in lengths),
        )
        for entry in results.costs_under(setting)
    ]
    if not any(cell.value is not None for row in rows for cell in row.cells):
        return []
    return list(with_best_marked(rows, [quantity.higher_is_better] * len(lengths)))
