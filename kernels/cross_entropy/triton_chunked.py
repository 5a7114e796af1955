"""The loss by chunks of rows on a GPU, with the softmax of a chunk as one kernel in place."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from torch import Tensor

from kernels.cross_entropy.chunks import chunked_loss
from kernels.triton_launch import next_power_of_2
from kernels.triton_launch import unavailable as unavailable

_LARGEST_BLOCK = 16_384
"""Logits of a row that a program holds at a time."""
_WARP_NUMBERS = 512
"""Of these, the share of one warp."""


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """The mean over scored rows."""
    return chunked_loss(x, weight, targets, ignored, "triton")


def losses_and_gradients(logits: Tensor, vocab: int, targets: Tensor, ignored: int, losses: Tensor) -> None:
    """Writes each row's loss, and over the logits the gradient of that loss in them; padding gets zeros."""
    rows, padded = logits.shape
    block = min(_LARGEST_BLOCK, next_power_of_2(padded))
    _kernels().losses_and_gradients[(rows,)](
        *(logits, targets, losses, vocab, padded, logits.stride(0), ignored, block),
        num_warps=max(1, block // _WARP_NUMBERS),
    )


@functools.cache
def _kernels() -> ModuleType:
    # Importing triton takes most of a second.
    return importlib.import_module("kernels.cross_entropy.triton_kernels")
