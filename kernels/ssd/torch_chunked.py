"""State space duality as matrix products: quadratic inside a chunk, and states that are passed on between chunks.

    y_t = sum_{s <= t in the chunk} (C_t . B_s) exp(c_t - c_s) delta_s x_s  +  exp(c_t) h C_t + D x_t

with c the running sum of delta A inside the chunk and h the state before it (Dao and Gu 2024, arXiv:2405.21060, listing
1). The states before the chunks come from what each chunk adds, by the same quadratic form over chunks in place of
tokens; where there are many chunks, over groups of them, and so on.
"""

# B batch, L length, M chunks, T tokens of a chunk, H heads, G groups of heads, K heads of a group, P head size,
# X channels of a group (K P), N state

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

_CHUNK = 64
_LOG_OF_NOTHING = -1000.0
"""Where a document begins: its exponential is 0 in float64 too, and sums of many still tell decays apart."""


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, H, P) in x's dtype and the state after the last position, (B, H, P, N)."""
    # Autocast would round the decays and the states.
    with torch.autocast(x.device.type, enabled=False):
        return _ssd(x, delta, A, B, C, D, delta_bias, delta_softplus, initial_state, sequence_starts)


def _ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    precision = torch.float64 if x.dtype == torch.float64 else torch.float32
    length, head_size = x.shape[1], x.shape[3]
    groups, state_size = B.shape[2:]
    delta = delta.to(precision)
    if delta_bias is not None:
        delta = delta + delta_bias.to(precision)
    if delta_softplus:
        delta = softplus(delta)
    # A step of size zero neither decays nor adds: padding changes nothing.
    end = -length % _CHUNK
    v_BMTHP = _chunks((delta.unsqueeze(-1) * x).to(x.dtype), end)
    B_BMGTN, C_BMGTN = (_chunks(tensor.to(x.dtype), end).transpose(2, 3) for tensor in (B, C))
    # In float64, since what follows takes differences of these sums, and so do the gradients.
    log_decay_BLH = (delta * A.to(precision)).double()
    if sequence_starts is not None:
        log_decay_BLH = log_decay_BLH.masked_fill(sequence_starts.unsqueeze(-1), _LOG_OF_NOTHING)
    c_BMTH = _chunks(log_decay_BLH, end).cumsum(2)
    total_BMH = c_BMTH[:, :, -1]

    within_BMGKTT = torch.unflatten(_decays(c_BMTH.transpose(2, 3), precision), 2, (groups, -1))
    scores_BMG1TT = (C_BMGTN @ B_BMGTN.transpose(3, 4)).unsqueeze(3)
    scores_BMHTT = (scores_BMG1TT * within_BMGKTT).to(x.dtype).flatten(2, 3)
    within_BMTHP = (scores_BMHTT @ v_BMTHP.transpose(2, 3)).transpose(2, 3)

    # The heads of a group share B and C: side by side, X numbers in a row, they are one matrix product.
    until_end_BMTH1 = torch.exp(total_BMH.unsqueeze(2) - c_BMTH).to(precision).unsqueeze(-1)
    leaving_BMTGX = _side_by_side((v_BMTHP * until_end_BMTH1).to(x.dtype), groups)
    added_BMGXN = leaving_BMTGX.permute(0, 1, 3, 4, 2) @ B_BMGTN
    added_BMHPN = added_BMGXN.to(precision).view(*total_BMH.shape, head_size, state_size)
    initial_state = None if initial_state is None else initial_state.to(precision)
    before_BMHPN, final_state = _pass_on(added_BMHPN, total_BMH, initial_state)
    before_BMGXN = before_BMHPN.to(x.dtype).reshape(*added_BMGXN.shape)
    from_before_BMTGX = (C_BMGTN @ before_BMGXN.transpose(3, 4)).transpose(2, 3)

    since_start_BMTH1 = torch.exp(c_BMTH).to(precision).unsqueeze(-1)
    y_BMTHP = within_BMTHP + from_before_BMTGX.reshape(*v_BMTHP.shape) * since_start_BMTH1
    y_BLHP = y_BMTHP.flatten(1, 2)[:, :length]
    if D is not None:
        y_BLHP = y_BLHP + D.to(precision).unsqueeze(-1) * x
    return y_BLHP.to(x.dtype), final_state


def _chunks(tensor: Tensor, end: int) -> Tensor:
    """(batch, length, …) to (batch, chunks, T, …), with `end` zeros behind."""
    padding = [0, 0] * (tensor.ndim - 2) + [0, end]
    return torch.unflatten(pad(tensor, padding), 1, (-1, _CHUNK))


def _side_by_side(tensor: Tensor, groups: int) -> Tensor:
    """(batch, chunks, T, heads, head size) to (batch, chunks, T, groups, X)."""
    return torch.unflatten(tensor.flatten(3), 3, (groups, -1))


def _decays(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(sums_t - sums_s) where s <= t, else 0; (…, T) to (…, T, T)."""
    difference = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).to(dtype)
    is_seen = torch.ones(difference.shape[-2:], dtype=torch.bool, device=difference.device).tril()
    return torch.exp(difference.masked_fill(~is_seen, -math.inf))


def _pass_on(added: Tensor, log_decay: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The states before each of M chunks, (B, M, H, P, N), and after the last, (B, H, P, N).

    Chunk m takes a state h to exp(log_decay_m) h + added_m; `added` is (B, M, H, P, N), `log_decay` (B, M, H), float64.
    """
    num_chunks = added.shape[1]
    if num_chunks <= _CHUNK:
        return _pass_on_few(added, log_decay, initial_state)
    end = -num_chunks % _CHUNK
    added_by_group = torch.unflatten(pad(added, [0, 0, 0, 0, 0, 0, 0, end]), 1, (-1, _CHUNK))
    log_decay_by_group = torch.unflatten(pad(log_decay, [0, 0, 0, end]), 1, (-1, _CHUNK))
    groups = added_by_group.shape[:2]
    added_flat, log_decay_flat = added_by_group.flatten(0, 1), log_decay_by_group.flatten(0, 1)
    _, from_group = _pass_on_few(added_flat, log_decay_flat, None)
    before_group, final_state = _pass_on(
        torch.unflatten(from_group, 0, groups), log_decay_by_group.sum(2), initial_state
    )
    before, _ = _pass_on_few(added_flat, log_decay_flat, before_group.flatten(0, 1))
    return torch.unflatten(before, 0, groups).flatten(1, 2)[:, :num_chunks], final_state


def _pass_on_few(added: Tensor, log_decay: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same, by a matrix of M + 1 states and M chunks."""
    total_BHM = log_decay.cumsum(1).transpose(1, 2)
    weights = pad(_decays(total_BHM, added.dtype), [0, 0, 1, 0])
    states = torch.unflatten(weights @ added.transpose(1, 2).flatten(3), 3, added.shape[3:])
    if initial_state is not None:
        since_start = torch.exp(pad(total_BHM, [1, 0])).to(added.dtype)
        states = states + since_start[..., None, None] * initial_state.unsqueeze(2)
    states = states.transpose(1, 2)
    return states[:, :-1], states[:, -1]
