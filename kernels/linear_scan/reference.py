"""The specification of the linear scan: a loop over time that reads like the equations.

Computes in float64 if the input that gives the result its dtype is float64, and in float32 otherwise. For reading and
for testing against, not for speed.
"""

# B batch, L length, D channels

from __future__ import annotations

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def linear_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None, sequence_starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in b's dtype and the final state (B, D)."""
    precision = _precision(b)
    a_BLD, b_BLD = a.to(precision), b.to(precision)
    h_BD = torch.zeros_like(b_BLD[:, 0]) if initial_state is None else initial_state.to(precision)
    states = []
    for t in range(b.shape[1]):
        if sequence_starts is not None:
            h_BD = torch.where(sequence_starts[:, t, None], 0.0, h_BD)
        h_BD = a_BLD[:, t] * h_BD + b_BLD[:, t]
        states.append(h_BD)
    return torch.stack(states, dim=1).to(b.dtype), h_BD


def min_gru_scan(
    update: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in the candidate's dtype and the final state (B, D)."""
    precision = _precision(candidate)
    z = torch.sigmoid(update.to(precision))
    h, final_state = linear_scan(
        1 - z, z * _g(candidate.to(precision), positive_candidate), initial_state, sequence_starts
    )
    return h.to(candidate.dtype), final_state


def min_lstm_scan(
    forget: Tensor,
    input: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in the candidate's dtype and the final state (B, D)."""
    precision = _precision(candidate)
    # The logarithms of the gates: where both are too small for a number, their shares are not.
    log_f = torch.nn.functional.logsigmoid(forget.to(precision))
    log_i = torch.nn.functional.logsigmoid(input.to(precision))
    share_f, share_i = torch.softmax(torch.stack([log_f, log_i]), dim=0)
    h, final_state = linear_scan(
        share_f, share_i * _g(candidate.to(precision), positive_candidate), initial_state, sequence_starts
    )
    return h.to(candidate.dtype), final_state


def _g(x: Tensor, is_positive: bool) -> Tensor:
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x)) if is_positive else x


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
