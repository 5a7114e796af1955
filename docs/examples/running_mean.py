"""A whole model in one file: every position sees the mean of all positions up to it.

suite check docs/examples/running_mean.py
suite run --plugin docs/examples/running_mean.py --models running_mean,mamba --tasks induction_heads
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from suite import Model, Settings, ShellSettings


class RunningMean(Model):
    """A linear memory without weights on time: the mean of the past, projected."""

    name = "running_mean"

    class Options(Settings):
        bias: bool = True

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        return [RunningMeanBranch(shell.width, self.options.bias)]


class RunningMeanBranch(nn.Module):
    """y_t = W (x_1 + … + x_t) / t + b. Its state is the sum and the count."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.output_projection = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.arange(1, x.shape[1] + 1, device=x.device).unsqueeze(-1)
        return self.output_projection(x.cumsum(1) / counts)

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Tensor, Tensor]:
        weight = self.output_projection.weight
        return weight.new_zeros(batch_size, weight.shape[1]), weight.new_zeros(batch_size, 1)

    def step(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        total, count = state[0] + x, state[1] + 1
        return self.output_projection(total / count), (total, count)
