"""Turning pairs of channels by the position of their token: what rotary positions do to queries and keys.

    y_{2i} + j y_{2i+1} = (x_{2i} + j x_{2i+1}) t_i,        t_i a complex number for each position and frequency

Su et al. 2021 (arXiv:2104.09864), where t is exp(j p theta_i). `reference.py` is the specification.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_complex, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation

__all__ = ["OPERATION", "rotate"]

OPERATION = Operation(
    "rotary",
    {
        "triton": "kernels.rotary.triton_rotary",
        "torch": "kernels.rotary.torch_complex",
        "reference": "kernels.rotary.reference",
    },
)


def rotate(
    x: Float[Tensor, "batch length heads size"],
    turns: Complex[Tensor, "length frequencies"] | Complex[Tensor, "batch length frequencies"],
    *,
    implementation: str = "auto",
) -> Float[Tensor, "batch length heads size"]:
    """Each pair of channels (2i, 2i + 1), taken as a complex number, times the turn of its position.

    The arithmetic is float32, and float64 where x is; differentiable in x.

    Args:
        x: heads of even size, with any strides.
        turns: those of all rows, or of each.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        y in x's dtype.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on x's device.
    """
    expect_axes("x", x, "batch length heads size")
    batch, length, _, size = x.shape
    if size % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; its size must be even, to be turned in pairs")
    shape = (length, size // 2) if turns.ndim == 2 else (batch, length, size // 2)
    expect_shape("turns", turns, "length frequencies" if turns.ndim == 2 else "batch length frequencies", shape)
    expect_floating("x", x)
    expect_complex("turns", turns)
    expect_one_device(x=x, turns=turns)
    if x.dtype == torch.float64:
        if implementation == "auto":
            implementation = "torch"
        elif implementation == "triton":
            raise ValueError("x is float64 and 'triton' computes in float32; pass float32, or use 'torch'")
    y: Tensor = OPERATION.choose(implementation, x.device).rotate(x, turns)
    return y
