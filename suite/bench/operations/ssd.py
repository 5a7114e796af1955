"""State space duality as a Mamba-2 block calls it: step sizes through bias and softplus, skip, one group."""

# B batch, L length, H heads, P head size, N state

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.ssd import OPERATION, ssd
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work

_PER_POSITION = ("x", "delta", "B", "C")
_CHUNK = 512

# Called with arguments by name from a dictionary, which its overloads cannot follow.
_ssd: Callable[..., Any] = ssd


class Ssd(KernelBenchmark):
    """Floors: bytes alone; how much arithmetic is needed depends on the algorithm."""

    operation = OPERATION
    axes = {"B": None, "L": None, "H": None, "P": 64, "N": 128}
    shapes = {
        "cuda": ("B8_L2048_H24", "B1_L65536_H32", "B2_L1001_H5_P32_N64"),
        "cpu": ("B1_L512_H8", "B2_L777_H3_P32_N16"),
        "quick": ("B2_L256_H2_P32_N16",),
    }
    check_shapes = ("B2_L512_H2_N32", "B1_L333_H3_P16_N24")
    baselines = ("mamba_ssm",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        batch, length, heads, head_size, state = (shape[axis] for axis in "BLHPN")

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=device, dtype=dtype)

        # Slices of one convolved projection.
        projected = normal(batch, length, heads * head_size + 2 * state)
        x, B, C = torch.split(projected, [heads * head_size, state, state], dim=-1)
        step = torch.rand(heads, generator=generator, device=device).mul_(4.6).sub_(6.9).exp_()
        return {
            "x": x.view(batch, length, heads, head_size),
            "delta": normal(batch, length, heads),
            "A": -1 - 15 * torch.rand(heads, generator=generator, device=device),
            "B": B.view(batch, length, 1, state),
            "C": C.view(batch, length, 1, state),
            "D": torch.ones(heads, device=device),
            # Mamba-2 starts with step sizes from 0.001 to 0.1: what softplus makes of this bias.
            "delta_bias": step + torch.log(-torch.expm1(-step)),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        y: Tensor = _ssd(**inputs, delta_softplus=True, implementation=implementation)
        return y

    def specification(self, inputs: Inputs) -> Tensor:
        # In pieces: autograd would write zeros as long as the whole sequence for every position it looks at.
        pieces = {name: torch.split(inputs[name], _CHUNK, dim=1) for name in _PER_POSITION}
        parameters = {name: inputs[name] for name in inputs if name not in _PER_POSITION}
        outputs, state = [], None
        for piece in zip(*pieces.values(), strict=True):
            y, state = _ssd(
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
        batch, length, heads, head_size, state = (shape[axis] for axis in "BLHPN")
        tokens, parameter_bytes = batch * length, 3 * 4 * heads
        forward = Work(
            bytes=bytes_per_value * tokens * (2 * heads * head_size + heads + 2 * state) + parameter_bytes,
        )
        backward = Work(
            bytes=bytes_per_value * tokens * (3 * heads * head_size + 2 * heads + 4 * state) + 2 * parameter_bytes,
        )
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_H2_P16_N16" if length < 20_000 else None


def _mamba_ssm(inputs: Inputs) -> Tensor:
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    x, delta, A, B, C = (inputs[name] for name in ("x", "delta", "A", "B", "C"))
    y: Tensor = mamba_chunk_scan_combined(
        x, delta, A, B, C, chunk_size=256, D=inputs["D"], dt_bias=inputs["delta_bias"], dt_softplus=True
    )
    return y


Ssd.peers = (Peer(name="mamba_ssm", module="mamba_ssm", call=_mamba_ssm),)

BENCHMARK = Ssd()
