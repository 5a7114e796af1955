"""The specification of the S4 kernel: the dense matrices, discretised and multiplied out, in float64."""

# H channels, N state (conjugate pairs and all)

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def s4_kernel(delta: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """K (H, L) in delta's dtype."""
    delta_H11 = delta.double()[:, None, None]
    Lambda_HN, P_HN, B_HN, C_HN = (_with_conjugates(tensor) for tensor in (Lambda, P, B, C))
    A_HNN = torch.diag_embed(Lambda_HN) - P_HN[:, :, None] * P_HN.conj()[:, None, :]
    one_NN = torch.eye(A_HNN.shape[-1], dtype=A_HNN.dtype, device=A_HNN.device)
    backward_HNN = one_NN - delta_H11 / 2 * A_HNN
    A_bar_HNN = torch.linalg.solve(backward_HNN, one_NN + delta_H11 / 2 * A_HNN)
    h_HN1 = torch.linalg.solve(backward_HNN, delta_H11 * B_HN[:, :, None])
    entries = []
    for _ in range(length):
        entries.append((C_HN[:, None, :] @ h_HN1)[:, 0, 0].real)
        h_HN1 = A_bar_HNN @ h_HN1
    return torch.stack(entries, dim=-1).to(delta.dtype)


def _with_conjugates(half: Tensor) -> Tensor:
    wide = half.to(torch.complex128)
    return torch.cat([wide, wide.conj()], dim=-1)
