"""One token of the linear scan: what generation runs, with a state that is all it remembers."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.dispatch import note
from kernels.linear_scan.gates import min_gru_coefficients, min_lstm_coefficients

_Token = Float[Tensor, "batch channels"]


def linear_scan_step(state: _Token, a: _Token, b: _Token) -> _Token:
    """a state + b, in the dtype of `state`, which is not changed. The state is also the output."""
    note("linear_scan_step", "torch")
    precision = torch.promote_types(state.dtype, torch.float32)
    return (a.to(precision) * state + b.to(precision)).to(state.dtype)


def min_gru_step(state: _Token, update: _Token, candidate: _Token, *, positive_candidate: bool = True) -> _Token:
    """The state after one position of `min_gru_scan`."""
    return linear_scan_step(state, *min_gru_coefficients(update, candidate, positive_candidate))


def min_lstm_step(
    state: _Token, forget: _Token, input: _Token, candidate: _Token, *, positive_candidate: bool = True
) -> _Token:
    """The state after one position of `min_lstm_scan`."""
    return linear_scan_step(state, *min_lstm_coefficients(forget, input, candidate, positive_candidate))
