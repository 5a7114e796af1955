"""The selective scan as a Mamba block calls it: step sizes through bias and softplus, skip, gate."""

# B batch, L length, D channels, N state

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from kernels.selective_scan import OPERATION, selective_scan
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work

_PER_POSITION = ("u", "delta", "B", "C", "z")
_CHUNK = 512

# Called with arguments by name from a dictionary, which its overloads cannot follow.
_scan: Callable[..., Any] = selective_scan


class SelectiveScan(KernelBenchmark):
    """Floors: N + 4 special functions for each (position, channel) forward, of which four for softplus and gate."""

    operation = OPERATION
    axes = {"B": None, "L": None, "D": None, "N": 16}
    shapes = {
        "cuda": (
            "B8_L2048_D2048",
            "B1_L65536_D2048",
            "B2_L16384_D5120",
            "B1_L1048576_D1024",
            "B64_L256_D1024",
            "B1_L2048_D2048",
            "B3_L1000_D1001",
            "B1_L777_D64",
            "B5_L4097_D130",
        ),
        "cpu": ("B1_L512_D1536", "B8_L64_D128", "B1_L2048_D256", "B3_L777_D65"),
        "quick": ("B2_L256_D128", "B1_L333_D65"),
    }
    check_shapes = ("B2_L1024_D64", "B3_L333_D65")
    baselines = ("mamba_ssm", "mambapy")

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        batch, length, channels, state = (shape[axis] for axis in "BLDN")

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=device, dtype=dtype)

        # u and z are halves of one projection, B and C slices of another, behind the low-rank step sizes.
        rank = -(-channels // 32)
        u_BLD, z_BLD = normal(batch, length, 2 * channels).chunk(2, dim=-1)
        _, B_BLN, C_BLN = torch.split(normal(batch, length, rank + 2 * state), [rank, state, state], dim=-1)
        step = torch.rand(channels, generator=generator, device=device).mul_(4.6).sub_(6.9).exp_()
        return {
            "u": u_BLD,
            "delta": normal(batch, length, channels),
            "A": -torch.arange(1.0, state + 1, device=device).repeat(channels, 1),
            "B": B_BLN,
            "C": C_BLN,
            "D": torch.ones(channels, device=device),
            "z": z_BLD,
            # Mamba starts with step sizes from 0.001 to 0.1: what softplus makes of this bias.
            "delta_bias": step + torch.log(-torch.expm1(-step)),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        y: Tensor = _scan(**inputs, delta_softplus=True, implementation=implementation)
        return y

    def specification(self, inputs: Inputs) -> Tensor:
        # In pieces: autograd would write zeros as long as the whole sequence for every position it looks at.
        pieces = {name: torch.split(inputs[name], _CHUNK, dim=1) for name in _PER_POSITION}
        parameters = {name: inputs[name] for name in inputs if name not in _PER_POSITION}
        outputs, state = [], None
        for piece in zip(*pieces.values(), strict=True):
            y, state = _scan(
                **dict(zip(pieces, piece, strict=True)),
                **parameters,
                delta_softplus=True,
                initial_state=state,
                return_final_state=True,
                implementation="reference",
            )
            outputs.append(y)
        return torch.cat(outputs, dim=1)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        batch, length, channels, state = (shape[axis] for axis in "BLDN")
        wide, narrow = batch * length * channels, batch * length * state
        parameter_bytes = 4 * channels * (state + 2)
        forward = Work(
            bytes=bytes_per_value * (4 * wide + 2 * narrow) + parameter_bytes,
            special_functions=wide * (state + 4),
            float32_operations=4 * wide * state,
        )
        # Recomputes the decays; sigmoid(x) of the softplus' gradient is 1 - exp(-softplus(x)).
        backward = Work(
            bytes=bytes_per_value * (7 * wide + 4 * narrow) + 2 * parameter_bytes,
            special_functions=wide * (state + 5),
            float32_operations=12 * wide * state,
        )
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_D{64 if length < 4096 else 4}"


def _mamba_ssm(inputs: Inputs) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    transposed = {name: inputs[name].mT for name in _PER_POSITION}
    y: Tensor = selective_scan_fn(**(inputs | transposed), delta_softplus=True)
    return y.mT


def _mambapy(inputs: Inputs) -> Tensor:
    from mambapy.pscan import pscan

    u, z = inputs["u"], inputs["z"]
    delta = softplus(inputs["delta"] + inputs["delta_bias"]).unsqueeze(-1)
    h = pscan(torch.exp(delta * inputs["A"]), delta * inputs["B"].unsqueeze(2) * u.unsqueeze(-1))
    y = (h @ inputs["C"].unsqueeze(-1).to(h.dtype)).squeeze(-1) + inputs["D"] * u
    gated: Tensor = (y * silu(z)).to(u.dtype)
    return gated


SelectiveScan.peers = (
    Peer(name="mamba_ssm", module="mamba_ssm", call=_mamba_ssm, time_contiguous=_PER_POSITION),
    Peer(name="mambapy", module="mambapy", call=_mambapy, devices=("cuda", "cpu")),
)

BENCHMARK = SelectiveScan()
