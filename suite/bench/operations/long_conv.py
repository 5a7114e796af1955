"""The long convolution of S4 and Hyena: a float32 filter as long as the sequence, and the skip."""

# B batch, L length, D channels

from __future__ import annotations

import torch
from torch import Tensor

from kernels.long_conv import OPERATION, long_conv
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work


class LongConv(KernelBenchmark):
    """Floors: bytes alone; how much arithmetic is needed depends on the algorithm."""

    operation = OPERATION
    axes = {"B": None, "L": None, "D": None}
    shapes = {
        "cuda": ("B8_L2048_D1024", "B8_L16384_D1024", "B1_L131072_D1024", "B3_L1000_D129"),
        "cpu": ("B1_L2048_D256", "B4_L512_D64", "B3_L777_D65"),
        "quick": ("B2_L256_D64",),
    }
    check_shapes = ("B2_L256_D32", "B3_L333_D33")
    baselines = ("torch.fft",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        batch, length, channels = (shape[axis] for axis in "BLD")

        def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(*size, generator=generator, device=device, dtype=dtype)

        memory = torch.exp(torch.arange(length, device=device) * (-8.0 / length))
        return {
            "u": normal(batch, length, channels, dtype=dtype),
            "kernel": normal(channels, length) * memory / length**0.5,
            "D": normal(channels),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        return long_conv(**inputs, implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        batch, length, channels = (shape[axis] for axis in "BLD")
        wide, filter_bytes = batch * length * channels, 4 * channels * (length + 1)
        forward = Work(bytes=bytes_per_value * 2 * wide + filter_bytes)
        backward = Work(bytes=bytes_per_value * 3 * wide + 2 * filter_bytes)
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_D8" if length < 4096 else None


def _torch_fft(inputs: Inputs) -> Tensor:
    """As it is usually written."""
    u, kernel = inputs["u"].mT.float(), inputs["kernel"]
    size = 2 * u.shape[-1]
    y: Tensor = torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(kernel, n=size), n=size)[..., : u.shape[-1]]
    return (y.mT + inputs["D"] * inputs["u"]).to(inputs["u"].dtype)


LongConv.peers = (
    Peer(name="torch.fft", module="torch", call=_torch_fft, devices=("cuda", "cpu"), time_contiguous=("u",)),
)

BENCHMARK = LongConv()
