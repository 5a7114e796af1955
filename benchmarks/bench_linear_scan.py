"""Times the CUDA linear scan, minGRU and minLSTM: forward and backward, over the shapes of `notes/linear_scan.md`.

    python benchmarks/bench_linear_scan.py [--group 8 16 32] [--scans min_gru_scan …] [SHAPE ...]

A shape is written `B8_L8192_D1536`. Times are medians in milliseconds of replays of a CUDA graph. The bound is the time
of a copy that moves as many bytes: the inputs and h forward; the inputs (but for b), h and the gradients backward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from bench_selective_scan import graphed_ms
from torch import Tensor

from kernels.linear_scan import cuda

SHAPES = ("B8_L8192_D1536", "B64_L256_D1024", "B1_L65536_D1536", "B1_L1048576_D512", "B1_L1048576_D64", "B1_L2048_D512")
KINDS = {"linear_scan": cuda._LINEAR, "min_gru_scan": cuda._MIN_GRU, "min_lstm_scan": cuda._MIN_LSTM}


def operators(scan: str, shape: str, dtype: torch.dtype) -> tuple[Callable[[], Any], Callable[[], Any], int, int]:
    """Forward, backward, and the tensors of the sequence's size that each must move."""
    size = [int(part[1:]) for part in shape.split("_")]
    generator = torch.Generator("cuda").manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(size, generator=generator, device="cuda").to(dtype)

    kind = KINDS[scan]
    x0, x1, x2 = normal(), normal(), normal() if kind == cuda._MIN_LSTM else None
    if kind == cuda._LINEAR:
        x0 = x0.sigmoid()
    h, _ = cuda._scan(x0, x1, x2, None, None, kind, True)
    dh = torch.randn_like(h)
    num_inputs = 2 if x2 is None else 3
    moved_back = 5 if kind == cuda._LINEAR else 2 * num_inputs + 2
    return (
        lambda: cuda._scan(x0, x1, x2, None, None, kind, True),
        lambda: cuda._scan_backward(dh, None, h, x0, x1, x2, None, None, kind, True),
        num_inputs + 1,
        moved_back,
    )


def copy_bytes_per_ms() -> float:
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / graphed_ms(lambda: target.copy_(source), 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--scans", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--group", nargs="*", type=int, default=[cuda.Plan(1).group])
    parser.add_argument("--repetitions-ms", type=int, default=50)
    options = parser.parse_args()

    speed, usual = copy_bytes_per_ms(), cuda.plan
    print(f"{torch.cuda.get_device_name()}, copy {speed / 1e9:.2f} TB/s")
    for group in options.group:
        cuda.plan = lambda *arguments, group=group: replace(usual(*arguments), group=group)
        for dtype in (torch.bfloat16, torch.float32):
            for shape in options.shapes:
                for scan in options.scans:
                    forward, backward, moved, moved_back = operators(scan, shape, dtype)
                    sequence_bytes = torch.Size(int(part[1:]) for part in shape.split("_")).numel() * dtype.itemsize
                    figures = []
                    for what, run, tensors in (("forward", forward, moved), ("backward", backward, moved_back)):
                        bound, taken = tensors * sequence_bytes / speed, graphed_ms(run, options.repetitions_ms)
                        figures.append(f"{what} {taken:.3f} of {bound:.3f} ({bound / taken:.0%})")
                    print(group, str(dtype)[6:], shape, scan, *figures, flush=True)
                    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
