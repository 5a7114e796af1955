"""Causal attention in training: as many key heads as query heads."""

# B batch, L length, H heads, E head size

from __future__ import annotations

import torch
from torch import Tensor

from kernels.attention import OPERATION, causal_attention
from suite.bench.benchmark import Inputs, KernelBenchmark, Shape, Work


class Attention(KernelBenchmark):
    """Floors: two matrix products forward and five backward, half of each masked; an exponential for each score."""

    operation = OPERATION
    axes = {"B": None, "L": None, "H": None, "E": None}
    shapes = {
        "cuda": ("B8_L2048_H16_E128", "B2_L16384_H16_E128", "B8_L2048_H16_E64", "B3_L1001_H6_E64"),
        "cpu": ("B1_L512_H8_E64", "B1_L2048_H4_E32", "B3_L777_H2_E16"),
        "quick": ("B2_L256_H2_E32",),
    }
    check_shapes = ("B2_L256_H2_E64", "B1_L333_H3_E32")
    baselines = ("flash",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        size = [shape[axis] for axis in "BLHE"]
        return {name: torch.randn(*size, generator=generator, device=device, dtype=dtype) for name in ("q", "k", "v")}

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        return causal_attention(inputs["q"], inputs["k"], inputs["v"], implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        batch, length, heads, head_size = (shape[axis] for axis in "BLHE")
        seen = batch * heads * length * (length + 1) / 2
        wide = batch * length * heads * head_size
        forward = Work(bytes=bytes_per_value * 4 * wide, special_functions=seen, matrix_flops=2 * 2 * seen * head_size)
        backward = Work(bytes=bytes_per_value * 8 * wide, special_functions=seen, matrix_flops=5 * 2 * seen * head_size)
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_H1_E64" if length < 4096 else None


BENCHMARK = Attention()
