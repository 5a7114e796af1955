"""Layers of the package flash-linear-attention, by those who published most of them, behind the contract of all models.

They are one residual branch each, with projections, short convolutions and gates of their own, and run on a GPU only.
What is measured is theirs whole, single steps included.
"""

# B batch, L length, D width

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from kernels.dispatch import note
from models.adapters.packages import Package, expect_gpu
from models.state import step_through
from suite.errors import UsageError
from suite.plugin import Model
from suite.spec import PositiveInt, Settings, ShellSettings

_PACKAGE = Package(
    "flash-linear-attention", first_version=(0, 6), way_out="Install it: pip install flash-linear-attention"
)


class _Layer(Model):
    """A layer of theirs."""

    layer: ClassVar[str]
    """What they call it."""

    class Options(Settings):
        """Settings of the layer."""

        num_heads: PositiveInt = 4
        settings: dict[str, Any] = Field(default_factory=dict)
        """Further arguments of the layer, by its own names."""

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One layer of theirs.

        Raises:
            UsageError: a setting does not exist or fit, or the package is missing.
        """
        make = _PACKAGE.get(self.name, "fla.layers", self.layer)
        arguments = {"num_heads": self.options.num_heads, **self._sizes(shell.width), **self.options.settings}
        try:
            layer = make(hidden_size=shell.width, layer_idx=0, **arguments)
        except (AssertionError, TypeError, ValueError) as error:
            raise UsageError(
                f"{self.name}: {self.layer} does not take {arguments} at width {shell.width}: {error}"
            ) from error
        return [FlaBranch(layer, shell.width, self.name)]

    def _sizes(self, width: int) -> dict[str, int]:
        """What the layer does not derive from the width itself."""
        return {}


class FlaGLA(_Layer):
    """Gated linear attention (Yang et al. 2023, arXiv:2312.06635), from the package flash-linear-attention."""

    name = "fla-gla"
    layer = "GatedLinearAttention"


class FlaDeltaNet(_Layer):
    """DeltaNet (Yang et al. 2024, arXiv:2406.06484), from the package flash-linear-attention."""

    name = "fla-deltanet"
    layer = "DeltaNet"


class FlaGatedDeltaNet(_Layer):
    """Gated DeltaNet (Yang et al. 2024, arXiv:2412.06464), from the package flash-linear-attention."""

    name = "fla-gated-deltanet"
    layer = "GatedDeltaNet"

    def _sizes(self, width: int) -> dict[str, int]:
        """Keys of three quarters of the width, as in their models."""
        return {"head_dim": 3 * width // (4 * self.options.num_heads)}


class FlaBranch(nn.Module):
    """A layer of the package. Its state is its own: what its recurrence holds, and its convolutions' last inputs."""

    def __init__(self, layer: nn.Module, width: int, operation: str) -> None:
        super().__init__()
        self.layer: Any = layer
        self._width, self._operation = width, operation

    @property
    def output_projection(self) -> nn.Module:
        """Their last linear map, under the name by which the shell scales it."""
        last: nn.Module = self.layer.o_proj
        return last

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state.

        Raises:
            DeviceError: x is not on a GPU.
        """
        return self._run(x_BLD, None)

    def prefill(
        self,
        x_BLD: Float[Tensor, "batch length width"],
        *,
        max_length: int,
        sequence_starts: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length width"], dict[str, Any]]:
        """The same and the state after it; documents are stepped through."""
        if sequence_starts is not None:
            return step_through(self, x_BLD, max_length=max_length, sequence_starts=sequence_starts)
        cache = _Cache(None)
        y_BLD = self._run(x_BLD, cache)
        return y_BLD, cache.filled()

    def initial_state(self, batch_size: int, max_length: int) -> dict[str, Any]:
        """Zeros, of the shapes that a token leaves."""
        weight = self.layer.o_proj.weight
        with torch.no_grad():
            _, state = self.prefill(weight.new_zeros(batch_size, 1, self._width), max_length=1)
        zeros: dict[str, Any] = tree_map_only(Tensor, torch.zeros_like, state)
        return zeros

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: dict[str, Any]
    ) -> tuple[Float[Tensor, "batch width"], dict[str, Any]]:
        """One token.

        Raises:
            DeviceError: x is not on a GPU.
        """
        cache = _Cache(state)
        y_B1D = self._run(x_BD.unsqueeze(1), cache)
        return y_B1D[:, 0], cache.filled()

    def flops_per_token(self, length: int) -> float:
        """Raises UsageError: what their kernels do, they do not say."""
        raise UsageError(
            f"{self._operation} does not say how many operations it does. Match by parameters or by state instead"
        )

    def _run(self, x_BLD: Tensor, cache: _Cache | None) -> Tensor:
        expect_gpu(self._operation, x_BLD)
        note(self._operation, "fla")
        y_BLD: Tensor = self.layer(x_BLD, past_key_values=cache, use_cache=cache is not None)[0]
        return y_BLD


class _Cache:
    """What their layers ask of a cache, for the one layer that there is."""

    def __init__(self, state: dict[str, Any] | None) -> None:
        self._state = state

    def __len__(self) -> int:
        return 0 if self._state is None else 1

    def __getitem__(self, layer: int) -> dict[str, Any]:
        return self.filled()

    def update(self, *, recurrent_state: Any = None, conv_state: Any = None, **_: Any) -> dict[str, Any]:
        """Takes what the layer leaves."""
        self._state = {"recurrent_state": recurrent_state, "conv_state": conv_state}
        return self._state

    def filled(self) -> dict[str, Any]:
        """The state, once there is one."""
        assert self._state is not None
        return self._state
