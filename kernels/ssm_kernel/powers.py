"""The S4D kernel from few exponentials: exp(l x) = exp(a T x) exp(b x) with l = a T + b.

The sum over the state then is a matrix product of (L / T, 2N) with (2N, T) for every channel, and about 2 H N sqrt(L)
exponentials take the place of H N L. They are taken in float64, where a phase of 10^5 still has its digits, and from
real functions, because torch's complex exponential is twenty times slower on a CPU.
"""

# H channels, N half of the state, L length, T fine powers, M coarse powers

from __future__ import annotations

import math

import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def s4d_kernel(delta: Tensor, A: Tensor, C: Tensor, length: int) -> Tensor:
    """K (H, L) in delta's dtype."""
    precision = torch.float64 if delta.dtype == torch.float64 else torch.float32
    num_fine = math.isqrt(length - 1) + 1
    num_coarse = math.ceil(length / num_fine)
    A_HN = A.to(torch.complex128)
    exponent_HN = delta.unsqueeze(-1) * A_HN
    weight_HN1 = (2 * C * (torch.exp(exponent_HN) - 1) / A_HN).unsqueeze(-1)

    counts = torch.arange(num_fine, dtype=torch.float64, device=delta.device)
    fine_HNT = _powers(exponent_HN, counts)
    coarse_HNM = _powers(exponent_HN, num_fine * counts[:num_coarse])
    columns = torch.cat(fine_HNT, dim=1).to(precision)
    # Re(x y) = Re x Re y - Im x Im y, where x is a weighted coarse power.
    real_HNM = weight_HN1.real * coarse_HNM[0] - weight_HN1.imag * coarse_HNM[1]
    imaginary_HNM = weight_HN1.real * coarse_HNM[1] + weight_HN1.imag * coarse_HNM[0]
    rows = torch.cat([real_HNM, -imaginary_HNM], dim=1).to(precision).transpose(1, 2)
    # Autocast would round the powers to bfloat16.
    with torch.autocast(delta.device.type, enabled=False):
        kernel_HMT = rows @ columns
    return kernel_HMT.flatten(1)[:, :length].to(delta.dtype)


def _powers(exponent: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp(count * exponent), the counts along a new last axis."""
    decay = torch.exp(exponent.real.unsqueeze(-1) * counts)
    phase = exponent.imag.unsqueeze(-1) * counts
    return decay * torch.cos(phase), decay * torch.sin(phase)
