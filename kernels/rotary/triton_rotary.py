"""Turning on a GPU: what torch sees of the kernel in `triton_kernels`. The backward needs nothing but the turns."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from kernels.operators import register
from kernels.triton_launch import Launcher, next_power_of_2, size_class
from kernels.triton_launch import unavailable as unavailable

_TILE = 1024
"""Pairs that a program holds."""
_WARP_PAIRS = 256
"""Of these, the share of one warp."""


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """y (batch, length, heads, size) in x's dtype."""
    turns = turns.to(torch.complex64)
    if torch.is_grad_enabled() and x.requires_grad:
        y: Tensor = _Rotation.apply(x, turns)  # type: ignore[no-untyped-call]  # torch's apply has no types
        return y
    return _turned(x, turns, conjugate=False)


@functools.cache
def _launcher() -> Launcher:
    # Importing triton takes most of a second.
    return Launcher(importlib.import_module("kernels.rotary.triton_kernels").rotate)


@functools.cache
def _tile(num_pairs: int) -> tuple[int, int]:
    """Tokens and pairs of a program's tile."""
    columns = min(_TILE, next_power_of_2(num_pairs))
    return _TILE // columns, columns


def _turned(x: Tensor, turns: Tensor, *, conjugate: bool) -> Tensor:
    """By the turns or by their conjugates."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    y: Tensor = _operator(x, torch.view_as_real(turns).contiguous(), conjugate)
    return y


def _rotate(x: Tensor, turns: Tensor, conjugate: bool) -> Tensor:
    y = _fake_rotate(x, turns, conjugate)
    batch, length, heads, size = x.shape
    frequencies, num_tokens = size // 2, batch * length
    rows, columns = _tile(heads * frequencies)
    num_tiles = -(-heads * frequencies // columns)
    strides = (*x.stride()[:3], length * frequencies if turns.ndim == 4 else 0)
    sizes = (num_tokens, length, *strides)
    _launcher()(
        (x.dtype, *map(size_class, sizes), heads, frequencies, conjugate, x.device),
        -(-num_tokens // rows) * num_tiles,
        _TILE // _WARP_PAIRS,
        *(x, turns, y, *sizes, heads, frequencies, conjugate, rows, columns),
    )
    return y


def _fake_rotate(x: Tensor, turns: Tensor, conjugate: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_operator = register("rotary_triton", _rotate, _fake_rotate, devices=("cuda", "cpu"))


class _Rotation(torch.autograd.Function):
    """The operator with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor) -> Tensor:
        ctx.save_for_backward(turns)
        return _turned(x, turns, conjugate=False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (turns,) = ctx.saved_tensors
        return _turned(dy, turns, conjugate=True), None
