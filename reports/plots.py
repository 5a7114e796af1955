"""`Results` -> descriptions of charts. `charts` draws them into the page, `figures` for a paper."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from reports import formatting
from reports.accuracy_tables import loss_by_position
from reports.document import Axis, Chart, FailureMark, Panel, Point, ReferenceLine, Series
from reports.failures import FAILURE_TITLES
from reports.quantities import (
    GENERATION_THROUGHPUT,
    INFERENCE_MEMORY,
    INFERENCE_THROUGHPUT,
    STATE_SIZE,
    TRAINING_MEMORY,
    TRAINING_THROUGHPUT,
    Quantity,
)
from reports.results import AccuracyEntry, CostEntry, CostSetting, Metric, Results, TaskVariant

_LENGTH = Axis(title="tokens in a sequence", write=formatting.exact_count, scale="log2")
_CONTEXT = Axis(title="tokens before the one generated", write=formatting.exact_count, scale="log2")


def accuracy_by_length_chart(results: Results) -> Chart | None:
    """Test score against test length, for tasks that were tested at several lengths."""
    panels = []
    for task in results.tasks:
        entries = [entry for entry in results.accuracy_on(task) if entry.test_lengths]
        if task.metric is None or len({length for entry in entries for length in entry.test_lengths}) < 2:
            continue
        panels.append(
            Panel(
                title=task.label,
                kind="lines",
                x=_LENGTH,
                y=_score_axis(task.metric),
                series=tuple(_scores_by_length(entry, task.metric) for entry in entries),
                failures=tuple(mark for entry in entries for mark in _untested_marks(entry)),
                references=_baseline(task),
            )
        )
    cross = "A cross at the bottom: not tested at that length, for the reason given below."
    caption = (
        "Mean over seeds; the whiskers reach from the lowest seed to the highest. Dotted: a model that cannot see the "
        f"sequence. {cross if any(panel.failures for panel in panels) else ''}"
    )
    return _chart("accuracy-by-length", "Accuracy against test length", caption, panels)


def learning_curves_chart(results: Results) -> Chart | None:
    """Validation score against training step, of the selected learning rates."""
    panels = []
    for task in results.tasks:
        entries = [entry for entry in results.accuracy_on(task) if any(entry.curves().values())]
        if task.metric is None or not entries:
            continue
        panels.append(
            Panel(
                title=task.label,
                kind="lines",
                x=Axis(title="training step", write=formatting.round_count, low=0),
                y=_score_axis(task.metric),
                series=tuple(series for entry in entries for series in _learning_curves(entry, task.metric)),
                references=_baseline(task),
            )
        )
    has_seeds = any(series.is_single_seed for panel in panels for series in panel.series)
    seeds = "Thin: single seeds. Thick: their mean, as far as all of them were trained." if has_seeds else ""
    caption = f"Validation score at the selected learning rate. {seeds}"
    return _chart("learning-curves", "Learning curves", caption, panels)


def throughput_chart(results: Results) -> Chart | None:
    """Training, inference and generation throughput against length."""
    panels = _panels_of_quantities(results, (TRAINING_THROUGHPUT, INFERENCE_THROUGHPUT, GENERATION_THROUGHPUT))
    whiskers = "The whiskers are the 95 % interval of the median, often too small to see." if _has_lines(panels) else ""
    caption = f"Median of the timed calls. {whiskers} {_reading_aid(panels)}"
    return _chart("throughput", "Throughput against length", caption, panels)


def memory_chart(results: Results) -> Chart | None:
    """Peak memory and generation state against length."""
    panels = _panels_of_quantities(results, (TRAINING_MEMORY, INFERENCE_MEMORY, STATE_SIZE))
    caption = f"Generation state is what one sequence must keep to go on. {_reading_aid(panels)}"
    return _chart("memory", "Memory against length", caption, panels)


def trade_off_chart(results: Results) -> Chart | None:
    """Accuracy against training throughput of the very same configuration."""
    panels = [panel for task in results.tasks for panel in _trade_off_panels(results, task)]
    return _chart(
        "trade-off",
        "Accuracy against throughput",
        "Each point is one configuration, with the test score of the accuracy table and its own training throughput. "
        "Up and to the right is better; no model is better in both than those on the line.",
        panels,
    )


def loss_by_position_chart(results: Results) -> Chart | None:
    """Test loss against the position in the sequence."""
    panels = []
    for task in results.tasks:
        losses = [(entry, loss_by_position(entry)) for entry in results.accuracy_on(task)]
        if not any(found for _, found in losses):
            continue
        panels.append(
            Panel(
                title=task.label,
                kind="lines",
                x=Axis(title="tokens read so far", write=formatting.exact_count, scale="log2"),
                y=Axis(title="loss in nats", write=formatting.round_decimal),
                series=tuple(_losses_by_position(entry, found) for entry, found in losses if found),
            )
        )
    return _chart("loss-by-position", "Loss by position", "Mean over seeds, at the longest test length.", panels)


def learning_rate_chart(results: Results) -> Chart | None:
    """Validation score against the learning rate."""
    panels = []
    for task in results.tasks:
        metric = task.metric
        entries = [entry for entry in results.accuracy_on(task) if len(entry.trials) > 1]
        series = [_scores_by_learning_rate(entry, metric) for entry in entries if metric is not None]
        if metric is None or not any(line.points for line in series):
            continue
        panels.append(
            Panel(
                title=task.label,
                kind="lines",
                x=Axis(title="learning rate", write=formatting.learning_rate, scale="log10"),
                y=_score_axis(metric),
                series=tuple(line for line in series if line.points),
                references=_baseline(task),
            )
        )
    return _chart(
        "learning-rates",
        "Validation score against learning rate",
        "Mean over seeds of the best validation; the whiskers reach from the lowest seed to the highest.",
        panels,
    )


def pareto_frontier(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Those of the points (cheap, good), both better when larger, that no other beats in both; by rising x."""
    frontier: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-point[0], -point[1])):
        if not frontier or y > frontier[-1][1]:
            frontier.append((x, y))
    return tuple(reversed(frontier))


def _panels_of_quantities(results: Results, quantities: Sequence[Quantity]) -> list[Panel]:
    return [panel for setting in results.cost_settings for panel in _cost_panels(results, setting, quantities)]


def _has_lines(panels: Sequence[Panel]) -> bool:
    return any(panel.kind == "lines" for panel in panels)


def _reading_aid(panels: Sequence[Panel]) -> str:
    """What must be known to read the panels that are there."""
    axes = "In the line charts both axes are logarithmic." if _has_lines(panels) else ""
    crosses = "A cross at the bottom: the model failed at that length." if any(p.failures for p in panels) else ""
    return f"{axes} {crosses}".strip()


def _chart(name: str, title: str, caption: str, panels: Sequence[Panel]) -> Chart | None:
    if not panels:
        return None
    return Chart(name=name, title=title, caption=" ".join(caption.split()), panels=tuple(panels))


def _score_axis(metric: Metric) -> Axis:
    if metric.is_share:
        return Axis(title=metric.title, write=_whole_percent, low=0, high=1)
    return Axis(title=f"{metric.title} (better is up)", write=formatting.round_decimal, is_reversed=True)


def _whole_percent(share: float | None) -> str:
    return formatting.ABSENT if share is None else f"{100 * share:.0f} %"


def _baseline(task: TaskVariant) -> tuple[ReferenceLine, ...]:
    if task.baseline is None or task.metric is None or not task.metric.is_share:
        return ()
    return (ReferenceLine(task.baseline, f"cannot see the sequence: {task.metric.write(task.baseline)}"),)


def _point_over_seeds(x: float, scores: Sequence[float], metric: Metric, what: str) -> Point:
    mean = statistics.fmean(scores)
    if len(scores) == 1:
        return Point(x, mean, title=f"{what}: {metric.write(mean)} (one seed)")
    low, high = min(scores), max(scores)
    return Point(x, mean, low, high, f"{what}: {metric.write(mean)} (seeds {metric.write_range(low, high)})")


def _scores_by_length(entry: AccuracyEntry, metric: Metric) -> Series:
    by_length = {length: list(entry.test_scores(length).values()) for length in entry.test_lengths}
    return Series(
        label=entry.model.label,
        index=entry.model.index,
        points=tuple(
            _point_over_seeds(length, scores, metric, f"{entry.model.label} at {length:,} tokens")
            for length, scores in by_length.items()
            if scores
        ),
    )


def _losses_by_position(entry: AccuracyEntry, found: Sequence[tuple[int, int, float]]) -> Series:
    return Series(
        label=entry.model.label,
        index=entry.model.index,
        points=tuple(
            Point(
                last + 1,
                loss,
                title=f"{entry.model.label}: {formatting.decimal(loss)} nats at positions {first:,}–{last:,}",
            )
            for first, last, loss in found
        ),
    )


def _scores_by_learning_rate(entry: AccuracyEntry, metric: Metric) -> Series:
    return Series(
        label=entry.model.label,
        index=entry.model.index,
        points=tuple(
            _point_over_seeds(
                trial.learning_rate,
                trial.validation_scores,
                metric,
                f"{entry.model.label} at lr {formatting.learning_rate(trial.learning_rate)}",
            )
            for trial in entry.trials
            if trial.validation_scores
        ),
    )


def _learning_curves(entry: AccuracyEntry, metric: Metric) -> list[Series]:
    """A thin line for each seed, where there are several, and a thick one for their mean."""
    of_seeds = [dict(curve) for curve in entry.curves().values() if curve]
    shared = sorted(set.intersection(*(set(curve) for curve in of_seeds)))
    means = [(step, statistics.fmean(curve[step] for curve in of_seeds)) for step in shared]
    mean = Series(
        label=entry.model.label,
        index=entry.model.index,
        points=tuple(
            Point(step, score, title=f"{entry.model.label}: {metric.write(score)} at step {step:,}")
            for step, score in means
        ),
    )
    if len(of_seeds) == 1:
        return [mean]
    seeds = [
        Series(
            label=entry.model.label,
            index=entry.model.index,
            points=tuple(Point(step, score) for step, score in sorted(curve.items())),
            is_single_seed=True,
        )
        for curve in of_seeds
    ]
    return [*seeds, mean]


def _cost_panels(results: Results, setting: CostSetting, quantities: Sequence[Quantity]) -> list[Panel]:
    """One panel a quantity: lines over lengths, or bars where only one length was measured."""
    entries = results.costs_under(setting)
    panels = []
    for quantity in quantities:
        series = [_quantity_by_length(entry, quantity) for entry in entries]
        if not any(line.points for line in series):
            continue
        panels.append(
            Panel(
                title=quantity.title,
                subtitle=setting.label,
                kind="lines" if len({point.x for line in series for point in line.points}) > 1 else "bars",
                x=_CONTEXT if quantity.is_of_generation else _LENGTH,
                y=_quantity_axis(quantity),
                series=tuple(line for line in series if line.points),
                failures=() if quantity.is_of_generation else tuple(_failure_marks(entries)),
            )
        )
    return panels


def _quantity_axis(quantity: Quantity) -> Axis:
    if quantity.unit == "tokens/s":
        return Axis(title=quantity.unit, write=formatting.round_count, scale="log10")
    return Axis(title="memory", write=quantity.write, scale="log2")


def _quantity_by_length(entry: CostEntry, quantity: Quantity) -> Series:
    points: dict[int, Point] = {}
    for length in entry.outcomes:
        cost = entry.cost(length)
        estimate = quantity.read(cost, entry.setting.batch_size) if cost is not None else None
        if cost is None or estimate is None:
            continue
        tokens = cost.generation_context if quantity.is_of_generation else length
        value = " ".join(part for part in (quantity.write(estimate.value), quantity.unit) if part)
        title = f"{entry.model.label} at {tokens:,} tokens: {value}"
        interval = estimate.interval
        low, high = (interval.low, interval.high) if interval is not None else (None, None)
        points.setdefault(tokens, Point(tokens, estimate.value, low, high, title))
    return Series(label=entry.model.label, index=entry.model.index, points=tuple(points.values()))


def _untested_marks(entry: AccuracyEntry) -> list[FailureMark]:
    return [
        FailureMark(length, entry.model.index, f"{entry.model.label} at {length:,} tokens: {reason}")
        for length, reason in entry.untested.items()
        if length not in entry.test_lengths
    ]


def _failure_marks(entries: Sequence[CostEntry]) -> list[FailureMark]:
    return [
        FailureMark(
            length,
            entry.model.index,
            f"{entry.model.label} at {length:,} tokens: {FAILURE_TITLES[outcome.failure.kind]}",
        )
        for entry in entries
        for length, outcome in entry.outcomes.items()
        if outcome.failure is not None
    ]


def _trade_off_panels(results: Results, task: TaskVariant) -> list[Panel]:
    metric = task.metric
    if metric is None:
        return []
    panels = []
    for setting in results.cost_settings:
        length = results.reference_length(setting)
        series = []
        for entry in results.accuracy_on(task):
            costs = [cost for cost in results.joined(entry) if cost.setting == setting]
            cost = costs[0].cost(length) if costs and length is not None else None
            throughput = TRAINING_THROUGHPUT.read(cost, setting.batch_size) if cost is not None else None
            if throughput is None or entry.mean is None:
                continue
            read = f"{metric.write(entry.mean)}, {TRAINING_THROUGHPUT.write(throughput.value)} tokens/s"
            point = Point(throughput.value, entry.mean, title=f"{entry.model.label}: {read}")
            series.append(Series(label=entry.model.label, index=entry.model.index, points=(point,)))
        if not series:
            continue
        ranked = [(line.points[0].x, metric.rank(line.points[0].y)) for line in series]
        panels.append(
            Panel(
                title=task.label,
                subtitle=f"training timed at {length:,} tokens, batch {setting.batch_size}",
                kind="scatter",
                x=Axis(title="training tokens/s", write=formatting.round_count, scale="log10"),
                y=_score_axis(metric),
                series=tuple(series),
                frontier=tuple((x, metric.rank(y)) for x, y in pareto_frontier(ranked)),
            )
        )
    return panels
