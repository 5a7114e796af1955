"""What a block is: the maps, gates and short convolutions of one layer around a mixer; and the parts that blocks share.

A block is a branch of the residual stream, (batch, length, width) to the same shape. Its last linear map is called
`output_projection`, which the shell scales to the depth.
"""

# B batch, L length, E channels, W taps of the short convolution, K past of it (W - 1)

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu

from kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from models.mixer import Mixer, Sizes
from suite.errors import UsageError
from suite.spec import NonNegativeFloat, NonNegativeInt, PositiveInt, Settings

_HIDDEN_MULTIPLE = 8

Part = Callable[..., tuple[Tensor, Any]]
"""One of the two things in a block that remember, at work: inputs become its output and the state that it leaves."""


class BlockOptions(Settings):
    """Settings of every block."""

    expand: PositiveInt = 1
    """Channels inside per channel of the shell."""
    conv_width: NonNegativeInt = 0
    """Tokens that the short convolution sees; 0 leaves it out."""
    mlp_ratio: NonNegativeFloat = 0.0
    """Hidden units of a gated MLP behind the block, per channel of the shell, rounded up to eights; 0 for none."""


class Block(nn.Module, ABC):
    """One layer's branch around a mixer. A subclass has a `name`, a docstring and `Options`.

    What it computes it says once, in `around`, for whole sequences, prompts and single tokens. Its state is that of its
    convolution and that of its mixer.
    """

    name: ClassVar[str]
    """How it is called before the colon of a composition."""
    Options: ClassVar[type[BlockOptions]] = BlockOptions

    conv: ShortConv | Pointwise
    mixer: Any

    def __init__(self, width: int, mixer: type[Mixer], options: Any) -> None:
        super().__init__()

    @property
    def parts(self) -> tuple[Any, Any]:
        """What remembers: the convolution, and what mixes."""
        return self.conv, self.mixer

    @abstractmethod
    def around(self, x: Float[Tensor, "... width"], conv: Part, mixer: Part) -> tuple[Float[Tensor, "... width"], Any]:
        """The output, and the states of `conv` and `mixer`: this block's `parts` over a sequence or for one token."""

    def forward(
        self,
        x: Float[Tensor, "batch length width"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state; from where a document starts as well."""

        def whole(part: nn.Module) -> Part:
            return lambda *inputs: (part(*inputs, sequence_starts=sequence_starts), None)

        y, _ = self.around(x, *map(whole, self.parts))
        return y

    def prefill(
        self,
        x: Float[Tensor, "batch length width"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], tuple[Any, Any]]:
        """The same and the states after it, with room for `max_length` tokens."""

        def filled(part: Any) -> Part:
            return functools.partial(part.prefill, max_length=max_length, sequence_starts=sequence_starts)

        return self.around(x, *map(filled, self.parts))

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Any, Any]:
        """The states before the first of at most `max_length` tokens."""
        conv, mixer = self.parts
        return conv.initial_state(batch_size, max_length), mixer.initial_state(batch_size, max_length)

    def step(
        self, x: Float[Tensor, "batch width"], state: tuple[Any, Any]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Any, Any]]:
        """One token and the states; gives the output and the next states."""

        def stepped(part: Any, part_state: Any) -> Part:
            return lambda x, *more: part.step(x, part_state, *more)

        return self.around(x, *map(stepped, self.parts, state))


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

    def forward(
        self,
        x_BLE: Float[Tensor, "batch length channels"],
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length channels"]:
        """The whole sequence, from zeros; from where a document starts as well."""
        return causal_conv1d(
            x_BLE, self.weight, self.bias, activation=self._activation, sequence_starts=sequence_starts
        )

    def prefill(
        self,
        x_BLE: Float[Tensor, "batch length channels"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length channels"], Tensor]:
        """The same and the last inputs."""
        y_BLE, past_BEK = causal_conv1d(
            x_BLE,
            self.weight,
            self.bias,
            activation=self._activation,
            sequence_starts=sequence_starts,
            return_final_state=True,
        )
        return y_BLE, past_BEK.to(self.weight.dtype)

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

    def forward(self, x: Float[Tensor, "..."], sequence_starts: Tensor | None = None) -> Float[Tensor, "..."]:
        """The activation."""
        return silu(x) if self._activation == "silu" else x

    def prefill(
        self, x: Float[Tensor, "..."], *, max_length: int, sequence_starts: Tensor | None = None
    ) -> tuple[Float[Tensor, "..."], None]:
        """The same, and nothing to remember."""
        return self(x), None

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

    def forward(
        self, x: Float[Tensor, "... width"], sequence_starts: Tensor | None = None
    ) -> Float[Tensor, "... width"]:
        """Each token by itself."""
        gate, value = self.input_projection(x).chunk(2, dim=-1)
        return cast(Tensor, self.output_projection(silu(gate) * value))

    def prefill(
        self, x: Float[Tensor, "... width"], *, max_length: int, sequence_starts: Tensor | None = None
    ) -> tuple[Float[Tensor, "... width"], None]:
        """The same, and nothing to remember."""
        return self(x), None

    def initial_state(self, batch_size: int, max_length: int) -> None:
        """Nothing to remember."""

    def step(self, x_BD: Float[Tensor, "batch width"], state: None) -> tuple[Float[Tensor, "batch width"], None]:
        """The same map."""
        return self(x_BD), None
