"""The recurrent baselines: LSTM (Hochreiter and Schmidhuber 1997) and GRU (Cho et al. 2014, arXiv:1406.1078).

    LSTM   i, f, o = sigmoid(W x_t + R h_{t-1} + b + d);     g = tanh(W x_t + R h_{t-1} + b + d)
           c_t = f c_{t-1} + i g;                            h_t = o tanh(c_t)
    GRU    r, z = sigmoid(W x_t + R h_{t-1} + b + d);        g = tanh(W x_t + b + r (R h_{t-1} + d))
           h_t = (1 - z) g + z h_{t-1}

with rows of W, R, b and d of its own for every gate. What differs: the cell stands in a pre-norm residual branch with
an output projection, like every other model here, and biases start at 0, those of the LSTM's forget gates at 1 (Gers et
al. 2000; Jozefowicz et al. 2015). Time runs in torch's own kernels: cuDNN's on a GPU, oneDNN's for the LSTM on a CPU.

Glossary: in `cell`, `weight_ih_l0` is W, `weight_hh_l0` R, `bias_ih_l0` b, `bias_hh_l0` d.
"""

# B batch, L length, D width, H hidden

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.dispatch import note
from suite.plugin import Model
from suite.spec import PositiveInt, Settings, ShellSettings


class RNNOptions(Settings):
    """Settings of both cells."""

    expand: PositiveInt = 1
    """Hidden units per channel of the shell."""


class LSTM(Model):
    """Long short-term memory: gates decide what the cell forgets, takes in and shows."""

    name = "lstm"
    Options = RNNOptions

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One LSTM."""
        branch = RNNBranch(nn.LSTM(shell.width, shell.width * self.options.expand, batch_first=True), self.name)
        _, forget, _, _ = branch.cell.get_parameter("bias_ih_l0").detach().chunk(4)
        forget.fill_(1.0)
        return [branch]


class GRU(Model):
    """Gated recurrent unit: an LSTM with two gates and no separate cell."""

    name = "gru"
    Options = RNNOptions

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One GRU."""
        return [RNNBranch(nn.GRU(shell.width, shell.width * self.options.expand, batch_first=True), self.name)]


class RNNBranch(nn.Module):
    """A recurrent cell over time and the projection back to the shell's width. Its state is h, or (h, c)."""

    def __init__(self, cell: nn.LSTM | nn.GRU, operation: str) -> None:
        super().__init__()
        self.cell: nn.RNNBase = cell
        for name, parameter in cell.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
        self.output_projection = nn.Linear(cell.hidden_size, cell.input_size, bias=False)
        self._operation = operation

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        note(self._operation, self._implementation(x_BLD))
        h_BLH, _ = self.cell(x_BLD)
        return cast(Tensor, self.output_projection(h_BLH))

    def initial_state(self, batch_size: int, max_length: int) -> Any:
        """Zeros: h as (1, batch, hidden), for the LSTM the pair (h, c)."""
        h_1BH = self.output_projection.weight.new_zeros(1, batch_size, self.cell.hidden_size)
        return (h_1BH, h_1BH.clone()) if isinstance(self.cell, nn.LSTM) else h_1BH

    def step(self, x_BD: Float[Tensor, "batch width"], state: Any) -> tuple[Float[Tensor, "batch width"], Any]:
        """One token through the same cell."""
        note(self._operation, self._implementation(x_BD))
        h_B1H, state = self.cell(x_BD[:, None], state)
        return self.output_projection(h_B1H[:, 0]), state

    def _implementation(self, x: Tensor) -> str:
        """What torch runs here: cuDNN on a GPU, oneDNN for an LSTM on a CPU, else its own loop over time."""
        if torch.backends.cudnn.is_acceptable(x):  # type: ignore[no-untyped-call]
            return "cudnn"
        is_onednn = x.device.type == "cpu" and x.dtype != torch.float64 and torch.backends.mkldnn.enabled
        return "onednn" if is_onednn and isinstance(self.cell, nn.LSTM) else "torch"
