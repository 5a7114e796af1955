"""One token of the selective scan: what generation runs, with a state whose size does not grow."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.arguments import expect_axes, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation

STEP = Operation(
    "selective_scan_step",
    {"cuda": "kernels.selective_scan.step_cuda", "torch": "kernels.selective_scan.step_torch"},
)


def selective_scan_step(
    state: Float[Tensor, "batch channels state"],
    u: Float[Tensor, "batch channels"],
    delta: Float[Tensor, "batch _"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch state"],
    C: Float[Tensor, "batch state"],
    D: Float[Tensor, " channels"] | None = None,
    z: Float[Tensor, "batch channels"] | None = None,
    delta_bias: Float[Tensor, " channels"] | None = None,
    *,
    delta_softplus: bool = False,
    delta_weight: Float[Tensor, "channels rank"] | None = None,
    log_rates: bool = False,
    implementation: str = "auto",
) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels state"]]:
    """The output for one position, in u's dtype, and the state after it, in the dtype of `state`.

    The arguments are those of `selective_scan` at one position. `state` may be overwritten, and be what is returned:
    go on with the returned one. A gradient is only there in plain torch, which `auto` takes where one is asked for.

    Args:
        delta: as in `selective_scan`; with `delta_weight`, (batch, rank).
        delta_weight: if given, the step size before its bias is delta_weight @ delta.
        log_rates: whether `A` is given as log(-A), as Mamba trains it.
        implementation: a name in `STEP.implementations`, or "auto".

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others, or a kernel is to be differentiated.
        ImplementationUnavailable: the implementation cannot run on u's device.
    """
    tensors = (state, u, delta, A, B, C, D, z, delta_bias, delta_weight)
    _check(*tensors)
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    is_double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    if needs_gradient or is_double:
        if implementation == "auto":
            implementation = "torch"
        elif implementation != "torch" and implementation in STEP.implementations:
            why = "an input requires a gradient" if needs_gradient else "an input is float64"
            raise ValueError(f"{why}, which {implementation!r} does not take; use 'torch'")
    y, next_state = STEP.choose(implementation, u.device).selective_scan_step(*tensors, delta_softplus, log_rates)
    return y, next_state


def _check(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
) -> None:
    expect_axes("u", u, "batch channels")
    expect_axes("A", A, "channels state")
    batch, channels = u.shape
    num_states = A.shape[-1]
    rank = channels if delta_weight is None else delta_weight.shape[-1]
    wanted = {
        "state": (state, "batch channels state", (batch, channels, num_states)),
        "u": (u, "batch channels", (batch, channels)),
        "delta": (delta, "batch channels" if delta_weight is None else "batch rank", (batch, rank)),
        "A": (A, "channels state", (channels, num_states)),
        "B": (B, "batch state", (batch, num_states)),
        "C": (C, "batch state", (batch, num_states)),
        "D": (D, "channels", (channels,)),
        "z": (z, "batch channels", (batch, channels)),
        "delta_bias": (delta_bias, "channels", (channels,)),
        "delta_weight": (delta_weight, "channels rank", (channels, rank)),
    }
    for name, (tensor, axes, sizes) in wanted.items():
        if tensor is not None:
            expect_shape(name, tensor, axes, sizes)
            expect_floating(name, tensor)
    expect_one_device(**{name: tensor for name, (tensor, *_) in wanted.items()})
