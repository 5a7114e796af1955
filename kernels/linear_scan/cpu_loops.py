"""The loops of the CPU linear scan, compiled by numba: sixteen channels in a vector.

A task is one batch row and a block of channels, whose states stay in the nearest cache while the rows go by in time.
Memory is what the loops wait for, and it likes long rows: blocks are as wide as the number of threads allows.
"""

# B batch, L length, D channels

# numba compiles these functions; its annotations know neither vectors nor what a compiled function takes.
# mypy: disable-error-code="call-arg, call-overload, operator, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, njit, void

from kernels.numba_calls import parts
from kernels.simd import LANES, broadcast, fma, load, load_first, store, store_first

_ZERO = np.float32(0)

_parts = njit(parts)

# Said outright, so that contiguous and strided inputs share one compilation. It happens when this module is imported.
_READ_2, _READ_3, _STARTS = float32[:, :], float32[:, :, :], boolean[:, :]
_WRITTEN_2, _WRITTEN_3 = float32[:, ::1], float32[:, :, ::1]


@njit(
    void(int64, int64, int64, _READ_3, _READ_3, _READ_2, _STARTS, _WRITTEN_3, _WRITTEN_2),
    nogil=True,
    cache=True,
)
def forward(
    first_task: int,
    end_task: int,
    block_channels: int,
    a_BLD: Any,
    b_BLD: Any,
    initial_BD: Any,
    starts_BL: Any,
    h_BLD: Any,
    final_BD: Any,
) -> None:
    """Writes h_t = a_t h_{t-1} + b_t and the final state. initial and starts are empty if there are none.

    The last axis of all is contiguous.
    """
    _, length, channels = b_BLD.shape
    blocks = _parts(channels, block_channels)
    for task in range(first_task, end_task):
        row, k = divmod(task, blocks)
        first = k * block_channels
        end = min(channels, first + block_channels)
        h_D = np.zeros(block_channels, np.float32)
        if initial_BD.shape[0] > 0:
            h_D[: end - first] = initial_BD[row, first:end]
        for t in range(length):
            if starts_BL.shape[0] > 0 and starts_BL[row, t]:
                h_D[:] = 0
            for d in range(first, end, LANES):
                count = end - d
                a = load_first(a_BLD, (row, t, d), count)
                h = fma(a, load(h_D, (d - first,)), load_first(b_BLD, (row, t, d), count))
                store(h_D, (d - first,), h)
                store_first(h_BLD, (row, t, d), h, count)
        final_BD[row, first:end] = h_D[: end - first]


@njit(
    void(
        *(int64, int64, int64),
        *(_READ_3, _READ_3, _READ_2, _STARTS, _READ_3, _READ_2),
        *(_WRITTEN_3, _WRITTEN_3, _WRITTEN_2),
    ),
    nogil=True,
    cache=True,
)
def backward(
    first_task: int,
    end_task: int,
    block_channels: int,
    a_BLD: Any,
    h_BLD: Any,
    initial_BD: Any,
    starts_BL: Any,
    dh_BLD: Any,
    dfinal_BD: Any,
    da_BLD: Any,
    db_BLD: Any,
    dinitial_BD: Any,
) -> None:
    """Writes the gradients of a, b and the initial state. dfinal is empty if nothing reads the final state."""
    _, length, channels = a_BLD.shape
    blocks = _parts(channels, block_channels)
    for task in range(first_task, end_task):
        row, k = divmod(task, blocks)
        first = k * block_channels
        end = min(channels, first + block_channels)
        # r is the gradient that reaches a state from all later positions.
        r_D = np.zeros(block_channels, np.float32)
        if dfinal_BD.shape[0] > 0:
            r_D[: end - first] = dfinal_BD[row, first:end]
        for t in range(length - 1, -1, -1):
            is_start = starts_BL.shape[0] > 0 and starts_BL[row, t]
            for d in range(first, end, LANES):
                count = end - d
                before = broadcast(_ZERO)
                if not is_start:
                    if t > 0:
                        before = load_first(h_BLD, (row, t - 1, d), count)
                    elif initial_BD.shape[0] > 0:
                        before = load_first(initial_BD, (row, d), count)
                g = load_first(dh_BLD, (row, t, d), count) + load(r_D, (d - first,))
                store_first(da_BLD, (row, t, d), g * before, count)
                store_first(db_BLD, (row, t, d), g, count)
                store(r_D, (d - first,), load_first(a_BLD, (row, t, d), count) * g)
            if is_start:
                r_D[:] = 0
        dinitial_BD[row, first:end] = r_D[: end - first]
