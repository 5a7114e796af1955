"""`Results` -> sentences: what was compared, and what can be said about it without saying too much."""

from __future__ import annotations

import statistics

from reports import formatting
from reports.accuracy_tables import num_solved, score_interval
from reports.formatting import counted, listed
from reports.provenance import differing_data
from reports.quantities import STATE_SIZE, TRAINING_THROUGHPUT, Quantity
from reports.results import AccuracyEntry, CostSetting, Metric, Results, TaskVariant
from reports.statistics import mean_interval, paired_differences

SLOW_IMPLEMENTATIONS = ("reference",)
"""Implementations that are there to be read, not to be fast."""


def what_was_compared(results: Results) -> str:
    """One paragraph: models, tasks, protocol, machine, and how much of it is there."""
    models = counted(len(results.models), "model")
    tasks = list(dict.fromkeys([task.label for task in results.tasks] + [s.task_name for s in results.cost_settings]))
    sentences = [
        f"{models} ({listed([model.label for model in results.models])}) on {counted(len(tasks), 'task')} "
        f"({listed(tasks)}).",
        *_protocol_sentences(results),
        _machine_sentence(results),
        _completeness_sentence(results),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def key_findings(results: Results) -> list[str]:
    """A sentence or two for each task and each cost setting, then what a reader must know to trust them."""
    findings = [_accuracy_finding(results, task) for task in results.tasks]
    for setting in results.cost_settings:
        findings.append(_extremes_finding(results, setting, TRAINING_THROUGHPUT))
        findings.append(_extremes_finding(results, setting, STATE_SIZE))
    findings += [_slow_implementations_finding(results), _data_finding(results)]
    return [finding for finding in findings if finding]


def _protocol_sentences(results: Results) -> list[str]:
    rates = {len(entry.trials) for entry in results.accuracy}
    seeds = {len(trial.outcomes) for entry in results.accuracy for trial in entry.trials}
    sentences = []
    if rates and seeds:
        sentences.append(
            f"Every model was trained under the same budget with {_span(rates, 'learning rate')} and "
            f"{_span(seeds, 'seed')}; validation selected, the test was read once."
        )
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
            else f"{env.cpu} ({env.num_threads} threads)"
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


def _accuracy_finding(results: Results, task: TaskVariant) -> str:
    metric = task.metric
    ranked = [entry for entry in results.accuracy_on(task) if entry.mean is not None]
    if metric is None or not ranked:
        return f"{task.label}: no model has been measured."
    ranked.sort(key=lambda entry: -metric.rank(entry.mean or 0.0))
    best = ranked[0]
    if len(ranked) == 1:
        return f"{task.label}: {best.model.label} reaches {_score_text(best, metric)}."
    sharing = [entry for entry in ranked if metric.write(entry.mean) == metric.write(best.mean)]
    if len(sharing) > 1:
        names = listed([entry.model.label for entry in sharing])
        return f"{task.label}: {names} share the best mean {metric.title}, {metric.write(best.mean)}.{_unsolved(best)}"
    return (
        f"{task.label}: {best.model.label} has the best mean {metric.title}, {_score_text(best, metric)}; next is "
        f"{ranked[1].model.label} with {_score_text(ranked[1], metric)}. {_certainty(best, ranked[1], metric)}"
        f"{_unsolved(best)}"
    )


def _score_text(entry: AccuracyEntry, metric: Metric) -> str:
    scores = list(entry.reported_scores.values())
    interval = score_interval(scores, metric)
    small_print = [counted(len(scores), "seed")]
    if interval is not None:
        small_print.insert(0, f"95 % interval {metric.write_range(interval.low, interval.high)}")
    if metric.is_share:
        small_print.append(f"{num_solved(scores)} solved it")
    return f"{metric.write(statistics.fmean(scores))} ({', '.join(small_print)})"


def _certainty(best: AccuracyEntry, second: AccuracyEntry, metric: Metric) -> str:
    """Whether the seeds settle the order of two models."""
    differences = paired_differences(second.reported_scores, best.reported_scores)
    interval = mean_interval(differences)
    if interval is None:
        return "There are too few seeds to say how sure that order is."
    if 0.0 in interval:
        return "Over the seeds, the difference could be chance."
    gap = metric.write_difference(statistics.fmean(differences))
    return f"The difference of {gap.lstrip('+-−')} is more than the seeds explain."


def _unsolved(best: AccuracyEntry) -> str:
    """A warning where even the best does not beat blind guessing."""
    metric, baseline = best.task.metric, best.task.baseline
    if metric is None or baseline is None or best.mean is None or metric.rank(best.mean) > metric.rank(baseline):
        return ""
    return f" None of them beats a model that cannot see the sequence ({metric.write(baseline)})."


def _extremes_finding(results: Results, setting: CostSetting, quantity: Quantity) -> str:
    """The best and the worst model in one quantity, and how far apart they are."""
    length = results.reference_length(setting)
    if length is None:
        return ""
    values: dict[str, float] = {}
    contexts: set[int] = set()
    for entry in results.costs_under(setting):
        cost = entry.cost(length)
        estimate = quantity.read(cost, setting.batch_size) if cost is not None else None
        if cost is not None and estimate is not None and estimate.value > 0:
            values[entry.model.label] = estimate.value
            contexts.add(cost.generation_context)
    if len(set(values.values())) < 2:
        return ""
    least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    times = formatting.ratio(values[most] / values[least])
    if quantity is TRAINING_THROUGHPUT:
        return (
            f"{setting.label}, {length:,} tokens: {most} trains fastest, {quantity.write(values[most])} tokens/s, "
            f"{times} the throughput of {least}, the slowest."
        )
    return (
        f"{setting.label}: to go on generating after {min(contexts):,} tokens, a sequence of {least} keeps "
        f"{quantity.write(values[least])}, one of {most} {quantity.write(values[most])} ({times})."
    )


def _slow_implementations_finding(results: Results) -> str:
    slow: dict[str, set[str]] = {}
    for outcome in results.outcomes:
        if outcome.cost is not None and outcome.measurement is not None:
            for operation, ran in outcome.measurement.implementations.items():
                if any(implementation in SLOW_IMPLEMENTATIONS for implementation in ran):
                    slow.setdefault(results.model_of[outcome.cell.id].label, set()).add(operation)
    if not slow:
        return ""
    named = listed([f"{model} ({', '.join(sorted(operations))})" for model, operations in sorted(slow.items())])
    return f"Timed on a reference implementation, so not to be ranked by speed: {named}."


def _data_finding(results: Results) -> str:
    if len(results.models) < 2 or not results.tasks:
        return ""
    differing = differing_data(results)
    if differing:
        return f"Caution: on {listed(differing)} the models did not see the same data; their scores are not comparable."
    return ""
