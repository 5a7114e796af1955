"""One position of the selective scan on an NVIDIA GPU: one launch, the state changed in place."""

# B batch, D channels, N state, R rank

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from kernels import nvrtc
from kernels.nvrtc import C_NAMES, multiprocessors
from kernels.nvrtc import unavailable as unavailable
from kernels.operators import register, runs_at_once

_THREADS = 128
_QUARTERS = 4
_BLOCKS_PER_MULTIPROCESSOR = 8


def selective_scan_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    log_rates: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, D) in u's dtype, and `state`, which is now the next one."""
    step = _step if runs_at_once(u) else _operator
    return step(state, u, delta, A, B, C, D, z, delta_bias, delta_weight, delta_softplus, log_rates), state


class _Rows(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "last")]


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("u", "delta", "B", "C", "z")),
        *((name, ctypes.c_int64) for name in ("state", "state_batch", "state_channel", "state_last")),
        *((name, ctypes.c_int64) for name in ("A", "D", "bias", "weight", "y", "batch", "channels", "batch_groups")),
    ]


def _step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    log_rates: bool,
) -> Tensor:
    batch, channels = u.shape
    A, D, delta_bias, delta_weight = A.contiguous(), *(_contiguous(x) for x in (D, delta_bias, delta_weight))
    y = u.new_empty(batch, channels)
    kernel = _kernel(
        *(x.dtype for x in (state, u, delta, A, B, C)),
        *(None if x is None else x.dtype for x in (D, z, delta_bias, delta_weight)),
        A.shape[1],
        0 if delta_weight is None else delta_weight.shape[1],
        all(_is_aligned(x) for x in (state, A, B, C)),
        delta_weight is not None and _is_aligned(delta_weight) and _is_aligned(delta),
        delta_softplus,
        log_rates,
        u.device,
    )
    blocks_across = math.ceil(channels * _QUARTERS / _THREADS)
    # A block that has enough sequences to go through keeps what belongs to its channels.
    groups = min(batch, max(1, _BLOCKS_PER_MULTIPROCESSOR * multiprocessors(u.device) // blocks_across))
    arguments = _Arguments(
        *(_rows(x) for x in (u, delta, B, C, z)),
        state.data_ptr(),
        *(stride * state.element_size() for stride in state.stride()),
        *(0 if x is None else x.data_ptr() for x in (A, D, delta_bias, delta_weight, y)),
        *(batch, channels, groups),
    )
    kernel.launch(groups * blocks_across, _THREADS, arguments)
    return y


def _fake_step(
    state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    delta_softplus: bool,
    log_rates: bool,
) -> Tensor:
    return u.new_empty(u.shape)


@functools.cache
def _kernel(
    state: torch.dtype,
    u: torch.dtype,
    delta: torch.dtype,
    A: torch.dtype,
    B: torch.dtype,
    C: torch.dtype,
    D: torch.dtype | None,
    z: torch.dtype | None,
    delta_bias: torch.dtype | None,
    delta_weight: torch.dtype | None,
    num_states: int,
    rank: int,
    has_vectors: bool,
    has_rank_vectors: bool,
    delta_softplus: bool,
    log_rates: bool,
    device: torch.device,
) -> nvrtc.Kernel:
    dtypes = {"STATE": state, "U": u, "DELTA": delta, "A": A, "B": B, "C": C}
    dtypes |= {"D": D or u, "Z": z or u, "BIAS": delta_bias or u, "WEIGHT": delta_weight or u}
    definitions = {f"{name}_T": C_NAMES[dtype] for name, dtype in dtypes.items()} | {
        "STATE": num_states,
        "RANK": rank,
        "PER_LANE": 4 if has_vectors else 1,
        "PER_RANK": 4 if has_rank_vectors else 1,
        "SOFTPLUS": int(delta_softplus),
        "LOG_RATES": int(log_rates),
        "HAS_D": int(D is not None),
        "HAS_Z": int(z is not None),
        "HAS_BIAS": int(delta_bias is not None),
        "THREADS": _THREADS,
    }
    source = nvrtc.source("csrc/elements.cuh", "selective_scan/csrc/step.cu")
    return nvrtc.load(source, [f"-D{name}={value}" for name, value in definitions.items()], ["step"], device)["step"]


_operator = register("selective_scan_step_cuda", _step, _fake_step, mutates=("state",))


def _rows(tensor: Tensor | None) -> _Rows:
    if tensor is None:
        return _Rows()
    batch, last = tensor.stride()
    return _Rows(tensor.data_ptr(), batch * tensor.element_size(), last * tensor.element_size())


def _is_aligned(tensor: Tensor) -> bool:
    """Whether four entries of the last axis can be read at once, wherever four divides their index."""
    *outer, last = tensor.stride()
    return (
        last == 1
        and tensor.shape[-1] % 4 == 0
        and all(stride % 4 == 0 for stride in outer)
        and tensor.data_ptr() % (4 * tensor.element_size()) == 0
    )


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
