"""The least time that work can take on a device: its slowest resource, at the rate that the device was seen to have.

Memory and matrix products are measured. Special functions and float32 arithmetic are counted at what a multiprocessor
can begin each clock (CUDA C++ Programming Guide, "Arithmetic Instructions"), at the clock that was measured under load.
"""

from __future__ import annotations

import platform
import statistics

import torch

from suite.bench.benchmark import Work
from suite.bench.results import Device, Floor
from suite.bench.timing import SmClock, Stopwatch
from suite.environment import describe_environment

_SPECIAL_FUNCTIONS_PER_CLOCK = 16
_FLOAT32_PER_CLOCK = {7: 64, 8: 128, 9: 128, 10: 128, 12: 128}
"""By major compute capability; the 8.0 of an A100 is an exception."""

_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**27}
_MATRIX_SIZE = {"cuda": 8192, "cpu": 1024}
_REPETITIONS = 7


def measure_device(device: torch.device, dtypes: list[torch.dtype]) -> Device:
    """What `device` can do: copies, and matrix products in each of `dtypes`."""
    stopwatch = Stopwatch(device)
    copy = _copy_bytes_per_second(device, stopwatch)
    matrix = {str(dtype).removeprefix("torch."): _matrix_flops_per_second(device, dtype, stopwatch) for dtype in dtypes}
    if device.type != "cuda":
        name = describe_environment("cpu").cpu or platform.machine()
        return Device(name=name, kind="cpu", copy_bytes_per_second=copy, matrix_flops_per_second=matrix)
    properties = torch.cuda.get_device_properties(device)
    is_a100 = (properties.major, properties.minor) == (8, 0)
    return Device(
        name=properties.name,
        kind="cuda",
        copy_bytes_per_second=copy,
        matrix_flops_per_second=matrix,
        num_multiprocessors=properties.multi_processor_count,
        special_functions_per_clock=_SPECIAL_FUNCTIONS_PER_CLOCK,
        float32_per_clock=64 if is_a100 else _FLOAT32_PER_CLOCK.get(properties.major),
        sm_clock_hz=stopwatch.sm_clock_hz(),
        memory_clock_hz=SmClock(device).memory_hz(),
    )


def floor(work: tuple[Work, ...], dtype: str, device: Device, sm_clock_hz: float | None) -> Floor:
    """The least seconds of passes that run one after the other; what a device does not tell bounds nothing."""
    seconds, shares = 0.0, dict.fromkeys(("memory", "special functions", "float32", "matrix products"), 0.0)
    for one in work:
        needed = {"memory": one.bytes / device.copy_bytes_per_second}
        if one.matrix_flops and dtype in device.matrix_flops_per_second:
            needed["matrix products"] = one.matrix_flops / device.matrix_flops_per_second[dtype]
        if device.num_multiprocessors and sm_clock_hz:
            clocks_per_second = device.num_multiprocessors * sm_clock_hz
            if device.special_functions_per_clock:
                rate = device.special_functions_per_clock * clocks_per_second
                needed["special functions"] = one.special_functions / rate
            if device.float32_per_clock:
                needed["float32"] = one.float32_operations / (device.float32_per_clock * clocks_per_second)
        slowest = max(needed, key=lambda resource: needed[resource])
        seconds += needed[slowest]
        shares[slowest] += needed[slowest]
    bound_by = max(shares, key=lambda resource: shares[resource])
    return Floor(seconds=seconds, bound_by=bound_by, bytes=sum(one.bytes for one in work))


def _copy_bytes_per_second(device: torch.device, stopwatch: Stopwatch) -> float:
    source = torch.ones(_COPIED_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [stopwatch(lambda: target.copy_(source)) for _ in range(_REPETITIONS)]
    return 2 * len(source) / statistics.median(seconds)


def _matrix_flops_per_second(device: torch.device, dtype: torch.dtype, stopwatch: Stopwatch) -> float:
    size = _MATRIX_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    # What torch does fastest: others may round float32 to TensorFloat-32 on their way to the matrix units.
    usual = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        seconds = [stopwatch(lambda: a @ b) for _ in range(_REPETITIONS)]
    finally:
        torch.set_float32_matmul_precision(usual)
    return 2 * size**3 / statistics.median(seconds)
