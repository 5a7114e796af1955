"""Mamba-2: the Mamba block with everything projected at once (Dao and Gu 2024, arXiv:2405.21060, figure 6).

    z, x, B, C, d = W_in u                          gate, stream, and what selects, side by side
    x, B, C       = silu(conv(x, B, C))             one short causal convolution over all three
    y             = SSD(x, B, C, d)                 see `models/mixers/ssd.py`
    out           = W_out norm(y silu(z))

What sets it apart from the composition `mamba:ssd`: there B, C and d come from the stream, one after the other; here
from the block's input, in parallel, and a norm follows the gate.

Glossary: `input_projection` W_in, `output_projection` W_out, `norm_weight` the gain of the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from kernels.rms_norm import add_rms_norm
from models.block import Block, Part, short_conv
from models.mixers.ssd import SSD, SSDOptions, StateSpace
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


class Mamba2Branch(Block):
    """One Mamba-2 block."""

    def __init__(self, width: int, options: Mamba2.Options) -> None:
        super().__init__(width, SSD, options)
        channels, state_size = options.expand * width, options.state_size
        self.state_space = StateSpace(channels, options)
        self._selection_split = [channels, state_size, state_size]
        self._split = [channels, sum(self._selection_split), self.state_space.num_heads]
        self.input_projection = nn.Linear(width, sum(self._split), bias=False)
        self.conv = short_conv(sum(self._selection_split), options.conv_width, "silu")
        self.norm_weight = nn.Parameter(torch.ones(channels))
        self.output_projection = nn.Linear(channels, width, bias=False)

    @property
    def parts(self) -> tuple[Any, Any]:
        """The convolution and the state space."""
        return self.conv, self.state_space

    def around(
        self, x: Float[Tensor, "... width"], conv: Part, mixer: Part
    ) -> tuple[Float[Tensor, "... width"], tuple[Any, Any]]:
        """The state space behind its convolution, times its gate and normed."""
        z, xBC, d = torch.split(self.input_projection(x), self._split, dim=-1)
        xBC, conv_state = conv(xBC)
        y, h = mixer(*torch.split(xBC, self._selection_split, dim=-1), d)
        _, normed = add_rms_norm(y * silu(z), None, self.norm_weight, epsilon=_NORM_EPSILON)
        return self.output_projection(normed), (conv_state, h)
