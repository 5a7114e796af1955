"""Attention from torch's single operations: the whole matrix of scores, on any device and for any dtype."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernels.attention import sdpa


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """It takes everything."""
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """(batch, length, heads, head_size)."""
    return sdpa.attention(SDPBackend.MATH, q, k, v, is_causal, window, slopes)
