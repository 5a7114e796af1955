"""The embedding as torch has it: the path of CPUs and of large vocabularies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def embedding(tokens: Tensor, weight: Tensor) -> Tensor:
    """The rows of the weight that the tokens name."""
    return functional.embedding(tokens, weight)
