"""Times the Triton selective scan: forward and backward, over the shapes of `notes/selective_scan_triton.md`.

    python benchmarks/bench_selective_scan_triton.py [SHAPE ...]

Shapes, inputs and the way of timing are those of `bench_selective_scan.py`; all times are of kernels alone.
"""

from __future__ import annotations

import argparse

import torch
from bench_selective_scan import SHAPES, graphed_ms, make_inputs

from kernels.selective_scan import triton_scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--repetitions-ms", type=int, default=100)
    options = parser.parse_args()
    print(torch.cuda.get_device_name())
    for shape in options.shapes:
        inputs = make_inputs(shape)
        named = [inputs[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
        y, _, checkpoints = triton_scan._scan(*named, None, None, True, True)
        dy = torch.randn_like(y)
        forward = graphed_ms(lambda n=named: triton_scan._scan(*n, None, None, True, False), options.repetitions_ms)
        backward = graphed_ms(
            lambda n=named, s=checkpoints, g=dy: triton_scan._scan_backward(g, None, s, *n, None, True),
            options.repetitions_ms,
        )
        print(f"{shape} forward {forward:.3f} backward {backward:.3f}", flush=True)
        del inputs, named, y, checkpoints, dy
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
