"""The loops of the CPU selective scan, compiled by numba: sixteen channels in a vector, their states in registers.

A task is one batch row and a block of channels, walked in chunks of time. Within a chunk the work that does not depend
on the state index comes first (softplus, delta u), then each of the N recurrences runs over the chunk with h in a
register. The states between chunks are all that the backward pass needs; it recomputes one chunk at a time.

No two tasks add to the same number: gradients that are sums over channels or rows come back in parts.
"""

# B batch, L length, D channels, N state, K blocks of channels, M chunks of time, T positions of one chunk,
# R rows of notes

# numba compiles these functions; its annotations know neither vectors nor what a compiled function takes.
# mypy: disable-error-code="call-arg, call-overload, operator, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from numba import boolean, float32, int64, njit, void

from kernels.numba_calls import parts
from kernels.simd import (
    LANES,
    LN_2,
    add_product,
    broadcast,
    broadcast_at,
    exp2,
    fma,
    load,
    load_first,
    sigmoid,
    softplus,
    store,
    store_first,
    total,
)

CHUNK = 16
BLOCK_CHANNELS = 4 * LANES
_ZERO = np.float32(0)
_ONE = np.float32(1)

# Rows of what the backward pass notes of one chunk.
_DELTA, _SLOPE, _U, _INFLOW, _Y, _DY, _DDELTA, _DINFLOW, _DECAY, _H = range(10)
_NUM_ROWS = 10

_parts = njit(parts)

# Said outright, so that contiguous and strided inputs share one compilation. It happens when this module is imported.
_READ_1, _READ_2, _READ_3, _READ_4 = float32[:], float32[:, :], float32[:, :, :], float32[:, :, :, :]
_STARTS = boolean[:, :]
_INPUTS = (_READ_3, _READ_3, _READ_2, _READ_3, _READ_3, _READ_1, _READ_3, _READ_1)
_WRITTEN_2, _WRITTEN_3, _WRITTEN_4 = float32[:, ::1], float32[:, :, ::1], float32[:, :, :, ::1]


@njit(
    void(int64, int64, *_INPUTS, _READ_3, _STARTS, boolean, _WRITTEN_3, _WRITTEN_3, _WRITTEN_4),
    nogil=True,
    cache=True,
)
def forward(
    first_task: int,
    end_task: int,
    u_BLD: Any,
    delta_BLD: Any,
    A_ND: Any,
    B_BLN: Any,
    C_BLN: Any,
    D_D: Any,
    z_BLD: Any,
    bias_D: Any,
    initial_BND: Any,
    starts_BL: Any,
    delta_softplus: bool,
    y_BLD: Any,
    final_BND: Any,
    checkpoints_BMND: Any,
) -> None:
    """Writes y, the final state and, unless it is empty, the state before each chunk.

    A is scaled by log2(e). z, initial and starts are empty if there are none. The last axis of all is contiguous.
    """
    _, length, channels = u_BLD.shape
    states = A_ND.shape[0]
    is_gated = z_BLD.shape[0] > 0
    saves_checkpoints = checkpoints_BMND.shape[0] > 0
    blocks = _parts(channels, BLOCK_CHANNELS)
    for task in range(first_task, end_task):
        b, k = divmod(task, blocks)
        first = k * BLOCK_CHANNELS
        end = min(channels, first + BLOCK_CHANNELS)

        h_ND = np.zeros((states, BLOCK_CHANNELS), np.float32)
        if initial_BND.shape[0] > 0:
            h_ND[:, : end - first] = initial_BND[b, :, first:end]
        delta_T = np.empty((CHUNK, LANES), np.float32)
        inflow_T = np.empty((CHUNK, LANES), np.float32)
        y_T = np.empty((CHUNK, LANES), np.float32)
        resets_T = np.zeros(CHUNK, np.bool_)

        for chunk in range(_parts(length, CHUNK)):
            begin = chunk * CHUNK
            steps = min(CHUNK, length - begin)
            if starts_BL.shape[0] > 0:
                resets_T[:steps] = starts_BL[b, begin : begin + steps]
            for d in range(first, end, LANES):
                count = end - d
                skip = load_first(D_D, (d,), count)
                bias = load_first(bias_D, (d,), count)
                for t in range(steps):
                    u = load_first(u_BLD, (b, begin + t, d), count)
                    delta = load_first(delta_BLD, (b, begin + t, d), count) + bias
                    if delta_softplus:
                        delta = softplus(delta)
                    store(delta_T, (t, 0), delta)
                    store(inflow_T, (t, 0), delta * u)
                    store(y_T, (t, 0), skip * u)
                for n in range(states):
                    rate = load_first(A_ND, (n, d), count)
                    h = load(h_ND, (n, d - first))
                    if saves_checkpoints:
                        store_first(checkpoints_BMND, (b, chunk, n, d), h, count)
                    for t in range(steps):
                        if resets_T[t]:
                            h = broadcast(_ZERO)
                        decay = exp2(load(delta_T, (t, 0)) * rate)
                        h = fma(decay, h, load(inflow_T, (t, 0)) * broadcast_at(B_BLN, (b, begin + t, n)))
                        add_product(y_T, (t, 0), h, broadcast_at(C_BLN, (b, begin + t, n)))
                    store(h_ND, (n, d - first), h)
                for t in range(steps):
                    y = load(y_T, (t, 0))
                    if is_gated:
                        z = load_first(z_BLD, (b, begin + t, d), count)
                        y = y * z * sigmoid(z)
                    store_first(y_BLD, (b, begin + t, d), y, count)
        final_BND[b, :, first:end] = h_ND[:, : end - first]


@njit(
    void(
        *(int64, int64),
        *_INPUTS,
        _STARTS,
        boolean,
        _READ_4,
        _READ_3,
        _READ_3,
        *(_WRITTEN_3, _WRITTEN_3, _WRITTEN_3, _WRITTEN_4, _WRITTEN_4, _WRITTEN_2, _WRITTEN_3, _WRITTEN_2, _WRITTEN_3),
    ),
    nogil=True,
    cache=True,
)
def backward(
    first_task: int,
    end_task: int,
    u_BLD: Any,
    delta_BLD: Any,
    A_ND: Any,
    B_BLN: Any,
    C_BLN: Any,
    D_D: Any,
    z_BLD: Any,
    bias_D: Any,
    starts_BL: Any,
    delta_softplus: bool,
    checkpoints_BMND: Any,
    dy_BLD: Any,
    dfinal_BND: Any,
    du_BLD: Any,
    ddelta_BLD: Any,
    dA_BND: Any,
    dB_KBLN: Any,
    dC_KBLN: Any,
    dD_BD: Any,
    dz_BLD: Any,
    dbias_BD: Any,
    dinitial_BND: Any,
) -> None:
    """Writes the gradients, those of A, D and the bias for each row and those of B and C for each block of channels.

    The first eleven arguments are those of `forward`, after it ran. dfinal is empty if nothing reads the final state.
    """
    _, length, channels = u_BLD.shape
    states = A_ND.shape[0]
    is_gated = z_BLD.shape[0] > 0
    blocks = _parts(channels, BLOCK_CHANNELS)
    for task in range(first_task, end_task):
        b, k = divmod(task, blocks)
        first = k * BLOCK_CHANNELS
        end = min(channels, first + BLOCK_CHANNELS)

        # r is the gradient that reaches a state from all later positions.
        r_ND = np.zeros((states, BLOCK_CHANNELS), np.float32)
        if dfinal_BND.shape[0] > 0:
            r_ND[:, : end - first] = dfinal_BND[b, :, first:end]
        dA_ND = np.zeros((states, BLOCK_CHANNELS), np.float32)
        dD = np.zeros(BLOCK_CHANNELS, np.float32)
        dbias = np.zeros(BLOCK_CHANNELS, np.float32)

        # One array for all that is noted of a chunk: its address takes one register, not ten.
        chunk_RT = np.empty((_NUM_ROWS, CHUNK + 1, LANES), np.float32)
        dB_NT = np.empty((states, CHUNK, LANES), np.float32)
        dC_NT = np.empty((states, CHUNK, LANES), np.float32)
        resets_T = np.zeros(CHUNK, np.bool_)
        zero = broadcast(_ZERO)
        one = broadcast(_ONE)

        for chunk in range(_parts(length, CHUNK) - 1, -1, -1):
            begin = chunk * CHUNK
            steps = min(CHUNK, length - begin)
            if starts_BL.shape[0] > 0:
                resets_T[:steps] = starts_BL[b, begin : begin + steps]
            dB_NT[:] = 0
            dC_NT[:] = 0
            for d in range(first, end, LANES):
                count = end - d
                skip = load_first(D_D, (d,), count)
                bias = load_first(bias_D, (d,), count)
                for t in range(steps):
                    u = load_first(u_BLD, (b, begin + t, d), count)
                    delta = load_first(delta_BLD, (b, begin + t, d), count) + bias
                    slope = one
                    if delta_softplus:
                        slope = sigmoid(delta)
                        delta = softplus(delta)
                    dy = load_first(dy_BLD, (b, begin + t, d), count)
                    if is_gated:
                        z = load_first(z_BLD, (b, begin + t, d), count)
                        dy = dy * z * sigmoid(z)
                    store(chunk_RT, (_U, t, 0), u)
                    store(chunk_RT, (_DELTA, t, 0), delta)
                    store(chunk_RT, (_SLOPE, t, 0), slope)
                    store(chunk_RT, (_INFLOW, t, 0), delta * u)
                    store(chunk_RT, (_Y, t, 0), skip * u)
                    store(chunk_RT, (_DY, t, 0), dy)
                    store(chunk_RT, (_DDELTA, t, 0), zero)
                    store(chunk_RT, (_DINFLOW, t, 0), zero)
                for n in range(states):
                    rate = load_first(A_ND, (n, d), count)
                    h = load_first(checkpoints_BMND, (b, chunk, n, d), count)
                    store(chunk_RT, (_H, 0, 0), h)
                    for t in range(steps):
                        if resets_T[t]:
                            h = zero
                        decay = exp2(load(chunk_RT, (_DELTA, t, 0)) * rate)
                        h = fma(decay, h, load(chunk_RT, (_INFLOW, t, 0)) * broadcast_at(B_BLN, (b, begin + t, n)))
                        store(chunk_RT, (_DECAY, t, 0), decay)
                        store(chunk_RT, (_H, t + 1, 0), h)
                        if is_gated:
                            add_product(chunk_RT, (_Y, t, 0), h, broadcast_at(C_BLN, (b, begin + t, n)))
                    r = load(r_ND, (n, d - first))
                    dA = load(dA_ND, (n, d - first))
                    for t in range(steps - 1, -1, -1):
                        dy = load(chunk_RT, (_DY, t, 0))
                        dh = fma(dy, broadcast_at(C_BLN, (b, begin + t, n)), r)
                        r = load(chunk_RT, (_DECAY, t, 0)) * dh
                        if resets_T[t]:
                            r = zero
                        drate = r * load(chunk_RT, (_H, t, 0))
                        dA = fma(drate, load(chunk_RT, (_DELTA, t, 0)), dA)
                        add_product(chunk_RT, (_DDELTA, t, 0), drate, rate)
                        add_product(chunk_RT, (_DINFLOW, t, 0), dh, broadcast_at(B_BLN, (b, begin + t, n)))
                        add_product(dB_NT, (n, t, 0), dh, load(chunk_RT, (_INFLOW, t, 0)))
                        add_product(dC_NT, (n, t, 0), dy, load(chunk_RT, (_H, t + 1, 0)))
                    store(r_ND, (n, d - first), r)
                    store(dA_ND, (n, d - first), dA)
                skip_gradient = load(dD, (d - first,))
                bias_gradient = load(dbias, (d - first,))
                for t in range(steps):
                    u = load(chunk_RT, (_U, t, 0))
                    dy = load(chunk_RT, (_DY, t, 0))
                    dinflow = load(chunk_RT, (_DINFLOW, t, 0))
                    # The rates are scaled by log2(e), and so is their share of the gradient.
                    ddelta = fma(dinflow, u, load(chunk_RT, (_DDELTA, t, 0)) * LN_2) * load(chunk_RT, (_SLOPE, t, 0))
                    du = fma(dinflow, load(chunk_RT, (_DELTA, t, 0)), skip * dy)
                    store_first(du_BLD, (b, begin + t, d), du, count)
                    store_first(ddelta_BLD, (b, begin + t, d), ddelta, count)
                    skip_gradient = fma(dy, u, skip_gradient)
                    bias_gradient = bias_gradient + ddelta
                    if is_gated:
                        z = load_first(z_BLD, (b, begin + t, d), count)
                        gate = sigmoid(z)
                        gate_slope = gate * fma(z, one - gate, _ONE)
                        dy_gated = load_first(dy_BLD, (b, begin + t, d), count)
                        dz = dy_gated * load(chunk_RT, (_Y, t, 0)) * gate_slope
                        store_first(dz_BLD, (b, begin + t, d), dz, count)
                store(dD, (d - first,), skip_gradient)
                store(dbias, (d - first,), bias_gradient)
            for t in range(steps):
                for n in range(states):
                    dB_KBLN[k, b, begin + t, n] = total(load(dB_NT, (n, t, 0)))
                    dC_KBLN[k, b, begin + t, n] = total(load(dC_NT, (n, t, 0)))

        dinitial_BND[b, :, first:end] = r_ND[:, : end - first]
        dA_BND[b, :, first:end] = dA_ND[:, : end - first]
        dD_BD[b, first:end] = dD[: end - first]
        dbias_BD[b, first:end] = dbias[: end - first]
