"""Attention by the package flash-attn (Dao 2023, arXiv:2307.08691), where it is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

_MAX_HEAD_SIZE = 256


@functools.cache
def is_installed(module: str) -> bool:
    """Whether a module can be found; looked up once, as attention asks at every call."""
    package, dot, _ = module.rpartition(".")
    return (not dot or is_installed(package)) and importlib.util.find_spec(module) is not None


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    if device.type != "cuda":
        return "it runs on a GPU only"
    # Its compiled part: the package `flash_attn` itself may also be that of flash-attn-4.
    if not is_installed("flash_attn_2_cuda"):
        return "the package flash-attn is not installed"
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """Why it does not take these inputs."""
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"it takes float16 and bfloat16, not {q.dtype}"
    if q.shape[-1] > _MAX_HEAD_SIZE:
        return f"it takes head sizes up to {_MAX_HEAD_SIZE}, not {q.shape[-1]}"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """(batch, length, heads, head_size)."""
    flash_attn_func = importlib.import_module("flash_attn").flash_attn_func
    unlimited = -1
    window_size = (unlimited, unlimited) if window is None else (window - 1, 0)
    slopes = None if slopes is None else slopes.float()
    y: Tensor = flash_attn_func(q, k, v, causal=is_causal, window_size=window_size, alibi_slopes=slopes)
    return y
