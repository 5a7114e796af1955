"""The specification of the selective scan: a loop over time that reads like the equation.

Computes in float64 if u is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# B batch, L length, D channels, N state

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) in u's dtype and the final state (B, D, N)."""
    precision = torch.float64 if u.dtype == torch.float64 else torch.float32
    u_BLD, delta_BLD, A_DN, B_BLN, C_BLN = (tensor.to(precision) for tensor in (u, delta, A, B, C))
    batch, length, channels = u.shape

    if delta_bias is not None:
        delta_BLD = delta_BLD + delta_bias.to(precision)
    if delta_softplus:
        delta_BLD = softplus(delta_BLD)

    h_BDN = u_BLD.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(precision)
    outputs = []
    for t in range(length):
        if sequence_starts is not None:
            h_BDN = torch.where(sequence_starts[:, t, None, None], 0.0, h_BDN)
        decay_BDN = torch.exp(delta_BLD[:, t, :, None] * A_DN)
        inflow_BDN = (delta_BLD[:, t] * u_BLD[:, t])[:, :, None] * B_BLN[:, t, None, :]
        h_BDN = decay_BDN * h_BDN + inflow_BDN
        outputs.append((h_BDN * C_BLN[:, t, None, :]).sum(-1))
    y_BLD = torch.stack(outputs, dim=1)

    if D is not None:
        y_BLD = y_BLD + D.to(precision) * u_BLD
    if z is not None:
        y_BLD = y_BLD * silu(z.to(precision))
    return y_BLD.to(u.dtype), h_BDN
