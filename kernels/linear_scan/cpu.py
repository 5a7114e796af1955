"""The linear scan on a CPU: what torch sees of the loops in `cpu_loops`.

Computes in float32. One custom operator forward and one backward, so that autograd and torch.compile compose with it;
the gates of the two networks are torch's own operations before it.
"""

# B batch, L length, D channels

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels.linear_scan.gates import min_gru_coefficients, min_lstm_coefficients
from kernels.numba_calls import parts, rows, rows_or_empty, run_in_threads, starts_or_empty
from kernels.numba_calls import unavailable as unavailable

_LANES = 16
_SMALLEST_BLOCK = 4 * _LANES
_TASKS_PER_THREAD = 2


def linear_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None, sequence_starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in b's dtype and the final state (B, D) in float32."""
    initial_state = None if initial_state is None else initial_state.float()
    h, final_state = _scan(a.float(), b.float(), initial_state, sequence_starts)
    return h.to(b.dtype), final_state


def min_gru_scan(
    update: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in the candidate's dtype and the final state (B, D) in float32."""
    a, b = min_gru_coefficients(update, candidate, positive_candidate)
    h, final_state = linear_scan(a, b, initial_state, sequence_starts)
    return h.to(candidate.dtype), final_state


def min_lstm_scan(
    forget: Tensor,
    input: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in the candidate's dtype and the final state (B, D) in float32."""
    a, b = min_lstm_coefficients(forget, input, candidate, positive_candidate)
    h, final_state = linear_scan(a, b, initial_state, sequence_starts)
    return h.to(candidate.dtype), final_state


@functools.cache
def _loops() -> ModuleType:
    # Importing numba takes most of a second.
    return importlib.import_module("kernels.linear_scan.cpu_loops")


def _tasks(h: Tensor) -> tuple[int, int]:
    """How many tasks there are, a few for each thread, and how many channels a task has."""
    batch, _, channels = h.shape
    blocks = parts(_TASKS_PER_THREAD * torch.get_num_threads(), batch)
    block_channels = max(_SMALLEST_BLOCK, parts(parts(channels, blocks), _LANES) * _LANES)
    return batch * parts(channels, block_channels), block_channels


@torch.library.custom_op("seqsuite::linear_scan_cpu", mutates_args=())
def _scan(a: Tensor, b: Tensor, initial_state: Tensor | None, sequence_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    h, final_state = _new_outputs(b)
    run_in_threads(
        _loops().forward,
        *_tasks(h),
        rows(a),
        rows(b),
        rows_or_empty(initial_state, 2),
        starts_or_empty(sequence_starts),
        h.numpy(),
        final_state.numpy(),
    )
    return h, final_state


def _new_outputs(b: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, channels = b.shape
    return b.new_empty(batch, length, channels), b.new_empty(batch, channels)


@_scan.register_fake
def _(a: Tensor, b: Tensor, initial_state: Tensor | None, sequence_starts: Tensor | None) -> tuple[Tensor, Tensor]:
    return _new_outputs(b)


@torch.library.custom_op("seqsuite::linear_scan_cpu_backward", mutates_args=())
def _scan_backward(
    a: Tensor,
    h: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    dh: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (da, dinitial), (db, _) = _new_outputs(h), _new_outputs(h)
    run_in_threads(
        _loops().backward,
        *_tasks(h),
        rows(a),
        rows(h),
        rows_or_empty(initial_state, 2),
        starts_or_empty(sequence_starts),
        rows(dh),
        rows_or_empty(dfinal, 2),
        da.numpy(),
        db.numpy(),
        dinitial.numpy(),
    )
    return da, db, dinitial


@_scan_backward.register_fake
def _(
    a: Tensor,
    h: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    dh: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    (da, dinitial), (db, _) = _new_outputs(h), _new_outputs(h)
    return da, db, dinitial


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    a, _, initial_state, sequence_starts = inputs
    ctx.save_for_backward(a, output[0], initial_state, sequence_starts)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dh: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    a, h, initial_state, sequence_starts = ctx.saved_tensors
    if dh is None and dfinal is None:
        return (None,) * 4
    da, db, dinitial = _scan_backward(
        a, h, initial_state, sequence_starts, torch.zeros_like(h) if dh is None else dh, dfinal
    )
    return da, db, None if initial_state is None else dinitial, None


_scan.register_autograd(_backward, setup_context=_setup_context)
