"""The residual addition and its norm on a GPU: what torch sees of the kernels in `triton_kernels`.

Between forward and backward only the sum is kept; the backward finds the norm's scale anew while it reads the sum. The
gradient of the weight repeats bit for bit: its sums have a fixed order.
"""

# R rows, D width

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from kernels.triton_launch import Launcher, next_power_of_2, size_class
from kernels.triton_launch import unavailable as unavailable

_TILE = 4096
"""Numbers that a program of the kernel holds of each tensor."""
_WARP_NUMBERS = 512
"""Of these, the share of one warp."""
_PROGRAMS_PER_MULTIPROCESSOR = 2
"""Programs of the backward; each adds up the weight's gradient over its rows."""


def add_rms_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + y in x's dtype, and its norm in `dtype`."""
    needs_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, y, weight))
    norm = _AddNorm.apply if needs_gradient else _norm_operator
    total, normed = norm(  # type: ignore[no-untyped-call]  # torch's apply has no types
        x.contiguous(), None if y is None else y.contiguous(), weight.contiguous(), epsilon, dtype
    )
    return x if y is None else total, normed


@functools.cache
def _launchers() -> tuple[Launcher, Launcher]:
    """Of the forward and of the backward kernel."""
    # Importing triton takes most of a second.
    kernels = importlib.import_module("kernels.rms_norm.triton_kernels")
    return Launcher(kernels.forward), Launcher(kernels.backward)


@functools.cache
def _tile(width: int) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps."""
    columns = next_power_of_2(width)
    rows = max(1, _TILE // columns)
    return rows, columns, min(32, max(1, rows * columns // _WARP_NUMBERS))


@functools.cache
def _num_backward_programs(device: torch.device) -> int:
    if device.type != "cuda":
        return 2
    return _PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count


def _norm(x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    total, normed = _fake_norm(x, y, weight, epsilon, dtype)
    width = x.shape[-1]
    num_rows = x.numel() // width
    rows, columns, num_warps = _tile(width)
    if num_rows:
        y_dtype = None if y is None else y.dtype
        key = (x.dtype, y_dtype, weight.dtype, dtype, size_class(num_rows), width, x.device)
        forward, _ = _launchers()
        forward(
            *(key, -(-num_rows // rows), num_warps),
            *(x, x if y is None else y, weight, total, normed, num_rows, width, epsilon, y is not None, rows, columns),
        )
    return total, normed


def _fake_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    # An operator may not return its input: where nothing is added, the sum is left empty and x stands for it.
    total = x.new_empty(0) if y is None else torch.empty_like(x)
    return total, torch.empty_like(x, dtype=dtype)


def _norm_backward(
    dnormed: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, epsilon: float, y_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dy, dweight = _fake_backward(dnormed, dtotal, total, weight, epsilon, y_dtype)
    width = total.shape[-1]
    num_rows = total.numel() // width
    rows, columns, num_warps = _tile(width)
    num_programs = max(1, min(-(-num_rows // rows), _num_backward_programs(total.device)))
    dweight_parts = total.new_empty((num_programs, width), dtype=torch.float32)
    has_dtotal, has_dy = dtotal is not None, dy.numel() > 0
    dtypes = (dnormed.dtype, total.dtype, weight.dtype, y_dtype)
    _, backward = _launchers()
    backward(
        *((*dtypes, has_dtotal, has_dy, size_class(num_rows), width, total.device), num_programs, num_warps),
        *(dnormed, dtotal if has_dtotal else dnormed, total, weight, dx, dy if has_dy else dx, dweight_parts),
        *(num_rows, width, epsilon, has_dtotal, has_dy, rows, columns),
    )
    torch.sum(dweight_parts, dim=0, out=dweight)
    return dx, dy, dweight


def _fake_backward(
    dnormed: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, epsilon: float, y_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    # x and y have the same gradient; only where their dtypes differ is it written twice.
    dy = total.new_empty(0) if y_dtype == total.dtype else torch.empty_like(total, dtype=y_dtype)
    return torch.empty_like(total), dy, torch.empty_like(weight, dtype=torch.float32)


# What `torch.library.custom_op` would do, less its search of every call for aliases and its layer for autograd, which
# cost more than a launch.
for _name, _function, _fake in (
    ("add_rms_norm_triton", _norm, _fake_norm),
    ("add_rms_norm_triton_backward", _norm_backward, _fake_backward),
):
    torch.library.define(f"seqsuite::{_name}", torch.library.infer_schema(_function, mutates_args=()))
    torch.library.impl(f"seqsuite::{_name}", ("cuda", "cpu"), _function)
    torch.library.register_fake(f"seqsuite::{_name}", _fake)
_norm_operator = torch.ops.seqsuite.add_rms_norm_triton.default
_backward_operator = torch.ops.seqsuite.add_rms_norm_triton_backward.default


class _AddNorm(torch.autograd.Function):
    """The operator with its gradient."""

    # Without a `setup_context` of its own, for which torch examines the signature in every call.
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, *others: Any) -> tuple[Tensor, Tensor]:
        total, normed = _norm_operator(x, y, *others)
        weight, ctx.epsilon, _ = others
        ctx.y_dtype = None if y is None else y.dtype
        ctx.save_for_backward(x if y is None else total, weight)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor | None, dnormed: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        if ctx.y_dtype is None:
            dtotal = None
        if dnormed is None:
            return dtotal, None if dtotal is None else dtotal.to(ctx.y_dtype), None, None, None
        dx, dy, dweight = _backward_operator(
            dnormed.contiguous(),
            None if dtotal is None else dtotal.contiguous(),
            *(total, weight, ctx.epsilon, ctx.y_dtype or total.dtype),
        )
        if ctx.y_dtype is None:
            dy = None
        elif ctx.y_dtype == total.dtype:
            dy = dx
        return dx, dy, dweight.to(weight.dtype), None, None
