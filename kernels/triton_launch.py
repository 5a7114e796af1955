"""Where Triton kernels run, and how they are launched without Triton's look-up of every argument.

They run on a GPU that Triton compiles for, or on a CPU in its interpreter, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

_ALIGNED_BYTES = 16


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why no Triton kernel can run on `device`, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if device.type == "cuda" or (device.type == "cpu" and is_interpreted()):
        return None
    return "it runs on a GPU only"


def is_interpreted() -> bool:
    """Whether kernels are run by Triton's interpreter, on tensors of the CPU (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def next_power_of_2(size: int) -> int:
    """The smallest power of two that is at least `size`, as Triton wants the sides of a tile."""
    return 1 << max(0, size - 1).bit_length()


def size_class(size: int) -> tuple[bool, bool, bool]:
    """What Triton compiles a kernel anew for, of a whole number that it is given."""
    return size == 1, size % 16 == 0, size < 2**31


class Launcher:
    """A kernel that is looked up by a key of the caller's: Triton's own look-up costs as much as several launches."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[Hashable, Any] = {}

    def __call__(self, key: Hashable, num_programs: int, num_warps: int, *arguments: Any) -> None:
        """Queues the kernel on the current stream.

        Args:
            key: all that it is compiled for: dtypes, `size_class` of whole numbers, constants, warps and device.
                Addresses are looked at here.
            num_programs: along the first axis of the grid.
            num_warps: of a program.
            arguments: of the kernel, constants included.
        """
        are_aligned = all(x.data_ptr() % _ALIGNED_BYTES == 0 for x in arguments if isinstance(x, Tensor))
        grid = (num_programs, 1, 1)
        compiled = self._compiled.get(key) if are_aligned else None
        if compiled is not None:
            compiled[grid](*arguments)
            return
        compiled = self._kernel[grid](*arguments, num_warps=num_warps)
        if are_aligned and compiled is not None:
            self._compiled[key] = compiled
