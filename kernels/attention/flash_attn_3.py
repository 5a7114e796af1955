"""Attention by FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608), where it is installed; for Hopper."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from kernels.attention import flash_attn_2

_MODULE = "flash_attn_interface"
_CAPABILITY = (9, 0)


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    if device.type != "cuda":
        return "it runs on a GPU only"
    if not flash_attn_2.is_installed(_MODULE):
        return "FlashAttention-3 is not installed (hopper/ in the repository of flash-attn)"
    if torch.cuda.get_device_capability(device) != _CAPABILITY:
        return "it runs on GPUs of compute capability 9.0 only"
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """Why it does not take these inputs."""
    if slopes is not None:
        return "it takes no slopes"
    return flash_attn_2.unsuited(q, k, v, is_causal, window, slopes)


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """(batch, length, heads, head_size)."""
    flash_attn_func = importlib.import_module(_MODULE).flash_attn_func
    unlimited = -1
    window_size = (unlimited, unlimited) if window is None else (window - 1, 0)
    given = flash_attn_func(q, k, v, causal=is_causal, window_size=window_size)
    # Its first releases give the sums of the softmax as well.
    y: Tensor = given[0] if isinstance(given, tuple) else given
    return y
