"""The linear scan on its own: gates between zero and one, inputs beside them."""

# B batch, L length, D channels

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.linear_scan import OPERATION, linear_scan
from suite.bench.benchmark import Inputs, KernelBenchmark, Peer, Shape, Work

_CHUNK = 512

# Its overloads cannot follow a state that may be None.
_scan: Callable[..., Any] = linear_scan


class LinearScan(KernelBenchmark):
    """Floors: bytes; a multiply-add for each entry is nothing beside them."""

    operation = OPERATION
    axes = {"B": None, "L": None, "D": None}
    shapes = {
        "cuda": ("B8_L2048_D1536", "B8_L8192_D1536", "B1_L65536_D1536", "B64_L256_D1024", "B3_L1000_D1001"),
        "cpu": ("B1_L512_D1536", "B8_L2048_D64", "B3_L777_D65"),
        "quick": ("B2_L256_D128", "B1_L333_D65"),
    }
    check_shapes = ("B2_L1024_D64", "B3_L333_D65")
    baselines = ("accelerated_scan", "mambapy")

    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        size = [shape[axis] for axis in "BLD"]
        # Memories from a step to some hundred.
        gate = torch.randn(size, generator=generator, device=device).mul_(2).add_(2).sigmoid_()
        return {
            "a": gate.to(dtype),
            "b": torch.randn(size, generator=generator, device=device, dtype=dtype),
        }

    def call(self, inputs: Inputs, implementation: str) -> Tensor:
        return linear_scan(inputs["a"], inputs["b"], implementation=implementation)

    def specification(self, inputs: Inputs) -> Tensor:
        # In pieces: autograd would write zeros as long as the whole sequence for every position it looks at.
        outputs, state = [], None
        for a, b in zip(*(torch.split(inputs[name], _CHUNK, dim=1) for name in ("a", "b")), strict=True):
            h, state = _scan(a, b, state, return_final_state=True, implementation="reference")
            outputs.append(h)
        return torch.cat(outputs, dim=1)

    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        wide = shape["B"] * shape["L"] * shape["D"]
        forward = Work(bytes=bytes_per_value * 3 * wide, float32_operations=wide)
        # Reads a, h and the gradient of h; writes the gradients of a and b.
        backward = Work(bytes=bytes_per_value * 5 * wide, float32_operations=2 * wide)
        return forward, backward

    def of_length(self, length: int) -> str | None:
        return f"B1_L{length}_D{64 if length < 4096 else 4}"


def _accelerated_scan(inputs: Inputs) -> Tensor:
    from accelerated_scan.scalar import scan

    h: Tensor = scan(inputs["a"].mT, inputs["b"].mT)
    return h.mT


def _mambapy(inputs: Inputs) -> Tensor:
    from mambapy.pscan import pscan

    h: Tensor = pscan(inputs["a"].unsqueeze(-1), inputs["b"].unsqueeze(-1))
    return h.squeeze(-1)


LinearScan.peers = (
    Peer(name="accelerated_scan", module="accelerated_scan", call=_accelerated_scan, time_contiguous=("a", "b")),
    Peer(name="mambapy", module="mambapy", call=_mambapy, devices=("cuda", "cpu")),
)

BENCHMARK = LinearScan()
