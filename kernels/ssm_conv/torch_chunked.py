"""The S4D convolution in chunks, by plain torch: the portable path, and the readable form of the faster ones.

Inside a chunk of T steps, with the state h at its beginning,

    y_i = sum_{k <= i} K_{i-k} u_k + Re <c a^(i+1), h>,   h' = a^T h + sum_k a^(T-1-k) b u_k

so that each channel takes two matrix products and a recurrence over L / T chunks; only T entries of the kernel exist.
"""

# B batch, L length, H channels, N half of the state, T steps of a chunk, M chunks

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.ssm_conv import factors

_SHORTEST_CHUNK = 16
_LONGEST_CHUNK = 128


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
    # Autocast would round the factors to bfloat16.
    with torch.autocast(u.device.type, enabled=False):
        rate, into, out = factors.discretize(delta, A, C, B)
        chunks = Chunks(u.to(precision), rate, into, initial_state)
        near_HTT = factors.toeplitz(factors.taps(into, out, chunks.powers_HNT[..., :-1], D, precision))
        far_HNT = factors.leaving(out, chunks.powers_HNT, precision)
        y = chunks.merge(chunks.u_HMT @ near_HTT + chunks.states() @ far_HNT)
        return y.to(u.dtype), chunks.final_state() if return_final_state else None


class Chunks:
    """A sequence cut into chunks of one length, the last filled up with zeros, and the state where each begins."""

    def __init__(self, u: Tensor, rate: Tensor, into: Tensor, initial_state: Tensor | None) -> None:
        self._batch, self._length, self._channels = u.shape
        steps = 2 ** round(math.log2(max(1, self._length)) / 2)
        self._steps = min(max(steps, _SHORTEST_CHUNK), _LONGEST_CHUNK, self._length)
        self._num_chunks = -(-self._length // self._steps)
        self._into = into
        self.powers_HNT = factors.powers(rate, self._steps + 1)
        padded_length = self._num_chunks * self._steps
        padded = pad(u, (0, 0, 0, padded_length - self._length)) if padded_length > self._length else u
        self.u_HMT = padded.reshape(-1, self._steps, self._channels).permute(2, 0, 1)
        """(channels, batch x chunks, steps)"""

        added = _complex(self.u_HMT @ factors.entering(into, self.powers_HNT, self._steps, u.dtype))
        added_HBMN = added.view(self._channels, self._batch, self._num_chunks, -1)
        if initial_state is None:
            initial_HBN = added.new_zeros(self._channels, self._batch, rate.shape[1])
        else:
            initial_HBN = initial_state.to(added.dtype).transpose(0, 1)
        decay_HN = self.powers_HNT[..., -1].to(added.dtype)
        self._states_HBMN = factors.begin_of_chunks(added_HBMN, decay_HN, initial_HBN)

    def states(self) -> Tensor:
        """Where each chunk begins, (channels, batch x chunks, 2N): real parts before imaginary ones."""
        return torch.cat([self._states_HBMN.real, self._states_HBMN.imag], dim=-1).flatten(1, 2)

    def merge(self, y_HMT: Tensor) -> Tensor:
        """(channels, batch x chunks, steps) -> (batch, length, channels)."""
        y = y_HMT.permute(1, 2, 0).reshape(self._batch, -1, self._channels)
        return y[:, : self._length]

    def final_state(self) -> Tensor:
        """After the last step, (batch, channels, N)."""
        last = self._length - (self._num_chunks - 1) * self._steps
        u_HBT = self.u_HMT.reshape(self._channels, self._batch, self._num_chunks, -1)[:, :, -1, :last]
        added_HBN = _complex(u_HBT @ factors.entering(self._into, self.powers_HNT, last, u_HBT.dtype))
        decay_H1N = self.powers_HNT[..., last].to(added_HBN.dtype).unsqueeze(1)
        return (decay_H1N * self._states_HBMN[:, :, -1] + added_HBN).transpose(0, 1)


def _complex(parts: Tensor) -> Tensor:
    real, imaginary = parts.chunk(2, dim=-1)
    return torch.complex(real, imaginary)
