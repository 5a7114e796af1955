"""Bytes in use at the worst moment: the CUDA allocator's own count on a GPU, resident memory on a Linux CPU."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch


class PeakMemory:
    """Measures calls against what was in use when it was made; make it before the model is built."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._baseline_bytes = self._settled_bytes()

    def of(self, call: Callable[[], object]) -> int | None:
        """Calls; gives the most bytes in use meanwhile over the baseline, or None where the system does not tell."""
        is_watched = self._settled_bytes() is not None and self._reset_peak()
        call()
        peak_bytes = self._peak_bytes() if is_watched else None
        if peak_bytes is None or self._baseline_bytes is None:
            return None
        return max(0, peak_bytes - self._baseline_bytes)

    def _reset_peak(self) -> bool:
        """Forgets the worst moment so far; False where the system does not let it."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return True
        try:
            # Writing 5 resets the kernel's high-water mark of resident memory (proc(5), clear_refs).
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return False
        return True

    def _peak_bytes(self) -> int | None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        return stated_bytes("/proc/self/status", "VmHWM")

    def _settled_bytes(self) -> int | None:
        """Bytes in use once everything that can be handed back has been."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return int(torch.cuda.memory_allocated(self._device))
        _trim_heap()
        return stated_bytes("/proc/self/status", "VmRSS")


def stated_bytes(path: str, field: str) -> int | None:
    """A size that Linux states in kB in a file of `Field: value` lines; None where there is no such statement."""
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _trim_heap() -> None:
    """Hands freed heap back to the system; without it, one call's garbage would count for the next."""
    try:
        trim = ctypes.CDLL("libc.so.6").malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error)
    return "can't allocate memory" in message or "out of memory" in message
