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

# B batch, L length, D width of the shell, E channels inside (expand * D)

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.block import Block, BlockOptions, short_conv, square
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
        self._has_gate, self._shifts_all = options.gate, options.conv_on == "qkv"
        num_maps = 3 if options.gate else 2
        self.input_projection = nn.Linear(width, num_maps * self._channels)
        num_shifted = num_maps if self._shifts_all else 1
        self.conv = short_conv(num_shifted * self._channels, options.conv_width)
        self.mixer = square(mixer, Sizes(width=width, inputs=self._channels, channels=self._channels), options)
        self.output_projection = nn.Linear(self._channels, width)

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        shifted, rest = self._shifted_and_rest(x_BLD)
        k, v, q = self._named(self.conv(shifted), rest)
        return self._output(self.mixer(k * v), q)

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Any, Any]:
        """The states of the shift and of the mixer."""
        return self.conv.initial_state(batch_size, max_length), self.mixer.initial_state(batch_size, max_length)

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: tuple[Any, Any]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Any, Any]]:
        """One token."""
        conv_state, mixer_state = state
        shifted, rest = self._shifted_and_rest(x_BD)
        shifted, conv_state = self.conv.step(shifted, conv_state)
        k, v, q = self._named(shifted, rest)
        y_BE, mixer_state = self.mixer.step(k * v, mixer_state)
        return self._output(y_BE, q), (conv_state, mixer_state)

    def _shifted_and_rest(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """k, v and q side by side: those that the shift is applied to, and the others."""
        maps = self.input_projection(x)
        if self._shifts_all:
            return maps, None
        return maps[..., : self._channels], maps[..., self._channels :]

    def _named(self, shifted: Tensor, rest: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """k, v and, if there is a gate, q."""
        k, *others = torch.split(shifted, self._channels, dim=-1)
        v, *q = others if rest is None else torch.split(rest, self._channels, dim=-1)
        return k, v, q[0] if q else None

    def _output(self, y: Tensor, q: Tensor | None) -> Tensor:
        return cast(Tensor, self.output_projection(y if q is None else q * y))
