"""The specification of causal attention: scores, softmax, weighted sum.

Computes in float64 if q is float64 and in float32 otherwise. For reading and for testing against, not for speed.
"""

# B batch, L length, S source length, H heads, E head size

from __future__ import annotations

import math

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """It takes everything."""
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """y (B, L, H, E) in q's dtype."""
    precision = torch.float64 if q.dtype == torch.float64 else torch.float32
    group = q.shape[2] // k.shape[2]
    q_BLHE = q.to(precision)
    k_BSHE, v_BSHE = (tensor.to(precision).repeat_interleave(group, dim=2) for tensor in (k, v))
    length, source = q.shape[1], k.shape[1]

    scores_BHLS = torch.einsum("blhe,bshe->bhls", q_BLHE, k_BSHE) / math.sqrt(q.shape[3])
    if is_causal:
        distance_LS = torch.arange(length, device=q.device)[:, None] - torch.arange(source, device=q.device)
        is_seen_LS = distance_LS >= 0
        if window is not None:
            is_seen_LS = is_seen_LS & (distance_LS < window)
        if slopes is not None:
            scores_BHLS = scores_BHLS - slopes.to(precision)[:, None, None] * distance_LS
        scores_BHLS = scores_BHLS.masked_fill(~is_seen_LS, -math.inf)
    y_BLHE = torch.einsum("bhls,bshe->blhe", torch.softmax(scores_BHLS, dim=-1), v_BSHE)
    return y_BLHE.to(q.dtype)
