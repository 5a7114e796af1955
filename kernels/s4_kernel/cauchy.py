"""The S4 kernel from its generating function, which takes sums over the state and no powers of a matrix.

    K^(w) = sum_l K_l w^l = C (1 - w A_bar)^-1 B_bar = 2 / (1 + w) C (g - A)^-1 B,    g = 2 (1 - w) / (delta (1 + w))
    C (g - A)^-1 B = k_CB - k_CP k_PB / (1 + k_PP),   k_XY = sum_n X_n Y_n / (g - Lambda_n)      (Woodbury, Cauchy)

The values on a circle |w| = r give the entries by an inverse Fourier transform. S4 takes r = 1 and learns C (1 -
A_bar^L) in place of C, so that the transform of L points has nothing to fold back; its weights then belong to one
length. Here r < 1 makes what is folded back a hundred-millionth, and dividing by r^l restores the entries: in float64
that costs digits which a float32 kernel does not have, and the weights serve every length.
"""

# H channels, P conjugate pairs, F points on the circle

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_FOLDED_BACK = 1e-10
"""r to the power of the number of points: the part of an entry that another one a turn later adds to it."""
_POINTS_AT_A_TIME = 1024


def unavailable(device: torch.device) -> str | None:
    """It runs everywhere."""
    return None


def s4_kernel(delta: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """K (H, L) in delta's dtype."""
    Lambda, P, B, C = (tensor.to(torch.complex128) for tensor in (Lambda, P, B, C))
    # Of twice as many points only half the range of r^-l is used, where rounding errors still are small.
    num_points = 2 * length
    log_r = math.log(_FOLDED_BACK) / num_points
    # The entries are real: half of the circle tells the other half.
    angles_F = -2 * math.pi * torch.arange(length + 1, device=delta.device, dtype=torch.float64) / num_points
    w_F = torch.polar(torch.full_like(angles_F, math.exp(log_r)), angles_F)
    # The sums of one part of the circle are forgotten before the next: H P F numbers are never there at once.
    parts = [
        checkpoint(
            _generating_function, w, delta.double(), Lambda, P, B, C, use_reentrant=False, preserve_rng_state=False
        )
        for w in torch.split(w_F, _POINTS_AT_A_TIME)
    ]
    damped_HL = torch.fft.irfft(torch.cat(parts, dim=-1), n=num_points)[:, :length]
    growth_L = torch.exp(-log_r * torch.arange(length, device=delta.device, dtype=torch.float64))
    kernel: Tensor = (damped_HL * growth_L).to(delta.dtype)
    return kernel


def _generating_function(w_F: Tensor, delta: Tensor, Lambda: Tensor, P: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """K^ at the points, (H, F)."""
    g_HF = 2 / delta.unsqueeze(-1) * ((1 - w_F) / (1 + w_F))
    k_CB, k_CP, k_PB, k_PP = _sums_over_pairs([C * B, C * P, P.conj() * B, P.conj() * P], g_HF, Lambda)
    return 2 / (1 + w_F) * (k_CB - k_CP * k_PB / (1 + k_PP))


def _sums_over_pairs(products: list[Tensor], g_HF: Tensor, Lambda_HP: Tensor) -> tuple[Tensor, ...]:
    """sum_n v_n / (g - Lambda_n) over pairs and their conjugates, for each v.

    The two terms of a pair are (2 g Re v - 2 Re(v conj(Lambda))) / (g^2 - 2 g Re Lambda + |Lambda|^2).
    """
    v_H4P = torch.stack(products, dim=1)
    linear_H4P, constant_H4P = 2 * v_H4P.real, -2 * (v_H4P * Lambda_HP.conj().unsqueeze(1)).real
    g_H1F, Lambda_HP1 = g_HF.unsqueeze(1), Lambda_HP.unsqueeze(-1)
    inverse_HPF = 1 / (g_H1F * (g_H1F - 2 * Lambda_HP1.real) + Lambda_HP1.real**2 + Lambda_HP1.imag**2)
    weights_H8P = torch.cat([linear_H4P, constant_H4P], dim=1)
    sums_H8F = torch.complex(weights_H8P @ inverse_HPF.real, weights_H8P @ inverse_HPF.imag)
    return (g_H1F * sums_H8F[:, :4] + sums_H8F[:, 4:]).unbind(1)
