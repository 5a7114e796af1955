"""Which learning rate validation selects: one rule, for those who plan the next cells and for those who report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from suite.records import Accuracy


def select(scores_by_rate: Mapping[float, Sequence[float]]) -> float | None:
    """The learning rate with the best mean over seeds of the best validation score; None if nothing was measured.

    The scores are of the seeds that were measured, and more is better. Learning rates at which more seeds were measured
    come first, so that one whose other seeds diverged cannot win by its survivors. Ties go to the smaller rate.
    """
    measured = {rate: scores_by_rate[rate] for rate in sorted(scores_by_rate) if scores_by_rate[rate]}
    return max(measured, key=lambda rate: (len(measured[rate]), statistics.fmean(measured[rate])), default=None)


def best_validation(accuracy: Accuracy) -> float:
    """The best validation score of a training run, turned so that more is better."""
    return max(rank(accuracy.metric, getattr(point.validation, accuracy.metric)) for point in accuracy.curve)


def rank(metric: str, score: float) -> float:
    """A score, turned so that more is better."""
    return -score if metric == "bits_per_byte" else score
