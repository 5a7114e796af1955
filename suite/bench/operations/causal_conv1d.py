"""The short convolution as a Mamba block calls it: four taps, bias, SiLU."""

# B batch, L length, D channels, W width

from __future__ import annotations

import torch
from torch import Tensor

from kernels.causal_conv1d import OPERATION, causal_conv1d
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work


class CausalConv1d(KernelBenchmark):
    """Floors: bytes; a SiLU is two special functions."""

    operation = OPERATION
    axes = {"B": None, "L": None, "D": None, "W": 4}
    shapes = {
        "cuda": ("B8_L2048_D2048", "B1_L65536_D2048", "B64_L256_D1024", "B1_L2048_D2048", "B3_L1000_D1001"),
        "cpu": ("B1_L512_D1536", "B1_L2048_D256", "B3_L777_D65"),
        "quick": ("B2_L256_D128", "B1_L333_D65"),
    }
    check_shapes = ("B2_L512_D64", "B3_L333_D65")
    baselines = ("causal_conv1d", "torch")

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        batch, length, channels, width = (shape[axis] for axis in "BLDW")

        def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(*size, generator=generator, device=device, dtype=dtype)

        # Half of a projection; the other half is the gate.
        x_BLD, _ = normal(batch, length, 2 * channels, dtype=dtype).chunk(2, dim=-1)
        return {"x": x_BLD, "weight": normal(channels, width) / width**0.5, "bias": normal(channels)}

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
        return causal_conv1d(x, weight, bias, activation="silu", implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        batch, length, channels, width = (shape[axis] for axis in "BLDW")
        wide, parameter_bytes = batch * length * channels, 4 * channels * (width + 1)
        forward = Work(
            bytes=bytes_per_value * 2 * wide + parameter_bytes,
            special_functions=2 * wide,
            float32_operations=(width + 1) * wide,
        )
        backward = Work(
            bytes=bytes_per_value * 3 * wide + 2 * parameter_bytes,
            special_functions=2 * wide,
            float32_operations=3 * width * wide,
        )
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_D32" if length < 4096 else None


def _causal_conv1d(inputs: Inputs) -> Tensor:
    from causal_conv1d import causal_conv1d_fn

    y: Tensor = causal_conv1d_fn(inputs["x"].mT, inputs["weight"], inputs["bias"], activation="silu")
    return y.mT


CausalConv1d.peers = (Peer(name="causal_conv1d", module="causal_conv1d", call=_causal_conv1d, time_contiguous=("x",)),)

BENCHMARK = CausalConv1d()
