"""The specification of the residual addition and its norm: row by row.

Computes in float64 if x is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# D width

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def add_rms_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + y in x's dtype, and its norm in `dtype`."""
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    total = x if y is None else (x.to(precision) + y.to(precision)).to(x.dtype)
    rows = []
    for s_D in total.to(precision).reshape(-1, x.shape[-1]):
        mean_square = (s_D * s_D).sum() / len(s_D)
        rows.append(weight.to(precision) * s_D / torch.sqrt(mean_square + epsilon))
    normed = torch.stack(rows) if rows else total.to(precision)
    return total, normed.reshape(x.shape).to(dtype)
