"""The specification of the S4D kernel: the sum over the state, entry by entry, in float64."""

# H channels, N half of the state, L length

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def s4d_kernel(delta: Tensor, A: Tensor, C: Tensor, length: int) -> Tensor:
    """K (H, L) in delta's dtype."""
    delta_H1, A_HN, C_HN = delta.double().unsqueeze(-1), A.to(torch.complex128), C.to(torch.complex128)
    weight_HN = C_HN * (torch.exp(delta_H1 * A_HN) - 1) / A_HN
    entries = [2 * (weight_HN * torch.exp(position * delta_H1 * A_HN)).sum(-1).real for position in range(length)]
    return torch.stack(entries, dim=-1).to(delta.dtype)
