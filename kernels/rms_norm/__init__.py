"""Residual addition and root-mean-square norm: what stands before every branch of a pre-norm network.

    s = x + y;   n_i = weight_i s_i / sqrt(mean_j s_j^2 + epsilon)

Zhang and Sennrich 2019 (arXiv:1910.07467). In one pass the sum is read once, and the norm is written in the dtype that
the next matrix product computes in. `reference.py` is the specification.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.arguments import expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation

__all__ = ["OPERATION", "add_rms_norm"]

OPERATION = Operation(
    "rms_norm",
    {
        "triton": "kernels.rms_norm.triton_norm",
        "torch": "kernels.rms_norm.torch_norm",
        "reference": "kernels.rms_norm.reference",
    },
)

_MAX_TRITON_WIDTH = 16_384
"""A row of the kernel is held in registers."""


def add_rms_norm(
    x: Float[Tensor, "*rows width"],
    y: Float[Tensor, "*rows width"] | None,
    weight: Float[Tensor, " width"],
    *,
    epsilon: float,
    dtype: torch.dtype | None = None,
    implementation: str = "auto",
) -> tuple[Float[Tensor, "*rows width"], Float[Tensor, "*rows width"]]:
    """Adds y to x and norms the sum; differentiable in x, y and weight.

    The arithmetic is float32, and float64 where x is.

    Args:
        x: the residual stream.
        y: what is added to it, of any floating-point dtype; nothing if None.
        weight: the gain of each channel.
        epsilon: added to the mean square.
        dtype: of the norm; autocast's where it is on and x's where it is off, if not given.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        The sum in x's dtype (x itself where there is nothing to add) and its norm.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on x's device.
    """
    _check(x, y, weight, epsilon)
    if dtype is None:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    reason = _unsuited_to_triton(x)
    if reason is not None:
        if implementation == "auto":
            implementation = "torch"
        elif implementation == "triton":
            raise ValueError(f"{reason}; use 'torch'")
    total, normed = OPERATION.choose(implementation, x.device).add_rms_norm(x, y, weight, epsilon, dtype)
    return total, normed


def _unsuited_to_triton(x: Tensor) -> str | None:
    if x.dtype == torch.float64:
        return "x is float64 and 'triton' computes in float32"
    if x.shape[-1] > _MAX_TRITON_WIDTH:
        return f"x has width {x.shape[-1]} and 'triton' takes at most {_MAX_TRITON_WIDTH}"
    return None


def _check(x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float) -> None:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (..., width) with a width of at least 1")
    expect_shape("weight", weight, "width", (x.shape[-1],))
    if y is not None:
        expect_shape("y", y, "... width", tuple(x.shape))
    for name, tensor in {"x": x, "y": y, "weight": weight}.items():
        if tensor is not None:
            expect_floating(name, tensor)
    if epsilon < 0:
        raise ValueError(f"epsilon is {epsilon}; it must be at least 0")
    expect_one_device(x=x, y=y, weight=weight)
