"""The causal convolution in plain torch: the portable path for devices that have no kernel.

Computes in x's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad, silu


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
    """y (batch, length, channels) in x's dtype."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    past = weight.shape[1] - 1
    if initial_state is None:
        padded = pad(x, (0, 0, past, 0))
    else:
        padded = torch.cat([initial_state.transpose(1, 2).to(x.dtype), x], dim=1)
    if sequence_starts is None:
        y = _convolve(padded, weight, bias)
    else:
        y = _convolve_documents(padded, weight, bias, sequence_starts)
    return silu(y) if has_silu else y


def _convolve(padded: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # As a picture one pixel high, channel-last data keeps its layout; conv1d would transpose it there and back.
    picture = padded.transpose(1, 2).unsqueeze(2)
    # The dtype was chosen by the caller; autocast would return another.
    with torch.autocast(padded.device.type, enabled=False):
        y = conv2d(picture, weight[:, None, None, :], bias, groups=weight.shape[0])
    return y.squeeze(2).transpose(1, 2)


def _convolve_documents(padded: Tensor, weight: Tensor, bias: Tensor | None, sequence_starts: Tensor) -> Tensor:
    length = sequence_starts.shape[1]
    past = weight.shape[1] - 1
    document = pad(sequence_starts.long().cumsum(1), (past, 0))
    y = padded.new_zeros(()) if bias is None else bias
    for tap in range(past + 1):
        is_same_document = document[:, tap : tap + length] == document[:, past:]
        y = y + (padded[:, tap : tap + length] * weight[:, tap]).masked_fill(~is_same_document.unsqueeze(-1), 0.0)
    return y
