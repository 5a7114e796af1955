"""Attention by cuDNN, through torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernels.attention import sdpa


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    if device.type != "cuda":
        return "it runs on an NVIDIA GPU only"
    if not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]  # torch has no types
        return "this torch has no cuDNN"
    return None


def unsuited(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> str | None:
    """Why it does not take these inputs."""
    if not is_causal:
        # Measured on an H100: 35 ms for each new number of keys, so that every step of a generation would plan.
        return "it plans anew for every number of keys, which a step changes"
    return sdpa.unsuited(torch.backends.cuda.can_use_cudnn_attention, q, k, v, is_causal, window, slopes)


def attention(q: Tensor, k: Tensor, v: Tensor, is_causal: bool, window: int | None, slopes: Tensor | None) -> Tensor:
    """(batch, length, heads, head_size)."""
    return sdpa.attention(SDPBackend.CUDNN_ATTENTION, q, k, v, is_causal, window, slopes)
