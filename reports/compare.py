"""Two result folders -> what changed between them: accuracy, throughput, cells, environments.

Cells are matched by everything that they hold but the digest of a single-file plugin, so that a model can be compared
with its own earlier draft; its version and the protocol must be the same.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping

from reports import formatting
from reports.document import Column, Finding, Report, Row, Section, Table, TableCell, number_cell, text_cell
from reports.failures import FAILURE_TITLES
from reports.formatting import counted, listed
from reports.gathering import gather
from reports.provenance import describe_environment
from reports.quantities import Activity, timing_of, tokens_per_second
from reports.results import AccuracyEntry, Metric, Outcome, Results
from reports.statistics import CONFIDENCE, Interval, mean_interval, paired_differences, ratio_of_medians_interval
from suite.records import Record, Timing
from suite.spec import Choice, canonical_json

SMALLEST_CHANGE = 0.03
"""Throughput that changes by less than this share is never called faster or slower: machines drift by as much."""

UNCHANGED = "no difference shown"

_CHANGES = ("better", "worse", "faster", "slower")

_RESAMPLES = 10_000
_ACTIVITIES: tuple[Activity, ...] = ("training", "inference", "generation")


def compare(first: Iterable[Record], second: Iterable[Record]) -> Report:
    """What changed from the first records (A) to the second (B).

    The more verdicts a table holds, the more each of them asks for (Bonferroni): between two runs of the same code,
    a table with any false verdict comes up about once in twenty times or less.

    Raises:
        StoreError: a record is judged by a metric that this version does not know.
    """
    a, b = (gather([_without_source(record) for record in records]) for records in (first, second))
    accuracy, throughput = _accuracy_table(a, b), _throughput_table(a, b)
    unmatched, environment = _unmatched_table(a, b), _environment_table(a, b)
    summary = Section(
        name="summary",
        title="In short",
        paragraphs=(_extent(a, b),),
        findings=tuple(
            finding
            for finding in (
                _verdicts_finding("Accuracy", accuracy),
                _verdicts_finding("Throughput", throughput),
                _unmatched_finding(unmatched),
                _environment_finding(environment),
            )
            if finding is not None
        ),
    )
    found = [table for table in (accuracy, throughput, unmatched, environment) if table is not None]
    sections = [Section(name=f"{table.name}-section", title=table.title, tables=(table,)) for table in found]
    return Report(title="Two results compared", subtitle="A, then B", models=(), sections=(summary, *sections))


def _without_source(record: Record) -> Record:
    def stripped(choice: Choice) -> Choice:
        return choice.model_copy(update={"source_sha256": None})

    cell = record.cell.model_copy(update={"model": stripped(record.cell.model), "task": stripped(record.cell.task)})
    return record.model_copy(update={"cell": cell})


def _accuracy_table(a: Results, b: Results) -> Table | None:
    """Every model on every task that both measured."""
    of_b = {_identity(entry): entry for entry in b.accuracy}
    pairs = [(entry, of_b[_identity(entry)]) for entry in a.accuracy if _identity(entry) in of_b]
    measured = [
        (before, after)
        for before, after in pairs
        if before.mean is not None and after.mean is not None and before.task.metric == after.task.metric
    ]
    if not measured:
        return None
    confidence = _confidence_of_each(len(measured))
    return Table(
        name="accuracy",
        title="Accuracy",
        caption=(
            "Mean test score over seeds of the learning rate that validation selected, on each side. Difference: B "
            "minus A, paired by seed, with its 95 % interval (Student-t). The verdict asks for more: "
            f"it is one of {len(measured)}, which together are to be trusted as much as one interval."
        ),
        row_title="Model",
        columns=(
            Column(title="A"),
            Column(title="B"),
            Column(title="Difference", unit="B − A"),
            Column(title="Verdict", is_text=True),
        ),
        rows=tuple(_accuracy_row(before, after, confidence) for before, after in measured),
    )


def _accuracy_row(before: AccuracyEntry, after: AccuracyEntry, confidence: float) -> Row:
    metric = before.task.metric
    assert metric is not None
    differences = paired_differences(before.reported_scores, after.reported_scores)
    interval = mean_interval(differences)
    shown = ""
    if interval is not None:
        shown = f"{metric.write_difference(interval.low)} to {metric.write_difference(interval.high)}"
    mean = statistics.fmean(differences) if differences else None
    return Row(
        header=before.model.label,
        group=before.task.label,
        cells=(
            _entry_cell(before, metric),
            _entry_cell(after, metric),
            number_cell(
                mean, metric.write_difference, shown, counted(len(differences), "shared seed"), interval=interval
            ),
            text_cell(_accuracy_verdict(differences, metric, confidence)),
        ),
    )


def _entry_cell(entry: AccuracyEntry, metric: Metric) -> TableCell:
    rate = f"lr {formatting.learning_rate(entry.selected.learning_rate)}" if entry.selected is not None else ""
    return number_cell(entry.mean, metric.write, rate)


def _accuracy_verdict(differences: list[float], metric: Metric, confidence: float) -> str:
    if not differences:
        return "no shared seed"
    if not any(differences):
        return "identical"
    interval = mean_interval(differences, confidence)
    if interval is None:
        return "too few seeds"
    if 0.0 in interval:
        return UNCHANGED
    return "better" if metric.rank(interval.low) > 0 else "worse"


def _throughput_table(a: Results, b: Results) -> Table | None:
    """Every timing that both took."""
    of_b = {outcome.cell.id: outcome for outcome in b.outcomes}
    timed = [
        (activity, outcome, timing_of(outcome.cost, activity), timing_of(other.cost, activity))
        for activity in _ACTIVITIES
        for outcome in a.outcomes
        if (other := of_b.get(outcome.cell.id)) is not None and outcome.cost is not None and other.cost is not None
    ]
    if not timed:
        return None
    confidence = _confidence_of_each(len(timed))
    return Table(
        name="throughput",
        title="Throughput",
        caption=(
            "Tokens per second of the median call. Ratio: B over A, with its 95 % bootstrap interval. The verdict asks "
            f"for more than that interval, it is one of {len(timed)}; and for a change of at least "
            f"{100 * SMALLEST_CHANGE:.0f} %, because machines drift by as much."
        ),
        row_title="Model",
        columns=(
            Column(title="Activity", is_text=True),
            Column(title="Length", unit="tokens"),
            Column(title="A", unit="tokens/s"),
            Column(title="B", unit="tokens/s"),
            Column(title="Ratio", unit="B / A"),
            Column(title="Verdict", is_text=True),
        ),
        rows=tuple(
            _throughput_row(a, outcome, activity, before, after, confidence)
            for activity, outcome, before, after in timed
        ),
    )


def _throughput_row(
    a: Results, outcome: Outcome, activity: Activity, before: Timing, after: Timing, confidence: float
) -> Row:
    estimates = [tokens_per_second(before), tokens_per_second(after)]
    ratio, interval, verdict = None, None, "not measurable"
    if estimates[0] is not None and estimates[1] is not None:
        ratio = estimates[1].value / estimates[0].value
        interval = _ratio_interval(before, after, CONFIDENCE)
        verdict = _throughput_verdict(ratio, before, after, confidence)
    shown = f"{interval.low:.3f}–{interval.high:.3f}" if interval is not None else ""
    return Row(
        header=a.model_of[outcome.cell.id].label,
        group=a.task_label_of[outcome.cell.id],
        cells=(
            text_cell(activity),
            number_cell(outcome.cell.length, formatting.exact_count),
            *(
                number_cell(estimate.value if estimate is not None else None, formatting.compact_count)
                for estimate in estimates
            ),
            number_cell(ratio, formatting.decimal, shown, interval=interval),
            text_cell(verdict),
        ),
    )


def _throughput_verdict(ratio: float, before: Timing, after: Timing, confidence: float) -> str:
    interval = _ratio_interval(before, after, confidence)
    num_before, num_after = len(before.samples_seconds), len(after.samples_seconds)
    # Two sets of timings of the same code fall entirely apart, by chance, in two of this many orders.
    orders = math.comb(num_before + num_after, num_before)
    if interval is None or 2 / orders > 1 - confidence:
        return "too few samples"
    if 1.0 in interval or abs(ratio - 1) < SMALLEST_CHANGE:
        return UNCHANGED
    return "faster" if ratio > 1 else "slower"


def _ratio_interval(before: Timing, after: Timing, confidence: float) -> Interval | None:
    """Of the throughput: B over A is the seconds of A over those of B."""
    interval = ratio_of_medians_interval(
        before.samples_seconds, after.samples_seconds, confidence, resamples=_RESAMPLES
    )
    if interval is None:
        return None
    tokens = after.tokens_per_call / before.tokens_per_call
    return Interval(tokens * interval.low, tokens * interval.high, interval.method, interval.confidence)


def _unmatched_table(a: Results, b: Results) -> Table | None:
    """Cells without a measurement on both sides, counted by model, task, kind and what each side has."""
    of_a, of_b = ({outcome.cell.id: outcome for outcome in side.outcomes} for side in (a, b))
    counts: Counter[tuple[str, str, str, str, str]] = Counter()
    for cell_id in sorted(of_a.keys() | of_b.keys()):
        before, after = _state(of_a, cell_id), _state(of_b, cell_id)
        if (before, after) != ("measured", "measured"):
            side = a if cell_id in of_a else b
            cell = (of_a if cell_id in of_a else of_b)[cell_id].cell
            counts[side.task_label_of[cell_id], side.model_of[cell_id].label, cell.kind, before, after] += 1
    if not counts:
        return None
    return Table(
        name="unmatched",
        title="Not measured on both sides",
        caption="Cells that only one side has, or that failed on one side or on both.",
        row_title="Model",
        columns=(
            Column(title="Kind", is_text=True),
            Column(title="A", is_text=True),
            Column(title="B", is_text=True),
            Column(title="Cells"),
        ),
        rows=tuple(
            Row(
                header=model,
                group=task,
                cells=(
                    *(text_cell(text) for text in (kind, before, after)),
                    number_cell(number, formatting.exact_count),
                ),
            )
            for (task, model, kind, before, after), number in sorted(counts.items())
        ),
    )


def _environment_table(a: Results, b: Results) -> Table | None:
    """The properties of machine and software in which the sides differ; None if they differ in none."""
    before, after = _properties(a), _properties(b)
    rows = [
        Row(header=name, cells=(text_cell(before.get(name, "")), text_cell(after.get(name, ""))))
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]
    if not rows:
        return None
    return Table(
        name="environment",
        title="Different environments",
        caption="What is not listed is the same on both sides.",
        row_title="What",
        columns=(Column(title="A", is_text=True), Column(title="B", is_text=True)),
        rows=tuple(rows),
    )


def _extent(a: Results, b: Results) -> str:
    sizes = [
        f"{name}: {counted(len(side.with_status('measured')), 'measured cell')}, "
        f"{len(side.with_status('failed'))} failed."
        for name, side in (("A", a), ("B", b))
    ]
    shared = {outcome.cell.id for outcome in a.outcomes} & {outcome.cell.id for outcome in b.outcomes}
    return f"{sizes[0]} {sizes[1]} {counted(len(shared), 'cell')} in both."


def _verdicts_finding(subject: str, table: Table | None) -> Finding:
    if table is None:
        return Finding(subject, "nothing that both sides measured.")
    verdicts = Counter(row.cells[-1].text for row in table.rows)
    said = []
    for verdict, number in verdicts.most_common():
        changed = dict.fromkeys(row.header for row in table.rows if row.cells[-1].text == verdict)
        said.append(f"{number} {verdict}" + (f" ({', '.join(changed)})" if verdict in _CHANGES else ""))
    return Finding(subject, f"{listed(said)}.")


def _unmatched_finding(table: Table | None) -> Finding | None:
    if table is None:
        return None
    return Finding("Gaps", "some cells are not measured on both sides; they are listed below and have no verdict.")


def _environment_finding(table: Table | None) -> Finding | None:
    if table is None:
        return None
    names = listed([row.header for row in table.rows])
    return Finding("Environment", f"the sides differ in {names}: a change in throughput need not come from the code.")


def _identity(entry: AccuracyEntry) -> str:
    cell = entry.trials[0].outcomes[0].cell
    budget = cell.budget.model_dump(mode="json") if cell.budget is not None else None
    return canonical_json([cell.configuration_id, budget, cell.protocol])


def _confidence_of_each(num_verdicts: int) -> float:
    return 1 - (1 - CONFIDENCE) / num_verdicts


def _state(outcomes: Mapping[str, Outcome], cell_id: str) -> str:
    outcome = outcomes.get(cell_id)
    if outcome is None:
        return "not there"
    return "measured" if outcome.failure is None else FAILURE_TITLES[outcome.failure.kind]


def _properties(side: Results) -> dict[str, str]:
    """Every property with all of its values."""
    described = [describe_environment(record.environment) for record in side.records if record.environment is not None]
    names = dict.fromkeys(name for description in described for name in description)
    return {
        name: " · ".join(sorted({description[name] for description in described if name in description}))
        for name in names
    }
