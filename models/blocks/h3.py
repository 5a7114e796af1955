"""The H3 block: a mixer between two gates (Fu et al. 2022, arXiv:2212.14052, section 3.1).

    q, k, v = W_q x, W_k x, W_v x
    k       = shift(k)                        a short causal convolution: what came just before
    out     = W_o (q mixer(k v))

The shift lets k speak of the token before, so that k v stores it together with the present one, and q asks for it: the
two steps of associative recall. Hyena (Poli et al. 2023, arXiv:2302.10866) of order 2 is the same with the convolution
on q and v as well. What differs: the heads of H3 have size 1, as its code's do by default, so the products are
elementwise, and the shift has as many taps as are asked for, where H3's has one for each number of its state.

Glossary: `input_projection` W_q, W_k and W_v in one, `output_projection` W_o.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.block import Block, BlockOptions, Part, short_conv, square
from models.mixer import Mixer, Sizes
from suite.spec import NonNegativeInt


class H3Block(Block):
    """An H3 block: the mixer between two gates, with a shift in front."""

    name = "h3"

    class Options(BlockOptions):
        """Settings of the H3 block."""

        conv_width: NonNegativeInt = 4
        """Tokens that the shift sees; 0 leaves it out."""
        conv_on: Literal["k", "qkv"] = "k"
        """What the shift is applied to: H3 shifts k, Hyena all three."""
        gate: bool = True
        """Whether q multiplies what the mixer gives; without it there is no q."""

    def __init__(self, width: int, mixer: type[Mixer], options: Options) -> None:
        super().__init__(width, mixer, options)
        self._channels = options.expand * width
        num_maps = 3 if options.gate else 2
        self._num_shifted = num_maps if options.conv_on == "qkv" else 1
        self.input_projection = nn.Linear(width, num_maps * self._channels)
        self.conv = short_conv(self._num_shifted * self._channels, options.conv_width)
        self.mixer = square(mixer, Sizes(width=width, inputs=self._channels, channels=self._channels), options)
        self.output_projection = nn.Linear(self._channels, width)

    def around(
        self, x: Float[Tensor, "... width"], conv: Part, mixer: Part
    ) -> tuple[Float[Tensor, "... width"], tuple[Any, Any]]:
        """The mixer between its gates."""
        maps = self.input_projection(x)
        shifted, conv_state = conv(maps[..., : self._num_shifted * self._channels])
        unshifted = torch.split(maps, self._channels, dim=-1)[self._num_shifted :]
        k, v, *gate = (*torch.split(shifted, self._channels, dim=-1), *unshifted)
        y, mixer_state = mixer(k * v)
        for q in gate:
            y = q * y
        return self.output_projection(y), (conv_state, mixer_state)
