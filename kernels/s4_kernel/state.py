"""The state after a whole sequence of inputs, without stepping through it: what a prompt leaves.

    h_L = sum_k A_bar^{L-1-k} B_bar u_k,   chunk by chunk of T:   h' = A_bar^T h + sum_{k < T} A_bar^{T-1-k} B_bar u_k

The powers come by doubling. A state of conjugate pairs is linear in its real and imaginary parts only, so that A_bar is
a real matrix here, read off the recurrence itself, one unit vector after the other.
"""

# B batch, L length, H channels, P conjugate pairs, N = 2 P, T tokens of a chunk, M chunks

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import pad

from kernels.s4_kernel.step import S4Step, s4_step


def s4_state(
    u: Float[Tensor, "batch length channels"],
    delta: Float[Tensor, " channels"],
    Lambda: Complex[Tensor, "channels half_state"],
    P: Complex[Tensor, "channels half_state"],
    B: Complex[Tensor, "channels half_state"],
    C: Complex[Tensor, "channels half_state"],
) -> Complex[Tensor, "batch channels half_state"]:
    """The state after u, from an empty one; the other arguments are those of `s4_kernel`. The arithmetic is float64."""
    # Autocast would round the powers.
    with torch.autocast(u.device.type, enabled=False):
        power_HNN, vectors_HNT = _recurrence(S4Step.of(delta, Lambda.to(torch.complex128), P, B, C))
        num_tokens = 2 ** round(math.log2(u.shape[1]) / 2)
        while vectors_HNT.shape[-1] < num_tokens:
            vectors_HNT = torch.cat([vectors_HNT, power_HNN @ vectors_HNT], dim=-1)
            power_HNN = power_HNN @ power_HNN
        # Zeros in front leave an empty state empty.
        front = -u.shape[1] % num_tokens
        u_BMTH = torch.unflatten(pad(u.double(), (0, 0, front, 0)), 1, (-1, num_tokens))
        added_BMHN = torch.einsum("bmth,hnt->bmhn", u_BMTH.flip(2), vectors_HNT)
        h_BHN = torch.zeros_like(added_BMHN[:, 0])
        for added_BHN in added_BMHN.unbind(1):
            h_BHN = torch.einsum("hnk,bhk->bhn", power_HNN, h_BHN) + added_BHN
        real, imaginary = h_BHN.chunk(2, dim=-1)
        return torch.complex(real, imaginary).to(Lambda.dtype)


def _recurrence(step: S4Step) -> tuple[Tensor, Tensor]:
    """A_bar (H, N, N) and B_bar (H, N, 1) on real parts before imaginary ones, float64."""
    channels, pairs = step.decay.shape
    one = torch.eye(pairs, dtype=step.decay.dtype, device=step.decay.device)
    units_NHP = torch.cat([one, 1j * one]).unsqueeze(1).expand(-1, channels, -1)
    nothing_NH = units_NHP.real.new_zeros(2 * pairs, channels)
    _, moved_NHP = s4_step(units_NHP, nothing_NH, step)
    _, entered_1HP = s4_step(torch.zeros_like(units_NHP[:1]), torch.ones_like(nothing_NH[:1]), step)
    columns_HNN, entry_HN1 = (
        torch.cat([state.real, state.imag], dim=-1).permute(1, 2, 0) for state in (moved_NHP, entered_1HP)
    )
    return columns_HNN, entry_HN1
