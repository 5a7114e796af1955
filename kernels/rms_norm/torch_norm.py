"""The residual addition and its norm in plain torch: the path of CPUs, of float64 and of very wide rows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import rms_norm


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def add_rms_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x + y in x's dtype, and its norm in `dtype`."""
    total = x if y is None else (x + y).to(x.dtype)
    precision = torch.promote_types(x.dtype, torch.float32)
    normed = rms_norm(total.to(precision), (total.shape[-1],), weight.to(precision), epsilon)
    return total, normed.to(dtype)
