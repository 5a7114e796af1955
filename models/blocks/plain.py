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

from models.block import Block, BlockOptions, Part, short_conv
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

    def around(
        self, x: Float[Tensor, "... width"], conv: Part, mixer: Part
    ) -> tuple[Float[Tensor, "... width"], tuple[Any, Any]]:
        """The mixer behind its convolution, and the output map."""
        u, conv_state = conv(x)
        y, mixer_state = mixer(u)
        return self._output(y), (conv_state, mixer_state)

    def _output(self, y: Tensor) -> Tensor:
        if not self._is_glu:
            return cast(Tensor, self.output_projection(y))
        y = gelu(y)
        return cast(Tensor, self.output_projection(y) * torch.sigmoid(self.output_gate(y)))
