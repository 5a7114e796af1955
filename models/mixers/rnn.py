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

# B batch, L length, I inputs, H hidden, S tensors of the state, M documents side by side, T tokens of the longest

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kernels.dispatch import note
from kernels.documents import run_documents, run_documents_with_states
from models.mixer import Mixer, Sizes


class _Recurrent(Mixer):
    """A cell of torch's over time. Its state is (h,), or (h, c), each (batch, hidden)."""

    has_input_map = True

    def __init__(self, sizes: Sizes, options: Any) -> None:
        super().__init__(sizes, options)
        self.cell = self._cell(sizes)
        for name, parameter in self.cell.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)

    def _cell(self, sizes: Sizes) -> nn.RNNBase:
        raise NotImplementedError

    def forward(
        self,
        x_BLI: Float[Tensor, "batch length inputs"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """The whole sequence, from an empty state."""
        note(self.name, self._implementation(x_BLI))
        return run_documents(lambda x_MTI: self.cell(x_MTI)[0], x_BLI, sequence_starts)

    def prefill(
        self,
        x_BLI: Float[Tensor, "batch length inputs"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length hidden"], tuple[Tensor, ...]]:
        """The same and the state after it."""
        note(self.name, self._implementation(x_BLI))

        def run(x_MTI: Tensor, begin: Tensor | None, wants_state: bool) -> tuple[Tensor, Tensor]:
            h_MTH, state = self.cell(x_MTI)
            return h_MTH, torch.stack(_parts(state), dim=1)

        h_BLH, state_BSH = run_documents_with_states(run, x_BLI, sequence_starts, return_final_state=True)
        assert state_BSH is not None
        return h_BLH, state_BSH.unbind(1)

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Tensor, ...]:
        """Zeros."""
        h_BH = self.cell.get_parameter("weight_hh_l0").new_zeros(batch_size, self.cell.hidden_size)
        return (h_BH, h_BH.clone()) if isinstance(self.cell, nn.LSTM) else (h_BH,)

    def step(
        self, x_BI: Float[Tensor, "batch inputs"], state: tuple[Tensor, ...]
    ) -> tuple[Float[Tensor, "batch hidden"], tuple[Tensor, ...]]:
        """One token through the same cell."""
        note(self.name, self._implementation(x_BI))
        parts = tuple(part.unsqueeze(0) for part in state)
        h_B1H, state = self.cell(x_BI[:, None], parts if isinstance(self.cell, nn.LSTM) else parts[0])
        return h_B1H[:, 0], _parts(state)

    def _implementation(self, x: Tensor) -> str:
        """What torch runs here: cuDNN on a GPU, oneDNN for an LSTM on a CPU, else its own loop over time."""
        if torch.backends.cudnn.is_acceptable(x):  # type: ignore[no-untyped-call]
            return "cudnn"
        is_onednn = x.device.type == "cpu" and x.dtype != torch.float64 and torch.backends.mkldnn.enabled
        return "onednn" if is_onednn and isinstance(self.cell, nn.LSTM) else "torch"


def _parts(state: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """torch's state, (1, batch, hidden) or a pair of them, as ours."""
    return tuple(part[0] for part in (state if isinstance(state, tuple) else (state,)))


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
