"""Turning by torch's complex numbers: the path of CPUs and of float64."""

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """y (batch, length, heads, size) in x's dtype."""
    is_double = x.dtype == torch.float64
    precision, complex_ = (torch.float64, torch.complex128) if is_double else (torch.float32, torch.complex64)
    x = x if x.stride(-1) == 1 else x.contiguous()
    pairs = torch.view_as_complex(x.to(precision).reshape(*x.shape[:-1], -1, 2))
    turned = pairs * turns.to(complex_).unsqueeze(-2)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
