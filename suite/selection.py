"""What validation selects, of a run's steps and of a model's learning rates: one rule for all who ask.

The score comes first. Where scores are equal, as they are once a task is solved, the smaller loss is better: the
surer model, that more training made, and not the first to make no mistake among a few hundred sequences.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from suite.records import Accuracy, Evaluation

Standing = tuple[float, float]
"""A validation's score and loss, both turned so that more is better."""


def standing(metric: str, validation: Evaluation) -> Standing:
    """How a validation compares with others on the same data."""
    return rank(metric, getattr(validation, metric)), -validation.loss


def best_standing(accuracy: Accuracy) -> Standing:
    """That of the validation which selected the weights of a training run."""
    return max(standing(accuracy.metric, point.validation) for point in accuracy.curve)


def select(standings_by_rate: Mapping[float, Sequence[Standing]]) -> float | None:
    """The learning rate with the best mean over seeds of the best validation; None if nothing was measured.

    The standings are of the seeds that were measured. Learning rates at which more seeds were measured come first, so
    that one whose other seeds diverged cannot win by its survivors. Ties go to the rate that stands first.
    """
    measured = {rate: standings for rate, standings in standings_by_rate.items() if standings}

    def mean(rate: float) -> tuple[int, float, float]:
        scores, losses = zip(*measured[rate], strict=True)
        return len(scores), statistics.fmean(scores), statistics.fmean(losses)

    return max(measured, key=mean, default=None)


def rank(metric: str, score: float) -> float:
    """A score, turned so that more is better."""
    return -score if metric == "bits_per_byte" else score
