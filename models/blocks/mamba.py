"""The Mamba block: a gated branch with a short convolution (Gu and Dao 2023, arXiv:2312.00752, figure 3).

    u, z = W_in x                   the stream and its gate
    u    = silu(conv(u))            a short causal convolution
    out  = W_out (mixer(u) silu(z))

Attention and MLP in one: the gate is the MLP's, the mixer stands in the middle of it. Without the gate there is no z;
without the convolution its SiLU stays.

Glossary: `input_projection` W_in, `output_projection` W_out.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from models.block import Block, BlockOptions, Part, short_conv, square
from models.mixer import Mixer, Sizes
from suite.spec import NonNegativeInt, PositiveInt


class MambaBlock(Block):
    """A Mamba block: short convolution and gate, mixer and MLP in one."""

    name = "mamba"

    class Options(BlockOptions):
        """Settings of the Mamba block."""

        expand: PositiveInt = 2
        """Channels inside per channel of the shell."""
        conv_width: NonNegativeInt = 4
        """Tokens that the short convolution sees; 0 leaves it out."""
        gate: bool = True
        """Whether silu(z) multiplies what the mixer gives."""

    def __init__(self, width: int, mixer: type[Mixer], options: Options) -> None:
        super().__init__(width, mixer, options)
        channels = options.expand * width
        self._has_gate = options.gate
        self.input_projection = nn.Linear(width, (2 if options.gate else 1) * channels, bias=False)
        self.conv = short_conv(channels, options.conv_width, "silu")
        self.mixer = square(mixer, Sizes(width=width, inputs=channels, channels=channels), options)
        self.output_projection = nn.Linear(channels, width, bias=False)

    def around(
        self, x: Float[Tensor, "... width"], conv: Part, mixer: Part
    ) -> tuple[Float[Tensor, "... width"], tuple[Any, Any]]:
        """The mixer behind its convolution, times its gate."""
        u, *gate = self.input_projection(x).chunk(2 if self._has_gate else 1, dim=-1)
        u, conv_state = conv(u)
        if self.mixer.takes_gate:
            y, mixer_state = mixer(u, *gate)
        else:
            y, mixer_state = mixer(u)
            for z in gate:
                y = y * silu(z)
        return self.output_projection(y), (conv_state, mixer_state)
