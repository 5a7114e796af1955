"""Attention by torch's own FlashAttention kernels, of which there is one for CPUs too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernels.attention import sdpa


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    if device.type not in ("cpu", "cuda"):
        return "it runs on a CPU or a GPU only"
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """Why it does not take these inputs."""
    # On a CPU it takes everything.
    if q.device.type == "cpu":
        return None
    return sdpa.unsuited(torch.backends.cuda.can_use_flash_attention, q, k, v, is_causal, window, slopes)


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """(batch, length, heads, head_size)."""
    return sdpa.attention(SDPBackend.FLASH_ATTENTION, q, k, v, is_causal, window, slopes)
