"""How torch's tensors and threads reach the CPU loops that numba compiles.

The loops are serial and release the interpreter's lock; threads of our own run them on ranges of tasks. numba's own
parallel loops go through OpenMP: to start them changes the number of threads that torch uses, their workers burn a core
while they wait, and a forked process must not use them.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor


def unavailable(device: torch.device) -> str | None:
    """Why numba's loops cannot run on `device`."""
    if device.type != "cpu":
        return "it runs on a CPU only"
    if importlib.util.find_spec("numba") is None:
        return "the package numba is not installed"
    return None


def parts(size: int, part: int) -> int:
    """How many parts of that size cover `size`."""
    return (size + part - 1) // part


def run_in_threads(loops: Callable[..., None], num_tasks: int, *arguments: Any) -> None:
    """Calls loops(first, end, *arguments) until every task ran, in as many threads as torch uses."""
    num_threads = min(torch.get_num_threads(), num_tasks)
    bounds = [num_tasks * thread // num_threads for thread in range(num_threads + 1)]
    others = [_pool(os.getpid()).submit(loops, *bounds[i : i + 2], *arguments) for i in range(1, num_threads)]
    loops(*bounds[:2], *arguments)
    for other in others:
        other.result()


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    # A forked process inherits the pool but not its threads, hence one pool for each process.
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="kernels")


def rows(tensor: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory, copied only if its last axis is not contiguous; the loops take any other strides."""
    is_dense = tensor.stride(-1) == 1 or tensor.shape[-1] == 1
    return (tensor if is_dense else tensor.contiguous()).numpy(force=True)


def rows_or_empty(tensor: Tensor | None, axes: int) -> np.ndarray[Any, Any]:
    """The same; without a tensor an array of that many axes and no entries."""
    return np.empty((0,) * axes, np.float32) if tensor is None else rows(tensor)


def rows_or_zero(tensor: Tensor | None, size: int) -> np.ndarray[Any, Any]:
    """The same; without a tensor that many zeros."""
    return np.zeros(size, np.float32) if tensor is None else rows(tensor)


def starts_or_empty(sequence_starts: Tensor | None) -> np.ndarray[Any, Any]:
    """The same for the booleans that mark where documents begin."""
    return np.empty((0, 0), np.bool_) if sequence_starts is None else rows(sequence_starts)
