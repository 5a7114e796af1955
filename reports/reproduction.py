"""`Results` of a reproduction -> its sections: paper, ours, verdict; what is not as published; what was chosen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from reports import formatting
from reports.document import Column, Finding, Row, Section, Table, TableCell, number_cell, text_cell
from reports.failures import FAILURE_TITLES, NOT_RUN
from reports.formatting import counted, percentage
from reports.results import SOLVED_AT, AccuracyEntry, Results
from reports.verdicts import Evidence, Score, Verdict, VerdictKind, judge, judge_ordering, tally
from suite.spec import Comparison, Published, Reproduction

_MARKS: Mapping[VerdictKind, str] = {"reproduced": "✓", "differs": "✗", "inconclusive": "~"}
"""What is judged, and how a table says so in one sign."""

_OPEN: tuple[VerdictKind, ...] = ("differs", "inconclusive")
"""Verdicts under which another learning rate is looked at."""

_NOT_TRIED = TableCell(text="not tried", status="not_run")
"""Stands where the budget of this run has no such test."""

_ORDERINGS = "Order"
"""The group of the table under which claims about two rows stand."""


@dataclass(frozen=True)
class _Answer:
    """One entry of the published table with what this run says of it."""

    asked: Comparison
    entry: AccuracyEntry | None
    """None where this run does not try it."""
    evidence: Evidence
    verdict: Verdict

    @property
    def series(self) -> int | None:
        return self.entry.model.index if self.entry is not None else None

    @property
    def is_split(self) -> bool:
        """Whether the seeds are better counted than averaged."""
        return self.entry is not None and self.entry.task.is_split_by(self.evidence.shares)


def reproduction_sections(results: Results) -> list[Section]:
    """Paper, ours, verdict, and what was chosen; nothing if the run reproduces nothing."""
    reproduction = results.spec.reproduction if results.spec is not None else None
    if reproduction is None:
        return []
    answers = _answers(reproduction, results)
    orderings = _ordering_rows(reproduction, answers)
    tables = [
        _matrix(reproduction, answers),
        _verdict_table(reproduction, answers, [row for row, _ in orderings]),
        _differences_table(reproduction),
    ]
    verdicts = Section(
        name="reproduction",
        title="Paper, ours, verdict",
        paragraphs=tuple(_paragraphs(reproduction, results)),
        findings=tuple(_findings(answers, [verdict for _, verdict in orderings])),
        tables=tuple(table for table in tables if table is not None),
    )
    choices = Section(name="choices", title="Where the paper leaves it open", paragraphs=reproduction.choices)
    return [verdicts, choices] if reproduction.choices else [verdicts]


def _answers(reproduction: Reproduction, results: Results) -> list[_Answer]:
    """To all entries in the columns that some row of this run tries."""
    entries = {
        outcome.cell.id: entry for entry in results.accuracy for trial in entry.trials for outcome in trial.outcomes
    }
    tried = {asked.column for asked in reproduction.comparisons if asked.cells}
    seen = []
    for asked in reproduction.comparisons:
        if asked.column in tried:
            entry = next((entries[cell] for cell in asked.cells if cell in entries), None)
            seen.append((asked, entry, _evidence(entry, asked.test_length) if entry is not None else Evidence()))
    solved = {asked.column for asked, _, evidence in seen if evidence.num_solved}
    answers = []
    for asked, entry, evidence in seen:
        judged = functools.partial(
            judge,
            asked.published,
            tolerance=reproduction.tolerance,
            is_reduced=asked.is_reduced,
            is_solved_by_another=asked.column in solved,
        )
        verdict = judged(evidence) if asked.cells else Verdict("not tried", "")
        if entry is not None and verdict.kind in _OPEN:
            verdict = replace(verdict, rates=tuple(_reproducing_rates(entry, asked.test_length, judged)))
        answers.append(_Answer(asked, entry, evidence, verdict))
    return answers


def _reproducing_rates(
    entry: AccuracyEntry, test_length: int | None, judged: Callable[[Evidence], Verdict]
) -> Iterator[str]:
    """The learning rates of the grid at which the entry would be reproduced."""
    for trial in entry.trials:
        if judged(_evidence(replace(entry, trials=(trial,)), test_length)).kind == "reproduced":
            yield formatting.learning_rate(trial.learning_rate)


def _evidence(entry: AccuracyEntry, test_length: int | None) -> Evidence:
    if entry.selected is None:
        return Evidence(missing=FAILURE_TITLES[entry.failures[0].kind] if entry.failures else "")
    length = test_length or entry.reported_length
    num_sequences = {
        seed: evaluation.num_sequences
        for seed, accuracy in entry.selected.measured
        for evaluation in accuracy.test
        if evaluation.length == length
    }
    scores = tuple(Score(share, num_sequences[seed]) for seed, share in entry.test_scores(length).items())
    missing = "" if scores or length is None else entry.untested.get(length, "not tested")
    return Evidence(scores, missing, entry.task.baseline, entry.selected.num_diverged)


def _paragraphs(reproduction: Reproduction, results: Results) -> list[str]:
    paragraphs = [f"The paper's claim: {reproduction.claim.strip()}", f"Source: {reproduction.source}."]
    spec, num_missing = results.spec, len(results.with_status("not_run"))
    if spec is not None and any(asked.is_reduced for asked in reproduction.comparisons):
        paragraphs.append(
            f"This is the preset '{spec.preset}', a reduced size: the last table says what is not as published, and by "
            "how much. At a reduced size numbers do not compare with published ones. Judged is only who solves the "
            f"task, with at least {formatting.percent(SOLVED_AT)}, and who does not, if any row does; the verdicts say "
            "so."
        )
    else:
        tolerance = reproduction.tolerance
        paragraphs.append(
            f"Reproduced means that the interval of our mean lies within {tolerance.solved:g} points below a published "
            f"number of at least {formatting.percent(SOLVED_AT)}, within {tolerance.partial:g} points of a lower one, "
            f"or within {tolerance.chance:g} points of chance where the published number does."
        )
    if num_missing:
        paragraphs.append(
            f"{counted(num_missing, 'cell')} of {len(results.outcomes)} have not been run yet; where some of a row's "
            "are there, its verdict is of those."
        )
    return paragraphs


def _findings(answers: Sequence[_Answer], orderings: Sequence[Verdict]) -> list[Finding]:
    """What the verdicts come to: of all, of each row, and of the claims about two rows."""
    groups = {"In all": [*(answer.verdict for answer in answers), *orderings]}
    for answer in answers:
        groups.setdefault(answer.asked.row, []).append(answer.verdict)
    if orderings:
        groups[_ORDERINGS] = list(orderings)
    findings = [Finding(subject, f"{tally(verdicts)}.") for subject, verdicts in groups.items()]
    if num_elsewhere := sum(bool(answer.verdict.rates) for answer in answers):
        said = (
            f"{num_elsewhere} more would be reproduced at one that validation did not select; their verdicts say which."
        )
        findings.append(Finding("Learning rate", said))
    return findings


def _matrix(reproduction: Reproduction, answers: Sequence[_Answer]) -> Table | None:
    """The table as the paper has it, ours with a mark above theirs; None where it has one column."""
    lengths = dict.fromkeys((answer.asked.column for answer in answers), "")
    lengths |= {answer.asked.column: _length_here(answer.asked) for answer in answers if answer.asked.cells}
    if len(lengths) < 2:
        return None
    of_rows: dict[str, list[_Answer]] = {}
    for answer in answers:
        of_rows.setdefault(answer.asked.row, []).append(answer)
    marks = ", ".join(f"{mark} {kind}" for kind, mark in _MARKS.items())
    return Table(
        name="verdict-matrix",
        title=reproduction.title,
        caption=f"Ours in percent, the paper's in small print. {marks}. The next table has the intervals.",
        row_title="",
        columns=tuple(Column(title=column, unit=length) for column, length in lengths.items()),
        rows=tuple(
            Row(
                header=row,
                cells=tuple(_marked_cell(answer) for answer in of_row),
                series=next((answer.series for answer in of_row if answer.series is not None), None),
            )
            for row, of_row in of_rows.items()
        ),
    )


def _as_printed(published: Published) -> str:
    return published if isinstance(published, str) else f"{published:g}"


def _length_here(asked: Comparison) -> str:
    """What a reduced test length is, which stands for a published one."""
    return f"here {asked.test_length:,}" if asked.is_reduced and asked.test_length is not None else ""


def _marked_cell(answer: _Answer) -> TableCell:
    published, evidence = answer.asked.published, answer.evidence
    unmeasured = _unmeasured_cell(answer)
    ours = percentage(evidence.mean) if unmeasured is None else unmeasured.text
    if answer.is_split:
        ours = _count(evidence)
    return TableCell(
        text=f"{_MARKS.get(answer.verdict.kind, '')} {ours}".strip(),
        value=evidence.mean,
        details=() if published == "not reported" else (_as_printed(published),),
        status="value" if unmeasured is None else unmeasured.status,
    )


def _verdict_table(reproduction: Reproduction, answers: Sequence[_Answer], orderings: Iterable[Row]) -> Table:
    """Every entry with its interval; folded away where the table as the paper has it says the gist."""
    has_one_column = len({answer.asked.column for answer in answers}) < 2
    rows = [
        Row(
            header=answer.asked.row if has_one_column else answer.asked.column,
            group="" if has_one_column else answer.asked.row,
            series=answer.series,
            cells=(
                _paper_cell(answer.asked.published),
                text_cell(answer.verdict.wanted),
                _ours_cell(answer),
                _solved_cell(answer.evidence),
                _verdict_cell(answer.verdict, *_gaps(answer), is_reduced=answer.asked.is_reduced),
            ),
        )
        for answer in answers
    ]
    return Table(
        name="verdicts",
        title=reproduction.title if has_one_column else "One by one",
        caption=(
            "Ours: mean test accuracy over seeds, of the learning rate that validation selected, with its 95 % "
            "interval: Student-t over seeds, or Wilson over test sequences where there is one seed or all agree. Where "
            "some seeds solved the task and the others are far from it, how many did, and the range of all. "
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
        rows=(*rows, *orderings),
        is_secondary=not has_one_column,
    )


def _paper_cell(published: Published) -> TableCell:
    if isinstance(published, str):
        return text_cell(published)
    return number_cell(published / 100, formatting.percent)


def _ours_cell(answer: _Answer) -> TableCell:
    evidence, interval = answer.evidence, answer.evidence.interval
    if interval is None:
        return _unmeasured_cell(answer) or NOT_RUN
    if answer.is_split:
        low, high = min(evidence.shares), max(evidence.shares)
        return TableCell(
            text=_count(evidence),
            details=(f"{percentage(low)}–{percentage(high)}", *filter(None, [_selected_rate(answer.entry)])),
        )
    return number_cell(
        answer.evidence.mean,
        formatting.percent,
        f"{percentage(interval.low)}–{percentage(interval.high)}",
        _selected_rate(answer.entry),
        interval=interval,
    )


def _selected_rate(entry: AccuracyEntry | None) -> str:
    """The learning rate, where there was a choice."""
    if entry is None or entry.selected is None or len(entry.trials) < 2:
        return ""
    return f"lr {formatting.learning_rate(entry.selected.learning_rate)}"


def _unmeasured_cell(answer: _Answer) -> TableCell | None:
    """What stands where there is no score; None where there is one."""
    if answer.evidence.scores:
        return None
    if answer.evidence.missing:
        return TableCell(text=answer.evidence.missing, status="failed")
    return NOT_RUN if answer.asked.cells else _NOT_TRIED


def _solved_cell(evidence: Evidence) -> TableCell:
    if not evidence.scores:
        return TableCell(status="absent")
    num_seeds = evidence.num_seeds
    return TableCell(text=f"{evidence.num_solved}/{num_seeds}", value=evidence.num_solved / num_seeds)


def _gaps(answer: _Answer) -> list[str]:
    """What a verdict does without, where some of its cells were measured."""
    entry = answer.entry
    if entry is None or entry.selected is None or not answer.evidence.scores:
        return []
    num_failed, num_seeds = entry.selected.num_failed, len(entry.selected.outcomes)
    num_not_run, num_cells = sum(trial.num_not_run for trial in entry.trials), len(answer.asked.cells)
    gaps = [f"{num_failed} of {counted(num_seeds, 'seed')} failed"] if num_failed else []
    return [*gaps, f"{num_not_run} of {counted(num_cells, 'cell')} not run yet"] if num_not_run else gaps


def _verdict_cell(verdict: Verdict, *gaps: str, is_reduced: bool) -> TableCell:
    remarks = ["reduced"] if is_reduced and verdict.kind in _MARKS else []
    remarks += [verdict.remark] if verdict.remark else []
    remarks += [f"reproduced at lr {' and '.join(verdict.rates)}"] if verdict.rates else []
    return text_cell(verdict.kind, *remarks, *gaps)


def _ordering_rows(reproduction: Reproduction, answers: Sequence[_Answer]) -> list[tuple[Row, Verdict]]:
    """A line for each column in which one row is published to do better than another."""
    by_place = {(answer.asked.row, answer.asked.column): answer for answer in answers}
    rows = []
    for ordering in reproduction.orderings:
        for column in ordering.columns:
            better, worse = (by_place.get((row, column)) for row in (ordering.better, ordering.worse))
            if better is None or worse is None:
                continue
            verdict = judge_ordering(better.evidence, worse.evidence)
            means = [_in_short(answer) for answer in (better, worse)]
            cells = (
                TableCell(status="absent"),
                text_cell(verdict.wanted),
                text_cell(means[0], f"against {means[1]}"),
                TableCell(status="absent"),
                _verdict_cell(verdict, is_reduced=better.asked.is_reduced or worse.asked.is_reduced),
            )
            header = f"{ordering.better}, {ordering.worse}: {column}"
            rows.append((Row(header=header, group=_ORDERINGS, cells=cells), verdict))
    return rows


def _in_short(answer: _Answer) -> str:
    return _count(answer.evidence) if answer.is_split else formatting.percent(answer.evidence.mean)


def _count(evidence: Evidence) -> str:
    """What stands in place of the mean of seeds far apart."""
    return f"{evidence.num_solved}/{evidence.num_seeds} solved"


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
