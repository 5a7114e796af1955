"""minLSTM and minGRU: recurrent cells without their recurrence in the gates (Feng et al. 2024, arXiv:2410.01201).

    minGRU    z_t = sigmoid(W_z x_t);                               h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t)
    minLSTM   f_t, i_t = sigmoid(W_f x_t), sigmoid(W_i x_t);        h_t = (f_t h_{t-1} + i_t g(W_h x_t)) / (f_t + i_t)

with biases, and g(x) = x + 1/2 from zero on and sigmoid(x) below, which keeps h positive. Gates that see the token
alone make the recurrence linear in h, so that it is a scan in place of a loop (`kernels/linear_scan`). The state is h.

Glossary: `input_projection` W_z and W_h in one (minGRU), W_f, W_i and W_h in one (minLSTM).
"""

# B batch, L length, I inputs, E channels

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from kernels.linear_scan import min_gru_scan, min_gru_step, min_lstm_scan, min_lstm_step
from models.mixer import Mixer, Sizes


class _Minimal(Mixer):
    """Gates and a candidate from the token, and the scan that joins them. Its state is h, (batch, channels)."""

    has_input_map = True
    num_maps: ClassVar[int]

    def __init__(self, sizes: Sizes, options: Any) -> None:
        super().__init__(sizes, options)
        self._channels = sizes.channels
        self.input_projection = nn.Linear(sizes.inputs, self.num_maps * sizes.channels)

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros."""
        return self.input_projection.weight.new_zeros(batch_size, self._channels)

    def _maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gates and the candidate, before their functions."""
        maps: tuple[Tensor, ...] = self.input_projection(x).chunk(self.num_maps, dim=-1)
        return maps


class MinLSTMScan(_Minimal):
    """minLSTM: an LSTM whose gates see the token alone, so that it runs as a scan."""

    name = "minlstm"
    num_maps = 3

    def forward(self, x_BLI: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        forget_BLE, input_BLE, candidate_BLE = self._maps(x_BLI)
        return min_lstm_scan(forget_BLE, input_BLE, candidate_BLE)

    def step(self, x_BI: Float[Tensor, "batch inputs"], h_BE: Tensor) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token."""
        forget_BE, input_BE, candidate_BE = self._maps(x_BI)
        h_BE = min_lstm_step(h_BE, forget_BE, input_BE, candidate_BE)
        return h_BE.to(candidate_BE.dtype), h_BE


class MinGRUScan(_Minimal):
    """minGRU: a GRU whose gate sees the token alone, so that it runs as a scan."""

    name = "mingru"
    num_maps = 2

    def forward(self, x_BLI: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        update_BLE, candidate_BLE = self._maps(x_BLI)
        return min_gru_scan(update_BLE, candidate_BLE)

    def step(self, x_BI: Float[Tensor, "batch inputs"], h_BE: Tensor) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token."""
        update_BE, candidate_BE = self._maps(x_BI)
        h_BE = min_gru_step(h_BE, update_BE, candidate_BE)
        return h_BE.to(candidate_BE.dtype), h_BE
