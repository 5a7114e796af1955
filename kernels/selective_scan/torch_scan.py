"""The selective scan in plain torch: the portable path for devices that have no kernel.

The sequence is walked in chunks. Inside a chunk the recurrence is solved in parallel by doubling (Hillis and Steele
1986): after the pass with reach r, h_t holds the effect of the last 2r inputs. Only the states between chunks are kept
for the backward pass, which computes each chunk once more; the full (B, L, D, N) never exists.
"""

# B batch, T positions of one chunk, D channels, N state

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus
from torch.utils.checkpoint import checkpoint

_CHUNK = 64


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (batch, length, channels) in u's dtype and the final state (batch, channels, state)."""
    precision = torch.float64 if u.dtype == torch.float64 else torch.float32
    batch, length, channels = u.shape
    A = A.to(precision)
    u_, delta, B, C = (tensor.to(precision) for tensor in (u, delta, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(precision)
    if delta_softplus:
        delta = softplus(delta)
    state = u_.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state.to(precision)

    outputs = []
    for first in range(0, length, _CHUNK):
        chunk = slice(first, first + _CHUNK)
        starts = None if sequence_starts is None else sequence_starts[:, chunk]
        y_chunk, state = checkpoint(
            _scan_chunk, u_[:, chunk], delta[:, chunk], A, B[:, chunk], C[:, chunk], state, starts, use_reentrant=False
        )
        outputs.append(y_chunk)
    y = torch.cat(outputs, dim=1)

    if D is not None:
        y = y + D.to(precision) * u_
    if z is not None:
        y = y * silu(z.to(precision))
    return y.to(u.dtype), state


def _scan_chunk(
    u_BTD: Tensor,
    delta_BTD: Tensor,
    A_DN: Tensor,
    B_BTN: Tensor,
    C_BTN: Tensor,
    h_BDN: Tensor,
    starts_BT: Tensor | None,
) -> tuple[Tensor, Tensor]:
    a = torch.exp(delta_BTD.unsqueeze(-1) * A_DN)
    if starts_BT is not None:
        a = a.masked_fill(starts_BT[:, :, None, None], 0.0)
    h = (delta_BTD * u_BTD).unsqueeze(-1) * B_BTN.unsqueeze(2)
    h = torch.cat([h[:, :1] + a[:, :1] * h_BDN.unsqueeze(1), h[:, 1:]], dim=1)
    reach = 1
    while reach < h.shape[1]:
        h = torch.cat([h[:, :reach], h[:, reach:] + a[:, reach:] * h[:, :-reach]], dim=1)
        a = torch.cat([a[:, :reach], a[:, reach:] * a[:, :-reach]], dim=1)
        reach *= 2
    return (h * C_BTN.unsqueeze(2)).sum(-1), h[:, -1]
