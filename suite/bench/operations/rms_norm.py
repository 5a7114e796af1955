"""Residual addition and norm before a branch: a float32 stream, a branch's output in the dtype of the model."""

# B batch, L length, D width

from __future__ import annotations

import torch
from torch import Tensor

from kernels.rms_norm import OPERATION, add_rms_norm
from suite.bench.benchmark import Inputs, KernelBenchmark, Shape, Work


class RmsNorm(KernelBenchmark):
    """Floors: bytes."""

    operation = OPERATION
    axes = {"B": None, "L": None, "D": None}
    shapes = {
        "cuda": ("B8_L2048_D768", "B8_L2048_D2048", "B1_L2048_D1024", "B3_L1000_D1001"),
        "cpu": ("B1_L512_D768", "B3_L777_D65"),
        "quick": ("B2_L256_D128",),
    }
    check_shapes = ("B2_L256_D64", "B3_L333_D65")
    baselines = ("torch",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        batch, length, width = (shape[axis] for axis in "BLD")

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=device)

        return {"x": normal(batch, length, width), "y": normal(batch, length, width).to(dtype), "weight": normal(width)}

    def call(self, inputs: Inputs, implementation: str) -> tuple[Tensor, Tensor]:
        x, y, weight = (inputs[name] for name in ("x", "y", "weight"))
        return add_rms_norm(x, y, weight, epsilon=1e-5, dtype=y.dtype, implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        wide = shape["B"] * shape["L"] * shape["D"]
        # The stream and its gradients are float32; the branch's output and the norm are of the model's dtype.
        forward = Work(bytes=(4 + 4 + 2 * bytes_per_value) * wide + 4 * shape["D"])
        backward = Work(bytes=(4 + 4 + 4 + 2 * bytes_per_value) * wide + 8 * shape["D"])
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_D64" if length < 20_000 else None


BENCHMARK = RmsNorm()
