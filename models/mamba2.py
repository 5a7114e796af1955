"""Mamba-2: the Mamba block with everything projected at once (Dao and Gu 2024, arXiv:2405.21060, figure 6).

    z, x, B, C, d = W_in u                          gate, stream, and what selects, side by side
    x, B, C       = silu(conv(x, B, C))             one short causal convolution over all three
    y             = SSD(x, B, C, d)                 see `models/mixers/ssd.py`
    out           = W_out norm(y silu(z))

What sets it apart from the composition `mamba:ssd`: there B, C and d come from the stream, one after the other; here
from the block's input, in parallel, and a norm follows the gate.

Glossary: `input_projection` W_in, `output_projection` W_out, `norm_weight` the gain of the norm.
"""

# B batch, L length, D width of the shell, E channels inside (expand * D), N state, H heads

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from kernels.rms_norm import add_rms_norm
from models.block import short_conv
from models.mixers.ssd import SSDOptions, StateSpace
from suite.errors import UsageError
from suite.plugin import Model
from suite.spec import NonNegativeInt, PositiveInt, ShellSettings

_NORM_EPSILON = 1e-5


class Mamba2(Model):
    """Selective state space with large states: one decay a head, computed as matrix products."""

    name = "mamba2"

    class Options(SSDOptions):
        """Settings of Mamba-2."""

        expand: PositiveInt = 2
        """Channels inside per channel of the shell."""
        conv_width: NonNegativeInt = 4
        """Tokens that the short convolution sees; 0 leaves it out."""

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One block, which is mixer and MLP in one."""
        try:
            return [Mamba2Branch(shell.width, self.options)]
        except UsageError as error:
            raise UsageError(f"{self.name}: {error}") from None


class Mamba2Branch(nn.Module):
    """One Mamba-2 block. Its state is the last inputs of the convolution and h."""

    def __init__(self, width: int, options: Mamba2.Options) -> None:
        super().__init__()
        channels, state_size = options.expand * width, options.state_size
        self.state_space = StateSpace(channels, options)
        self._selection_split = [channels, state_size, state_size]
        self._split = [channels, sum(self._selection_split), self.state_space.num_heads]
        self.input_projection = nn.Linear(width, sum(self._split), bias=False)
        self.conv = short_conv(sum(self._selection_split), options.conv_width, "silu")
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.output_projection = nn.Linear(channels, width, bias=False)

    def forward(self, u_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        z_BLE, xBC, d_BLH = self.input_projection(u_BLD).split(self._split, dim=-1)
        x_BLE, B_BLN, C_BLN = self.conv(xBC).split(self._selection_split, dim=-1)
        return self._output(self.state_space(x_BLE, B_BLN, C_BLN, d_BLH), z_BLE)

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Any, Tensor]:
        """The states of the convolution and of the state space."""
        return self.conv.initial_state(batch_size, max_length), self.state_space.initial_state(batch_size)

    def step(
        self, u_BD: Float[Tensor, "batch width"], state: tuple[Any, Tensor]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Any, Tensor]]:
        """One token."""
        conv_state, h_BHPN = state
        z_BE, xBC, d_BH = self.input_projection(u_BD).split(self._split, dim=-1)
        xBC, conv_state = self.conv.step(xBC, conv_state)
        x_BE, B_BN, C_BN = torch.split(xBC, self._selection_split, dim=-1)
        y_BE, h_BHPN = self.state_space.step(x_BE, B_BN, C_BN, d_BH, h_BHPN)
        return self._output(y_BE, z_BE), (conv_state, h_BHPN)

    def _output(self, y: Tensor, z: Tensor) -> Tensor:
        _, normed = add_rms_norm(y * silu(z), None, self.norm_weight, epsilon=_NORM_EPSILON)
        return cast(Tensor, self.output_projection(normed))
