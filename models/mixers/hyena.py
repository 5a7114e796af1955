"""Hyena's long convolution, with a filter that a small network writes (Poli et al. 2023, arXiv:2302.10866).

    y_t    = sum_{s <= t} h_{t-s} u_s + D u_t
    h_l    = exp(-alpha t) W_4 z_3(l),   t = l / filter_length            alpha: how fast a channel's window falls
    z_i    = sin(f (W_i z_{i-1} + b_i))                                   f: frequencies, trained
    z_0(l) = (t, cos(w_1 t), …, cos(w_K t), -sin(w_1 t), …, -sin(w_K t))

The filter is implicit: the number of weights does not depend on its length, and it has an entry for every distance.
Initialised as in its code: alpha evenly spaced so that the windows fall to a hundredth within 0.3 to 1.5 filter
lengths, D normal. Order 2, the published default, is this mixer in an H3 block that convolves all three projections:
the model `hyena`. A single step needs all inputs so far, since the filter is no recurrence: O(length) of time and of
state a token.

Glossary: `hidden` W_i and b_i for i = 1, 2, 3, `last` W_4, `frequencies` f.
"""

# B batch, L length, E channels, M max_length, K frequencies of the positions

from __future__ import annotations

import math
from collections import defaultdict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from kernels.documents import is_of_last_document
from kernels.long_conv import long_conv
from models.mixer import Mixer, Sizes
from models.mixers.kept import Kept
from suite.spec import PositiveFloat, PositiveInt, Settings

_NUM_HIDDEN_LAYERS = 3
_DECAYED = 1e-2
_FASTEST, _SLOWEST = 0.3, 1.5
_FIRST_FREQUENCY = 1e-4
_TRANSFORM_FLOPS = 10
"""A real transform of n numbers takes 5/2 n log2 n; there are two, of two numbers a token."""
_SPECTRUM_FLOPS = 6
"""A complex product."""


class HyenaConv(Mixer):
    """Hyena: a long convolution whose filter a small network writes, an entry for every distance."""

    name = "hyena"
    is_linear = True

    class Options(Settings):
        """Settings of Hyena."""

        filter_size: PositiveInt = 64
        """Hidden units of the filter's network."""
        num_frequencies: PositiveInt = 1
        """K, the cosines and the sines that tell the network a distance."""
        sine_frequency: PositiveFloat = 1.0
        """Where f starts: the higher, the rougher the first filters."""
        filter_length: PositiveInt = 1024
        """Tokens in which t grows by 1 and the windows fall. The filter of a longer sequence goes on from there."""

    def __init__(self, sizes: Sizes, options: Options) -> None:
        super().__init__(sizes, options)
        self._filter_length, self._num_frequencies = options.filter_length, options.num_frequencies
        inputs = [1 + 2 * options.num_frequencies, *[options.filter_size] * (_NUM_HIDDEN_LAYERS - 1)]
        self.hidden = nn.ModuleList(nn.Linear(num_inputs, options.filter_size) for num_inputs in inputs)
        self.last = nn.Linear(options.filter_size, sizes.channels, bias=False)
        self.frequencies = nn.Parameter(torch.full((options.filter_size,), options.sine_frequency))
        self.D = nn.Parameter(torch.randn(sizes.channels))
        self._kept: dict[int, Kept[Tensor]] = defaultdict(Kept)

    def forward(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        return long_conv(u_BLE, self.filter(u_BLE.shape[1]), self.D, sequence_starts=sequence_starts)

    def prefill(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and the inputs so far."""
        of_last = 1 if sequence_starts is None else is_of_last_document(sequence_starts).unsqueeze(-1)
        inputs_BME = pad((u_BLE * of_last).flip(1), (0, 0, 0, max_length - u_BLE.shape[1])).to(self.D.dtype)
        return self(u_BLE, sequence_starts), inputs_BME

    def filter(self, length: int) -> Float[Tensor, "channels {length}"]:
        """h_0 … h_{length-1} of every channel, in the precision of the weights."""
        weight = self.last.weight
        t_L = torch.arange(length, device=weight.device, dtype=weight.dtype) / self._filter_length
        # What the network writes is as fine as a convolution's weights are; autocast would round its phases.
        with torch.autocast(weight.device.type, enabled=False):
            z = self._features(t_L)
            for layer in self.hidden:
                z = torch.sin(self.frequencies * layer(z))
            return linear(z, weight).T * torch.exp(-torch.outer(self._decays(), t_L))

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Room for all inputs, the newest first: (batch, max_length, channels)."""
        return self.D.new_zeros(batch_size, max_length, self.D.shape[0])

    def step(
        self, u_BE: Float[Tensor, "batch channels"], inputs_BME: Tensor
    ) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token: the convolution's sum, over all inputs so far."""
        max_length = inputs_BME.shape[1]
        inputs_BME = torch.cat([u_BE.to(inputs_BME.dtype).unsqueeze(1), inputs_BME[:, :-1]], dim=1)
        filter_EM = self._kept[max_length].get(tuple(self.parameters()), lambda: self.filter(max_length))
        y_BE = (inputs_BME * filter_EM.T).sum(1) + self.D * u_BE
        return y_BE.to(u_BE.dtype), inputs_BME

    def flops_per_token(self, length: int) -> float:
        """The convolution by two real Fourier transforms of twice the length and a product of spectra.

        The filter is written once for all sequences and not counted.
        """
        return self.D.numel() * (_TRANSFORM_FLOPS * math.log2(2 * length) + _SPECTRUM_FLOPS)

    def _decays(self) -> Tensor:
        """alpha of every channel."""
        weight, rate = self.last.weight, -math.log(_DECAYED)
        first, last = rate / _SLOWEST, rate / _FASTEST
        return torch.linspace(first, last, weight.shape[0], device=weight.device, dtype=weight.dtype)

    def _features(self, t_L: Tensor) -> Tensor:
        """z_0, (length, 1 + 2 K)."""
        last = max(self._num_frequencies - 1, _FIRST_FREQUENCY)
        bands_K = torch.linspace(_FIRST_FREQUENCY, last, self._num_frequencies, device=t_L.device, dtype=t_L.dtype)
        angles_LK = 2 * math.pi * torch.outer(t_L, bands_K)
        return torch.cat([t_L[:, None], torch.cos(angles_LK), -torch.sin(angles_LK)], dim=1)
