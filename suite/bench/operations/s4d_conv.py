"""S4D over a whole sequence, from its parameters: kernel and convolution together, as a layer runs them."""

# B batch, L length, D channels, N half of the state

from __future__ import annotations

import math

import torch
from torch import Tensor

from kernels.ssm_conv import OPERATION, s4d_conv
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work


class S4dConv(KernelBenchmark):
    """Floors: bytes alone; how much arithmetic is needed depends on the algorithm."""

    operation = OPERATION
    axes = {"B": None, "L": None, "D": None, "N": 32}
    shapes = {
        "cuda": ("B8_L2048_D1024", "B8_L16384_D1024", "B1_L1048576_D1024", "B3_L1001_D65"),
        "cpu": ("B1_L2048_D256", "B4_L512_D64", "B3_L777_D65"),
        "quick": ("B2_L256_D64",),
    }
    check_shapes = ("B2_L512_D32", "B3_L333_D33")
    baselines = ("vandermonde_fft",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        batch, length, channels, state = (shape[axis] for axis in "BLDN")

        def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.randn(*size, generator=generator, device=device, dtype=dtype)

        step = torch.rand(channels, generator=generator, device=device)
        frequency = math.pi * torch.arange(state, device=device).repeat(channels, 1)
        return {
            "u": normal(batch, length, channels, dtype=dtype),
            "delta": torch.exp(step * math.log(100) + math.log(0.001)),
            "A": torch.complex(torch.full_like(frequency, -0.5), frequency),
            "C": torch.complex(normal(channels, state), normal(channels, state)),
            "D": normal(channels),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        u, delta, A, C, D = (inputs[name] for name in ("u", "delta", "A", "C", "D"))
        return s4d_conv(u, delta, A, C, D=D, implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        batch, length, channels, state = (shape[axis] for axis in "BLDN")
        wide, parameter_bytes = batch * length * channels, 4 * channels * (2 + 4 * state)
        forward = Work(bytes=bytes_per_value * 2 * wide + parameter_bytes)
        backward = Work(bytes=bytes_per_value * 3 * wide + 2 * parameter_bytes)
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_D8" if length < 4096 else None


def _vandermonde_fft(inputs: Inputs) -> Tensor:
    """As it is usually written: the whole kernel by powers of the eigenvalues, then a product of spectra."""
    u, length = inputs["u"].mT.float(), inputs["u"].shape[1]
    exponent = inputs["delta"].unsqueeze(-1) * inputs["A"]
    weight = inputs["C"] * (torch.exp(exponent) - 1) / inputs["A"]
    powers = torch.exp(exponent.unsqueeze(-1) * torch.arange(length, device=u.device))
    kernel = 2 * torch.einsum("dn, dnl -> dl", weight, powers).real
    y: Tensor = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length), n=2 * length)
    return (y[..., :length].mT + inputs["D"] * inputs["u"]).to(inputs["u"].dtype)


S4dConv.peers = (
    Peer(
        name="vandermonde_fft",
        module="torch",
        call=_vandermonde_fft,
        devices=("cuda", "cpu"),
        time_contiguous=("u",),
    ),
)

BENCHMARK = S4dConv()
