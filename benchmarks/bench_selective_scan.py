"""Times the CUDA selective scan: forward, backward and both, over the shapes of `notes/selective_scan.md`.

    python benchmarks/bench_selective_scan.py [--official h100.json] [--out times.json] [--sweep] [SHAPE ...]

A shape is written `B8_L2048_D2048`. Inputs are bfloat16, N = 16, with bias, softplus, skip and gate. Times are medians
in milliseconds: of eager calls by `triton.testing.do_bench`, and of kernels alone as replays of a CUDA graph.
"""

# B batch, L length, D channels, N state

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from kernels.selective_scan import cuda

SHAPES = (
    "B8_L2048_D2048",
    "B1_L65536_D2048",
    "B2_L16384_D5120",
    "B64_L256_D1024",
    "B1_L2048_D2048",
    "B1_L1048576_D1024",
)
STATE = 16


def make_inputs(shape: str) -> dict[str, Any]:
    """Inputs as a Mamba block makes them: u and z are halves of one projection, B and C slices of another."""
    batch, length, channels = (int(part[1:]) for part in shape.split("_"))
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device="cuda", dtype=torch.bfloat16)

    rank = -(-channels // 32)
    projected_BLE = normal(batch, length, 2 * channels)
    u_BLD, z_BLD = projected_BLE.chunk(2, dim=-1)
    _, B_BLN, C_BLN = normal(batch, length, rank + 2 * STATE).split([rank, STATE, STATE], dim=-1)
    return {
        "u": u_BLD,
        "delta": normal(batch, length, channels) - 4,
        "A": -torch.arange(1.0, STATE + 1, device="cuda").repeat(channels, 1),
        "B": B_BLN,
        "C": C_BLN,
        "D": torch.ones(channels, device="cuda"),
        "z": z_BLD,
        "delta_bias": torch.zeros(channels, device="cuda"),
    }


def median_ms(run: Callable[[], Any], repetitions_ms: int) -> float:
    return float(do_bench(run, warmup=repetitions_ms // 4, rep=repetitions_ms, return_mode="median"))


def graphed_ms(run: Callable[[], Any], repetitions_ms: int) -> float:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return median_ms(graph.replay, repetitions_ms)


def operators(inputs: dict[str, Any]) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """Forward for inference, forward for training, backward: the operators, without autograd around them."""
    named = [inputs[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    saved = cuda._scan(*named, None, None, True, True)
    dy = torch.randn_like(saved[0])
    return (
        lambda: cuda._scan(*named, None, None, True, False),
        lambda: cuda._scan(*named, None, None, True, True),
        lambda: cuda._scan_backward(dy, None, saved[2], *named, None, True),
    )


def time_shape(shape: str, repetitions_ms: int) -> dict[str, float]:
    inputs = make_inputs(shape)
    infer, forward, backward = operators(inputs)
    times = {
        "forward": median_ms(infer, repetitions_ms),
        "forward_graphed": graphed_ms(infer, repetitions_ms),
        "forward_saving_graphed": graphed_ms(forward, repetitions_ms),
        "backward_graphed": graphed_ms(backward, repetitions_ms),
    }
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    dy = torch.randn_like(inputs["u"])

    def train() -> None:
        y, _ = cuda.selective_scan(
            *(leaves[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")), True, None, None
        )
        torch.autograd.grad(y, list(leaves.values()), dy)

    times["forward_backward"] = median_ms(train, repetitions_ms)
    times["forward_backward_graphed"] = times["forward_saving_graphed"] + times["backward_graphed"]
    return times


def sweep(shape: str, repetitions_ms: int) -> list[dict[str, Any]]:
    """Every plan worth a try, its kernels alone."""
    inputs = make_inputs(shape)
    size = (*inputs["u"].shape, STATE, cuda.multiprocessors(inputs["u"].device))
    usual, best = cuda.plan, cuda.plan(*size)
    rows: list[dict[str, Any]] = []

    def measure(what: str, candidate: cuda.Plan) -> None:
        cuda.plan = lambda *_: candidate  # type: ignore[assignment]
        infer, _, backward = operators(inputs)
        milliseconds = graphed_ms(infer if what == "forward" else backward, repetitions_ms)
        rows.append({"shape": shape, "what": what, "ms": milliseconds, **asdict(candidate)})

    try:
        for segments, columns, blocks in FORWARD_PLANS:
            measure(
                "forward",
                replace(best, forward_segments=segments, forward_columns=columns, forward_min_blocks=blocks),
            )
        for segments, teams, cluster, blocks, groups in BACKWARD_PLANS:
            if groups <= 4 * best.channel_groups and best.channel_groups <= 4 * groups:
                candidate = replace(best, backward_segments=segments, backward_teams=teams, backward_cluster=cluster)
                measure("backward", replace(candidate, backward_min_blocks=blocks, channel_groups=groups))
    finally:
        cuda.plan = usual
    return rows


FORWARD_PLANS = ((1, 1, 8), (1, 1, 12), (1, 2, 8), (2, 1, 4), (3, 1, 2), (4, 1, 2), (6, 1, 1), (8, 1, 1))
BACKWARD_PLANS = tuple(
    (*layout, groups)
    for layout in ((4, 1, 1, 2), (4, 1, 2, 2), (4, 2, 2, 1), (8, 1, 1, 1))
    for groups in (1, 2, 4, 5, 8)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES)
    parser.add_argument("--official", type=Path, help="figures of mamba_ssm to compare with")
    parser.add_argument("--out", type=Path, help="where the full figures go, as JSON")
    parser.add_argument("--sweep", action="store_true", help="try many plans instead")
    parser.add_argument("--repetitions-ms", type=int, default=200)
    options = parser.parse_args()

    official = json.loads(options.official.read_text())["selective_scan_ms"] if options.official else {}
    results: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for shape in options.shapes:
        if options.sweep:
            rows = sorted(sweep(shape, options.repetitions_ms), key=lambda row: row["ms"])
            results[shape] = rows
            for what in ("forward", "backward"):
                for row in [row for row in rows if row["what"] == what][:6]:
                    print(*row.values())
            continue
        times = results[shape] = time_shape(shape, options.repetitions_ms)
        line = " ".join(f"{name} {milliseconds:.4f}" for name, milliseconds in times.items())
        theirs = official.get(shape.replace("_", " "))
        if theirs:
            line += f" | {theirs['official_fwd_ms'] / times['forward']:.2f}x forward"
            line += f" {theirs['official_fwdbwd_ms'] / times['forward_backward']:.2f}x both"
        print(shape, line, flush=True)
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
