"""S6, the selective state space of Mamba (Gu and Dao 2023, arXiv:2312.00752, algorithm 2).

    B, C, Delta = W_B u, W_C u, softplus(W_up W_down u + b)
    h_t  = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t     the selective scan, A = -exp(A_log)
    y_t  = C_t h_t + D u_t

What makes it selective: B, C and Delta depend on the token, so the state can keep one and pass over the next.
Initialised as published: A_n = -(n + 1), D = 1, Delta log-uniform in [0.001, 0.1] for an input of zero. Under autocast
the scan still computes Delta, A and h in float32. A gate around it is fused into the scan.

Glossary: `selection_projection` W_down, W_B and W_C in one, `delta_projection` W_up and b.
"""

# B batch, L length, E channels, N state, R rank of Delta

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear

from kernels.selective_scan import selective_scan, selective_scan_step
from models.flops import map_flops
from models.mixer import Mixer, Sizes
from models.mixers.step_sizes import before_softplus, random_log_step_sizes
from suite.spec import PositiveInt, Settings

_CHANNELS_PER_RANK = 16
_FLOPS = 6
"""For each number of the state: three products and a sum in the recurrence, a product and a sum in the output."""


class S6(Mixer):
    """S6: a selective state space, which decides token by token what to keep."""

    name = "s6"
    takes_gate = True

    class Options(Settings):
        """Settings of S6."""

        state_size: PositiveInt = 16
        """N in the paper: numbers that each channel remembers."""
        implementation: str = "auto"
        """Implementation of the selective scan."""

    def __init__(self, sizes: Sizes, options: Options) -> None:
        super().__init__(sizes, options)
        channels, state_size = sizes.channels, options.state_size
        rank = math.ceil(sizes.width / _CHANNELS_PER_RANK)
        self._split = [rank, state_size, state_size]
        self._implementation = options.implementation
        self.selection_projection = nn.Linear(channels, sum(self._split), bias=False)
        self.delta_projection = nn.Linear(rank, channels)
        nn.init.uniform_(self.delta_projection.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            self.delta_projection.bias.copy_(before_softplus(random_log_step_sizes(channels).exp()))
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        z_BLE: Float[Tensor, "batch length channels"] | None = None,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state, times silu(z) if there is a gate."""
        y_BLE, _ = self.prefill(u_BLE, z_BLE, max_length=u_BLE.shape[1], sequence_starts=sequence_starts)
        return y_BLE

    def prefill(
        self,
        u_BLE: Float[Tensor, "batch length channels"],
        z_BLE: Float[Tensor, "batch length channels"] | None = None,
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and the state after it."""
        delta_BLE, B_BLN, C_BLN = self._selection(u_BLE)
        return selective_scan(
            u_BLE,
            delta_BLE,
            self._rates(),
            B_BLN,
            C_BLN,
            self.D,
            z_BLE,
            self.delta_projection.bias,
            delta_softplus=True,
            sequence_starts=sequence_starts,
            return_final_state=True,
            implementation=self._implementation,
        )

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros, (batch, channels, state)."""
        return self.A_log.new_zeros(batch_size, *self.A_log.shape)

    def step(
        self, u_BE: Float[Tensor, "batch channels"], h_BEN: Tensor, z_BE: Float[Tensor, "batch channels"] | None = None
    ) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token: the same equations with the sums over time replaced by the state."""
        low_rank_BR, B_BN, C_BN = self.selection_projection(u_BE).split(self._split, dim=-1)
        return selective_scan_step(
            h_BEN,
            u_BE,
            low_rank_BR,
            self.A_log,
            B_BN,
            C_BN,
            self.D,
            z_BE,
            self.delta_projection.bias,
            delta_softplus=True,
            delta_weight=self.delta_projection.weight,
            log_rates=True,
        )

    def flops_per_token(self, length: int) -> float:
        """The maps and the recurrence."""
        return map_flops(self.selection_projection, self.delta_projection) + _FLOPS * self.A_log.numel()

    def _selection(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Delta, before its bias and softplus, which the scan applies in float32, and B and C, all from the token."""
        delta_low_rank, B, C = self.selection_projection(u).split(self._split, dim=-1)
        return linear(delta_low_rank, self.delta_projection.weight), B, C

    def _rates(self) -> Tensor:
        """A."""
        return -torch.exp(self.A_log)
