"""The specification of state space duality: the recurrence, one position after the other.

Computes in float64 if x is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# B batch, L length, H heads, P head size, N state

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) in x's dtype and the state after the last position, (B, H, P, N)."""
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    heads_per_group = x.shape[2] // B.shape[2]
    x_BLHP, delta_BLH, A_H = x.to(precision), delta.to(precision), A.to(precision)
    B_BLHN, C_BLHN = (tensor.to(precision).repeat_interleave(heads_per_group, dim=2) for tensor in (B, C))
    if delta_bias is not None:
        delta_BLH = delta_BLH + delta_bias.to(precision)
    if delta_softplus:
        delta_BLH = softplus(delta_BLH)
    if initial_state is None:
        h_BHPN = x_BLHP.new_zeros(len(x), *x.shape[2:], B.shape[3])
    else:
        h_BHPN = initial_state.to(precision)

    outputs = []
    for t in range(x.shape[1]):
        if sequence_starts is not None:
            h_BHPN = h_BHPN.masked_fill(sequence_starts[:, t, None, None, None], 0.0)
        decay_BH = torch.exp(delta_BLH[:, t] * A_H)
        entering_BHP = delta_BLH[:, t, :, None] * x_BLHP[:, t]
        h_BHPN = decay_BH[:, :, None, None] * h_BHPN + entering_BHP[..., None] * B_BLHN[:, t, :, None]
        outputs.append((h_BHPN * C_BLHN[:, t, :, None]).sum(-1))
    y_BLHP = torch.stack(outputs, dim=1)
    if D is not None:
        y_BLHP = y_BLHP + D.to(precision)[:, None] * x_BLHP
    return y_BLHP.to(x.dtype), h_BHPN
