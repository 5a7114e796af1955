"""One position of the causal convolution in plain torch: the portable path, and the one that can be differentiated."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def causal_conv1d_step(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, has_silu: bool
) -> tuple[Tensor, Tensor]:
    """y (batch, channels) in x's dtype, and the next state; `state` is left as it is."""
    window = torch.cat([state, x.to(state.dtype).unsqueeze(-1)], dim=-1)
    y = (window * weight).sum(-1)
    if bias is not None:
        y = y + bias
    if has_silu:
        y = silu(y)
    return y.to(x.dtype), window[:, :, 1:]
