"""The specification of turning: the product of two complex numbers, written out.

Computes in float64 if x is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """y (batch, length, heads, size) in x's dtype."""
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    real, imaginary = x[..., 0::2].to(precision), x[..., 1::2].to(precision)
    cos, sin = turns.real.to(precision).unsqueeze(-2), turns.imag.to(precision).unsqueeze(-2)
    pairs = torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1)
    return pairs.flatten(-2).to(x.dtype)
