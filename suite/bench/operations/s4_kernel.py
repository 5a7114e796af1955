"""The convolution kernel of S4, generated anew in every training step; float32 whatever the precision of the model."""

# D channels, L length, N half of the state

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.s4_kernel import OPERATION, s4_kernel
from suite.bench.benchmark import Inputs, KernelBenchmark, Shape, Work


class S4Kernel(KernelBenchmark):
    """Floors: bytes alone; how much arithmetic is needed depends on the algorithm."""

    operation = OPERATION
    dtypes = ("float32",)
    axes = {"D": None, "L": None, "N": 32}
    shapes = {
        "cuda": ("D1024_L2048", "D1024_L16384", "D65_L1001"),
        "cpu": ("D256_L2048", "D65_L777"),
        "quick": ("D64_L256",),
    }
    check_shapes = ("D16_L256", "D17_L333_N5")

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        channels, state = shape["D"], shape["N"]

        def normal() -> Tensor:
            parts = torch.randn(2, channels, state, generator=generator, device=device)
            return torch.complex(parts[0], parts[1])

        frequency = math.pi * torch.arange(state, device=device).repeat(channels, 1)
        step = torch.rand(channels, generator=generator, device=device)
        return {
            "delta": torch.exp(step * math.log(100) + math.log(0.001)),
            "Lambda": torch.complex(torch.full_like(frequency, -0.5), frequency),
            "P": normal(),
            "B": normal(),
            "C": normal(),
            "positions": torch.arange(shape["L"], device=device),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        delta, Lambda, P, B, C = (inputs[name] for name in ("delta", "Lambda", "P", "B", "C"))
        return s4_kernel(delta, Lambda, P, B, C, len(inputs["positions"]), implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        channels, length, state = (shape[axis] for axis in "DLN")
        parameter_bytes = 4 * channels * (1 + 8 * state)
        return (
            Work(bytes=4 * channels * length + parameter_bytes),
            Work(bytes=4 * channels * length + 2 * parameter_bytes),
        )

    def of_length(self, length: int) -> str | None:
        return f"D4_L{length}_N8" if length < 4096 else None


BENCHMARK = S4Kernel()
