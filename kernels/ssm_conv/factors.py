"""What the implementations share: the discretised state space and powers of its eigenvalues.

    h_t = a h_{t-1} + b u_t,   y_t = Re <c, h_t> + D u_t   with   a = exp(rate), b = `into`, c = `out`

All of it is small, (channels, state) and a few powers, and is taken in float64, where a phase of 10^5 still has its
digits.
"""

# B batch, H channels, N half of the state, T steps of a chunk, M chunks

from __future__ import annotations

import torch
from torch import Tensor


def discretize(delta: Tensor, A: Tensor, C: Tensor, B: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(rate, into, out), each complex128 (H, N), by zero-order hold; differentiable."""
    A_HN = A.to(torch.complex128)
    rate_HN = delta.double().unsqueeze(-1) * A_HN
    into_HN = (exponential(rate_HN) - 1) / A_HN
    if B is not None:
        into_HN = into_HN * B
    return rate_HN, into_HN, 2 * C.to(torch.complex128)


def exponential(exponent: Tensor) -> Tensor:
    """exp of complex numbers from real functions: torch's complex exponential is twenty times slower on a CPU."""
    return torch.polar(torch.exp(exponent.real), exponent.imag)


def powers(rate: Tensor, count: int) -> Tensor:
    """exp(0 rate) … exp((count - 1) rate) along a new last axis, by doubling from one exponential."""
    last = exponential(rate).unsqueeze(-1)
    powers_HNT = torch.ones_like(last)
    while powers_HNT.shape[-1] < count:
        missing = count - powers_HNT.shape[-1]
        powers_HNT = torch.cat([powers_HNT, powers_HNT[..., :missing] * last], dim=-1)
        last = last * last
    return powers_HNT


def entering(into: Tensor, powers: Tensor, steps: int, precision: torch.dtype) -> Tensor:
    """(H, T, 2N): how each step of a chunk enters the state at its end, real parts before imaginary ones."""
    weights_HNT = into.unsqueeze(-1) * powers[..., :steps].flip(-1)
    return torch.cat([weights_HNT.real, weights_HNT.imag], dim=1).transpose(1, 2).to(precision)


def leaving(out: Tensor, powers: Tensor, precision: torch.dtype) -> Tensor:
    """(H, 2N, T): how each step of a chunk reads the state at its beginning; `powers` start with the zeroth."""
    weights_HNT = out.unsqueeze(-1) * powers[..., 1:]
    return torch.cat([weights_HNT.real, -weights_HNT.imag], dim=1).to(precision)


def taps(into: Tensor, out: Tensor, powers: Tensor, D: Tensor | None, precision: torch.dtype) -> Tensor:
    """(H, T): the first entries of the convolution's kernel, D added to the zeroth."""
    kernel_HT = ((into * out).unsqueeze(-1) * powers).sum(1).real
    if D is not None:
        kernel_HT = torch.cat([kernel_HT[:, :1] + D.unsqueeze(-1), kernel_HT[:, 1:]], dim=1)
    return kernel_HT.to(precision)


def toeplitz(taps: Tensor) -> Tensor:
    """(H, T, T): how each step of a chunk, a row, reaches the later ones, the columns."""
    steps = torch.arange(taps.shape[1], device=taps.device)
    lag = steps - steps.unsqueeze(-1)
    return taps[:, lag.clamp(min=0)] * (lag >= 0)


def begin_of_chunks(added: Tensor, decay: Tensor, initial: Tensor) -> Tensor:
    """(H, B, M, N): the state at the beginning of every chunk, given what each chunk adds to it.

    The recurrence over chunks is solved by doubling (Hillis and Steele 1986): after the pass with reach r, a state
    holds the effect of the last 2r chunks.
    """
    states = torch.cat([initial.unsqueeze(2), added[:, :, :-1]], dim=2)
    decay = decay[:, None, None, :]
    reach = 1
    while reach < states.shape[2]:
        states = torch.cat([states[:, :, :reach], states[:, :, reach:] + decay * states[:, :, :-reach]], dim=2)
        decay = decay * decay
        reach *= 2
    return states
