"""One token of the S4 recurrence, in time that grows with the state and not with its square.

    A = diag(Lambda) - P P^*,   e = 2 / delta
    h_t = A_bar h_{t-1} + B_bar u_t = (e - A)^-1 ((e + A) h_{t-1} + 2 B u_t)

Both factors are diagonal plus rank one, and so is the inverse (Woodbury), with d = 1 / (e - Lambda):

    w   = (e + Lambda) d h_{t-1} - (P^* h_{t-1}) d P + 2 d B u_t
    h_t = w - (P^* w) / (1 + P^* d P) d P
"""

# H channels, P conjugate pairs

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from kernels.dispatch import note


class S4Step(NamedTuple):
    """What does not change from token to token, of one of each conjugate pair, (channels, pairs)."""

    decay: Tensor
    """(e + Lambda) d."""
    dP: Tensor  # noqa: N815  # the paper's symbols
    """d P."""
    gain: Tensor
    """d P / (1 + P^* d P)."""
    entry: Tensor
    """2 d B."""
    P_conj: Tensor
    """The conjugate of P, twice: a product with it, real part taken, is one with P^*."""
    C: Tensor
    """C, twice: a product with it, real part taken, is the output."""

    @classmethod
    def of(cls, delta: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor) -> S4Step:
        """From the arguments of `s4_kernel`, computed in float64 and in the dtype of Lambda."""
        e = (2 / delta.double()).unsqueeze(-1)
        wide = [tensor.to(torch.complex128) for tensor in (Lambda, P, B)]
        Lambda_, P_, B_ = wide
        d = 1 / (e - Lambda_)
        denominator = 1 + 2 * (P_.conj() * d * P_).sum(-1, keepdim=True).real
        parts = ((e + Lambda_) * d, d * P_, d * P_ / denominator, 2 * d * B_, 2 * P_.conj(), 2 * C)
        return cls(*(part.to(Lambda.dtype) for part in parts))


def s4_step(
    state: Complex[Tensor, "batch channels half_state"], u: Float[Tensor, "batch channels"], step: S4Step
) -> tuple[Float[Tensor, "batch channels"], Complex[Tensor, "batch channels half_state"]]:
    """The output for one position, of the precision of the state, and the state after it. `state` is not changed."""
    note("s4_step", "torch")
    read = (step.P_conj * state).sum(-1, keepdim=True).real
    w = step.decay * state - read * step.dP + step.entry * u.unsqueeze(-1)
    h = w - (step.P_conj * w).sum(-1, keepdim=True).real * step.gain
    return (step.C * h).sum(-1).real, h
