"""Intervals for what was seen: shares, means over seeds, medians of timings.

Every function says when its data cannot carry an interval and then gives None instead of a number nobody should trust.
Resampling is seeded: the same samples always give the same interval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CONFIDENCE = 0.95
"""The level of every interval that is shown."""

_RESAMPLES = 2_000


@dataclass(frozen=True)
class Interval:
    """A range that holds the true value in `confidence` of all repetitions of the experiment."""

    low: float
    high: float
    method: Literal["Wilson", "Student-t", "bootstrap"]
    confidence: float = CONFIDENCE

    def clipped(self, low: float, high: float) -> Interval:
        """The part within what is possible, e.g. an accuracy between 0 and 1."""
        return Interval(min(max(self.low, low), high), max(min(self.high, high), low), self.method, self.confidence)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of a share (Wilson 1927); sensible for few trials and at 0 and 1.

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials is not a share")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    share, weight = successes / trials, z * z / trials
    centre = (share + weight / 2) / (1 + weight)
    reach = z / (1 + weight) * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    low = 0.0 if successes == 0 else max(0.0, centre - reach)
    high = 1.0 if successes == trials else min(1.0, centre + reach)
    return Interval(low, high, "Wilson", confidence)


def mean_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Student-t interval of a mean over few independent samples, such as seeds.

    A bootstrap is not offered for it: over two to five seeds it is far too narrow. None for a single sample and for
    samples that are all equal, neither of which say anything about their spread.
    """
    _expect_finite(samples)
    if len(samples) < 2 or max(samples) == min(samples):
        return None
    from scipy.special import stdtrit

    centre = statistics.fmean(samples)
    standard_error = statistics.stdev(samples) / math.sqrt(len(samples))
    reach = float(stdtrit(len(samples) - 1, 0.5 + confidence / 2)) * standard_error
    return Interval(centre - reach, centre + reach, "Student-t", confidence)


def paired_differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """second - first for every seed that both have: the same seed means the same data for both."""
    return [second[seed] - first[seed] for seed in sorted(first.keys() & second.keys())]


def median_interval(samples: Sequence[float], confidence: float = CONFIDENCE) -> Interval | None:
    """Percentile bootstrap interval of a median (Efron 1979).

    None when there are too few samples: below six, not even the range from the smallest to the largest holds the median
    with 95 %. Successive timings on one machine are not quite independent, so slow drift is not covered.
    """
    _expect_finite(samples)
    if not _can_bound_a_median(len(samples), confidence):
        return None
    low, high = _quantiles(_resampled_medians(tuple(samples), _RESAMPLES, stream=0), confidence)
    return Interval(low, high, "bootstrap", confidence)


def ratio_of_medians_interval(
    numerator: Sequence[float],
    denominator: Sequence[float],
    confidence: float = CONFIDENCE,
    *,
    resamples: int = _RESAMPLES,
) -> Interval | None:
    """Percentile bootstrap interval of median(numerator) / median(denominator), the two resampled independently.

    None when either has too few samples at the usual level (see `median_interval`) or a median of zero.
    """
    _expect_finite([*numerator, *denominator])
    if not all(_can_bound_a_median(len(samples), CONFIDENCE) for samples in (numerator, denominator)):
        return None
    if min(denominator) <= 0:
        return None
    above = _resampled_medians(tuple(numerator), resamples, stream=1)
    below = _resampled_medians(tuple(denominator), resamples, stream=2)
    low, high = _quantiles(above / below, confidence)
    return Interval(low, high, "bootstrap", confidence)


@dataclass(frozen=True)
class TimingSummary:
    """Seconds of the timed calls of one activity."""

    median: float
    ninety_fifth_percentile: float
    interval: Interval | None
    """Of the median."""


@lru_cache(maxsize=4096)
def summarize_timing(samples_seconds: tuple[float, ...]) -> TimingSummary:
    """Median with its bootstrap interval, and 95th percentile (linear between samples).

    Raises:
        ValueError: no samples, or one that is not a finite number.
    """
    if not samples_seconds:
        raise ValueError("a timing needs at least one sample")
    import numpy as np

    _expect_finite(samples_seconds)
    median, ninety_fifth = (float(value) for value in np.percentile(samples_seconds, [50, 95]))
    return TimingSummary(median, ninety_fifth, median_interval(samples_seconds))


def _can_bound_a_median(num_samples: int, confidence: float) -> bool:
    """All samples lie on one side of the median with probability 2^(1 - n)."""
    return num_samples >= 1 and 2.0 ** (1 - num_samples) <= 1 - confidence


def _resampled_medians(samples: tuple[float, ...], resamples: int, *, stream: int) -> npt.NDArray[np.float64]:
    import numpy as np

    values = np.asarray(samples, dtype=np.float64)
    draws = np.random.default_rng([len(samples), stream]).integers(0, len(values), size=(resamples, len(values)))
    medians: npt.NDArray[np.float64] = np.median(values[draws], axis=1)
    return medians


def _quantiles(values: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    import numpy as np

    tail = (1 - confidence) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _expect_finite(samples: Sequence[float]) -> None:
    for sample in samples:
        if not math.isfinite(sample):
            raise ValueError(f"{sample} is not a finite number")
