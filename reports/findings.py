"""`Results` -> sentences: what was compared, and what can be said about it without saying too much."""

from __future__ import annotations

import statistics

from reports import formatting
from reports.accuracy_tables import score_interval
from reports.document import Finding
from reports.formatting import counted, listed
from reports.provenance import differing_data
from reports.quantities import STATE_SIZE, TRAINING_THROUGHPUT
from reports.results import AccuracyEntry, CostSetting, Metric, Results, TaskVariant
from reports.statistics import mean_interval, paired_differences, ratio_of_medians_interval, wilson_interval
from suite.records import Timing
from suite.spec import MATCHED_UNITS

SLOW_IMPLEMENTATIONS = ("reference",)
"""Implementations that are there to be read, not to be fast."""


def what_was_compared(results: Results) -> str:
    """One paragraph: models, tasks, protocol, machine, and how much of it is there."""
    models = counted(len(results.models), "model")
    timed = [setting.task_name for setting in results.cost_settings]
    named = {task.name for task in results.tasks}
    tasks = [*(task.label for task in results.tasks), *dict.fromkeys(name for name in timed if name not in named)]
    sentences = [
        f"{models} ({listed([model.label for model in results.models])}) on {counted(len(tasks), 'task')} "
        f"({listed(tasks)}).",
        *_protocol_sentences(results),
        _machine_sentence(results),
        _completeness_sentence(results),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def key_findings(results: Results) -> list[Finding]:
    """A sentence or two for each task, two on cost at the greatest length, then what one must know to trust them."""
    findings: list[Finding | None] = [_accuracy_finding(results, task) for task in results.tasks]
    reference_lengths = {setting: results.reference_length(setting) or 0 for setting in results.cost_settings}
    if reference_lengths:
        longest = max(reference_lengths, key=reference_lengths.__getitem__)
        findings += [_speed_finding(results, longest), _state_finding(results, longest)]
    findings += [_slow_implementations_finding(results), _data_finding(results)]
    return [finding for finding in findings if finding is not None]


def _protocol_sentences(results: Results) -> list[str]:
    rates = {len(entry.trials) for entry in results.accuracy}
    seeds = {len(trial.outcomes) for entry in results.accuracy for trial in entry.trials}
    sentences = []
    if rates and seeds:
        trained = "Every model was trained under the same budget"
        if results.spec is not None and results.spec.reproduction is not None:
            trained = "Every row was trained under the budget that its experiment gives it,"
        sentences.append(
            f"{trained} with {_span(rates, 'learning rate')} and "
            f"{_span(seeds, 'seed')}; validation selected, the test was read once."
        )
    if results.spec is not None and results.spec.matching is not None:
        unit = MATCHED_UNITS[results.spec.matching.policy]
        sentences.append(f"Widths were chosen so that all models have equally many {unit}.")
    lengths = sorted({length for setting in results.cost_settings for length in results.cost_lengths(setting)})
    if lengths:
        shown = listed([f"{length:,}" for length in lengths])
        sentences.append(f"Cost was measured at {shown} tokens.")
    return sentences


def _span(counts: set[int], noun: str) -> str:
    low, high = min(counts), max(counts)
    return counted(low, noun) if low == high else f"{low} to {counted(high, noun)}"


def _machine_sentence(results: Results) -> str:
    environments = [record.environment for record in results.records if record.environment is not None]
    devices = sorted(
        {
            env.gpu
            if record.cell.device == "cuda" and env.gpu is not None
            else f"{env.cpu} ({counted(env.num_threads, 'thread')})"
            for record in results.records
            if (env := record.environment) is not None
        }
    )
    precisions = sorted({outcome.cell.precision for outcome in results.outcomes})
    if not environments:
        return ""
    return f"It ran in {listed(precisions)} on {listed(devices)}."


def _completeness_sentence(results: Results) -> str:
    measured, failed, missing = (len(results.with_status(status)) for status in ("measured", "failed", "not_run"))
    total = measured + failed + missing
    if measured == total:
        return f"All {counted(total, 'cell')} were measured." if total > 1 else "Its one cell was measured."
    gaps = [f"{failed} failed"] if failed else []
    gaps += [f"{missing} {'has' if missing == 1 else 'have'} not been run"] if missing else []
    return f"Of {counted(total, 'cell')}, {measured} were measured, {listed(gaps)}."


def _accuracy_finding(results: Results, task: TaskVariant) -> Finding:
    metric = task.metric
    ranked = [entry for entry in results.accuracy_on(task) if entry.mean is not None]
    if metric is None or not ranked:
        return Finding(task.label, "no model has been measured.")
    ranked.sort(key=lambda entry: -metric.rank(entry.mean or 0.0))
    best = ranked[0]
    sharing = [entry.model.label for entry in ranked if metric.write(entry.mean) == metric.write(best.mean)]
    if len(ranked) == 1:
        statement = f"{_outcome_text(best, metric)}."
    elif best.is_split or ranked[1].is_split:
        statement = f"{_outcome_text(best, metric)}; next, {_outcome_text(ranked[1], metric)}."
    elif len(sharing) > 1:
        statement = f"{listed(sharing)} share the best mean {metric.title}, {metric.write(best.mean)}."
    else:
        statement = (
            f"{best.model.label} has the best mean {metric.title}, {_score_text(best, metric)}; next is "
            f"{ranked[1].model.label} with {_score_text(ranked[1], metric)}. {_certainty(best, ranked[1], metric)}"
        )
    return Finding(task.label, statement + _unsolved(best))


def _score_text(entry: AccuracyEntry, metric: Metric) -> str:
    scores = list(entry.reported_scores.values())
    interval = score_interval(scores, metric)
    small_print = [counted(len(scores), "seed")]
    if interval is not None:
        small_print.insert(0, f"95 % interval {metric.write_range(interval.low, interval.high)}")
    if entry.task.solved_at is not None:
        small_print.append(f"{entry.num_solved} solved it")
    if num_diverged := entry.num_seeds - len(scores):
        small_print.append(f"{num_diverged} diverged")
    return f"{metric.write(statistics.fmean(scores))} ({', '.join(small_print)})"


def _outcome_text(entry: AccuracyEntry, metric: Metric) -> str:
    """What a model came to, in a count where a mean over its seeds would describe none of them."""
    num_seeds, points = entry.num_seeds, entry.solved().values()
    if not entry.is_split:
        return f"{entry.model.label} reaches a {metric.title} of {_score_text(entry, metric)}"
    interval = wilson_interval(entry.num_solved, num_seeds)
    steps = f", in {statistics.median(point.step for point in points):,.0f} steps at the median" if points else ""
    return (
        f"{entry.model.label} solved it with {entry.num_solved} of {counted(num_seeds, 'seed')} (95 % interval "
        f"{metric.write_range(interval.low, interval.high)}){steps}"
    )


def _certainty(best: AccuracyEntry, second: AccuracyEntry, metric: Metric) -> str:
    """Whether the seeds settle the order of two models."""
    differences = paired_differences(second.reported_scores, best.reported_scores)
    interval = mean_interval(differences)
    if interval is None:
        return "There are too few seeds to say how sure that order is."
    if 0.0 in interval:
        return "With these seeds, the difference could be chance."
    gap = metric.write_difference(statistics.fmean(differences))
    return f"The difference of {gap.lstrip('+-−')} is more than the seeds explain."


def _unsolved(best: AccuracyEntry) -> str:
    """A warning where even the best does not beat blind guessing."""
    metric, baseline = best.task.metric, best.task.baseline
    if metric is None or baseline is None or best.mean is None or metric.rank(best.mean) > metric.rank(baseline):
        return ""
    return f" None of them beats a model that cannot see the sequence ({metric.write(baseline)})."


def _speed_finding(results: Results, setting: CostSetting) -> Finding | None:
    """The fastest and the slowest model in training, and how sure the gap between them is."""
    length = results.reference_length(setting)
    timings: dict[str, Timing] = {}
    speeds: dict[str, float] = {}
    for entry in results.costs_under(setting):
        cost = entry.cost(length) if length is not None else None
        estimate = TRAINING_THROUGHPUT.read(cost, setting.batch_size) if cost is not None else None
        if cost is not None and estimate is not None:
            timings[entry.model.label] = cost.training
            speeds[entry.model.label] = estimate.value
    if length is None or len(speeds) < 2:
        return None
    subject = f"Training on {length:,} tokens"
    slowest, fastest = min(speeds, key=speeds.__getitem__), max(speeds, key=speeds.__getitem__)
    interval = ratio_of_medians_interval(timings[slowest].samples_seconds, timings[fastest].samples_seconds)
    if interval is None or 1.0 in interval:
        why = "too few timings" if interval is None else "timings too uneven"
        return Finding(subject, f"no model is shown to be faster than another: {why} ({setting.label}).")
    return Finding(
        subject,
        f"{fastest} is fastest with {TRAINING_THROUGHPUT.write(speeds[fastest])} tokens/s, "
        f"{formatting.ratio(speeds[fastest] / speeds[slowest])} the throughput of {slowest}, the slowest "
        f"(95 % interval {formatting.ratio(interval.low)}–{formatting.ratio(interval.high)}; {setting.label}).",
    )


def _state_finding(results: Results, setting: CostSetting) -> Finding | None:
    """The models with the smallest and the largest generation state."""
    length = results.reference_length(setting)
    costs = {
        entry.model.label: cost
        for entry in results.costs_under(setting)
        if length is not None and (cost := entry.cost(length)) is not None and cost.state_bytes > 0
    }
    sizes = {label: cost.state_bytes for label, cost in costs.items()}
    if len(set(sizes.values())) < 2:
        return None
    least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
    return Finding(
        f"Generating after {costs[most].generation_context:,} tokens",
        f"a sequence of {least} must keep {STATE_SIZE.write(sizes[least])}, one of {most} "
        f"{STATE_SIZE.write(sizes[most])} ({formatting.ratio(sizes[most] / sizes[least])}).",
    )


def _slow_implementations_finding(results: Results) -> Finding | None:
    slow: dict[str, set[str]] = {}
    for outcome in results.outcomes:
        if outcome.cost is not None and outcome.measurement is not None:
            for operation, ran in outcome.measurement.implementations.items():
                if any(implementation in SLOW_IMPLEMENTATIONS for implementation in ran):
                    slow.setdefault(results.model_of[outcome.cell.id].label, set()).add(operation)
    if not slow:
        return None
    named = listed([f"{model} ({', '.join(sorted(operations))})" for model, operations in sorted(slow.items())])
    return Finding("Timed on a reference implementation", f"{named}; not to be ranked by speed.")


def _data_finding(results: Results) -> Finding | None:
    differing = differing_data(results)
    if not differing:
        return None
    return Finding("Caution", f"on {listed(differing)} the models did not see the same data; do not compare them.")
