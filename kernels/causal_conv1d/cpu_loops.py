"""The loops of the CPU convolution, compiled by numba, sixteen channels in a vector.

A task is one batch row and a block of channels. No two tasks add to the same number: the gradients of the taps and of
the bias come back as one part for each row.
"""

# B batch, L length, D channels, W width, P past = W - 1

# numba compiles these functions; its annotations know neither vectors nor what a compiled function takes.
# mypy: disable-error-code="call-arg, call-overload, operator, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, njit, void

from kernels.numba_calls import parts
from kernels.simd import LANES, add_product, broadcast, fma, load, load_first, sigmoid, store, store_first

BLOCK_CHANNELS = 4 * LANES
_ZERO = np.float32(0)
_ONE = np.float32(1)

_parts = njit(parts)

# Said outright, so that contiguous and strided inputs share one compilation. It happens when this module is imported.
_READ_1, _READ_2, _READ_3 = float32[:], float32[:, :], float32[:, :, :]
_INPUTS = (_READ_3, _READ_2, _READ_1, _READ_3, boolean[:, :], boolean)
_WRITTEN_2, _WRITTEN_3 = float32[:, ::1], float32[:, :, ::1]


@njit(inline="always")
def _reach_at_start(weight_WD: Any, state_BPD: Any) -> Any:
    return weight_WD.shape[0] - 1 if state_BPD.shape[0] > 0 else -1


@njit(inline="always")
def _reach(reach_before: Any, t: Any, b: Any, weight_WD: Any, starts_BL: Any) -> Any:
    """How many positions before t its taps may look at: none across the start of its document."""
    if starts_BL.shape[0] > 0 and starts_BL[b, t]:
        return 0
    return min(reach_before + 1, weight_WD.shape[0] - 1)


@njit(inline="always")
def _weighted_sum(
    b: Any, t: Any, d: Any, count: Any, reach: Any, x_BLD: Any, weight_WD: Any, bias_D: Any, state_BPD: Any
) -> Any:
    past = weight_WD.shape[0] - 1
    y = load_first(bias_D, (d,), count)
    for offset in range(reach + 1):
        weight = load_first(weight_WD, (past - offset, d), count)
        if offset <= t:
            y = fma(load_first(x_BLD, (b, t - offset, d), count), weight, y)
        else:
            y = fma(load_first(state_BPD, (b, past + t - offset, d), count), weight, y)
    return y


@njit(void(int64, int64, *_INPUTS, _WRITTEN_3), nogil=True, cache=True)
def forward(
    first_task: int,
    end_task: int,
    x_BLD: Any,
    weight_WD: Any,
    bias_D: Any,
    state_BPD: Any,
    starts_BL: Any,
    has_silu: bool,
    y_BLD: Any,
) -> None:
    """Writes y. state and starts are empty if there are none. The last axis of all is contiguous."""
    _, length, channels = x_BLD.shape
    blocks = _parts(channels, BLOCK_CHANNELS)
    for task in range(first_task, end_task):
        b, k = divmod(task, blocks)
        first = k * BLOCK_CHANNELS
        end = min(channels, first + BLOCK_CHANNELS)
        reach = _reach_at_start(weight_WD, state_BPD)
        for t in range(length):
            reach = _reach(reach, t, b, weight_WD, starts_BL)
            for d in range(first, end, LANES):
                y = _weighted_sum(b, t, d, end - d, reach, x_BLD, weight_WD, bias_D, state_BPD)
                if has_silu:
                    y = y * sigmoid(y)
                store_first(y_BLD, (b, t, d), y, end - d)


@njit(void(int64, int64, *_INPUTS, _READ_3, _WRITTEN_3, _WRITTEN_3, _WRITTEN_2, _WRITTEN_3), nogil=True, cache=True)
def backward(
    first_task: int,
    end_task: int,
    x_BLD: Any,
    weight_WD: Any,
    bias_D: Any,
    state_BPD: Any,
    starts_BL: Any,
    has_silu: bool,
    dy_BLD: Any,
    dx_BLD: Any,
    dweight_BWD: Any,
    dbias_BD: Any,
    dstate_BPD: Any,
) -> None:
    """Writes the gradients, those of the taps and of the bias for each row; dstate is empty if there is no state."""
    _, length, channels = x_BLD.shape
    width = weight_WD.shape[0]
    past = width - 1
    blocks = _parts(channels, BLOCK_CHANNELS)
    for task in range(first_task, end_task):
        b, k = divmod(task, blocks)
        first = k * BLOCK_CHANNELS
        end = min(channels, first + BLOCK_CHANNELS)
        dweight_WD = np.zeros((width, BLOCK_CHANNELS), np.float32)
        dbias = np.zeros(BLOCK_CHANNELS, np.float32)
        dstate_BPD[b : b + 1, :, first:end] = 0
        reach = _reach_at_start(weight_WD, state_BPD)
        for t in range(length):
            reach = _reach(reach, t, b, weight_WD, starts_BL)
            for d in range(first, end, LANES):
                count = end - d
                dy = load_first(dy_BLD, (b, t, d), count)
                if has_silu:
                    y = _weighted_sum(b, t, d, count, reach, x_BLD, weight_WD, bias_D, state_BPD)
                    gate = sigmoid(y)
                    dy = dy * gate * fma(y, broadcast(_ONE) - gate, _ONE)
                store(dbias, (d - first,), load(dbias, (d - first,)) + dy)
                store_first(dx_BLD, (b, t, d), broadcast(_ZERO), count)
                for offset in range(reach + 1):
                    tap = past - offset
                    weight = load_first(weight_WD, (tap, d), count)
                    if offset <= t:
                        x = load_first(x_BLD, (b, t - offset, d), count)
                        dx = load_first(dx_BLD, (b, t - offset, d), count)
                        store_first(dx_BLD, (b, t - offset, d), fma(dy, weight, dx), count)
                    else:
                        x = load_first(state_BPD, (b, past + t - offset, d), count)
                        dx = load_first(dstate_BPD, (b, past + t - offset, d), count)
                        store_first(dstate_BPD, (b, past + t - offset, d), fma(dy, weight, dx), count)
                    add_product(dweight_WD, (tap, d - first), dy, x)
        dweight_BWD[b, :, first:end] = dweight_WD[:, : end - first]
        dbias_BD[b, first:end] = dbias[: end - first]
