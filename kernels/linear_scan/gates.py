"""What enters the linear scan of a minGRU and a minLSTM, in plain torch, from projections of any size.

minGRU    a = sigmoid(-update)                               b = sigmoid(update) g(candidate)
minLSTM   a = sigmoid(s), s = log sigmoid(forget) - log sigmoid(input)         b = sigmoid(-s) g(candidate)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


def min_gru_coefficients(update: Tensor, candidate: Tensor, positive_candidate: bool) -> tuple[Tensor, Tensor]:
    """a and b, in float32 or wider."""
    update, candidate = _widened(update, candidate)
    return torch.sigmoid(-update), torch.sigmoid(update) * candidate_value(candidate, positive_candidate)


def min_lstm_coefficients(
    forget: Tensor, input: Tensor, candidate: Tensor, positive_candidate: bool
) -> tuple[Tensor, Tensor]:
    """a and b, in float32 or wider."""
    f, i, value = _widened(forget, input, candidate)
    # f / (f + i) = sigmoid(log f - log i), which neither gate can make 0 / 0.
    log_ratio = softplus(-i) - softplus(-f)
    return torch.sigmoid(log_ratio), torch.sigmoid(-log_ratio) * candidate_value(value, positive_candidate)


def candidate_value(candidate: Tensor, is_positive: bool) -> Tensor:
    """g(candidate), positive and continuous, or the candidate itself."""
    return torch.where(candidate >= 0, candidate + 0.5, torch.sigmoid(candidate)) if is_positive else candidate


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    precision = torch.promote_types(tensors[-1].dtype, torch.float32)
    return tuple(tensor.to(precision) for tensor in tensors)
