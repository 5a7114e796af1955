"""One position of the selective scan in plain torch: the portable path, and the one that can be differentiated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def selective_scan_step(
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
    delta_softplus: bool,
    log_rates: bool,
) -> tuple[Tensor, Tensor]:
    """y (batch, channels) in u's dtype, and the next state; `state` is left as it is."""
    precision = torch.promote_types(state.dtype, torch.float32)
    u_, delta, A, B, C = (tensor.to(precision) for tensor in (u, delta, A, B, C))
    if delta_weight is not None:
        delta = delta @ delta_weight.to(precision).T
    if delta_bias is not None:
        delta = delta + delta_bias.to(precision)
    if delta_softplus:
        delta = softplus(delta)
    if log_rates:
        A = -torch.exp(A)

    h = torch.exp(delta.unsqueeze(-1) * A) * state + (delta * u_).unsqueeze(-1) * B.unsqueeze(1)
    y = (h * C.unsqueeze(1)).sum(-1)
    if D is not None:
        y = y + D.to(precision) * u_
    if z is not None:
        y = y * silu(z.to(precision))
    return y.to(u.dtype), h.to(state.dtype)
