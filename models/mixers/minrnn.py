"""minLSTM and minGRU: recurrent cells without their recurrence in the gates (Feng et al. 2024, arXiv:2410.01201).

    minGRU    z_t = sigmoid(W_z x_t);                               h_t = (1 - z_t) h_{t-1} + z_t g(W_h x_t)
    minLSTM   f_t, i_t = sigmoid(W_f x_t), sigmoid(W_i x_t);        h_t = (f_t h_{t-1} + i_t g(W_h x_t)) / (f_t + i_t)

with biases, and g(x) = x + 1/2 from zero on and sigmoid(x) below, which keeps h positive. Gates that see the token
alone make the recurrence linear in h, so that it is a scan in place of a loop (`kernels/linear_scan`). The state is h.

Glossary: `input_projection` W_z and W_h in one (minGRU), W_f, W_i and W_h in one (minLSTM).
"""

# B batch, L length, I inputs, E channels

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from kernels.linear_scan import min_gru_scan, min_gru_step, min_lstm_scan, min_lstm_step
from models.mixer import Mixer, Sizes


class _Minimal(Mixer):
    """Gates and a candidate from the token, and the scan that joins them. Its state is h, (batch, channels)."""

    has_input_map = True
    num_maps: ClassVar[int]
    scan: ClassVar[Callable[..., Any]]
    """Over a whole sequence of the maps."""
    scan_step: ClassVar[Callable[..., Tensor]]
    """The next h, from h and the maps of one token."""

    def __init__(self, sizes: Sizes, options: Any) -> None:
        super().__init__(sizes, options)
        self._channels = sizes.channels
        self.input_projection = nn.Linear(sizes.inputs, self.num_maps * sizes.channels)

    def forward(
        self,
        x_BLI: Float[Tensor, "batch length inputs"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        y_BLE, _ = self.prefill(x_BLI, max_length=x_BLI.shape[1], sequence_starts=sequence_starts)
        return y_BLE

    def prefill(
        self,
        x_BLI: Float[Tensor, "batch length inputs"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and h after it."""
        y_BLE, h_BE = self.scan(*self._maps(x_BLI), sequence_starts=sequence_starts, return_final_state=True)
        return y_BLE, h_BE

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros."""
        return self.input_projection.weight.new_zeros(batch_size, self._channels)

    def step(self, x_BI: Float[Tensor, "batch inputs"], h_BE: Tensor) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token."""
        maps = self._maps(x_BI)
        h_BE = self.scan_step(h_BE, *maps)
        return h_BE.to(maps[-1].dtype), h_BE

    def _maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gates and the candidate, before their functions."""
        maps: tuple[Tensor, ...] = self.input_projection(x).chunk(self.num_maps, dim=-1)
        return maps


class MinLSTMScan(_Minimal):
    """minLSTM: an LSTM whose gates see the token alone, so that it runs as a scan."""

    name = "minlstm"
    num_maps = 3
    scan, scan_step = staticmethod(min_lstm_scan), staticmethod(min_lstm_step)


class MinGRUScan(_Minimal):
    """minGRU: a GRU whose gate sees the token alone, so that it runs as a scan."""

    name = "mingru"
    num_maps = 2
    scan, scan_step = staticmethod(min_gru_scan), staticmethod(min_gru_step)
