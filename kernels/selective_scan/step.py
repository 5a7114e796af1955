"""One token of the selective scan: what generation runs, with a state whose size does not grow."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu, softplus

from kernels.dispatch import note


def selective_scan_step(
    state: Float[Tensor, "batch channels state"],
    u: Float[Tensor, "batch channels"],
    delta: Float[Tensor, "batch channels"],
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch state"],
    C: Float[Tensor, "batch state"],
    D: Float[Tensor, " channels"] | None = None,
    z: Float[Tensor, "batch channels"] | None = None,
    delta_bias: Float[Tensor, " channels"] | None = None,
    *,
    delta_softplus: bool = False,
) -> tuple[Float[Tensor, "batch channels"], Float[Tensor, "batch channels state"]]:
    """The output for one position, in u's dtype, and the state after it, in the dtype of `state`.

    The arguments are those of `selective_scan` at one position. `state` is not changed.
    """
    note("selective_scan_step", "torch")
    precision = torch.promote_types(state.dtype, torch.float32)
    u_, delta, A, B, C = (tensor.to(precision) for tensor in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(precision)
    if delta_softplus:
        delta = softplus(delta)

    h = torch.exp(delta.unsqueeze(-1) * A) * state + (delta * u_).unsqueeze(-1) * B.unsqueeze(1)
    y = (h * C.unsqueeze(1)).sum(-1)
    if D is not None:
        y = y + D.to(precision) * u_
    if z is not None:
        y = y * silu(z.to(precision))
    return y.to(u.dtype), h.to(state.dtype)
