"""The linear scan in plain torch: the portable path for devices that have no kernel.

The sequence is walked in chunks. Inside a chunk the recurrence is solved in parallel by doubling (Hillis and Steele
1986): after the pass with reach r, h_t holds the effect of the last 2r inputs. The backward pass computes each chunk
once more from the state before it.
"""

# B batch, T positions of one chunk, D channels

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.linear_scan.gates import min_gru_coefficients, min_lstm_coefficients

_CHUNK = 64


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def linear_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None, sequence_starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h (batch, length, channels) in b's dtype and the final state (batch, channels)."""
    precision = torch.promote_types(b.dtype, torch.float32)
    a_, b_ = a.to(precision), b.to(precision)
    state = torch.zeros_like(b_[:, 0]) if initial_state is None else initial_state.to(precision)
    outputs = []
    for first in range(0, b.shape[1], _CHUNK):
        chunk = slice(first, first + _CHUNK)
        starts = None if sequence_starts is None else sequence_starts[:, chunk]
        h_chunk = checkpoint(_scan_chunk, a_[:, chunk], b_[:, chunk], state, starts, use_reentrant=False)
        state = h_chunk[:, -1]
        outputs.append(h_chunk)
    return torch.cat(outputs, dim=1).to(b.dtype), state


def min_gru_scan(
    update: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (batch, length, channels) in the candidate's dtype and the final state (batch, channels)."""
    a, b = min_gru_coefficients(update, candidate, positive_candidate)
    h, final_state = linear_scan(a, b, initial_state, sequence_starts)
    return h.to(candidate.dtype), final_state


def min_lstm_scan(
    forget: Tensor,
    input: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (batch, length, channels) in the candidate's dtype and the final state (batch, channels)."""
    a, b = min_lstm_coefficients(forget, input, candidate, positive_candidate)
    h, final_state = linear_scan(a, b, initial_state, sequence_starts)
    return h.to(candidate.dtype), final_state


def _scan_chunk(a_BTD: Tensor, b_BTD: Tensor, h_BD: Tensor, starts_BT: Tensor | None) -> Tensor:
    a, h = a_BTD, b_BTD
    if starts_BT is not None:
        a = a.masked_fill(starts_BT.unsqueeze(2), 0.0)
    h = torch.cat([h[:, :1] + a[:, :1] * h_BD.unsqueeze(1), h[:, 1:]], dim=1)
    reach = 1
    while reach < h.shape[1]:
        h = torch.cat([h[:, :reach], h[:, reach:] + a[:, reach:] * h[:, :-reach]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return h
