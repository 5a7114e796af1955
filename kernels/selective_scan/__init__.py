"""Selective scan: a diagonal state space whose step size, input and output matrices depend on the token.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t
    y_t = <C_t, h_t> + D u_t,   then   y_t silu(z_t)   if there is a gate

The core of Mamba (Gu and Dao 2023, arXiv:2312.00752, algorithm 2). `reference.py` is the specification.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_boolean, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation
from kernels.selective_scan.step import selective_scan_step

__all__ = ["OPERATION", "selective_scan", "selective_scan_step"]

OPERATION = Operation(
    "selective_scan",
    {
        "cuda": "kernels.selective_scan.cuda",
        "triton": "kernels.selective_scan.triton_scan",
        "cpu": "kernels.selective_scan.cpu",
        "torch": "kernels.selective_scan.torch_scan",
        "reference": "kernels.selective_scan.reference",
    },
)

_MAX_STATE = 256
_FLOAT64_IMPLEMENTATIONS = ("torch", "reference")


@overload
def selective_scan(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, " channels"] | None = None,
    z: Float[Tensor, "batch length channels"] | None = None,
    delta_bias: Float[Tensor, " channels"] | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "batch channels state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[False] = False,
    implementation: str = "auto",
) -> Float[Tensor, "batch length channels"]: ...


@overload
def selective_scan(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, " channels"] | None = None,
    z: Float[Tensor, "batch length channels"] | None = None,
    delta_bias: Float[Tensor, " channels"] | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "batch channels state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[True],
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels state"]]: ...


def selective_scan(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, "batch length channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, " channels"] | None = None,
    z: Float[Tensor, "batch length channels"] | None = None,
    delta_bias: Float[Tensor, " channels"] | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "batch channels state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> (
    Float[Tensor, "batch length channels"]
    | tuple[Float[Tensor, "batch length channels"], Float[Tensor, "batch channels state"]]
):
    """Runs the recurrence over a whole sequence; differentiable in every floating-point input.

    Inputs may have any strides and mix float32, bfloat16 and float16; the arithmetic is float32. Float64 inputs are
    computed in float64, by the `torch` or the `reference` implementation only.

    Args:
        u: what the state space reads.
        delta: step sizes, before bias and softplus.
        A: decay rates, negative.
        B: how a token enters the state.
        C: how the state is read.
        D: weight of u in the output.
        z: gate; the output is multiplied by silu(z).
        delta_bias: added to delta before the softplus.
        delta_softplus: whether step sizes are softplus(delta + delta_bias).
        initial_state: the state before the first position, zero if not given.
        sequence_starts: True where a new document begins: there the state is reset to zero first.
        return_final_state: whether the state after the last position is returned too.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        y in u's dtype, or y and the final state in float32 (float64 where the inputs are).

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on u's device.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, initial_state, sequence_starts)
    if u.dtype == torch.float64:
        if implementation == "auto":
            implementation = "torch"
        elif implementation not in _FLOAT64_IMPLEMENTATIONS and implementation in OPERATION.implementations:
            raise ValueError(f"u is float64 and {implementation!r} computes in float32; pass float32, or use 'torch'")
    y, final_state = OPERATION.choose(implementation, u.device).selective_scan(
        u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, sequence_starts
    )
    return (y, final_state) if return_final_state else y


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> None:
    expect_axes("u", u, "batch length channels")
    expect_axes("A", A, "channels state")
    batch, length, channels = u.shape
    state = A.shape[1]
    if state > _MAX_STATE:
        raise ValueError(f"A has shape {tuple(A.shape)}; its state must be at most {_MAX_STATE}")
    wanted = {
        "u": (u, "batch length channels", (batch, length, channels)),
        "delta": (delta, "batch length channels", (batch, length, channels)),
        "A": (A, "channels state", (channels, state)),
        "B": (B, "batch length state", (batch, length, state)),
        "C": (C, "batch length state", (batch, length, state)),
        "D": (D, "channels", (channels,)),
        "z": (z, "batch length channels", (batch, length, channels)),
        "delta_bias": (delta_bias, "channels", (channels,)),
        "initial_state": (initial_state, "batch channels state", (batch, channels, state)),
    }
    for name, (tensor, axes, sizes) in wanted.items():
        if tensor is not None:
            expect_shape(name, tensor, axes, sizes)
            expect_floating(name, tensor)
    if sequence_starts is not None:
        expect_shape("sequence_starts", sequence_starts, "batch length", (batch, length))
        expect_boolean("sequence_starts", sequence_starts)
    expect_one_device(**{name: tensor for name, (tensor, *_) in wanted.items()}, sequence_starts=sequence_starts)
