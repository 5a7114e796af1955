"""State space duality: a selective state space whose decay is one number for each head and token, as matrix products.

    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t^T        h_t (head_size, state) of each head, A one number a head
    y_t = h_t C_t + D x_t

The core of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060, section 6). Heads share B and C in groups, as queries share keys
in attention. `reference.py` is the specification.
"""

from __future__ import annotations

from typing import Literal, overload

from jaxtyping import Bool, Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_boolean, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation
from kernels.ssd.step import ssd_step

__all__ = ["OPERATION", "ssd", "ssd_step"]

OPERATION = Operation("ssd", {"torch": "kernels.ssd.torch_chunked", "reference": "kernels.ssd.reference"})


@overload
def ssd(
    x: Float[Tensor, "batch length heads head_size"],
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch length groups state"],
    C: Float[Tensor, "batch length groups state"],
    D: Float[Tensor, " heads"] | None = None,
    delta_bias: Float[Tensor, " heads"] | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "batch heads head_size state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[False] = False,
    implementation: str = "auto",
) -> Float[Tensor, "batch length heads head_size"]: ...


@overload
def ssd(
    x: Float[Tensor, "batch length heads head_size"],
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch length groups state"],
    C: Float[Tensor, "batch length groups state"],
    D: Float[Tensor, " heads"] | None = None,
    delta_bias: Float[Tensor, " heads"] | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "batch heads head_size state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: Literal[True],
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch length heads head_size"], Float[Tensor, "batch heads head_size state"]]: ...


def ssd(
    x: Float[Tensor, "batch length heads head_size"],
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch length groups state"],
    C: Float[Tensor, "batch length groups state"],
    D: Float[Tensor, " heads"] | None = None,
    delta_bias: Float[Tensor, " heads"] | None = None,
    *,
    delta_softplus: bool = False,
    initial_state: Float[Tensor, "batch heads head_size state"] | None = None,
    sequence_starts: Bool[Tensor, "batch length"] | None = None,
    return_final_state: bool = False,
    implementation: str = "auto",
) -> (
    Float[Tensor, "batch length heads head_size"]
    | tuple[Float[Tensor, "batch length heads head_size"], Float[Tensor, "batch heads head_size state"]]
):
    """Runs the recurrence over a whole sequence; differentiable in every input.

    Inputs may have any strides and mix dtypes. Decays and states are float32, and float64 where x is; matrix products
    are in the dtype of x.

    Args:
        x: what the state space reads, in heads.
        delta: step sizes, before bias and softplus.
        A: decay rates, negative.
        B: how a token enters the state; the number of groups divides that of the heads.
        C: how the state is read.
        D: weight of x in the output.
        delta_bias: added to delta before the softplus.
        delta_softplus: whether step sizes are softplus(delta + delta_bias).
        initial_state: the state before the first position, zero if not given.
        sequence_starts: True where a new document begins: there the state is reset to zero first.
        return_final_state: whether the state after the last position is returned too.
        implementation: a name in `OPERATION.implementations`, or "auto".

    Returns:
        y in x's dtype, or y and the final state in float32 (float64 where x is).

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on x's device.
    """
    expect_axes("x", x, "batch length heads head_size")
    expect_axes("B", B, "batch length groups state")
    batch, length, heads, head_size = x.shape
    groups, state = B.shape[2:]
    wanted = {
        "x": (x, "batch length heads head_size", (batch, length, heads, head_size)),
        "delta": (delta, "batch length heads", (batch, length, heads)),
        "A": (A, "heads", (heads,)),
        "B": (B, "batch length groups state", (batch, length, groups, state)),
        "C": (C, "batch length groups state", (batch, length, groups, state)),
        "D": (D, "heads", (heads,)),
        "delta_bias": (delta_bias, "heads", (heads,)),
        "initial_state": (initial_state, "batch heads head_size state", (batch, heads, head_size, state)),
    }
    for name, (tensor, axes, sizes) in wanted.items():
        if tensor is not None:
            expect_shape(name, tensor, axes, sizes)
            expect_floating(name, tensor)
    if heads % groups:
        raise ValueError(f"B has {groups} groups; their number must divide that of the heads of x, {heads}")
    if sequence_starts is not None:
        expect_shape("sequence_starts", sequence_starts, "batch length", (batch, length))
        expect_boolean("sequence_starts", sequence_starts)
    expect_one_device(**{name: tensor for name, (tensor, *_) in wanted.items()}, sequence_starts=sequence_starts)
    y, final_state = OPERATION.choose(implementation, x.device).ssd(
        x, delta, A, B, C, D, delta_bias, delta_softplus, initial_state, sequence_starts
    )
    return (y, final_state) if return_final_state else y
