"""Mamba: selective state spaces (Gu and Dao 2023, arXiv:2312.00752, figure 3 and algorithm 2).

    u, z = W_in x                                       the stream and its gate
    u    = silu(conv(u))                                a short causal convolution
    B, C, Delta = W_B u, W_C u, softplus(W_up W_down u + b)
    h_t  = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t     the selective scan, A = -exp(A_log)
    y_t  = (C_t h_t + D u_t) silu(z_t)
    out  = W_out y

What makes it selective: B, C and Delta depend on the token, so the state can keep one and pass over the next.
Initialised as published: A_n = -(n + 1), D = 1, Delta log-uniform in [0.001, 0.1] for an input of zero. Under autocast
the scan still computes Delta, A and h in float32.

Glossary: `input_projection` W_in, `selection_projection` W_down, W_B and W_C in one, `delta_projection` W_up and b,
`output_projection` W_out.
"""

# B batch, L length, D width of the shell, E channels inside (expand * D), R rank of Delta, N state, K past of the conv

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from kernels.selective_scan import selective_scan, selective_scan_step
from suite.plugin import Model
from suite.spec import PositiveInt, Settings, ShellSettings

_DELTA_RANGE = (1e-3, 1e-1)
_CHANNELS_PER_RANK = 16


class Mamba(Model):
    """Selective state space: the state decides, token by token, what to keep."""

    name = "mamba"

    class Options(Settings):
        """Settings of Mamba."""

        state_size: PositiveInt = 16
        """N in the paper: numbers that each channel remembers."""
        conv_width: PositiveInt = 4
        """Tokens that the short convolution sees."""
        expand: PositiveInt = 2
        """Channels inside per channel of the shell."""
        implementation: str = "auto"
        """Implementation of the selective scan."""

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One Mamba block, which is mixer and MLP in one."""
        return [MambaBranch(shell.width, **self.options.model_dump())]


class MambaBranch(nn.Module):
    """One Mamba block. Its state is the last inputs of the convolution and h."""

    def __init__(self, width: int, *, state_size: int, conv_width: int, expand: int, implementation: str) -> None:
        super().__init__()
        channels = expand * width
        rank = math.ceil(width / _CHANNELS_PER_RANK)
        self._split = [rank, state_size, state_size]
        self._implementation = implementation
        self.input_projection = nn.Linear(width, 2 * channels, bias=False)
        conv_bound = 1 / math.sqrt(conv_width)
        self.conv_weight = nn.Parameter(torch.empty(channels, conv_width).uniform_(-conv_bound, conv_bound))
        self.conv_bias = nn.Parameter(torch.empty(channels).uniform_(-conv_bound, conv_bound))
        self.selection_projection = nn.Linear(channels, sum(self._split), bias=False)
        self.delta_projection = nn.Linear(rank, channels)
        nn.init.uniform_(self.delta_projection.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            delta = torch.empty(channels).uniform_(*map(math.log, _DELTA_RANGE)).exp()
            self.delta_projection.bias.copy_(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        self.output_projection = nn.Linear(channels, width, bias=False)

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        u_BLE, z_BLE = self.input_projection(x_BLD).chunk(2, dim=-1)
        u_BLE = causal_conv1d(u_BLE, self.conv_weight, self.conv_bias, activation="silu")
        delta_BLE, B_BLN, C_BLN = self._selection(u_BLE)
        y_BLE = selective_scan(
            u_BLE,
            delta_BLE,
            self._rates(),
            B_BLN,
            C_BLN,
            self.D,
            z_BLE,
            self.delta_projection.bias,
            delta_softplus=True,
            implementation=self._implementation,
        )
        return cast(Tensor, self.output_projection(y_BLE))

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Tensor, Tensor]:
        """Zeros: the last inputs of the convolution, (batch, channels, past), and h, (batch, channels, state)."""
        channels, conv_width = self.conv_weight.shape
        window_BEK = self.conv_weight.new_zeros(batch_size, channels, conv_width - 1)
        h_BEN = self.A_log.new_zeros(batch_size, *self.A_log.shape)
        return window_BEK, h_BEN

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Tensor, Tensor]]:
        """One token: the same equations with the sums over time replaced by the state."""
        window_BEK, h_BEN = state
        u_BE, z_BE = self.input_projection(x_BD).chunk(2, dim=-1)
        u_BE, window_BEK = causal_conv1d_step(window_BEK, u_BE, self.conv_weight, self.conv_bias, activation="silu")
        delta_BE, B_BN, C_BN = self._selection(u_BE)
        y_BE, h_BEN = selective_scan_step(
            h_BEN,
            u_BE,
            delta_BE,
            self._rates(),
            B_BN,
            C_BN,
            self.D,
            z_BE,
            self.delta_projection.bias,
            delta_softplus=True,
        )
        return self.output_projection(y_BE), (window_BEK, h_BEN)

    def _selection(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Delta, before its bias and softplus, which the scan applies in float32, and B and C, all from the token."""
        delta_low_rank, B, C = self.selection_projection(u).split(self._split, dim=-1)
        return linear(delta_low_rank, self.delta_projection.weight), B, C

    def _rates(self) -> Tensor:
        """A."""
        return -torch.exp(self.A_log)
