"""The plain block: a mixer and the map back to the residual stream, nothing else.

    y   = mixer(conv(x))                            the short convolution only if it is asked for
    out = W y                                       output = "linear"
    out = (W gelu(y) + b) sigmoid(V gelu(y) + c)    output = "glu"

"linear" is what attention (Vaswani et al. 2017, arXiv:1706.03762) and recurrent cells have behind them. "glu" is the
layer of S4 (Gu et al. 2021, arXiv:2111.00396), and the default around mixers that are linear themselves: without it a
model of them would be linear but for its norms.

Glossary: `output_projection` W and b, `output_gate` V and c.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from models.block import Block, BlockOptions, short_conv
from models.mixer import Mixer, Sizes
from suite.errors import UsageError


class Plain(Block):
    """A plain residual block: the mixer and an output map."""

    name = "plain"

    class Options(BlockOptions):
        """Settings of the plain block."""

        output: Literal["linear", "glu"] = "linear"
        """What follows the mixer: a linear map, or GELU and a gated linear unit."""

    def __init__(self, width: int, mixer: type[Mixer], options: Options) -> None:
        super().__init__(width, mixer, options)
        if options.expand != 1 and not mixer.has_input_map:
            raise UsageError(
                f"expand = {options.expand}: {mixer.name} keeps its number of channels, and the plain block has no map "
                "in front of it. Use expand = 1, or the mamba block"
            )
        self.conv = short_conv(width, options.conv_width)
        self.mixer = mixer(Sizes(width=width, inputs=width, channels=width * options.expand), options)
        self._is_glu = options.output == "glu"
        self.output_projection = nn.Linear(self.mixer.output_size, width, bias=self._is_glu)
        if self._is_glu:
            self.output_gate = nn.Linear(self.mixer.output_size, width)

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        return self._output(self.mixer(self.conv(x_BLD)))

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Any, Any]:
        """The states of the short convolution and of the mixer."""
        return self.conv.initial_state(batch_size, max_length), self.mixer.initial_state(batch_size, max_length)

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: tuple[Any, Any]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Any, Any]]:
        """One token."""
        conv_state, mixer_state = state
        u_BD, conv_state = self.conv.step(x_BD, conv_state)
        y_BE, mixer_state = self.mixer.step(u_BD, mixer_state)
        return self._output(y_BE), (conv_state, mixer_state)

    def _output(self, y: Tensor) -> Tensor:
        if not self._is_glu:
            return cast(Tensor, self.output_projection(y))
        y = gelu(y)
        return cast(Tensor, self.output_projection(y) * torch.sigmoid(self.output_gate(y)))
