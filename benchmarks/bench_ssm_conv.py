"""Times the S4D convolution, kernel generation included, against torch.fft, over the shapes of `notes/ssm_conv.md`.

    python benchmarks/bench_ssm_conv.py [--device cpu] [--out times.json] [SHAPE ...]

A shape is written `B8_L2048_H1024`; the state has 64 numbers, 32 conjugate pairs. Times are medians in milliseconds:
`torch.fft` is the convolution alone, channels first, with a kernel that exists; everything else takes the state space's
parameters and channel-last inputs. Errors are relative, against the same in float64, of a few channels. Memory is what
one forward pass allocates at its peak, its output included.
"""

# B batch, L length, H channels

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.long_conv import long_conv
from kernels.ssm_conv import s4d_conv
from kernels.ssm_kernel import s4d_kernel

CUDA_SHAPES = ("B8_L2048_H1024", "B8_L16384_H1024", "B1_L1048576_H1024")
CPU_SHAPES = ("B1_L256_H256", "B1_L512_H256", "B1_L2048_H256", "B1_L16384_H256")
HALF_STATE = 32
LONGEST_SPECTRUM = 2**18
"""Beyond, the spectra of a whole batch take more memory than is left beside the other measurements."""


def make_inputs(shape: str, device: str) -> dict[str, Tensor]:
    """As S4D-Lin begins."""
    batch, length, channels = (int(part[1:]) for part in shape.split("_"))
    generator = torch.Generator(device).manual_seed(0)
    uniform = torch.rand(channels, generator=generator, device=device)
    imaginary = math.pi * torch.arange(HALF_STATE, device=device).expand(channels, HALF_STATE)
    return {
        "u": torch.randn(batch, length, channels, generator=generator, device=device),
        "delta": torch.exp(math.log(1e-3) + math.log(100.0) * uniform),
        "A": torch.complex(torch.full((channels, HALF_STATE), -0.5, device=device), imaginary),
        "C": torch.randn(channels, HALF_STATE, generator=generator, device=device, dtype=torch.complex64),
        "D": torch.randn(channels, generator=generator, device=device),
    }


def median_ms(run: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=20, rep=60, return_mode="median"))
    run()
    times = []
    for _ in range(7):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def torch_fft(u_BHL: Tensor, kernel_HL: Tensor) -> Tensor:
    size = 2 * u_BHL.shape[-1]
    spectrum = torch.fft.rfft(u_BHL, n=size) * torch.fft.rfft(kernel_HL, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., : u_BHL.shape[-1]]


def relative_errors(inputs: dict[str, Tensor], dy: Tensor, y: Tensor, gradients: dict[str, Tensor]) -> dict[str, float]:
    channels = torch.tensor([0, 1, y.shape[2] // 2, y.shape[2] - 1], device=y.device)

    def some(name: str, x: Tensor) -> Tensor:
        chosen = x[..., channels] if name in ("u", "y") else x[channels]
        return chosen.detach().to(torch.complex128 if x.is_complex() else torch.float64)

    leaves = {name: some(name, x).requires_grad_() for name, x in inputs.items()}
    kernel = s4d_kernel(leaves["delta"], leaves["A"], leaves["C"], y.shape[1])
    expected = long_conv(leaves["u"], kernel, leaves["D"])
    expected_gradients = torch.autograd.grad(expected, list(leaves.values()), some("y", dy))
    pairs = {"y": (some("y", y), expected.detach())}
    pairs |= {name: (some(name, gradients[name]), x) for name, x in zip(leaves, expected_gradients, strict=True)}
    return {name: float((actual - exact).norm() / exact.norm()) for name, (actual, exact) in pairs.items()}


def time_shape(shape: str, device: str, dtype: torch.dtype, implementation: str) -> dict[str, Any]:
    inputs = make_inputs(shape, device)
    inputs["u"] = inputs["u"].to(dtype)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    dy = torch.randn_like(inputs["u"])

    def forward() -> Tensor:
        with torch.no_grad():
            return s4d_conv(**inputs, implementation=implementation)

    def train() -> tuple[Tensor, ...]:
        return torch.autograd.grad(s4d_conv(**leaves, implementation=implementation), list(leaves.values()), dy)

    results: dict[str, Any] = {
        "shape": shape,
        "dtype": str(dtype).removeprefix("torch."),
        "implementation": implementation,
    }
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        forward()
        results["forward_memory_bytes"] = torch.cuda.max_memory_allocated() - before
    results["forward_ms"] = median_ms(forward, device)
    results["forward_backward_ms"] = median_ms(train, device)
    gradients = dict(zip(leaves, train(), strict=True))
    results["relative_errors"] = relative_errors(inputs, dy, forward(), gradients)
    return results


def time_torch_fft(shape: str, device: str) -> dict[str, Any]:
    inputs = make_inputs(shape, device)
    kernel = s4d_kernel(inputs["delta"], inputs["A"], inputs["C"], inputs["u"].shape[1])
    u_BHL = inputs["u"].transpose(1, 2).contiguous()
    generate = median_ms(lambda: s4d_kernel(inputs["delta"], inputs["A"], inputs["C"], u_BHL.shape[2]), device)
    return {
        "shape": shape,
        "dtype": "float32",
        "implementation": "torch.fft",
        "convolution_ms": median_ms(lambda: torch_fft(u_BHL, kernel), device),
        "generation_ms": generate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--implementations", help="comma-separated; by default the fastest of the device and fft")
    parser.add_argument("--out", type=Path, help="where the full figures go, as JSON")
    options = parser.parse_args()

    is_cuda = options.device == "cuda"
    implementations = options.implementations or ("cuda,fft" if is_cuda else "cpu,fft")
    name = torch.cuda.get_device_name() if is_cuda else f"{torch.get_num_threads()} threads"
    results: dict[str, Any] = {"device": name, "torch": torch.__version__, "times": []}
    for shape in options.shapes or (CUDA_SHAPES if is_cuda else CPU_SHAPES):
        length = int(shape.split("_")[1][1:])
        for implementation in implementations.split(","):
            if implementation == "fft" and length > LONGEST_SPECTRUM:
                continue
            for dtype in (torch.float32, torch.bfloat16):
                results["times"].append(time_shape(shape, options.device, dtype, implementation))
                print(*results["times"][-1].items(), flush=True)
        if length <= LONGEST_SPECTRUM:
            results["times"].append(time_torch_fft(shape, options.device))
            print(*results["times"][-1].items(), flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
