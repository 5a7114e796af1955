"""The convolution kernel of S4D, generated anew in every training step; float32 whatever the precision of the model."""

# D channels, L length, N half of the state

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.ssm_kernel import OPERATION, s4d_kernel
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work


class S4dKernel(KernelBenchmark):
    """Floors: bytes alone; few exponentials are needed, their number depends on the algorithm."""

    operation = OPERATION
    dtypes = ("float32",)
    axes = {"D": None, "L": None, "N": 32}
    shapes = {
        "cuda": ("D1024_L2048", "D1024_L16384", "D1024_L131072", "D65_L1001"),
        "cpu": ("D256_L2048", "D64_L512", "D65_L777"),
        "quick": ("D64_L256",),
    }
    check_shapes = ("D32_L512", "D33_L333")
    baselines = ("vandermonde",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        channels, state = shape["D"], shape["N"]

        def uniform(*size: int) -> Tensor:
            return torch.rand(*size, generator=generator, device=device)

        frequency = math.pi * torch.arange(state, device=device).repeat(channels, 1)
        parts = torch.randn(2, channels, state, generator=generator, device=device)
        return {
            "delta": torch.exp(uniform(channels) * math.log(100) + math.log(0.001)),
            "A": torch.complex(torch.full_like(frequency, -0.5), frequency),
            "C": torch.complex(parts[0], parts[1]),
            "positions": torch.arange(shape["L"], device=device),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        length = len(inputs["positions"])
        return s4d_kernel(inputs["delta"], inputs["A"], inputs["C"], length, implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        channels, length, state = (shape[axis] for axis in "DLN")
        parameter_bytes = 4 * channels * (1 + 4 * state)
        return (
            Work(bytes=4 * channels * length + parameter_bytes),
            Work(bytes=4 * channels * length + 2 * parameter_bytes),
        )

    def of_length(self, length: int) -> str | None:
        return f"D8_L{length}" if length < 4096 else None


def _vandermonde(inputs: Inputs) -> Tensor:
    """As it is usually written: every power of every eigenvalue, then the sum."""
    exponent = inputs["delta"].unsqueeze(-1) * inputs["A"]
    weight = inputs["C"] * (torch.exp(exponent) - 1) / inputs["A"]
    return 2 * torch.einsum("dn, dnl -> dl", weight, torch.exp(exponent.unsqueeze(-1) * inputs["positions"])).real


S4dKernel.peers = (Peer(name="vandermonde", module="torch", call=_vandermonde, devices=("cuda", "cpu")),)

BENCHMARK = S4dKernel()
