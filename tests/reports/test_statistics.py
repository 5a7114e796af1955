"""Intervals against their definitions, against scipy, and against what they promise."""

from __future__ import annotations

import math
import random
import statistics as stdlib

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from reports.statistics import (
    mean_interval,
    median_interval,
    paired_differences,
    ratio_of_medians_interval,
    summarize_timing,
    wilson_interval,
)

SAMPLES = st.lists(st.integers(-(10**6), 10**6).map(lambda thousandths: thousandths / 1000), min_size=2, max_size=20)


@given(st.integers(1, 200).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_wilson_agrees_with_scipy(share: tuple[int, int]) -> None:
    successes, trials = share
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    ours = wilson_interval(successes, trials)
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_two_solved_seeds_of_two_leave_much_open() -> None:
    interval = wilson_interval(2, 2)
    assert interval.low == pytest.approx(0.342, abs=1e-3)
    assert interval.high == 1.0


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_what_is_no_share_has_no_interval(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="is not a share"):
        wilson_interval(successes, trials)


@given(SAMPLES)
def test_the_interval_of_a_mean_agrees_with_scipy(samples: list[float]) -> None:
    ours = mean_interval(samples)
    if ours is None:
        assert max(samples) == min(samples)
        return
    low, high = scipy.stats.t.interval(
        0.95, len(samples) - 1, loc=np.mean(samples), scale=np.std(samples, ddof=1) / math.sqrt(len(samples))
    )
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("samples", [[0.5], [0.5, 0.5], [1.0, 1.0, 1.0]])
def test_samples_without_spread_have_no_interval(samples: list[float]) -> None:
    assert mean_interval(samples) is None


def test_differences_are_paired_by_seed_and_only_where_both_have_it() -> None:
    assert paired_differences({0: 0.5, 1: 0.75, 2: 0.0}, {1: 1.0, 0: 0.5, 3: 0.0}) == [0.0, 0.25]


@pytest.mark.parametrize("num_samples", [1, 2, 5])
def test_below_six_samples_a_median_has_no_interval(num_samples: int) -> None:
    assert median_interval([float(sample) for sample in range(num_samples)]) is None


def test_the_interval_of_a_median_agrees_with_the_bootstrap_of_scipy() -> None:
    samples = list(np.random.default_rng(3).lognormal(size=40))
    expected = scipy.stats.bootstrap(
        (samples,), np.median, method="percentile", n_resamples=20_000, rng=np.random.default_rng(4)
    ).confidence_interval
    ours = median_interval(samples)
    assert ours is not None
    assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), rel=0.05)


def test_the_interval_of_a_median_holds_it_about_as_often_as_it_says() -> None:
    draw = random.Random(5)
    repeats = 400
    held = 0
    for _ in range(repeats):
        interval = median_interval([math.exp(draw.gauss(0, 0.1)) for _ in range(20)])
        assert interval is not None
        held += 1.0 in interval
    # 95 % of 400 within three standard errors, and two points for the bootstrap of a median being approximate.
    assert held / repeats > 0.95 - 3 * math.sqrt(0.05 * 0.95 / repeats) - 0.02


def test_the_same_samples_always_have_the_same_interval() -> None:
    samples = [random.Random(6).random() for _ in range(15)]
    assert median_interval(samples) == median_interval(list(samples))


def _timings(draw: random.Random, median: float, num_samples: int = 20) -> list[float]:
    """Noise of 2 %, and now and then a call that was disturbed."""
    return [
        median * math.exp(draw.gauss(0, 0.02)) * (1 + (draw.random() < 0.1) * draw.expovariate(3))
        for _ in range(num_samples)
    ]


def test_equal_timings_are_told_apart_no_more_often_than_the_level_allows() -> None:
    draw = random.Random(7)
    repeats = 500
    alarms = 0
    for _ in range(repeats):
        interval = ratio_of_medians_interval(_timings(draw, 1.0), _timings(draw, 1.0))
        assert interval is not None
        alarms += 1.0 not in interval
    assert alarms / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)


def test_a_slowdown_of_a_fifth_is_found() -> None:
    draw = random.Random(8)
    for _ in range(100):
        interval = ratio_of_medians_interval(_timings(draw, 1.2), _timings(draw, 1.0))
        assert interval is not None
        assert interval.low > 1.0


def test_a_ratio_with_too_few_samples_on_either_side_has_no_interval() -> None:
    many, few = [1.0 + position for position in range(10)], [1.0, 2.0, 3.0]
    assert ratio_of_medians_interval(many, few) is None
    assert ratio_of_medians_interval(few, many) is None


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=30))
def test_a_timing_is_summed_up_by_its_median_and_95th_percentile(samples: list[float]) -> None:
    summary = summarize_timing(tuple(samples))
    assert summary.median == pytest.approx(stdlib.median(samples))
    assert summary.ninety_fifth_percentile == pytest.approx(np.percentile(samples, 95))


@pytest.mark.parametrize("samples", [(), (1.0, math.nan), (math.inf,)])
def test_a_timing_of_nothing_or_of_no_number_is_refused(samples: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least one sample|not a finite number"):
        summarize_timing(samples)


def test_an_interval_is_clipped_to_what_is_possible() -> None:
    interval = mean_interval([0.9, 1.0])
    assert interval is not None
    assert interval.clipped(0.0, 1.0).high == 1.0
    assert interval.clipped(0.0, 1.0).low == interval.low
