"""Mamba and Mamba-2 of the package mamba-ssm, by the papers' authors, behind the contract of every other model.

They run on a GPU only. What is measured is theirs whole: projections, convolution, scan and single steps.
"""

# B batch, L length, D width

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kernels.dispatch import note
from models.adapters.packages import Package, expect_gpu
from suite.errors import UsageError
from suite.plugin import Model
from suite.spec import PositiveInt, Settings, ShellSettings

_PACKAGE = Package(
    "mamba-ssm",
    first_version=(2, 0),
    way_out="Install it where there is a CUDA toolkit: pip install --no-build-isolation mamba-ssm causal-conv1d",
)


class OfficialMamba(Model):
    """Mamba as its authors wrote it, from the package mamba-ssm."""

    name = "official-mamba"

    class Options(Settings):
        """Settings of Mamba."""

        state_size: PositiveInt = 16
        conv_width: PositiveInt = 4
        expand: PositiveInt = 2

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One block of theirs."""
        options = self.options
        layer = _PACKAGE.get(self.name, "mamba_ssm", "Mamba")(
            d_model=shell.width, d_state=options.state_size, d_conv=options.conv_width, expand=options.expand
        )
        return [OfficialBranch(layer, self.name)]


class OfficialMamba2(Model):
    """Mamba-2 as its authors wrote it, from the package mamba-ssm."""

    name = "official-mamba2"

    class Options(Settings):
        """Settings of Mamba-2."""

        state_size: PositiveInt = 128
        conv_width: PositiveInt = 4
        expand: PositiveInt = 2
        head_size: PositiveInt = 64

    def branches(self, shell: ShellSettings) -> Sequence[nn.Module]:
        """One block of theirs."""
        options = self.options
        channels = options.expand * shell.width
        if channels % options.head_size:
            raise UsageError(
                f"{self.name}: number of channels {channels} is not a multiple of head_size {options.head_size}"
            )
        layer = _PACKAGE.get(self.name, "mamba_ssm", "Mamba2")(
            d_model=shell.width,
            d_state=options.state_size,
            d_conv=options.conv_width,
            expand=options.expand,
            headdim=options.head_size,
        )
        return [OfficialBranch(layer, self.name)]


class OfficialBranch(nn.Module):
    """A layer of the package. Its state is its own, the last inputs of the convolution and h."""

    def __init__(self, layer: nn.Module, operation: str) -> None:
        super().__init__()
        self.layer: Any = layer
        self._operation = operation

    @property
    def output_projection(self) -> nn.Module:
        """Their last linear map, under the name by which the shell scales it."""
        last: nn.Module = self.layer.out_proj
        return last

    def forward(self, x_BLD: Float[Tensor, "batch length width"]) -> Float[Tensor, "batch length width"]:
        """The whole sequence, from an empty state.

        Raises:
            DeviceError: x is not on a GPU.
        """
        expect_gpu(self._operation, x_BLD)
        note(self._operation, "mamba_ssm")
        y_BLD: Tensor = self.layer(x_BLD)
        return y_BLD

    def initial_state(self, batch_size: int, max_length: int) -> tuple[Tensor, Tensor]:
        """Theirs; their convolution wants its past in the dtype of its inputs."""
        conv_state, ssm_state = self.layer.allocate_inference_cache(batch_size, max_length)
        device = conv_state.device.type
        if torch.is_autocast_enabled(device):
            conv_state = conv_state.to(torch.get_autocast_dtype(device))
        return conv_state, ssm_state

    def step(
        self, x_BD: Float[Tensor, "batch width"], state: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "batch width"], tuple[Tensor, Tensor]]:
        """One token.

        Raises:
            DeviceError: x is not on a GPU.
        """
        expect_gpu(self._operation, x_BD)
        note(self._operation, "mamba_ssm")
        y_B1D, *next_state = self.layer.step(x_BD.unsqueeze(1), *state)
        return y_B1D[:, 0], tuple(next_state)
