"""The convolution of a diagonal state space, from its parameters: S4D over a whole sequence.

    h_t = A_bar h_{t-1} + B_bar B u_t,   A_bar = exp(delta A),   B_bar = (A_bar - 1) / A    (zero-order hold)
    y_t = 2 Re <C, h_t> + D u_t   =   (K * u)_t + D u_t   with   K_l = 2 Re sum_n C_n B_n B_bar_n A_bar_n^l

S4D (Gu et al. 2022, arXiv:2206.11893, section 3). The state holds one of each conjugate pair; hence the 2 Re. The
kernel K is never asked for: an implementation makes as much of it as it needs. `reference.py` is the specification.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from kernels.arguments import (
    expect_axes,
    expect_boolean,
    expect_complex,
    expect_floating,
    expect_one_device,
    expect_shape,
)
from kernels.dispatch import Operation
from kernels.documents import run_documents_with_states

__all__ = ["OPERATION", "s4d_conv"]

OPERATION = Operation(
    "s4d_conv",
    {
        "cuda": "kernels.ssm_conv.cuda",
        "cpu": "kernels.ssm_conv.cpu",
        "torch": "kernels.ssm_conv.torch_chunked",
        "fft": "kernels.ssm_conv.fft",
        "reference": "kernels.ssm_conv.reference",
    },
)

_FLOAT32_IMPLEMENTATIONS = ("cuda", "cpu")
_SHORTEST_CPU_CHUNKS = 512
"""Below, on a CPU, a spectrum costs less than the factors of a chunk (`benchmarks/notes/ssm_conv.md`)."""


@overload
def s4d_conv(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, " channels"],
    A: Complex[Tensor, "channels half_state"],
    C: Complex[Tensor, "channels half_state"],
    B: Complex[Tensor, "channels half_state"] | None = None,
    D: Float[Tensor, " channels"] | None = None,
    *,
    initial_state: Complex[Tensor, "batch channels half_state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[False] = False,
    implementation: str = "auto",
) -> Float[Tensor, "batch length channels"]: ...


@overload
def s4d_conv(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, " channels"],
    A: Complex[Tensor, "channels half_state"],
    C: Complex[Tensor, "channels half_state"],
    B: Complex[Tensor, "channels half_state"] | None = None,
    D: Float[Tensor, " channels"] | None = None,
    *,
    initial_state: Complex[Tensor, "batch channels half_state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[True],
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch length channels"], Complex[Tensor, "batch channels half_state"]]: ...


def s4d_conv(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, " channels"],
    A: Complex[Tensor, "channels half_state"],
    C: Complex[Tensor, "channels half_state"],
    B: Complex[Tensor, "channels half_state"] | None = None,
    D: Float[Tensor, " channels"] | None = None,
    *,
    initial_state: Complex[Tensor, "batch channels half_state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> (
    Float[Tensor, "batch length channels"]
    | tuple[Float[Tensor, "batch length channels"], Complex[Tensor, "batch channels half_state"]]
):
    """Runs the state space over a whole sequence; differentiable in every floating-point and complex input.

    u may have any strides; float32, bfloat16 and float16 are computed in float32, float64 in float64 by the `torch`,
    `fft` or `reference` implementation only. One step of the same recurrence takes `kernels.ssm_kernel.s4d_discretize`.

    Args:
        u: what the state space reads.
        delta: step sizes, positive.
        A: eigenvalues with negative real part, one of each conjugate pair.
        C: how the state is read.
        B: how an input enters the state, one if not given.
        D: weight of u in the output.
        initial_state: the state before the first position, zero if not given.
        sequence_starts: True where a new document begins: there the state is reset to zero first.
        return_final_state: whether the state after the last position is returned too.
        implementation: a name in `OPERATION.implementations`, or "auto": the fastest for this device and length.

    Returns:
        y in u's dtype, or y and the final state in complex64 (complex128 where u is float64).

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on u's device.
    """
    _check(u, delta, A, C, B, D, initial_state, sequence_starts)
    if implementation == "auto":
        implementation = _fastest(u)
    if u.dtype == torch.float64 and implementation in _FLOAT32_IMPLEMENTATIONS:
        raise ValueError(f"u is float64 and {implementation!r} computes in float32; pass float32, or use 'torch'")
    run = OPERATION.choose(implementation, u.device).s4d_conv

    def convolve(u: Tensor, initial_state: Tensor | None, wants_state: bool) -> tuple[Tensor, Tensor | None]:
        results: tuple[Tensor, Tensor | None] = run(u, delta, A, C, B, D, initial_state, wants_state)
        return results

    y, final_state = run_documents_with_states(convolve, u, sequence_starts, initial_state, return_final_state)
    return y if final_state is None else (y, final_state)


def _fastest(u: Tensor) -> str:
    if u.dtype == torch.float64:
        return "torch"
    if u.device.type == "cpu" and u.shape[1] < _SHORTEST_CPU_CHUNKS:
        return "fft"
    return "auto"


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> None:
    expect_axes("u", u, "batch length channels")
    expect_axes("A", A, "channels half_state")
    batch, length, channels = u.shape
    half_state = A.shape[1]
    of_state = ("channels half_state", (channels, half_state))
    real = {
        "u": (u, "batch length channels", (batch, length, channels)),
        "delta": (delta, "channels", (channels,)),
        "D": (D, "channels", (channels,)),
    }
    complex_ = {
        "A": (A, *of_state),
        "C": (C, *of_state),
        "B": (B, *of_state),
        "initial_state": (initial_state, "batch channels half_state", (batch, channels, half_state)),
    }
    for expect_kind, wanted in ((expect_floating, real), (expect_complex, complex_)):
        for name, (tensor, axes, sizes) in wanted.items():
            if tensor is not None:
                expect_shape(name, tensor, axes, sizes)
                expect_kind(name, tensor)
    if sequence_starts is not None:
        expect_shape("sequence_starts", sequence_starts, "batch length", (batch, length))
        expect_boolean("sequence_starts", sequence_starts)
    everything = {name: tensor for name, (tensor, *_) in (real | complex_).items()}
    expect_one_device(**everything, sequence_starts=sequence_starts)
