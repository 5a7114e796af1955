"""What a block is: the maps, gates and short convolutions of one layer around a mixer; and the parts that blocks share.

A block is a branch of the residual stream, (batch, length, width) to the same shape. Its last linear map is called
`output_projection`, which the shell scales to the depth.
"""

# B batch, L length, E channels, W taps of the short convolution, K past of it (W - 1)

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import silu

from kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from models.mixer import Mixer, Sizes
from suite.errors import UsageError
from suite.spec import NonNegativeFloat, NonNegativeInt, PositiveInt, Settings

_HIDDEN_MULTIPLE = 8


class BlockOptions(Settings):
    """Settings of every block."""

    expand: PositiveInt = 1
    """Channels inside per channel of the shell."""
    conv_width: NonNegativeInt = 0
    """Tokens that the short convolution sees; 0 leaves it out."""
    mlp_ratio: NonNegativeFloat = 0.0
    """Hidden units of a gated MLP behind the block, per channel of the shell, rounded up to eights; 0 for none."""


class Block(nn.Module, ABC):
    """One layer's branch around a mixer. A subclass has a `name`, a docstring and `Options`."""

    name: ClassVar[str]
    """How it is called before the colon of a composition."""
    Options: ClassVar[type[BlockOptions]] = BlockOptions

    def __init__(self, width: int, mixer: type[Mixer], options: Any) -> None:
        super().__init__()

    @abstractmethod
    def initial_state(self, batch_size: int, max_length: int) -> Any:
        """The state before the first of at most `max_length` tokens: tensors in tuples, or None."""

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token, (batch, width), and the state; gives the output and the next state."""


def square(mixer: type[Mixer], sizes: Sizes, options: Any) -> Mixer:
    """The mixer, for a block that multiplies what goes out with something of the size of what goes in.

    Raises:
        UsageError: the mixer's settings give it another size.
    """
    made = mixer(sizes, options)
    if made.output_size != sizes.channels:
        raise UsageError(
            f"the mixer gives {made.output_size} channels and the block multiplies them with {sizes.channels}. Leave "
            "head_size out, or use the plain block"
        )
    return made


class ShortConv(nn.Module):
    """A causal convolution of each channel over a few tokens. Its state is the tokens that it still sees."""

    def __init__(self, channels: int, width: int, activation: Literal["silu"] | None) -> None:
        super().__init__()
        bound = 1 / math.sqrt(width)
        self.weight = nn.Parameter(torch.empty(channels, width).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self._activation = activation

    def forward(self, x_BLE: Float[Tensor, "batch length channels"]) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from zeros."""
        return causal_conv1d(x_BLE, self.weight, self.bias, activation=self._activation)

    def initial_state(self, batch_size: int, max_length: int) -> Tensor:
        """Zeros: the last inputs, (batch, channels, past)."""
        channels, width = self.weight.shape
        return self.weight.new_zeros(batch_size, channels, width - 1)

    def step(
        self, x_BE: Float[Tensor, "batch channels"], past_BEK: Tensor
    ) -> tuple[Float[Tensor, "batch channels"], Tensor]:
        """One token."""
        return causal_conv1d_step(past_BEK, x_BE, self.weight, self.bias, activation=self._activation)

    def flops_per_token(self, length: int) -> int:
        """A product and a sum for each tap."""
        return 2 * self.weight.numel()


class Pointwise(nn.Module):
    """What stands in the place of a short convolution that is left out: its activation, without memory."""

    def __init__(self, activation: Literal["silu"] | None) -> None:
        super().__init__()
        self._activation = activation

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The activation."""
        return silu(x) if self._activation == "silu" else x

    def initial_state(self, batch_size: int, max_length: int) -> None:
        """Nothing to remember."""

    def step(self, x_BE: Float[Tensor, "batch channels"], state: None) -> tuple[Float[Tensor, "batch channels"], None]:
        """The same map."""
        return self(x_BE), None


def short_conv(channels: int, width: int, activation: Literal["silu"] | None = None) -> ShortConv | Pointwise:
    """A short convolution over `width` tokens with its activation, or the activation alone if `width` is 0."""
    return ShortConv(channels, width, activation) if width else Pointwise(activation)


class MLP(nn.Module):
    """A gated MLP on each token by itself, W_2 (silu(W_g x) * W_1 x) (Shazeer 2020, arXiv:2002.05202). No state.

    `input_projection` is W_g and W_1 in one, `output_projection` W_2.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        hidden = _HIDDEN_MULTIPLE * math.ceil(ratio * width / _HIDDEN_MULTIPLE)
        self.input_projection = nn.Linear(width, 2 * hidden, bias=False)
        self.output_projection = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        """Each token by itself."""
        gate, value = self.input_projection(x).chunk(2, dim=-1)
        return cast(Tensor, self.output_projection(silu(gate) * value))

    def initial_state(self, batch_size: int, max_length: int) -> None:
        """Nothing to remember."""

    def step(self, x_BD: Float[Tensor, "batch width"], state: None) -> tuple[Float[Tensor, "batch width"], None]:
        """The same map."""
        return self(x_BD), None
