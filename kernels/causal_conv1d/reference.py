"""The specification of the causal convolution: for every position, its taps one by one, up to the document's start.

Computes in float64 if x is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# B batch, L length, D channels, W width

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    has_silu: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> Tensor:
    """y (B, L, D) in x's dtype."""
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    x_BLD, weight_DW = x.to(precision), weight.to(precision)
    batch, length, channels = x.shape
    width = weight.shape[1]

    outputs = []
    for t in range(length):
        y_BD = x_BLD.new_zeros(batch, channels)
        reaches_B1 = torch.ones(batch, 1, dtype=torch.bool, device=x.device)
        for k in range(width):
            if t - k >= 0:
                past_BD = x_BLD[:, t - k]
            elif initial_state is not None:
                past_BD = initial_state[:, :, width - 1 + t - k].to(precision)
            else:
                break
            y_BD = y_BD + torch.where(reaches_B1, weight_DW[:, width - 1 - k] * past_BD, 0.0)
            if sequence_starts is not None and t - k >= 0:
                reaches_B1 = reaches_B1 & ~sequence_starts[:, t - k, None]
        outputs.append(y_BD)
    y_BLD = torch.stack(outputs, dim=1)

    if bias is not None:
        y_BLD = y_BLD + bias.to(precision)
    if has_silu:
        y_BLD = silu(y_BLD)
    return y_BLD.to(x.dtype)
