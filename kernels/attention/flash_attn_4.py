"""Attention by FlashAttention-4, the package flash-attn-4, where it is installed; for Hopper and Blackwell."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from kernels.attention import flash_attn_2

_MODULE = "flash_attn.cute"
_FIRST_CAPABILITY = (9, 0)


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    if device.type != "cuda":
        return "it runs on a GPU only"
    if not flash_attn_2.is_installed(_MODULE):
        return "the package flash-attn-4 is not installed"
    if torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return "it runs on GPUs from compute capability 9.0 on"
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """Why it does not take these inputs."""
    if slopes is not None:
        return "it takes no slopes"
    return flash_attn_2.unsuited(q, k, v, is_causal, window, slopes)


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """(batch, length, heads, head_size)."""
    flash_attn_func = importlib.import_module(_MODULE).flash_attn_func
    window_size = (None, None) if window is None else (window - 1, 0)
    given = flash_attn_func(q, k, v, causal=is_causal, window_size=window_size)
    y: Tensor = given[0] if isinstance(given, tuple) else given
    return y
