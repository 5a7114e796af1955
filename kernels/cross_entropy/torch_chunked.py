"""The loss by chunks of rows, with the softmax of a chunk in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from kernels.cross_entropy.chunks import chunked_loss


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """The mean over scored rows."""
    return chunked_loss(x, weight, targets, ignored, "torch")


def losses_and_gradients(logits: Tensor, vocab: int, targets: Tensor, ignored: int, losses: Tensor) -> None:
    """Writes each row's loss, and over the logits the gradient of that loss in them; padding gets zeros."""
    log_probabilities = logits[:, :vocab].to(losses.dtype).log_softmax(-1)
    losses.copy_(nll_loss(log_probabilities, targets, ignore_index=ignored, reduction="none"))
    gradients = log_probabilities.exp_()
    is_scored = (targets != ignored).unsqueeze(-1)
    columns = targets.unsqueeze(-1).where(is_scored, 0)
    gradients.scatter_add_(1, columns, gradients.new_full((), -1.0).expand_as(columns))
    gradients.masked_fill_(~is_scored, 0.0)
    logits[:, :vocab] = gradients
    logits[:, vocab:] = 0.0
