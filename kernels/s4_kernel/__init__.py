"""The convolution kernel of a state space that is diagonal plus a matrix of rank one, and the recurrence it unrolls.

    A = diag(Lambda) - P P^*                                              the matrix of S4, HiPPO-LegS among them
    A_bar = (1 - delta/2 A)^-1 (1 + delta/2 A),   B_bar = (1 - delta/2 A)^-1 delta B        (bilinear)
    h_t = A_bar h_{t-1} + B_bar u_t,   y_t = C h_t                        so that   K_l = C A_bar^l B_bar

S4 (Gu et al. 2021, arXiv:2111.00396, section 3; P = Q as in Goel et al. 2022, arXiv:2202.09729, which keeps A stable).
The state is real in its original basis: in this one it consists of conjugate pairs, one of each of which is given.
`reference.py` is the specification.
"""

from __future__ import annotations

from jaxtyping import Complex, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_complex, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation
from kernels.s4_kernel.state import s4_state
from kernels.s4_kernel.step import S4Step, s4_step

__all__ = ["OPERATION", "S4Step", "s4_kernel", "s4_state", "s4_step"]

OPERATION = Operation("s4_kernel", {"cauchy": "kernels.s4_kernel.cauchy", "reference": "kernels.s4_kernel.reference"})


def s4_kernel(
    delta: Float[Tensor, " channels"],
    Lambda: Complex[Tensor, "channels half_state"],
    P: Complex[Tensor, "channels half_state"],
    B: Complex[Tensor, "channels half_state"],
    C: Complex[Tensor, "channels half_state"],
    length: int,
    *,
    implementation: str = "auto",
) -> Float[Tensor, "channels {length}"]:
    """K_0 … K_{length-1} of every channel; differentiable in everything but the length.

    Args:
        delta: step sizes, positive.
        Lambda: the diagonal, with negative real part, one of each conjugate pair.
        P: the factor of rank one.
        B: how an input enters the state.
        C: how the state is read.
        length: how many entries, at least 1.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        The kernel in delta's dtype, to the rounding of that; the arithmetic is float64.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others, or the length is below 1.
    """
    expect_axes("Lambda", Lambda, "channels half_state")
    expect_shape("delta", delta, "channels", (Lambda.shape[0],))
    expect_floating("delta", delta)
    for name, tensor in {"Lambda": Lambda, "P": P, "B": B, "C": C}.items():
        expect_shape(name, tensor, "channels half_state", tuple(Lambda.shape))
        expect_complex(name, tensor)
    expect_one_device(delta=delta, Lambda=Lambda, P=P, B=B, C=C)
    if length < 1:
        raise ValueError(f"length is {length}; it must be at least 1")
    kernel: Tensor = OPERATION.choose(implementation, delta.device).s4_kernel(delta, Lambda, P, B, C, length)
    return kernel
