"""The embedding of a small vocabulary on a GPU: a gather forward, and backward a matrix product with one-hot rows.

torch adds up the gradient token by token, in order: 48 us for 2,048 tokens, more than any layer of a small model takes.
"""

# R rows, V vocabulary, D width

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def unavailable(device: torch.device) -> str | None:
    """It would run on a CPU, too, but slower than torch's own."""
    return None if device.type == "cuda" else "it is for a GPU"


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """The rows of the weight that the tokens name."""
    x: Tensor = _Embedding.apply(tokens, weight)  # type: ignore[no-untyped-call]  # torch's apply has no types
    return x


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.vocab = len(weight)
        return functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dx: Tensor) -> tuple[None, Tensor]:
        (tokens,) = ctx.saved_tensors
        dx_RD = dx.reshape(-1, dx.shape[-1])
        is_token_RV = dx.new_zeros(len(dx_RD), ctx.vocab).scatter_(1, tokens.reshape(-1, 1), 1.0)
        return None, is_token_RV.T @ dx_RD
