"""Rotary positions: queries and keys side by side, among the values of one projection, turned by a table."""

# B batch, L length, H heads of queries and keys, S head size

from __future__ import annotations

import torch
from torch import Tensor

from kernels.rotary import OPERATION, rotate
from suite.bench.benchmark import Inputs, KernelBenchmark, Shape, Work

_COMPLEX_BYTES = 8


class Rotary(KernelBenchmark):
    """Floors: bytes."""

    operation = OPERATION
    axes = {"B": None, "L": None, "H": None, "S": None}
    shapes = {
        "cuda": ("B8_L2048_H24_S64", "B8_L2048_H32_S128", "B1_L16384_H32_S128"),
        "cpu": ("B1_L512_H8_S64",),
        "quick": ("B2_L64_H4_S16",),
    }
    check_shapes = ("B2_L64_H4_S16", "B3_L33_H5_S6")
    baselines = ("torch",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        batch, length, heads, size = (shape[axis] for axis in "BLHS")
        maps = torch.randn(batch, length, 2 * heads, size, generator=generator, device=device).to(dtype)
        angles = torch.randn(length, size // 2, generator=generator, device=device)
        turns = torch.view_as_real(torch.polar(torch.ones_like(angles), angles))
        # Their bits, as whole numbers: a check would ask for the gradient of anything else, and there is none.
        return {"x": maps[:, :, :heads], "turns": turns.view(torch.int32)}

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        turns = torch.view_as_complex(inputs["turns"].view(torch.float32))
        return rotate(inputs["x"], turns, implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        num_values = shape["B"] * shape["L"] * shape["H"] * shape["S"]
        # One read and one write, and the table; the gradient is the same turn backwards.
        once = Work(bytes=2 * bytes_per_value * num_values + _COMPLEX_BYTES * shape["L"] * shape["S"] // 2)
        return once, once

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_H4_S64" if length < 20_000 else None


BENCHMARK = Rotary()
