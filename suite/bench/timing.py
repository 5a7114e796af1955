"""Seconds of calls that last microseconds to seconds, each after the caches were emptied, several taking turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from suite.measure.graph import capture, rehearse

Run = Callable[[], object]

_FLUSHED_BYTES = 256 * 2**20
"""More than any cache on a GPU holds."""

_STEADY = 0.05
_STEADY_ROUNDS = 3
_MOST_WARMUP_ROUNDS = 30

_MOST_QUEUED_ROUNDS = 10
_QUEUED_SECONDS = 0.05
"""Rounds are queued on the device for about so long before their times are looked at."""


class Stopwatch:
    """Times calls on a device; on a GPU between two events, after a pass over memory that leaves no input in the cache.

    As in `triton.testing.do_bench`, the host need not wait for one call to end before it queues the next: it is part of
    a call's time only where it cannot keep up.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._clock = SmClock(device) if device.type == "cuda" else None

    def __call__(self, run: Run) -> float:
        """Seconds from the start of `run` until the device has done all its work."""
        return self.queue(run)()

    def queue(self, run: Run) -> Callable[[], float]:
        """Calls `run`, and returns what waits for its end and tells its seconds."""
        if self._device.type != "cuda":
            started = time.perf_counter()
            run()
            seconds = time.perf_counter() - started
            return lambda: seconds
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        self._flushed.zero_()
        start.record()
        run()
        end.record()

        def finished() -> float:
            if self._clock is not None and not end.query():  # type: ignore[no-untyped-call]
                self._clock.look()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

        return finished

    def sm_clock_hz(self) -> float | None:
        """The median clock while calls ran since this was last asked; None where the driver does not tell."""
        return None if self._clock is None else self._clock.median_hz()

    @cached_property
    def _flushed(self) -> torch.Tensor:
        return torch.empty(_FLUSHED_BYTES, dtype=torch.int8, device=self._device)


class SmClock:
    """The clock of a GPU's multiprocessors, which changes with load and heat."""

    def __init__(self, device: torch.device) -> None:
        import pynvml

        self._seen_hz: list[float] = []
        self._handle = None
        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:
            # Some machines keep their driver's management library to themselves.
            return

    def look(self) -> None:
        """To be called while the GPU is at work."""
        if self._handle is not None:
            import pynvml

            self._seen_hz.append(1e6 * pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_SM))

    def median_hz(self) -> float | None:
        """Of the looks since this was last asked."""
        seen, self._seen_hz = self._seen_hz, []
        return statistics.median(seen) if seen else None

    def memory_hz(self) -> float | None:
        """The clock of the memory."""
        if self._handle is None:
            return None
        import pynvml

        return 1e6 * float(pynvml.nvmlDeviceGetClockInfo(self._handle, pynvml.NVML_CLOCK_MEM))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is spent on the samples of one run."""

    seconds: float
    """The run's own time, and that of its warm-up at most."""
    min_rounds: int
    max_rounds: int


FULL = Effort(seconds=0.1, min_rounds=8, max_rounds=100)
QUICK = Effort(seconds=0.03, min_rounds=8, max_rounds=30)


@dataclass
class Rounds:
    """Samples of each run, and which runs broke off."""

    samples: dict[str, list[float]]
    errors: dict[str, Exception] = field(default_factory=dict)


def timed_in_rounds(runs: Mapping[str, Run], stopwatch: Stopwatch, effort: Effort) -> Rounds:
    """One sample of each run per round, so that a slow spell of the machine touches all alike.

    Before a run counts, it warms up until its last few times agree, or its seconds are used up. Then it stays until it
    has the fewest rounds and has used up its seconds, or has the most rounds. One that raises leaves, and its error is
    kept.
    """
    result = Rounds({name: [] for name in runs})
    warming = {name: _Warmth(effort.seconds) for name in runs}
    active = dict(runs)
    num_rounds = 1
    while active:
        queued: list[tuple[str, Callable[[], float]]] = []
        started = time.perf_counter()
        for _ in range(num_rounds):
            for name, run in list(active.items()):
                try:
                    queued.append((name, stopwatch.queue(run)))
                except Exception as error:
                    result.errors[name] = error
                    del active[name]
        for name, finished in queued:
            try:
                taken = finished()
            except Exception as error:
                result.errors.setdefault(name, error)
                active.pop(name, None)
                continue
            samples = result.samples[name]
            if not warming[name].is_steady:
                warming[name].add(taken)
            elif len(samples) < effort.max_rounds:
                samples.append(taken)
        for name in list(active):
            samples = result.samples[name]
            is_enough = len(samples) >= effort.min_rounds and sum(samples) >= effort.seconds
            if is_enough or len(samples) >= effort.max_rounds:
                del active[name]
        seconds_a_round = (time.perf_counter() - started) / num_rounds
        num_rounds = min(_MOST_QUEUED_ROUNDS, max(1, int(_QUEUED_SECONDS / seconds_a_round)))
    return result


class _Warmth:
    """Whether a run's time has settled."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._taken: list[float] = []

    @property
    def is_steady(self) -> bool:
        if sum(self._taken) >= self._seconds or len(self._taken) >= _MOST_WARMUP_ROUNDS:
            return True
        last = self._taken[-_STEADY_ROUNDS:]
        return len(last) == _STEADY_ROUNDS and max(last) <= (1 + _STEADY) * min(last)

    def add(self, taken: float) -> None:
        self._taken.append(taken)


def captured(run: Run, device: torch.device) -> Run:
    """`run` as a CUDA graph: a call that replays its kernels without the host.

    Raises:
        RuntimeError: it does something that a graph cannot hold.
    """
    rehearse(run, device)
    torch.cuda.synchronize(device)
    return capture(run, device)
