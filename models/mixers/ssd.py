"""SSD, the state space of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060).

    Delta_t = softplus(d_t + b)                              one step size for each head and token
    h_t     = exp(Delta_t A) h_{t-1} + Delta_t x_t B_t^T     h_t (P, N) of each head, A = -exp(A_log) one number a head
    y_t     = h_t C_t + D x_t

S6 with one decay for a whole head: the scan becomes matrix products, and the state can be many times as large. B, C and
d come from the token, by a map of the mixer's own here, by the block's in Mamba-2 itself (`models/mamba2.py`).
Initialised as published: -A uniform in [1, 16], D = 1, Delta log-uniform in [0.001, 0.1] where d is zero.

Glossary: `selection_projection` the map to B, C and d, `delta_bias` b.
"""

# B batch, L length, H heads, P head size, E channels (H P), N state

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from kernels.ssd import ssd, ssd_step
from models.mixer import Mixer, Sizes
from models.mixers.step_sizes import before_softplus, random_log_step_sizes
from suite.errors import UsageError
from suite.spec import PositiveInt, Settings

_HEAD_SIZE = 64
_RATES = (1.0, 16.0)
_FLOPS = 5
"""For each number of the state: two products and a sum in the recurrence, a product and a sum in the output."""


class SSDOptions(Settings):
    """Settings of the state space."""

    state_size: PositiveInt = 128
    """N in the paper: numbers that each channel remembers."""
    head_size: PositiveInt | None = None
    """Channels of a head, P, which share a decay; 64 if not given, or all channels where there are fewer."""
    implementation: str = "auto"
    """Implementation of the state space over a whole sequence."""


class StateSpace(nn.Module):
    """The recurrence, for x, B, C and d from wherever they come. Its state is h, (batch, heads, head size, state)."""

    def __init__(self, channels: int, options: SSDOptions) -> None:
        super().__init__()
        head_size = min(_HEAD_SIZE, channels) if options.head_size is None else options.head_size
        if channels % head_size:
            raise UsageError(f"number of channels {channels} is not a multiple of head_size {head_size}")
        self.num_heads, self._head_size, self._state_size = channels // head_size, head_size, options.state_size
        self._implementation = options.implementation
        self.A_log = nn.Parameter(torch.empty(self.num_heads).uniform_(*_RATES).log())
        self.delta_bias = nn.Parameter(before_softplus(random_log_step_sizes(self.num_heads).exp()))
        self.D = nn.Parameter(torch.ones(self.num_heads))
        for parameter in (self.A_log, self.delta_bias, self.D):
            parameter._no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x_BLE: Float[Tensor, "batch length channels"],
        B_BLN: Float[Tensor, "batch length state"],
        C_BLN: Float[Tensor, "batch length state"],
        d_BLH: Float[Tensor, "batch length heads"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        length = x_BLE.shape[1]
        y_BLE, _ = self.prefill(x_BLE, B_BLN, C_BLN, d_BLH, max_length=length, sequence_starts=sequence_starts)
        return y_BLE

    def prefill(
        self,
        x_BLE: Float[Tensor, "batch length channels"],
        B_BLN: Float[Tensor, "batch length state"],
        C_BLN: Float[Tensor, "batch length state"],
        d_BLH: Float[Tensor, "batch length heads"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and the state after it."""
        y_BLHP, h_BHPN = ssd(
            torch.unflatten(x_BLE, -1, (self.num_heads, self._head_size)),
            d_BLH,
            -torch.exp(self.A_log),
            B_BLN.unsqueeze(2),
            C_BLN.unsqueeze(2),
            self.D,
            self.delta_bias,
            delta_softplus=True,
            sequence_starts=sequence_starts,
            return_final_state=True,
            implementation=self._implementation,
        )
        return y_BLHP.flatten(2), h_BHPN

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros."""
        return self.A_log.new_zeros(batch_size, self.num_heads, self._head_size, self._state_size)

    def step(
        self,
        x_BE: Float[Tensor, "batch channels"],
        h_BHPN: Tensor,
        B_BN: Float[Tensor, "batch state"],
        C_BN: Float[Tensor, "batch state"],
        d_BH: Float[Tensor, "batch heads"],
    ) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token."""
        y_BHP, h_BHPN = ssd_step(
            h_BHPN,
            torch.unflatten(x_BE, -1, (self.num_heads, self._head_size)),
            d_BH,
            -torch.exp(self.A_log),
            B_BN.unsqueeze(1),
            C_BN.unsqueeze(1),
            self.D,
            self.delta_bias,
            delta_softplus=True,
        )
        return y_BHP.flatten(1), h_BHPN

    def flops_per_token(self, length: int) -> int:
        """The recurrence, not the matrix products that it can be turned into, which do more."""
        return _FLOPS * self.num_heads * self._head_size * self._state_size


class SSD(Mixer):
    """SSD: a selective state space with one decay for a whole head, as matrix products."""

    name = "ssd"
    Options = SSDOptions

    def __init__(self, sizes: Sizes, options: SSDOptions) -> None:
        super().__init__(sizes, options)
        self.state_space = StateSpace(sizes.channels, options)
        self._split = [options.state_size, options.state_size, self.state_space.num_heads]
        self.selection_projection = nn.Linear(sizes.channels, sum(self._split), bias=False)

    def forward(
        self,
        x_BLE: Float[Tensor, "batch length channels"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from an empty state."""
        y_BLE: Tensor = self.state_space(x_BLE, *self._selection(x_BLE), sequence_starts=sequence_starts)
        return y_BLE

    def prefill(
        self,
        x_BLE: Float[Tensor, "batch length channels"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and the state after it."""
        B_BLN, C_BLN, d_BLH = self._selection(x_BLE)
        return self.state_space.prefill(
            x_BLE, B_BLN, C_BLN, d_BLH, max_length=max_length, sequence_starts=sequence_starts
        )

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros, (batch, heads, head size, state)."""
        return self.state_space.initial_state(batch_size, max_length)

    def step(
        self, x_BE: Float[Tensor, "batch channels"], h_BHPN: Tensor
    ) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token."""
        B_BN, C_BN, d_BH = self._selection(x_BE)
        return self.state_space.step(x_BE, h_BHPN, B_BN, C_BN, d_BH)

    def _selection(self, x: Tensor) -> tuple[Tensor, ...]:
        """B, C and d from the token."""
        return torch.split(self.selection_projection(x), self._split, dim=-1)
