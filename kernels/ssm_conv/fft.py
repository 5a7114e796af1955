"""The S4D convolution as published: the kernel as long as the sequence, and a product of spectra.

The kernel comes from products of few powers (`kernels.ssm_kernel`), never from an array of N L of them. A state at the
beginning adds its own decay to the output; the state at the end is that of the chunked form.
"""

# B batch, L length, H channels, N half of the state, T fine powers, M coarse powers

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.long_conv import long_conv
from kernels.ssm_conv import factors
from kernels.ssm_conv.torch_chunked import Chunks
from kernels.ssm_kernel import s4d_kernel


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def s4d_conv(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (B, L, H) in u's dtype and the final state (B, H, N)."""
    precision = torch.float64 if u.dtype == torch.float64 else torch.float32
    with torch.autocast(u.device.type, enabled=False):
        y = long_conv(u.to(precision), s4d_kernel(delta.to(precision), A, C, u.shape[1], B, implementation="powers"), D)
        final_state = None
        if initial_state is not None or return_final_state:
            rate, into, out = factors.discretize(delta, A, C, B)
            if initial_state is not None:
                y = y + _decay_of(initial_state, rate, out, u.shape[1], precision)
            if return_final_state:
                final_state = Chunks(u.to(precision), rate, into, initial_state).final_state()
    return y.to(u.dtype), final_state


def _decay_of(initial_state: Tensor, rate: Tensor, out: Tensor, length: int, precision: torch.dtype) -> Tensor:
    """Re <c a^(t+1), h> for t = 0 … length - 1, (B, L, H), from about 2 sqrt(L) powers."""
    num_fine = math.isqrt(length - 1) + 1
    fine_HNT = factors.powers(rate, num_fine + 1)
    coarse_HNM = factors.powers(num_fine * rate, math.ceil(length / num_fine))
    rows = (out * initial_state).unsqueeze(-1) * coarse_HNM
    rows_BHMN = torch.cat([rows.real, -rows.imag], dim=2).transpose(2, 3).to(precision)
    columns_HNT = torch.cat([fine_HNT[..., 1:].real, fine_HNT[..., 1:].imag], dim=1).to(precision)
    decay_BHL: Tensor = (rows_BHMN @ columns_HNT).flatten(2)[..., :length]
    return decay_BHL.transpose(1, 2)
