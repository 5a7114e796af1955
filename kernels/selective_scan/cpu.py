"""The selective scan on a CPU: what torch sees of the loops in `cpu_loops`.

Computes in float32. One custom operator forward and one backward, so that autograd and torch.compile compose with it.
"""

# B batch, L length, D channels, N state

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels.numba_calls import parts, rows, rows_or_empty, rows_or_zero, run_in_threads, starts_or_empty
from kernels.numba_calls import unavailable as unavailable

_LOG2_E = math.log2(math.e)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) in u's dtype and the final state (B, D, N) in float32."""
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    y, final_BND, _ = _scan(
        u.float(),
        delta.float(),
        A.float(),
        B.float(),
        C.float(),
        None if D is None else D.float(),
        None if z is None else z.float(),
        None if delta_bias is None else delta_bias.float(),
        None if initial_state is None else initial_state.float().transpose(1, 2),
        sequence_starts,
        delta_softplus,
        needs_gradient,
    )
    return y.to(u.dtype), final_BND.transpose(1, 2)


@functools.cache
def _loops() -> ModuleType:
    # Importing numba takes most of a second.
    return importlib.import_module("kernels.selective_scan.cpu_loops")


@torch.library.custom_op("seqsuite::selective_scan_cpu", mutates_args=())
def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
    saves_checkpoints: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, final_state, checkpoints = _new_outputs(u, A, saves_checkpoints)
    loops = _loops()
    run_in_threads(
        loops.forward,
        u.shape[0] * parts(u.shape[2], loops.BLOCK_CHANNELS),
        rows(u),
        rows(delta),
        rows((A * _LOG2_E).T),
        rows(B),
        rows(C),
        rows_or_zero(D, u.shape[2]),
        rows_or_empty(z, 3),
        rows_or_zero(delta_bias, u.shape[2]),
        rows_or_empty(initial_state, 3),
        starts_or_empty(sequence_starts),
        delta_softplus,
        y.numpy(),
        final_state.numpy(),
        checkpoints.numpy(),
    )
    return y, final_state, checkpoints


def _new_outputs(u: Tensor, A: Tensor, saves_checkpoints: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    states = A.shape[1]
    num_chunks = parts(length, _loops().CHUNK)
    return (
        u.new_empty(batch, length, channels),
        u.new_empty(batch, states, channels),
        u.new_empty(batch if saves_checkpoints else 0, num_chunks, states, channels),
    )


@_scan.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
    saves_checkpoints: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_outputs(u, A, saves_checkpoints)


@torch.library.custom_op("seqsuite::selective_scan_cpu_backward", mutates_args=())
def _scan_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
    checkpoints: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
) -> list[Tensor]:
    batch, length, channels = u.shape
    states = A.shape[1]
    du, ddelta = u.new_empty(batch, length, channels), u.new_empty(batch, length, channels)
    dz = u.new_empty(batch if z is not None else 0, length, channels)
    num_blocks = parts(channels, _loops().BLOCK_CHANNELS)
    dA, dinitial = u.new_empty(batch, states, channels), u.new_empty(batch, states, channels)
    dB, dC = u.new_empty(num_blocks, batch, length, states), u.new_empty(num_blocks, batch, length, states)
    dD, dbias = u.new_empty(batch, channels), u.new_empty(batch, channels)
    loops = _loops()
    run_in_threads(
        loops.backward,
        u.shape[0] * parts(u.shape[2], loops.BLOCK_CHANNELS),
        rows(u),
        rows(delta),
        rows((A * _LOG2_E).T),
        rows(B),
        rows(C),
        rows_or_zero(D, channels),
        rows_or_empty(z, 3),
        rows_or_zero(delta_bias, channels),
        starts_or_empty(sequence_starts),
        delta_softplus,
        checkpoints.numpy(),
        rows(dy),
        rows_or_empty(dfinal, 3),
        du.numpy(),
        ddelta.numpy(),
        dA.numpy(),
        dB.numpy(),
        dC.numpy(),
        dD.numpy(),
        dz.numpy(),
        dbias.numpy(),
        dinitial.numpy(),
    )
    return [du, ddelta, dA.sum(0).T.contiguous(), dB.sum(0), dC.sum(0), dD.sum(0), dz, dbias.sum(0), dinitial]


@_scan_backward.register_fake
def _(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
    checkpoints: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
) -> list[Tensor]:
    batch, length, channels = u.shape
    states = A.shape[1]
    return [
        u.new_empty(batch, length, channels),
        u.new_empty(batch, length, channels),
        u.new_empty(channels, states),
        u.new_empty(batch, length, states),
        u.new_empty(batch, length, states),
        u.new_empty(channels),
        u.new_empty(batch if z is not None else 0, length, channels),
        u.new_empty(channels),
        u.new_empty(batch, states, channels),
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, z, delta_bias, initial_state, sequence_starts, delta_softplus, _ = inputs
    ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, sequence_starts, output[2])
    ctx.delta_softplus = delta_softplus
    ctx.has_initial_state = initial_state is not None
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    u, delta, A, B, C, D, z, delta_bias, sequence_starts, checkpoints = ctx.saved_tensors
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = _scan_backward(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        sequence_starts,
        ctx.delta_softplus,
        checkpoints,
        torch.zeros_like(u) if dy is None else dy,
        dfinal,
    )
    return (
        du,
        ddelta,
        dA,
        dB,
        dC,
        None if D is None else dD,
        None if z is None else dz,
        None if delta_bias is None else dbias,
        dinitial if ctx.has_initial_state else None,
        None,
        None,
        None,
    )


_scan.register_autograd(_backward, setup_context=_setup_context)
