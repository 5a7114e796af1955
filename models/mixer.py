"""What a mixer is: the part of a model that moves information along the sequence. Blocks stand around it.

A mixer maps (batch, length, inputs) to (batch, length, channels), causally, in parallel over time and step by step with
the same result. It ends without a projection: the block brings the one back to the residual stream.

`forward(x, sequence_starts=None)` is the whole sequence: where `sequence_starts` is True a document begins, which sees
nothing before. A mixer whose kernel does not know documents runs them by `kernels.documents.run_documents`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Bool
from torch import Tensor, nn

from models.state import step_through
from suite.spec import Settings


@dataclass(frozen=True)
class Sizes:
    """How wide things are around a mixer."""

    width: int
    """Channels of the shell, D in the papers."""
    inputs: int
    """Channels that come in."""
    channels: int
    """Channels that go out, E in the papers; a mixer without an input map of its own has as many inputs."""


class Mixer(nn.Module, ABC):
    """A causal map along the sequence. A subclass has a `name`, a docstring and `Options`, as every plugin."""

    name: ClassVar[str]
    """How it is called after the colon of a composition: lower case, digits, `_`, `-`."""
    Options: ClassVar[type[Settings]] = Settings
    """Its settings; a composition joins them with those of the block."""
    is_linear: ClassVar[bool] = False
    """Whether the output is linear in the input: then a plain block puts GELU and a gated linear unit behind it."""
    has_input_map: ClassVar[bool] = False
    """Whether it maps its inputs to its channels itself, so that their numbers may differ."""
    takes_gate: ClassVar[bool] = False
    """Whether it takes a further input z and multiplies what it gives by silu(z), fused."""

    output_size: int
    """Channels that really go out: `sizes.channels`, except where a setting says otherwise."""

    def __init__(self, sizes: Sizes, options: Any) -> None:
        super().__init__()
        self.output_size = sizes.channels

    def prefill(
        self,
        x: Tensor,
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Tensor, Any]:
        """What `forward` gives, and the state after it: here token by token, which any mixer without a gate can."""
        return step_through(self, x, max_length=max_length, sequence_starts=sequence_starts)

    @abstractmethod
    def initial_state(self, batch_size: int, max_length: int) -> Any:
        """The state before the first of at most `max_length` tokens: zeros, the batch first, in tuples, or None."""

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One token, (batch, inputs), and the state; gives (batch, channels) and the next state."""
