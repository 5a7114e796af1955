"""Long convolution: every channel with a filter as long as the sequence.

    y_t = sum_{s <= t} kernel_s u_{t-s} + D u_t

How S4 (Gu et al. 2021, arXiv:2111.00396) and Hyena (Poli et al. 2023, arXiv:2302.10866) run over a whole sequence in
O(L log L). `reference.py` is the specification.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation

__all__ = ["OPERATION", "long_conv"]

OPERATION = Operation("long_conv", {"fft": "kernels.long_conv.fft", "reference": "kernels.long_conv.reference"})


def long_conv(
    u: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels length"],
    D: Float[Tensor, " channels"] | None = None,
    *,
    implementation: str = "auto",
) -> Float[Tensor, "batch length channels"]:
    """Convolves every channel causally with its own kernel; differentiable in u, kernel and D.

    Inputs may have any strides and mix dtypes; the arithmetic is float32 (float64 where u is).

    Args:
        u: the input.
        kernel: the filter of each channel; entry 0 weighs the present position.
        D: weight of u in the output.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        y in u's dtype.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
    """
    expect_axes("u", u, "batch length channels")
    _, length, channels = u.shape
    expect_shape("kernel", kernel, "channels length", (channels, length))
    expect_floating("u", u)
    expect_floating("kernel", kernel)
    if D is not None:
        expect_shape("D", D, "channels", (channels,))
        expect_floating("D", D)
    expect_one_device(u=u, kernel=kernel, D=D)
    y: Tensor = OPERATION.choose(implementation, u.device).long_conv(u, kernel, D)
    return y
