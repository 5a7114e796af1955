"""The causal convolution on a CPU: what torch sees of the loops in `cpu_loops`.

Computes in float32. One custom operator forward and one backward, so that autograd and torch.compile compose with it.
"""

# B batch, L length, D channels, W width, P past = W - 1

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels.numba_calls import parts, rows, rows_or_empty, rows_or_zero, run_in_threads, starts_or_empty
from kernels.numba_calls import unavailable as unavailable


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    has_silu: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> Tensor:
    """y (B, L, D) in x's dtype."""
    y: Tensor = _convolve(
        x.float(),
        weight.float().T,
        None if bias is None else bias.float(),
        None if initial_state is None else initial_state.float().transpose(1, 2),
        sequence_starts,
        has_silu,
    )
    return y.to(x.dtype)


@functools.cache
def _loops() -> ModuleType:
    # Importing numba takes most of a second.
    return importlib.import_module("kernels.causal_conv1d.cpu_loops")


@torch.library.custom_op("seqsuite::causal_conv1d_cpu", mutates_args=())
def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, sequence_starts: Tensor | None, has_silu: bool
) -> Tensor:
    y = x.new_empty(x.shape)
    loops = _loops()
    run_in_threads(
        loops.forward,
        x.shape[0] * parts(x.shape[2], loops.BLOCK_CHANNELS),
        rows(x),
        rows(weight),
        rows_or_zero(bias, x.shape[2]),
        rows_or_empty(state, 3),
        starts_or_empty(sequence_starts),
        has_silu,
        y.numpy(),
    )
    return y


@_convolve.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, sequence_starts: Tensor | None, has_silu: bool
) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("seqsuite::causal_conv1d_cpu_backward", mutates_args=())
def _convolve_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    sequence_starts: Tensor | None,
    has_silu: bool,
    dy: Tensor,
) -> list[Tensor]:
    batch, length, channels = x.shape
    width = weight.shape[0]
    dx = x.new_empty(batch, length, channels)
    dweight, dbias = x.new_empty(batch, width, channels), x.new_empty(batch, channels)
    dstate = x.new_empty(0 if state is None else batch, width - 1, channels)
    loops = _loops()
    run_in_threads(
        loops.backward,
        x.shape[0] * parts(x.shape[2], loops.BLOCK_CHANNELS),
        rows(x),
        rows(weight),
        rows_or_zero(bias, channels),
        rows_or_empty(state, 3),
        starts_or_empty(sequence_starts),
        has_silu,
        rows(dy),
        dx.numpy(),
        dweight.numpy(),
        dbias.numpy(),
        dstate.numpy(),
    )
    return [dx, dweight.sum(0), dbias.sum(0), dstate]


@_convolve_backward.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    sequence_starts: Tensor | None,
    has_silu: bool,
    dy: Tensor,
) -> list[Tensor]:
    batch, length, channels = x.shape
    width = weight.shape[0]
    return [
        x.new_empty(batch, length, channels),
        x.new_empty(width, channels),
        x.new_empty(channels),
        x.new_empty(0 if state is None else batch, width - 1, channels),
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.has_silu = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, state, sequence_starts = ctx.saved_tensors
    dx, dweight, dbias, dstate = _convolve_backward(x, weight, bias, state, sequence_starts, ctx.has_silu, dy)
    return dx, dweight, None if bias is None else dbias, None if state is None else dstate, None, None


_convolve.register_autograd(_backward, setup_context=_setup_context)
