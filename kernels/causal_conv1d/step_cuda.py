"""One position of the causal convolution on an NVIDIA GPU: one launch, the state changed in place."""

from __future__ import annotations

import ctypes
import functools
import math

import torch
from torch import Tensor

from kernels import nvrtc
from kernels.nvrtc import C_NAMES
from kernels.nvrtc import unavailable as unavailable
from kernels.operators import register, runs_at_once

_THREADS = 128


def causal_conv1d_step(
    state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, has_silu: bool
) -> tuple[Tensor, Tensor]:
    """y (batch, channels) in x's dtype, and `state`, which is now the next one."""
    step = _step if runs_at_once(x) else _operator
    return step(state, x, weight, bias, has_silu), state


class _Arguments(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            *("state", "state_batch", "state_channel", "state_past"),
            *("x", "x_batch", "x_channel"),
            *("weight", "bias", "y"),
            *("batch", "channels"),
        )
    ]


def _step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, has_silu: bool) -> Tensor:
    batch, channels = x.shape
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    y = x.new_empty(batch, channels)
    kernel = _kernel(
        x.dtype, weight.dtype, None if bias is None else bias.dtype, state.dtype, weight.shape[1], has_silu, x.device
    )
    arguments = _Arguments(
        state.data_ptr(),
        *(stride * state.element_size() for stride in state.stride()),
        x.data_ptr(),
        *(stride * x.element_size() for stride in x.stride()),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        *(batch, channels),
    )
    kernel.launch(math.ceil(batch * channels / _THREADS), _THREADS, arguments)
    return y


def _fake_step(state: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, has_silu: bool) -> Tensor:
    return x.new_empty(x.shape)


@functools.cache
def _kernel(
    x: torch.dtype,
    weight: torch.dtype,
    bias: torch.dtype | None,
    state: torch.dtype,
    width: int,
    has_silu: bool,
    device: torch.device,
) -> nvrtc.Kernel:
    definitions = {
        "X_T": C_NAMES[x],
        "WEIGHT_T": C_NAMES[weight],
        "BIAS_T": C_NAMES[bias or torch.float32],
        "STATE_T": C_NAMES[state],
        "WIDTH": width,
        "HAS_BIAS": int(bias is not None),
        "HAS_SILU": int(has_silu),
        "THREADS": _THREADS,
    }
    options = [f"-D{name}={value}" for name, value in definitions.items()]
    source = nvrtc.source("csrc/elements.cuh", "causal_conv1d/csrc/step.cu")
    return nvrtc.load(source, options, ["step"], device)["step"]


_operator = register("causal_conv1d_step_cuda", _step, _fake_step, mutates=("state",))
