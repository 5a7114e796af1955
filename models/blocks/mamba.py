"""The Mamba block: a gated branch with a short convolution (Gu and Dao 2023, arXiv:2312.00752, figure 3).

    u, z = W_in x                   the stream and its gate
    u    = silu(conv(u))            a short causal convolution
    out  = W_out (mixer(u) silu(z))

Attention and MLP in one: the gate is the MLP's, the mixer stands in the middle of it. Without the gate there is no z;
without the convolution its SiLU stays.

Glossary: `input_projection` W_in, `output_projection` W_out.
"""

# B batch, L length, D width of the shell, E channels inside (expand * D)

from __future__ import annotations

from typing import Any, cast

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from models.block import Block, BlockOptions, short_conv, square
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

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state."""
        u_BLE, z_BLE = self._stream_and_gate(x_BLD)
        u_BLE = self.conv(u_BLE)
        if z_BLE is None:
            y_BLE = self.mixer(u_BLE)
        elif self.mixer.takes_gate:
            y_BLE = self.mixer(u_BLE, z_BLE)
        else:
            y_BLE = self.mixer(u_BLE) * silu(z_BLE)
        return cast(Tensor, self.output_projection(y_BLE))

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Any, Any]:
        """The states of the short convolution and of the mixer."""
        return self.conv.initial_state(batch_size, max_length), self.mixer.initial_state(batch_size, max_length)

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: tuple[Any, Any]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Any, Any]]:
        """One token."""
        conv_state, mixer_state = state
        u_BE, z_BE = self._stream_and_gate(x_BD)
        u_BE, conv_state = self.conv.step(u_BE, conv_state)
        if z_BE is not None and self.mixer.takes_gate:
            y_BE, mixer_state = self.mixer.step(u_BE, mixer_state, z_BE)  # type: ignore[call-arg]  # it takes the gate
        else:
            y_BE, mixer_state = self.mixer.step(u_BE, mixer_state)
            y_BE = y_BE if z_BE is None else y_BE * silu(z_BE)
        return self.output_projection(y_BE), (conv_state, mixer_state)

    def _stream_and_gate(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """u and z, or u alone."""
        if not self._has_gate:
            return self.input_projection(x), None
        u, z = self.input_projection(x).chunk(2, dim=-1)
        return u, z
