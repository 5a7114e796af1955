"""The convolution kernel of a diagonal state space, and the recurrence that it unrolls.

    A_bar = exp(delta A),   B_bar = (A_bar - 1) / A     (zero-order hold)
    h_t = A_bar h_{t-1} + B_bar B u_t,   y_t = 2 Re <C, h_t>
    K_l = 2 Re sum_n C_n B_n B_bar_n exp(l delta A_n)

S4D (Gu et al. 2022, arXiv:2206.11893, section 3). The state holds one of each conjugate pair; hence the 2 Re.
`reference.py` is the specification.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_complex, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation

__all__ = ["OPERATION", "s4d_discretize", "s4d_kernel"]

OPERATION = Operation(
    "s4d_kernel", {"powers": "kernels.ssm_kernel.powers", "reference": "kernels.ssm_kernel.reference"}
)


def s4d_kernel(
    delta: Float[Tensor, " channels"],
    A: Complex[Tensor, "channels half_state"],
    C: Complex[Tensor, "channels half_state"],
    length: int,
    B: Complex[Tensor, "channels half_state"] | None = None,
    *,
    implementation: str = "auto",
) -> Float[Tensor, "channels {length}"]:
    """K_0 … K_{length-1} of every channel; differentiable in delta, A, B and C.

    Args:
        delta: step sizes, positive.
        A: eigenvalues with negative real part, one of each conjugate pair.
        C: how the state is read.
        length: how many entries, at least 1.
        B: how an input enters the state, one if not given.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        The kernel in delta's dtype.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others, or the length is below 1.
    """
    _check(delta, A, C, B)
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1")
    coefficients = C if B is None else C * B
    kernel: Tensor = OPERATION.choose(implementation, delta.device).s4d_kernel(delta, A, coefficients, length)
    return kernel


def s4d_discretize(
    delta: Float[Tensor, " channels"], A: Complex[Tensor, "channels half_state"]
) -> tuple[Complex[Tensor, "channels half_state"], Complex[Tensor, "channels half_state"]]:
    """(A_bar, B_bar) in A's dtype, by zero-order hold: what one step of the recurrence multiplies with."""
    _check(delta, A, None, None)
    A_wide = A.to(torch.complex128)
    A_bar = torch.exp(delta.unsqueeze(-1) * A_wide)
    return A_bar.to(A.dtype), ((A_bar - 1) / A_wide).to(A.dtype)


def _check(delta: Tensor, A: Tensor, C: Tensor | None, B: Tensor | None) -> None:
    expect_axes("A", A, "channels half_state")
    expect_shape("delta", delta, "channels", (A.shape[0],))
    expect_floating("delta", delta)
    for name, tensor in {"A": A, "C": C, "B": B}.items():
        if tensor is not None:
            expect_shape(name, tensor, "channels half_state", tuple(A.shape))
            expect_complex(name, tensor)
    expect_one_device(delta=delta, A=A, C=C, B=B)
