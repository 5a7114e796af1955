"""The recurrent cells: LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho et al. 2014, arXiv:1406.1078).

    LSTM   i, f, o = sigmoid(W x_t + R h_{t-1} + b + d);     g = tanh(W x_t + R h_{t-1} + b + d)
           c_t = f c_{t-1} + i g;                            h_t = o tanh(c_t)
    GRU    r, z = sigmoid(W x_t + R h_{t-1} + b + d);        g = tanh(W x_t + b + r (R h_{t-1} + d))
           h_t = (1 - z) g + z h_{t-1}

with rows of W, R, b and d of its own for every gate. What differs: biases start at 0, those of the LSTM's forget gates
at 1 (Gers et al. 2000; Jozefowicz et al. 2015). Time runs in torch's own kernels: cuDNN's on a GPU, oneDNN's for the
LSTM on a CPU.

Glossary: in `cell`, `weight_ih_l0` is W, `weight_hh_l0` R, `bias_ih_l0` b, `bias_hh_l0` d.
"""

# B batch, L length, I inputs, H hidden

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.dispatch import note
from models.mixer import Mixer, Sizes


class _Recurrent(Mixer):
    """A cell of torch's over time. Its state is h as (1, batch, hidden), or the pair (h, c) of such."""

    has_input_map = True

    def __init__(self, sizes: Sizes, options: Any) -> None:
        super().__init__(sizes, options)
        self.cell = self._cell(sizes)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)

    def _cell(self, sizes: Sizes) -> nn.RNNBase:
        raise NotImplementedError

    def forward(self, x_BLI: Float[Tensor, "batch length inputs"]) -> Float[Tensor, "batch length hidden"]:
        """The whole sequence, from an empty state."""
        note(self.name, self._implementation(x_BLI))
        h_BLH: Tensor = self.cell(x_BLI)[0]
        return h_BLH

    def initial_state(self, batch_size: int, max_length: int) -> Any:
        """Zeros."""
        h_1BH = self.cell.get_parameter("weight_hh_l0").new_zeros(1, batch_size, self.cell.hidden_size)
        return (h_1BH, h_1BH.clone()) if isinstance(self.cell, nn.LSTM) else h_1BH

    def step(self, x_BI: Float[Tensor, "batch inputs"], state: Any) -> tuple[Float[Tensor, "batch hidden"], Any]:
        """One token through the same cell."""
        note(self.name, self._implementation(x_BI))
        h_B1H, state = self.cell(x_BI[:, None], state)
        return h_B1H[:, 0], state

    def _implementation(self, x: Tensor) -> str:
        """What torch runs here: cuDNN on a GPU, oneDNN for an LSTM on a CPU, else its own loop over time."""
        if torch.backends.cudnn.is_acceptable(x):  # type: ignore[no-untyped-call]
            return "cudnn"
        is_onednn = x.device.type == "cpu" and x.dtype != torch.float64 and torch.backends.mkldnn.enabled
        return "onednn" if is_onednn and isinstance(self.cell, nn.LSTM) else "torch"


class LSTMCells(_Recurrent):
    """LSTM: long short-term memory, with gates that decide what the cell forgets, takes in and shows."""

    name = "lstm"

    def __init__(self, sizes: Sizes, options: Any) -> None:
        super().__init__(sizes, options)
        _, forget, _, _ = self.cell.get_parameter("bias_ih_l0").detach().chunk(4)
        forget.fill_(1.0)

    def _cell(self, sizes: Sizes) -> nn.RNNBase:
        return nn.LSTM(sizes.inputs, sizes.channels, batch_first=True)


class GRUCells(_Recurrent):
    """GRU: a gated recurrent unit, an LSTM with two gates and no separate cell."""

    name = "gru"

    def _cell(self, sizes: Sizes) -> nn.RNNBase:
        return nn.GRU(sizes.inputs, sizes.channels, batch_first=True)
