"""`Results` -> what was learned: accuracy, by length and by slice, loss by position, training, learning rates."""

from __future__ import annotations

import statistics

from reports import formatting
from reports.document import Column, Row, Table, TableCell, number_cell, text_cell, with_best_marked
from reports.failures import NOT_RUN, failed_cell
from reports.formatting import counted, listed
from reports.results import AccuracyEntry, Metric, Results, TaskVariant, Trial
from reports.statistics import Interval, mean_interval, wilson_interval
from suite.records import SliceScore


def score_interval(scores: list[float], metric: Metric) -> Interval | None:
    """Interval of a mean score over seeds, within what the metric can be."""
    interval = mean_interval(scores)
    return interval.clipped(0.0, 1.0 if metric.is_share else float("inf")) if interval is not None else None


def accuracy_table(results: Results) -> Table | None:
    """Models × tasks: the test metric of the learning rate that validation selected, at the trained length."""
    if not results.accuracy:
        return None
    shown = [model for model in results.models if any(entry.model == model for entry in results.accuracy)]
    rows = with_best_marked(
        [
            Row(
                header=model.label,
                series=model.index,
                cells=tuple(_accuracy_cell(results.accuracy_of(model, task)) for task in results.tasks),
            )
            for model in shown
        ],
        [task.metric.higher_is_better if task.metric is not None else None for task in results.tasks],
    )
    baseline = Row(header="cannot see the sequence", cells=tuple(_baseline_cell(task) for task in results.tasks))
    return Table(
        name="accuracy",
        title="Accuracy",
        caption=(
            "Test score at the trained length: mean over seeds, with its 95 % interval (Student-t; none for a single "
            "seed or for equal scores), the seeds that solved the task, and the learning rate that validation "
            f"selected.{_solved_at_text(results)} Where some seeds solved it and the others are far from it, no mean "
            "is given but how many solved it, with the Wilson interval of their share. Bold: the best, and all whose "
            "interval overlaps with its; nothing where that is all. Last row: a model that knows the task but cannot "
            "see the sequence."
        ),
        row_title="Model",
        columns=tuple(
            Column(title=task.label, unit=_metric_title(task), explanation=_reported_lengths(results, task))
            for task in results.tasks
        ),
        rows=(*rows, baseline),
    )


def training_table(results: Results) -> Table | None:
    """How the selected learning rate trained, one row for each model on each task."""
    rows = [row for task in results.tasks for row in _training_rows(results, task)]
    if not rows:
        return None
    return Table(
        name="training",
        title="Training in detail",
        caption=(
            "Of the selected learning rate. Validation is the mean over seeds of the best score while training, by "
            "which the learning rate and the step were selected; test is read once, of those weights. Whole sequences: "
            "the share of test sequences without a mistake, mean over seeds. Solved: seeds whose "
            "test score says so, with the Wilson interval of their share; one that diverged has not solved it."
            f"{_solved_at_text(results)} Steps, tokens and time to solve: median over the seeds whose validation got "
            "there, up to that validation."
        ),
        row_title="Model",
        columns=(
            Column(title="Learning rate"),
            Column(title="Seeds"),
            Column(title="Validation"),
            Column(title="Test"),
            Column(title="Whole", unit="sequences"),
            Column(title="Seeds, range"),
            Column(title="Solved"),
            Column(title="Steps", unit="to solve"),
            Column(title="Tokens", unit="to solve"),
            Column(title="Time", unit="to solve"),
            Column(title="Steps run"),
            Column(title="Training time", unit="per seed"),
        ),
        rows=tuple(rows),
    )


def accuracy_by_length_tables(results: Results) -> list[Table]:
    """For each task tested at several lengths: models × lengths."""
    tables = []
    for task in results.tasks:
        entries = [entry for entry in results.accuracy_on(task) if entry.selected is not None]
        lengths = sorted({length for entry in entries for length in (*entry.test_lengths, *entry.untested)})
        if task.metric is None or len(lengths) < 2:
            continue
        trained = next((entry.trained_length for entry in entries if entry.trained_length), None)
        rows = [
            Row(
                header=entry.model.label,
                series=entry.model.index,
                cells=tuple(_length_cell(entry, task.metric, length) for length in lengths),
            )
            for entry in entries
        ]
        tables.append(
            Table(
                name=f"accuracy-by-length-{task.index}",
                title=f"Accuracy by test length: {task.label}",
                caption=(
                    f"{task.metric.title.capitalize()}, mean over seeds with the lowest and the highest seed; where "
                    "some seeds solved the task and the others are far from it, how many did. "
                    f"Trained on {_tokens(trained)}; longer sequences were never seen in training.{_reasons(entries)}"
                ),
                row_title="Model",
                columns=tuple(
                    Column(title=f"{length:,}", unit="tokens, trained" if length == trained else "tokens")
                    for length in lengths
                ),
                # Nothing is marked best: the range of a few seeds is no test of rank.
                rows=tuple(rows),
                is_secondary=True,
            )
        )
    return tables


def accuracy_by_slice_tables(results: Results) -> list[Table]:
    """For each task whose test was scored by slice: models, at each test length, × slices."""
    tables = []
    for task in results.tasks:
        scores = {
            (length, entry.model): entry.slice_scores(length)
            for entry in results.accuracy_on(task)
            for length in entry.test_lengths
        }
        names = list(dict.fromkeys(name for found in scores.values() for name in found))
        if not names:
            continue
        has_several_lengths = len({length for length, _ in scores}) > 1
        rows = [
            Row(
                header=model.label,
                series=model.index,
                group=_tokens(length) if has_several_lengths else "",
                cells=tuple(_slice_cell(found.get(name, [])) for name in names),
            )
            for (length, model), found in sorted(scores.items(), key=lambda item: (item[0][0], item[0][1].index))
            if found
        ]
        tables.append(
            Table(
                name=f"accuracy-by-slice-{task.index}",
                title=f"Accuracy by slice: {task.label}",
                caption=(
                    "Token accuracy within each part of the test, mean over seeds, with the share of sequences in "
                    "which the whole part is right where that differs."
                ),
                row_title="Model",
                columns=tuple(Column(title=name) for name in names),
                # Nothing is marked best: few seeds are no test of rank.
                rows=tuple(rows),
                is_secondary=True,
            )
        )
    return tables


def loss_by_position(entry: AccuracyEntry) -> list[tuple[int, int, float]]:
    """(first position, last position, mean loss over seeds) at the longest test length; empty if not measured.

    Of the selected learning rate, and of the buckets that every seed has.
    """
    if entry.selected is None or not entry.test_lengths:
        return []
    longest = entry.test_lengths[-1]
    of_seeds: list[dict[tuple[int, int], float]] = [
        {(first, last): loss for first, last, loss in evaluation.loss_by_position if formatting.is_finite(loss)}
        for _, accuracy in entry.selected.measured
        for evaluation in accuracy.test
        if evaluation.length == longest and evaluation.loss_by_position
    ]
    if not of_seeds:
        return []
    shared = sorted(set.intersection(*(set(buckets) for buckets in of_seeds)))
    return [(*bucket, statistics.fmean(buckets[bucket] for buckets in of_seeds)) for bucket in shared]


def loss_by_position_tables(results: Results) -> list[Table]:
    """For each task whose loss was taken by position: models × buckets of positions."""
    tables = []
    for task in results.tasks:
        losses = [(entry, loss_by_position(entry)) for entry in results.accuracy_on(task)]
        buckets = sorted({(first, last) for _, found in losses for first, last, _ in found})
        if not buckets:
            continue
        rows = []
        for entry, found in losses:
            by_bucket = {(first, last): loss for first, last, loss in found}
            cells = tuple(number_cell(by_bucket.get(bucket), formatting.decimal) for bucket in buckets)
            rows.append(Row(header=entry.model.label, series=entry.model.index, cells=cells))
        longest = max((entry.test_lengths[-1] for entry, found in losses if found), default=None)
        tables.append(
            Table(
                name=f"loss-by-position-{task.index}",
                title=f"Loss by position: {task.label}",
                caption=(
                    f"Mean negative log-likelihood in nats, over seeds, in test sequences of {_tokens(longest)}. A "
                    "model that uses its context gets better the further it has read."
                ),
                row_title="Model",
                columns=tuple(
                    Column(title=f"{first:,}–{last:,}" if first != last else f"{first:,}") for first, last in buckets
                ),
                rows=with_best_marked(rows, [False] * len(buckets)),
                is_secondary=True,
            )
        )
    return tables


def learning_rate_table(results: Results) -> Table | None:
    """Every learning rate that was tried, by its validation score; None if no model had a choice."""
    rates = sorted({trial.learning_rate for entry in results.accuracy for trial in entry.trials})
    if not any(len(entry.trials) > 1 for entry in results.accuracy):
        return None
    has_edges = any(entry.is_at_edge_of_grid for entry in results.accuracy)
    rows = []
    for entry in results.accuracy:
        trials = {trial.learning_rate: trial for trial in entry.trials}
        cells = tuple(_trial_cell(entry, trials.get(rate)) for rate in rates)
        edges = (text_cell("at its edge" if entry.is_at_edge_of_grid else ""),) if has_edges else ()
        rows.append(
            Row(header=entry.model.label, series=entry.model.index, group=entry.task.label, cells=(*cells, *edges))
        )
    return Table(
        name="learning-rates",
        title="Learning-rate sensitivity",
        caption=(
            "Validation score, mean over seeds of the best while training. Bold: selected. A learning rate at which "
            "seeds failed is only selected where none has more measured seeds."
            + (" At the edge of the grid, one that was not tried might be better still." if has_edges else "")
        ),
        row_title="Model",
        columns=(
            *(Column(title=formatting.learning_rate(rate), unit="learning rate") for rate in rates),
            *([Column(title="Place in the grid", is_text=True)] if has_edges else []),
        ),
        rows=tuple(rows),
    )


def _accuracy_cell(entry: AccuracyEntry | None) -> TableCell:
    if entry is None:
        return TableCell(status="absent")
    if entry.selected is None or entry.task.metric is None:
        return _unmeasured_cell(entry)
    scores = list(entry.reported_scores.values())
    lr = f"lr {formatting.learning_rate(entry.selected.learning_rate)}"
    if entry.is_split:
        return _split_cell(entry, entry.task.metric, lr, *_shortfalls(entry.selected))
    has_solved = entry.task.solved_at is not None
    solved = f"{entry.num_solved}/{entry.num_seeds} solved" if has_solved else counted(len(scores), "seed")
    return _score_cell(scores, entry.task.metric, solved, lr, *_shortfalls(entry.selected))


def _split_cell(entry: AccuracyEntry, metric: Metric, *details: str) -> TableCell:
    """How many seeds solved the task, and what the others reach."""
    others = sorted(score for score in entry.reported_scores.values() if not entry.task.is_solved(score))
    reached = metric.write_range(others[0], others[-1]) if len(others) > 1 else metric.write(others[0])
    num_seeds = entry.num_seeds
    interval = wilson_interval(entry.num_solved, num_seeds)
    return TableCell(
        text=f"{entry.num_solved}/{num_seeds} solved",
        value=entry.num_solved / num_seeds,
        low=interval.low,
        high=interval.high,
        details=(f"{_whole_percents(interval)} of seeds", f"others {reached}", *details),
    )


def _whole_percents(interval: Interval) -> str:
    return f"{100 * interval.low:.0f}–{100 * interval.high:.0f} %"


def _score_cell(scores: list[float], metric: Metric, *details: str) -> TableCell:
    if not scores:
        return TableCell(status="absent")
    interval = score_interval(scores, metric)
    shown = metric.write_range(interval.low, interval.high) if interval is not None else ""
    return number_cell(statistics.fmean(scores), metric.write, shown, *details, interval=interval)


def _unmeasured_cell(entry: AccuracyEntry) -> TableCell:
    return failed_cell(entry.failures[0]) if entry.failures else NOT_RUN


def _shortfalls(trial: Trial) -> list[str]:
    """What is missing behind a mean."""
    shortfalls = [f"{trial.num_failed} of {counted(len(trial.outcomes), 'seed')} failed"] if trial.num_failed else []
    if trial.num_not_run:
        shortfalls.append(f"{trial.num_not_run} of {counted(len(trial.outcomes), 'seed')} not run")
    return shortfalls


def _solved_at_text(results: Results) -> str:
    """From which score on a task counts as solved."""
    levels: dict[str, list[str]] = {}
    for task in results.tasks:
        if task.metric is not None and task.solved_at is not None:
            levels.setdefault(task.metric.write(task.solved_at), []).append(task.label)
    if not levels:
        return ""
    if len(levels) == 1:
        return f" Solved is {next(iter(levels))} or better."
    return f" Solved is {listed([f'{level} or better on {listed(tasks)}' for level, tasks in levels.items()])}."


def _baseline_cell(task: TaskVariant) -> TableCell:
    if task.metric is None:
        return TableCell(status="absent")
    return number_cell(task.baseline, task.metric.write)


def _metric_title(task: TaskVariant) -> str:
    if task.metric is None:
        return ""
    return task.metric.title if task.metric.higher_is_better else f"{task.metric.title}, lower is better"


def _reported_lengths(results: Results, task: TaskVariant) -> str:
    lengths = {entry.reported_length for entry in results.accuracy_on(task) if entry.reported_length is not None}
    return f"tested at {' / '.join(f'{length:,}' for length in sorted(lengths))} tokens" if lengths else ""


def _reasons(entries: list[AccuracyEntry]) -> str:
    """Why models were not tested at some lengths."""
    reasons = [
        f"{entry.model.label} at {length:,} tokens: {reason}"
        for entry in entries
        for length, reason in sorted(entry.untested.items())
    ]
    return f" Not tested: {'; '.join(reasons)}." if reasons else ""


def _tokens(length: int | None) -> str:
    return f"{length:,} tokens" if length is not None else "an unknown length"


def _training_rows(results: Results, task: TaskVariant) -> list[Row]:
    metric = task.metric
    if metric is None:
        return []
    rows = [
        Row(
            header=entry.model.label,
            series=entry.model.index,
            group=task.label,
            cells=_training_cells(entry, entry.selected, metric),
        )
        for entry in results.accuracy_on(task)
        if entry.selected is not None
    ]
    return list(
        with_best_marked(
            rows, [None, None, None, metric.higher_is_better, None, None, None, False, False, False, None, None]
        )
    )


def _training_cells(entry: AccuracyEntry, trial: Trial, metric: Metric) -> tuple[TableCell, ...]:
    scores = list(entry.reported_scores.values())
    accuracies = [accuracy for _, accuracy in trial.measured]
    steps = [accuracy.steps_run for accuracy in accuracies]
    num_early = sum(accuracy.stopped_early for accuracy in accuracies)
    return (
        number_cell(trial.learning_rate, formatting.learning_rate),
        number_cell(len(scores), formatting.exact_count, *_shortfalls(trial)),
        number_cell(statistics.fmean(trial.validation_scores), metric.write),
        # How many solved it, and the range, say more.
        TableCell(status="absent") if entry.is_split else _score_cell(scores, metric),
        _whole_sequences_cell(entry),
        text_cell(metric.write_range(min(scores), max(scores)) if len(scores) > 1 else ""),
        _solved_cell(entry),
        *_cells_to_solve(entry),
        number_cell(
            statistics.median(steps), formatting.exact_count, f"{num_early} stopped early" if num_early else ""
        ),
        number_cell(statistics.median(accuracy.train_seconds for accuracy in accuracies), formatting.duration),
    )


def _whole_sequences_cell(entry: AccuracyEntry) -> TableCell:
    shares = entry.whole_sequence_scores
    if entry.is_split or not shares:
        return TableCell(status="absent")
    return number_cell(statistics.fmean(shares), formatting.percent)


def _solved_cell(entry: AccuracyEntry) -> TableCell:
    num_seeds = entry.num_seeds
    if entry.task.solved_at is None or not entry.reported_scores:
        return TableCell(status="absent")
    shown = _whole_percents(wilson_interval(entry.num_solved, num_seeds))
    return TableCell(text=f"{entry.num_solved}/{num_seeds}", value=entry.num_solved / num_seeds, details=(shown,))


def _cells_to_solve(entry: AccuracyEntry) -> tuple[TableCell, ...]:
    """Steps, tokens and seconds, each the median over the seeds that got there."""
    points = entry.solved().values()

    def cell(write: formatting.Format, values: list[float]) -> TableCell:
        return number_cell(statistics.median(values) if values else None, write)

    return (
        cell(formatting.exact_count, [point.step for point in points]),
        cell(formatting.compact_count, [point.tokens for point in points]),
        cell(formatting.duration, [point.seconds for point in points]),
    )


def _length_cell(entry: AccuracyEntry, metric: Metric, length: int) -> TableCell:
    scores = list(entry.test_scores(length).values())
    if not scores:
        reason = entry.untested.get(length)
        return TableCell(text="not tested", note=reason, status="failed") if reason else TableCell(status="absent")
    shown = metric.write_range(min(scores), max(scores)) if len(scores) > 1 else ""
    if entry.task.is_split_by(scores):
        num_solved, num_seeds = entry.task.num_solved(scores), entry.num_seeds_at(length)
        return TableCell(text=f"{num_solved}/{num_seeds} solved", value=num_solved / num_seeds, details=(shown,))
    return number_cell(statistics.fmean(scores), metric.write, shown)


def _slice_cell(scores: list[SliceScore]) -> TableCell:
    if not scores:
        return TableCell(status="absent")
    tokens = statistics.fmean(score.token_accuracy for score in scores)
    sequences = statistics.fmean(score.sequence_accuracy for score in scores)
    whole = f"{formatting.percent(sequences)} whole" if sequences != tokens else ""
    return number_cell(tokens, formatting.percent, whole)


def _trial_cell(entry: AccuracyEntry, trial: Trial | None) -> TableCell:
    if trial is None:
        return TableCell(status="absent")
    if trial.metric is None or not trial.validation_scores:
        failure = next((outcome.failure for outcome in trial.outcomes if outcome.failure is not None), None)
        return failed_cell(failure) if failure is not None else NOT_RUN
    scores = trial.validation_scores
    num_solved = entry.task.num_solved(scores)
    solved = f"{num_solved}/{len(scores)} solved" if 0 < num_solved < len(scores) else ""
    cell = number_cell(statistics.fmean(scores), trial.metric.write, solved, *_shortfalls(trial))
    return TableCell(
        text=cell.text,
        value=cell.value,
        details=cell.details,
        is_best=trial is entry.selected and len(entry.trials) > 1,
    )
