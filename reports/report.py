"""Records -> a `Report`: which tables, charts and sentences there are, and in which order."""

from __future__ import annotations

from collections.abc import Iterable

from reports import accuracy_tables, cost_tables, failures, plots, provenance, setup_tables
from reports.document import Chart, Report, Section, Table
from reports.findings import key_findings, what_was_compared
from reports.gathering import gather
from reports.reproduction import reproduction_sections
from reports.results import Results
from suite.records import Record
from suite.spec import RunSpec

TITLE = "Sequence models compared"


def build_report(records: Iterable[Record], spec: RunSpec | None = None) -> Report:
    """Everything that the records say, ready to be rendered.

    With `spec`, cells that were asked for and have no record are shown as not run, and models and tasks stand in the
    order in which they were asked for. Without records, the report says that there are none.

    Raises:
        StoreError: a record is judged by a metric that this version does not know.
    """
    results = gather(records, spec)
    if not results.outcomes:
        empty = Section(name="summary", title="In short", paragraphs=("There are no records and no cells to show.",))
        return Report(title=TITLE, subtitle="", models=(), sections=(empty,))
    sections = [
        *reproduction_sections(results),
        Section(
            name="summary",
            title="In short",
            paragraphs=(what_was_compared(results),),
            findings=tuple(key_findings(results)),
        ),
        _section(
            "accuracy",
            "Accuracy",
            tables=[accuracy_tables.accuracy_table(results), setup_tables.matching_table(results)],
        ),
        _section(
            "length",
            "Accuracy against length",
            charts=[plots.accuracy_by_length_chart(results)],
            tables=accuracy_tables.accuracy_by_length_tables(results),
        ),
        _section("slices", "Accuracy by slice", tables=accuracy_tables.accuracy_by_slice_tables(results)),
        _section(
            "learning",
            "Learning curves",
            charts=[plots.learning_curves_chart(results)],
            tables=[accuracy_tables.training_table(results), setup_tables.tuning_table(results)],
        ),
        _section(
            "throughput",
            "Throughput",
            charts=[plots.throughput_chart(results)],
            tables=[cost_tables.throughput_table(results)],
        ),
        _section("memory", "Memory", charts=[plots.memory_chart(results)], tables=[cost_tables.memory_table(results)]),
        _section("trade-off", "Accuracy against throughput", charts=[plots.trade_off_chart(results)]),
        _section("cost", "Cost by length", tables=cost_tables.cost_by_length_tables(results)),
        _section(
            "positions",
            "Loss by position",
            charts=[plots.loss_by_position_chart(results)],
            tables=accuracy_tables.loss_by_position_tables(results),
        ),
        _section(
            "learning-rates",
            "Learning-rate sensitivity",
            charts=[plots.learning_rate_chart(results)],
            tables=[accuracy_tables.learning_rate_table(results)],
        ),
        _failures_section(results),
        _provenance_section(results),
        Section(
            name="reproduce",
            title="How to reproduce",
            paragraphs=(_reproduction_paragraph(results),),
            commands=setup_tables.reproduction_commands(results),
        ),
    ]
    return Report(
        title=_title(results),
        subtitle=_subtitle(results),
        models=tuple(model.label for model in results.models),
        sections=tuple(section for section in sections if section is not None),
    )


def _section(
    name: str, title: str, *, charts: Iterable[Chart | None] = (), tables: Iterable[Table | None] = ()
) -> Section | None:
    """A section of what there is; None if there is nothing."""
    found_charts = tuple(chart for chart in charts if chart is not None)
    found_tables = tuple(table for table in tables if table is not None)
    if not found_charts and not found_tables:
        return None
    return Section(name=name, title=title, charts=found_charts, tables=found_tables)


def _failures_section(results: Results) -> Section:
    tables = [failures.failures_table(results), failures.not_run_table(results)]
    found = tuple(table for table in tables if table is not None)
    paragraphs = () if found else ("Every cell that was asked for was measured; no attempt failed.",)
    return Section(name="failures", title="Failures and gaps", paragraphs=paragraphs, tables=found)


def _provenance_section(results: Results) -> Section:
    tables = [
        provenance.implementations_table(results),
        provenance.data_table(results),
        provenance.environment_table(results.records),
        setup_tables.tasks_table(results),
        setup_tables.configurations_table(results),
        setup_tables.optimizer_table(results),
    ]
    return Section(
        name="provenance",
        title="What really ran",
        paragraphs=("Read from the records that the cells wrote themselves, not from what was asked for.",),
        tables=tuple(table for table in tables if table is not None),
    )


def _title(results: Results) -> str:
    if results.spec is None or results.spec.reproduction is None:
        return TITLE
    return f"{results.spec.reproduction.experiment}, reproduced"


def _subtitle(results: Results) -> str:
    started = sorted(record.started_at for record in results.records)
    preset = f"preset {results.spec.preset}" if results.spec is not None else ""
    when = ""
    if started:
        first, last = (moment[:16].replace("T", " ") for moment in (started[0], started[-1]))
        when = f"measured {first} UTC" if first == last else f"measured {first} to {last} UTC"
    return " · ".join(part for part in (preset, when) if part)


def _reproduction_paragraph(results: Results) -> str:
    if results.spec is None:
        return (
            "The records do not say which preset they came from; compare tasks, budgets and models as built above with "
            "those of the preset you choose."
        )
    return "From a checkout of the same code, on a machine like the one above:"
