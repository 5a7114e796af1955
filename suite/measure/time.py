"""Seconds a call takes, on the clock of the device that does the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch


def call_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Seconds from the start of `call` until the device has done all its work."""
    if device.type == "cuda":
        # Events are stamped by the device itself, so a late host wake-up does not count.
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end)) / 1e3
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def consecutive_seconds(call: Callable[[], object], device: torch.device, num_calls: int) -> list[float]:
    """Seconds from the end of one call to the end of the next, without a wait between them: the host may run ahead."""
    if device.type == "cuda":
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(num_calls + 1)]  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        ends[0].record()
        for end in ends[1:]:
            call()
            end.record()
        torch.cuda.synchronize(device)
        return [float(start.elapsed_time(end)) / 1e3 for start, end in pairwise(ends)]
    return [call_seconds(call, device) for _ in range(num_calls)]


def interleaved_seconds(
    calls: Sequence[tuple[Callable[[], object], Callable[[], object]]],
    device: torch.device,
    *,
    num_warmup_rounds: int,
    min_rounds: int,
    seconds: float,
) -> list[list[float]]:
    """Timed samples of each call, one of each per round, so that a slow spell of the machine touches all alike.

    Each entry is what prepares the call, untimed, and the call. Rounds go on until `seconds` have passed, but at least
    `min_rounds`; the warm-up is extra.
    """
    samples: list[list[float]] = [[] for _ in calls]
    num_rounds, deadline = -num_warmup_rounds, 0.0
    while num_rounds < min_rounds or time.perf_counter() < deadline:
        if num_rounds == 0:
            deadline = time.perf_counter() + seconds
        for (prepare, call), taken in zip(calls, samples, strict=True):
            prepare()
            call_taken = call_seconds(call, device)
            if num_rounds >= 0:
                taken.append(call_taken)
        num_rounds += 1
    return samples
