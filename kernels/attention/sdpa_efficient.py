"""Attention by torch's memory-efficient kernels: the fast path for float32 on a GPU, and the one that takes masks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernels.attention import sdpa


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    if device.type != "cuda":
        return "it runs on a GPU only"
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """Why it does not take these inputs."""
    can_use = torch.backends.cuda.can_use_efficient_attention
    return sdpa.unsuited(can_use, q, *_for_each_head(q, k, v), is_causal, window, slopes)


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """(batch, length, heads, head_size)."""
    return sdpa.attention(SDPBackend.EFFICIENT_ATTENTION, q, *_for_each_head(q, k, v), is_causal, window, slopes)


def _for_each_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    # It knows no groups of heads.
    group = q.shape[2] // k.shape[2]
    if group == 1:
        return k, v
    return k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
