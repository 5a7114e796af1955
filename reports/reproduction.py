"""`Results` of a reproduction -> its section: paper, ours, verdict, and what is not as published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from reports import formatting
from reports.document import Column, Finding, Row, Section, Table, TableCell, number_cell, text_cell
from reports.failures import FAILURE_TITLES
from reports.formatting import counted, percentage
from reports.results import SOLVED_AT, AccuracyEntry, Results
from reports.verdicts import Evidence, Score, Verdict, VerdictKind, judge, judge_ordering, tally
from suite.spec import Comparison, Published, Reproduction

_MARKS: Mapping[VerdictKind, str] = {"reproduced": "✓", "differs": "✗", "inconclusive": "~"}

_ORDERINGS = "Order"
"""The group of the table under which claims about two rows stand."""


def reproduction_section(results: Results) -> Section | None:
    """Paper, ours, verdict; None if the run reproduces nothing."""
    reproduction = results.spec.reproduction if results.spec is not None else None
    if reproduction is None:
        return None
    shown = _shown(reproduction)
    entries = _entries_by_cell(results)
    evidence = {(entry.row, entry.column): _evidence(entry, entries) for entry in shown}
    verdicts = {
        (entry.row, entry.column): judge(
            entry.published, evidence[entry.row, entry.column], reproduction.tolerance, is_reduced=entry.is_reduced
        )
        for entry in shown
    }
    orderings = _ordering_rows(reproduction, evidence)
    rows = [_row(entry, evidence, verdicts, entries, reproduction) for entry in shown]
    tables = [
        _matrix(reproduction, shown, evidence, verdicts, entries),
        _verdict_table(reproduction, [*rows, *(row for row, _ in orderings)]),
        _differences_table(reproduction),
    ]
    return Section(
        name="reproduction",
        title="Paper, ours, verdict",
        paragraphs=tuple(_paragraphs(reproduction, results)),
        findings=tuple(_findings(shown, verdicts, [verdict for _, verdict in orderings])),
        tables=tuple(table for table in tables if table is not None),
    )


def choices_section(results: Results) -> Section | None:
    """What was chosen where the paper leaves it open; None if the run reproduces nothing."""
    reproduction = results.spec.reproduction if results.spec is not None else None
    if reproduction is None or not reproduction.choices:
        return None
    return Section(name="choices", title="Where the paper leaves it open", paragraphs=reproduction.choices)


def _shown(reproduction: Reproduction) -> list[Comparison]:
    """Those in the columns that some row of this run tries."""
    tried = {entry.column for entry in reproduction.comparisons if entry.cells}
    return [entry for entry in reproduction.comparisons if entry.column in tried]


def _entries_by_cell(results: Results) -> dict[str, AccuracyEntry]:
    return {
        outcome.cell.id: entry for entry in results.accuracy for trial in entry.trials for outcome in trial.outcomes
    }


def _evidence(comparison: Comparison, entries: Mapping[str, AccuracyEntry]) -> Evidence:
    entry = _entry_of(comparison, entries)
    if entry is None:
        return Evidence()
    if entry.selected is None:
        return Evidence(missing=FAILURE_TITLES[entry.failures[0].kind] if entry.failures else "")
    length = comparison.test_length or entry.reported_length
    scores = tuple(
        Score(entry.test_scores(length)[seed], evaluation.num_sequences)
        for seed, accuracy in entry.selected.measured
        for evaluation in accuracy.test
        if evaluation.length == length and seed in entry.test_scores(length)
    )
    missing = "" if scores or length is None else entry.untested.get(length, "not tested")
    return Evidence(scores, missing, entry.task.baseline)


def _entry_of(comparison: Comparison, entries: Mapping[str, AccuracyEntry]) -> AccuracyEntry | None:
    return next((entries[cell] for cell in comparison.cells if cell in entries), None)


def _paragraphs(reproduction: Reproduction, results: Results) -> list[str]:
    paragraphs = [f"The paper's claim: {reproduction.claim.strip()}", f"Source: {reproduction.source}."]
    spec, num_missing = results.spec, len(results.with_status("not_run"))
    if spec is not None and any(entry.is_reduced for entry in reproduction.comparisons):
        paragraphs.append(
            f"This is the preset '{spec.preset}', a reduced size: the last table says what is not as published, and by "
            "how much. At a reduced size numbers do not compare with published ones. Judged is only who solves the "
            f"task, with at least {formatting.percent(SOLVED_AT)}, and who does not; the verdicts say so."
        )
    else:
        tolerance = reproduction.tolerance
        paragraphs.append(
            f"Reproduced means that the interval of our mean lies within {tolerance.solved:g} points below a published "
            f"number of at least {formatting.percent(SOLVED_AT)}, within {tolerance.partial:g} points of a lower one, "
            f"or within {tolerance.chance:g} points of chance where the published number does."
        )
    if num_missing:
        paragraphs.append(f"{counted(num_missing, 'cell')} of {len(results.outcomes)} have not been run yet.")
    return paragraphs


def _findings(
    shown: list[Comparison], verdicts: Mapping[tuple[str, str], Verdict], orderings: list[Verdict]
) -> list[Finding]:
    """What the verdicts of each row come to."""
    rows = list(dict.fromkeys(entry.row for entry in shown))
    findings = [
        Finding(row, tally([verdict for (of_row, _), verdict in verdicts.items() if of_row == row]) + ".")
        for row in rows
    ]
    if orderings:
        findings.append(Finding(_ORDERINGS, tally(orderings) + "."))
    return [Finding("In all", tally([*verdicts.values(), *orderings]) + "."), *findings]


def _row(
    comparison: Comparison,
    evidence: Mapping[tuple[str, str], Evidence],
    verdicts: Mapping[tuple[str, str], Verdict],
    entries: Mapping[str, AccuracyEntry],
    reproduction: Reproduction,
) -> Row:
    place = comparison.row, comparison.column
    seen, verdict, entry = evidence[place], verdicts[place], _entry_of(comparison, entries)
    has_one_column = len({entry.column for entry in reproduction.comparisons}) == 1
    return Row(
        header=comparison.row if has_one_column else comparison.column,
        group="" if has_one_column else comparison.row,
        series=entry.model.index if entry is not None else None,
        cells=(
            _paper_cell(comparison.published),
            text_cell(verdict.wanted),
            _ours_cell(seen, entry),
            TableCell(
                text=f"{seen.num_solved}/{len(seen.scores)}" if seen.scores else formatting.ABSENT,
                value=seen.num_solved / len(seen.scores) if seen.scores else None,
            ),
            _verdict_cell(verdict, is_reduced=comparison.is_reduced),
        ),
    )


def _paper_cell(published: Published) -> TableCell:
    if isinstance(published, str):
        return text_cell(published)
    return number_cell(published / 100, formatting.percent)


def _ours_cell(evidence: Evidence, entry: AccuracyEntry | None) -> TableCell:
    interval = evidence.interval
    if interval is None:
        return TableCell(text=evidence.missing or "not run", status="failed" if evidence.missing else "not_run")
    return number_cell(
        evidence.mean,
        formatting.percent,
        f"{percentage(interval.low)}–{percentage(interval.high)}",
        _chosen_rate(entry),
        interval=interval,
    )


def _chosen_rate(entry: AccuracyEntry | None) -> str:
    """Where there was a choice."""
    if entry is None or entry.selected is None or len(entry.trials) < 2:
        return ""
    return f"lr {formatting.learning_rate(entry.selected.learning_rate)}"


def _verdict_cell(verdict: Verdict, *, is_reduced: bool) -> TableCell:
    is_judged = verdict.kind in ("reproduced", "differs", "inconclusive")
    remarks = (*(["reduced"] if is_judged and is_reduced else []), *([verdict.remark] if verdict.remark else []))
    return text_cell(verdict.kind, *remarks)


def _ordering_rows(
    reproduction: Reproduction, evidence: Mapping[tuple[str, str], Evidence]
) -> list[tuple[Row, Verdict]]:
    """A line for each column in which one row is published to do better than another."""
    reduced = {(entry.row, entry.column): entry.is_reduced for entry in reproduction.comparisons}
    rows = []
    for ordering in reproduction.orderings:
        for column in ordering.columns:
            better, worse = ((row, column) for row in (ordering.better, ordering.worse))
            if better not in evidence or worse not in evidence:
                continue
            verdict = judge_ordering(evidence[better], evidence[worse])
            cells = (
                TableCell(status="absent"),
                text_cell(verdict.wanted),
                number_cell(
                    evidence[better].mean, formatting.percent, f"against {formatting.percent(evidence[worse].mean)}"
                ),
                TableCell(status="absent"),
                _verdict_cell(verdict, is_reduced=reduced[better] or reduced[worse]),
            )
            header = f"{ordering.better}, {ordering.worse}: {column}"
            rows.append((Row(header=header, group=_ORDERINGS, cells=cells), verdict))
    return rows


def _matrix(
    reproduction: Reproduction,
    shown: list[Comparison],
    evidence: Mapping[tuple[str, str], Evidence],
    verdicts: Mapping[tuple[str, str], Verdict],
    entries: Mapping[str, AccuracyEntry],
) -> Table | None:
    """The table as the paper has it, with ours and a mark; None where it has one column."""
    columns = list(dict.fromkeys(entry.column for entry in shown))
    if len(columns) < 2:
        return None
    by_row: dict[str, list[Comparison]] = {}
    for entry in shown:
        by_row.setdefault(entry.row, []).append(entry)
    rows = []
    for row, of_row in by_row.items():
        trained = next((found for entry in of_row if (found := _entry_of(entry, entries)) is not None), None)
        places = [(row, entry.column) for entry in of_row]
        cells = [
            _marked_cell(entry.published, evidence[place], verdicts[place])
            for entry, place in zip(of_row, places, strict=True)
        ]
        rows.append(Row(header=row, cells=tuple(cells), series=trained.model.index if trained is not None else None))
    return Table(
        name="verdict-matrix",
        title=reproduction.title,
        caption=(
            "Ours in percent, the paper's in small print. "
            + ", ".join(f"{mark} {kind}" for kind, mark in _MARKS.items())
            + ". The next table has the intervals."
        ),
        row_title="",
        columns=tuple(Column(title=column) for column in columns),
        rows=tuple(rows),
    )


def _marked_cell(published: Published, evidence: Evidence, verdict: Verdict) -> TableCell:
    ours = percentage(evidence.mean) if evidence.scores else evidence.missing or "not run"
    status: Literal["value", "failed", "not_run"] = "value"
    if not evidence.scores:
        status = "failed" if evidence.missing else "not_run"
    return TableCell(
        text=f"{_MARKS.get(verdict.kind, '')} {ours}".strip(),
        value=evidence.mean,
        details=(published if isinstance(published, str) else f"{published:g}",),
        status=status,
    )


def _verdict_table(reproduction: Reproduction, rows: list[Row]) -> Table:
    return Table(
        name="verdicts",
        title="One by one",
        caption=(
            "Ours: mean test accuracy over seeds, of the learning rate that validation selected, with its 95 % "
            "interval: Student-t over seeds, or Wilson over test sequences where there is one seed or all agree. "
            f"Solved: seeds with at least {formatting.percent(SOLVED_AT)}. Wanted: where the interval has to lie, or "
            "every seed; in order, every seed of the one above every seed of the other."
        ),
        row_title=reproduction.columns_title,
        columns=(
            Column(title="Paper"),
            Column(title="Wanted"),
            Column(title="Ours"),
            Column(title="Solved", unit="seeds"),
            Column(title="Verdict", is_text=True),
        ),
        rows=tuple(rows),
        is_secondary=any(row.group for row in rows if row.group != _ORDERINGS),
    )


def _differences_table(reproduction: Reproduction) -> Table | None:
    if not reproduction.differences:
        return None
    return Table(
        name="differences",
        title="What is not as published",
        caption="Every setting of this run that departs from the experiment's published protocol, over all rows.",
        row_title="Setting",
        columns=(
            Column(title="Published", is_text=True),
            Column(title="Here", is_text=True),
            Column(title="Factor", is_text=True),
        ),
        rows=tuple(
            Row(
                header=difference.setting,
                cells=(text_cell(difference.published), text_cell(difference.here), text_cell(difference.factor)),
            )
            for difference in reproduction.differences
        ),
    )
