"""The specification of the loss: row by row, from the logits of that row alone.

Computes in float64 if x is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# V vocabulary

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """The mean over scored rows."""
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, weight = x.to(precision), weight.to(precision)
    loss, num_scored = (x * 0.0).sum() + (weight * 0.0).sum(), 0
    for row, target in zip(x, targets.tolist(), strict=True):
        if target == ignored:
            continue
        if not 0 <= target < len(weight):
            raise IndexError(f"target {target} is outside the vocabulary of {len(weight)}")
        logits_V = (weight * row).sum(-1)
        largest = logits_V.max().detach()
        loss = loss + largest + torch.log(torch.exp(logits_V - largest).sum()) - logits_V[target]
        num_scored += 1
    return loss / num_scored if num_scored else loss + float("nan")
