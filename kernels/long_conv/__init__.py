"""Long convolution: every channel with a filter as long as the sequence.

    y_t = sum_{s <= t} kernel_s u_{t-s} + D u_t

How S4 (Gu et al. 2021, arXiv:2111.00396) and Hyena (Poli et al. 2023, arXiv:2302.10866) run over a whole sequence in
O(L log L). `reference.py` is the specification.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_boolean, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation
from kernels.documents import run_documents

__all__ = ["OPERATION", "long_conv"]

OPERATION = Operation("long_conv", {"fft": "kernels.long_conv.fft", "reference": "kernels.long_conv.reference"})


def long_conv(
    u: Float[Tensor, "batch length channels"],
    kernel: Float[Tensor, "channels length"],
    D: Float[Tensor, " channels"] | None = None,
    *,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    implementation: str = "auto",
) -> Float[Tensor, "batch length channels"]:
    """Convolves every channel causally with its own kernel; differentiable in u, kernel and D.

    Inputs may have any strides and mix dtypes; the arithmetic is float32 (float64 where u is).

    Args:
        u: the input.
        kernel: the filter of each channel; entry 0 weighs the present position.
        D: weight of u in the output.
        sequence_starts: True where a new document begins, which sees nothing before.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        y in u's dtype.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
    """
    expect_axes("u", u, "batch length channels")
    batch, length, channels = u.shape
    expect_shape("kernel", kernel, "channels length", (channels, length))
    expect_floating("u", u)
    expect_floating("kernel", kernel)
    if D is not None:
        expect_shape("D", D, "channels", (channels,))
        expect_floating("D", D)
    if sequence_starts is not None:
        expect_shape("sequence_starts", sequence_starts, "batch length", (batch, length))
        expect_boolean("sequence_starts", sequence_starts)
    expect_one_device(u=u, kernel=kernel, D=D, sequence_starts=sequence_starts)
    run = OPERATION.choose(implementation, u.device).long_conv

    def convolve(u: Tensor) -> Tensor:
        y: Tensor = run(u, kernel[:, : u.shape[1]], D)
        return y

    return run_documents(convolve, u, sequence_starts)
