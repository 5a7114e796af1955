"""The specification of the long convolution: the sum, term by term.

Computes in float64 if u is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# B batch, L length, D channels

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def long_conv(u: Tensor, kernel: Tensor, D: Tensor | None) -> Tensor:
    """y (B, L, D) in u's dtype."""
    precision = torch.float64 if u.dtype == torch.float64 else torch.float32
    u_BLD, kernel_DL = u.to(precision), kernel.to(precision)
    outputs = []
    for t in range(u.shape[1]):
        past_BLD = u_BLD[:, : t + 1].flip(1)
        outputs.append((past_BLD * kernel_DL[:, : t + 1].T).sum(1))
    y_BLD = torch.stack(outputs, dim=1)
    if D is not None:
        y_BLD = y_BLD + D.to(precision) * u_BLD
    return y_BLD.to(u.dtype)
