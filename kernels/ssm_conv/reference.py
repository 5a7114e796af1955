"""The specification of the S4D convolution: the recurrence that it unrolls, step by step.

Computes in float64 if u is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# B batch, L length, H channels, N half of the state

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def s4d_conv(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (B, L, H) in u's dtype and the final state (B, H, N)."""
    is_double = u.dtype == torch.float64
    precision, complex_precision = (torch.float64, torch.complex128) if is_double else (torch.float32, torch.complex64)
    u_BLH, delta_H1 = u.to(precision), delta.to(precision).unsqueeze(-1)
    A_HN, C_HN = A.to(complex_precision), C.to(complex_precision)
    A_bar_HN = torch.exp(delta_H1 * A_HN)
    B_bar_HN = (A_bar_HN - 1) / A_HN
    if B is not None:
        B_bar_HN = B_bar_HN * B.to(complex_precision)

    if initial_state is None:
        h_BHN = torch.zeros(u.shape[0], *A.shape, dtype=complex_precision, device=u.device)
    else:
        h_BHN = initial_state.to(complex_precision)
    outputs = []
    for t in range(u.shape[1]):
        h_BHN = A_bar_HN * h_BHN + B_bar_HN * u_BLH[:, t, :, None]
        outputs.append(2 * (C_HN * h_BHN).sum(-1).real)
    y_BLH = torch.stack(outputs, dim=1)
    if D is not None:
        y_BLH = y_BLH + D.to(precision) * u_BLH
    return y_BLH.to(u.dtype), h_BHN if return_final_state else None
