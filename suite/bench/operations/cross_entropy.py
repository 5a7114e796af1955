"""Linear map to a vocabulary and its loss, on the rows of a training batch."""

# L rows, D width, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cross_entropy import OPERATION, linear_cross_entropy
from suite.bench.benchmark import Inputs, KernelBenchmark, Shape, Work


class CrossEntropy(KernelBenchmark):
    """Floors: one matrix product forward and two backward; the logits need never reach memory."""

    operation = OPERATION
    axes = {"L": None, "D": None, "V": None}
    shapes = {
        "cuda": ("L16384_D768_V50277", "L16384_D2048_V32000", "L4096_D512_V256", "L1001_D130_V1003"),
        "cpu": ("L512_D256_V8192", "L777_D65_V257"),
        "quick": ("L256_D64_V1024",),
    }
    check_shapes = ("L256_D64_V512", "L333_D65_V257")
    baselines = ("whole",)

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        rows, width, vocab = (shape[axis] for axis in "LDV")

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=device)

        return {
            "x": normal(rows, width).to(dtype),
            "weight": (normal(vocab, width) / width**0.5).to(dtype),
            "targets": torch.randint(vocab, (rows,), generator=generator, device=device),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        return linear_cross_entropy(inputs["x"], inputs["weight"], inputs["targets"], implementation=implementation)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        rows, width, vocab = (shape[axis] for axis in "LDV")
        wide, product = rows * width + vocab * width, rows * width * vocab
        forward = Work(
            bytes=bytes_per_value * wide + 8 * rows, special_functions=rows * vocab, matrix_flops=2 * product
        )
        backward = Work(bytes=bytes_per_value * 2 * wide + 8 * rows, matrix_flops=2 * 2 * product)
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"L{length}_D64_V512" if length < 20_000 else None


BENCHMARK = CrossEntropy()
