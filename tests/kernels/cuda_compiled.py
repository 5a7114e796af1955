"""Compiles what the CUDA implementations would run on GPUs that need not be there; fails if one spills or does not fit.

`test_cuda_sources.py` runs this module in a process of its own, in which the driver is a stand-in: the host's side runs
as it is, on tensors of the CPU, NVRTC compiles in earnest, and nothing is launched.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton import knobs

from kernels import nvrtc
from kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from kernels.linear_scan import linear_scan, min_gru_scan, min_lstm_scan
from kernels.selective_scan import selective_scan, selective_scan_step
from kernels.ssm_conv import s4d_conv

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Compute capability -> what a block may have."""

SPILLED_BYTES = 32
"""Of stack that a thread may need, which spilled registers go to: a few outside the loops cost nothing."""

_compiled: dict[tuple[str, tuple[str, ...]], None] = {}


class _Kernel:
    """Takes launches and checks that they could be: the sizes of a block are the hardware's."""

    def launch(self, num_blocks: int, num_threads: int, arguments: Any, shared_bytes: int = 0) -> None:
        assert 0 < num_blocks < 2**31
        assert num_threads % 32 == 0
        assert 0 < num_threads <= 1024
        assert shared_bytes <= max(SHARED_BYTES.values()), f"{shared_bytes} bytes of shared memory"


def _load(source: str, options: Sequence[str], names: Sequence[str], device: torch.device) -> dict[str, _Kernel]:
    _compiled[source, tuple(options)] = None
    return {name: _Kernel() for name in names}


def stack_bytes(source: str, options: Sequence[str], capability: int) -> int:
    """Bytes of stack of the source's hungriest kernel."""
    code = nvrtc.compile_source(source, [f"--gpu-architecture=sm_{capability}", "--std=c++17", *options])
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return max(map(int, re.findall(r"STACK:(\d+)", usage)))


def _random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def _backward(y: Tensor) -> None:
    y.backward(torch.randn_like(y))


def _scan(dtype: torch.dtype, batch: int, length: int, channels: int, state: int, *, is_full: bool) -> None:
    inputs = [_random(batch, length, channels, dtype=dtype) for _ in range(3)]
    B, C = (_random(batch, length, state, dtype=dtype) for _ in range(2))
    extra: dict[str, Any] = {}
    if is_full:
        extra = {"D": _random(channels), "z": inputs[2], "delta_bias": _random(channels), "delta_softplus": True}
        if state == 16:
            extra["sequence_starts"] = torch.zeros(batch, length, dtype=torch.bool)
    _backward(selective_scan(*inputs[:2], _random(channels, state), B, C, **extra, implementation="cuda"))


def _steps(dtype: torch.dtype) -> None:
    batch, channels, state = 2, 64, 16
    u, delta, z = (torch.randn(batch, channels).to(dtype) for _ in range(3))
    B, C = (torch.randn(batch, state).to(dtype) for _ in range(2))
    h, A = torch.zeros(batch, channels, state), torch.randn(channels, state)
    selective_scan_step(h, u, delta, A, B, C, torch.ones(channels), z, torch.ones(channels), delta_softplus=True)
    causal_conv1d_step(torch.zeros(batch, channels, 3), u, torch.randn(channels, 4), torch.randn(channels), "silu")


def _conv(dtype: torch.dtype, length: int, channels: int, width: int) -> None:
    x, weight, bias = _random(2, length, channels, dtype=dtype), _random(channels, width), _random(channels)
    _backward(causal_conv1d(x, weight, bias, activation="silu", implementation="cuda"))


def _linear_scans(dtype: torch.dtype) -> None:
    a, b, c = (_random(2, 300, 64, dtype=dtype) for _ in range(3))
    _backward(linear_scan(a, b, implementation="cuda"))
    _backward(min_gru_scan(a, b, implementation="cuda"))
    _backward(min_lstm_scan(a, b, c, implementation="cuda"))


def _state_space(dtype: torch.dtype) -> None:
    channels, half_state = 64, 32
    A = (torch.randn(channels, half_state, dtype=torch.complex64) - 3).requires_grad_()
    C = torch.randn(channels, half_state, dtype=torch.complex64).requires_grad_()
    delta = torch.rand(channels).requires_grad_()
    u = _random(2, 300, channels, dtype=dtype)
    _backward(s4d_conv(u, delta, A, C, D=_random(channels), implementation="cuda"))


def _everything() -> list[Callable[[], None]]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    return [
        *(lambda dtype=dtype: _scan(dtype, 1, 100, 64, 16, is_full=True) for dtype in (bf16, fp16, fp32)),
        *(lambda state=state: _scan(bf16, 1, 100, 33, state, is_full=True) for state in (1, 24, 256)),
        lambda: _scan(bf16, 16, 64, 1024, 16, is_full=True),
        lambda: _scan(fp32, 16, 64, 1024, 16, is_full=False),
        *(lambda dtype=dtype: _steps(dtype) for dtype in (bf16, fp32)),
        *(lambda dtype=dtype: _conv(dtype, 100, 64, 4) for dtype in (bf16, fp32)),
        lambda: _conv(bf16, 77, 33, 3),
        *(lambda dtype=dtype: _linear_scans(dtype) for dtype in (bf16, fp32)),
        *(lambda dtype=dtype: _state_space(dtype) for dtype in (bf16, fp32)),
    ]


def main(capability: int) -> None:
    device = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=SHARED_BYTES[capability])
    torch.cuda.get_device_properties = lambda _: device  # type: ignore[assignment,misc,return-value]
    torch.cuda.get_device_capability = lambda *_: divmod(capability, 10)  # type: ignore[assignment,misc]
    nvrtc.unavailable = lambda _: None  # type: ignore[assignment]
    nvrtc.load = _load  # type: ignore[assignment]
    register = torch.library.impl
    torch.library.impl = lambda name, _, function: register(name, "cpu", function)  # type: ignore[assignment]
    for run in _everything():
        run()
    spilling = [
        f"{stack} bytes: {' '.join(options)}"
        for source, options in _compiled
        if (stack := stack_bytes(source, options, capability)) > SPILLED_BYTES
    ]
    assert not spilling, "\n".join([f"these variants for sm_{capability} spill", *spilling])


if __name__ == "__main__":
    main(int(sys.argv[1]))
