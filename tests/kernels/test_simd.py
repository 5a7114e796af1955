"""The vector functions of the CPU loops against numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from kernels import simd
from kernels.simd import LANES, exp2, load_first, log1p_unit, sigmoid, softplus, store_first, total


def _elementwise(function: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    @njit
    def apply(x: Any, result: Any) -> None:
        for first in range(0, x.size, LANES):
            count = x.size - first
            store_first(result, (first,), function(load_first(x, (first,), count)), count)

    def evaluate(x: NDArray[np.float32]) -> NDArray[np.float32]:
        # Two more entries show whether a store goes too far.
        result = np.full(x.size + 2, np.nan, np.float32)
        apply(x, result)
        assert np.isnan(result[x.size :]).all()
        return result[: x.size]

    return evaluate


@pytest.mark.parametrize(
    ("function", "exact", "low", "high", "tolerance"),
    [
        (exp2, np.exp2, -125.9, 127.9, 3e-7),
        (log1p_unit, np.log1p, 0.0, 1.0, 3e-7),
        (softplus, lambda x: np.logaddexp(x, 0), -10.0, 200.0, 1e-6),
        (sigmoid, lambda x: 1 / (1 + np.exp(-x)), -10.0, 200.0, 1e-6),
    ],
)
def test_values_are_right_to_the_last_digits(
    function: Any, exact: Callable[[Any], Any], low: float, high: float, tolerance: float
) -> None:
    x = np.random.default_rng().uniform(low, high, 10_007).astype(np.float32)
    expected = exact(x.astype(np.float64))
    error = np.abs(_elementwise(function)(x) - expected) / np.maximum(np.abs(expected), 1e-37)
    assert error.max() < tolerance, f"off by {error.max():.1e} at {x[error.argmax()]}"


def test_extremes_saturate_and_nan_stays_nan() -> None:
    x = np.array([np.inf, -np.inf, 3e38, -3e38, np.nan, 0], np.float32)
    tiny = 2.0**-126
    np.testing.assert_array_equal(_elementwise(exp2)(x), np.float32([np.inf, tiny, np.inf, tiny, np.nan, 1]))
    np.testing.assert_array_equal(_elementwise(sigmoid)(x), np.float32([1, 0, 1, 0, np.nan, 0.5]))
    np.testing.assert_allclose(
        _elementwise(softplus)(x), np.float32([np.inf, tiny, 3e38, tiny, np.nan, np.log(2)]), rtol=1e-6
    )


def test_the_sum_of_the_lanes_is_their_sum() -> None:
    @njit
    def sum_of(x: Any) -> Any:
        return total(simd.load(x, (0,)))

    assert sum_of(np.arange(LANES, dtype=np.float32)) == LANES * (LANES - 1) / 2
