"""Seconds a call takes, on the clock of the device that does the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

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


def interleaved_seconds(
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    *,
    num_warmup_rounds: int,
    min_rounds: int,
    max_rounds: int,
    seconds: float,
) -> list[list[float]]:
    """Timed samples of each call, one of each per round, so that a slow spell of the machine touches all alike.

    Rounds go on until `seconds` have passed, but at least `min_rounds` and at most `max_rounds`; the warm-up is extra.
    """
    for _ in range(num_warmup_rounds):
        for call in calls:
            call_seconds(call, device)
    samples: list[list[float]] = [[] for _ in calls]
    deadline = time.perf_counter() + seconds
    for num_rounds in range(max_rounds):
        if num_rounds >= min_rounds and time.perf_counter() > deadline:
            break
        for call, taken in zip(calls, samples, strict=True):
            taken.append(call_seconds(call, device))
    return samples
