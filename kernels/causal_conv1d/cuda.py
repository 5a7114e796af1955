"""The causal convolution on an NVIDIA GPU: what torch sees of the kernels in `csrc`.

Computes in float32 from float32, bfloat16 or float16, with any strides; channels that lie side by side are read and
written as vectors. Between forward and backward nothing is kept but the inputs: the sum before the activation is
computed anew. Gradients repeat bit for bit: every sum has a fixed order.
"""

# B batch, L length, D channels, W width, P past = W - 1

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import nvrtc
from kernels.nvrtc import C_NAMES, in_kernel_dtype, multiprocessors
from kernels.nvrtc import unavailable as unavailable
from kernels.operators import register, runs_at_once

_VECTOR_BYTES = 16
_THREADS, _LANES = 128, 32
_ROW_BYTES = 8
_MAX_LENGTH = 2**30
_MAX_STRIDE_BYTES = 2**31 - 1
_REDUCE_COLUMNS, _REDUCE_ROWS = 32, 16


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    has_silu: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> Tensor:
    """y (B, L, D) in x's dtype."""
    inputs = (x, weight, bias, initial_state)
    needs_gradient = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in inputs)
    at_once = _Convolution.apply if needs_gradient else _convolve
    y: Tensor = (at_once if runs_at_once(x) else _convolution)(
        x,
        in_kernel_dtype(weight),
        None if bias is None else in_kernel_dtype(bias),
        None if initial_state is None else in_kernel_dtype(initial_state),
        sequence_starts,
        has_silu,
    )
    return y


@dataclass(frozen=True)
class Plan:
    """How the work is laid over the GPU; the names are those of `conv.cuh`."""

    vector: int
    """Neighbouring channels of a thread."""
    rows: int
    """Positions that a thread asks for at once."""
    steps: int
    """Positions of a thread, a multiple of `rows`."""
    columns: int
    """Threads of a block side by side."""
    threads: int
    min_blocks: int


@functools.cache
def plan(
    batch: int, length: int, channels: int, width: int, vector: int, num_multiprocessors: int, is_backward: bool
) -> Plan:
    """Threads enough to keep the memory busy, and otherwise as few rows read twice as can be.

    `vector` is what the tensors allow. The constants were found by trying (`benchmarks/notes/causal_conv1d.md`).
    """
    # What a thread holds in registers grows with its channels times the width.
    widest, fewest_rows, most_steps, min_blocks = (4, 8, 128, 4) if is_backward else (2, 16, 32, 8)
    if width > 4:
        widest, min_blocks = (2, min_blocks // 2) if width <= 8 else (1, 1)
    vector = min(vector, widest)
    rows = max(fewest_rows, 1 << (width - 2).bit_length() if width > 1 else 1)
    across = math.ceil(channels / vector)
    # All that the GPU holds at a time, where the work is not more than that.
    resident_segments = max(1, num_multiprocessors * _THREADS * min_blocks // (batch * across))
    steps = min(math.ceil(length / resident_segments), most_steps)
    return Plan(
        vector=vector,
        rows=rows,
        steps=math.ceil(steps / rows) * rows,
        columns=min(_LANES, 1 << (across - 1).bit_length()),
        threads=_THREADS,
        min_blocks=min_blocks,
    )


class _Rows(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "time", "channel")]


class _Inputs(ctypes.Structure):
    _fields_ = [
        ("x", _Rows),
        ("initial", _Rows),
        ("weight", ctypes.c_int64),
        ("bias", ctypes.c_int64),
        ("starts", ctypes.c_int64),
        ("starts_batch", ctypes.c_int64),
        ("starts_time", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("blocks_across", ctypes.c_int64),
        ("blocks_along", ctypes.c_int64),
    ]


class _ForwardArguments(ctypes.Structure):
    _fields_ = [("inputs", _Inputs), ("y", _Rows)]


class _BackwardArguments(ctypes.Structure):
    _fields_ = [("inputs", _Inputs), ("dy", _Rows), ("dx", _Rows), ("dinitial", _Rows), ("parts", ctypes.c_int64)]


class _ReduceArguments(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("parts", "dweight", "dbias", "num_parts", "channels")]


class _Tensor(NamedTuple):
    """What a launch depends on in a tensor of three axes, its address apart: strides are in bytes."""

    dtype: torch.dtype
    batch: int
    time: int
    channel: int
    alignment: int
    """Bytes that its address and its strides along the batch and time are multiples of, `_VECTOR_BYTES` at most."""

    @staticmethod
    def of(tensor: Tensor) -> _Tensor:
        size = tensor.element_size()
        batch, time, channel = (stride * size for stride in tensor.stride())
        return _Tensor(tensor.dtype, batch, time, channel, math.gcd(_VECTOR_BYTES, tensor.data_ptr(), batch, time))

    @property
    def vector(self) -> int:
        """Channels that can be read at once, and held: more bytes a row than these would spill."""
        size = self.dtype.itemsize
        return max(1, min(self.alignment, _ROW_BYTES) // size) if self.channel == size else 1

    def rows(self) -> _Rows:
        return _Rows(0, self.batch, self.time, self.channel)


@dataclass(frozen=True)
class _Launch:
    """A kernel and everything of its launch that does not depend on addresses."""

    kernel: nvrtc.Kernel
    num_blocks: int
    num_threads: int
    shared_bytes: int
    arguments: Any


class _Problem(NamedTuple):
    """All that decides which kernel runs and how."""

    sizes: tuple[int, int, int]
    width: int
    x: _Tensor
    output: _Tensor
    """y, or dx."""
    dy: _Tensor | None
    weight: torch.dtype
    bias: torch.dtype | None
    initial_state: _Tensor | None
    starts_strides: tuple[int, int] | None
    has_silu: bool
    device: torch.device

    @property
    def plan(self) -> Plan:
        batch, length, channels = self.sizes
        vector = math.gcd(channels, min(x.vector for x in (self.x, self.output, self.dy) if x is not None))
        return plan(batch, length, channels, self.width, vector, multiprocessors(self.device), self.dy is not None)

    @property
    def blocks_across(self) -> int:
        return math.ceil(self.sizes[2] / (self.plan.columns * self.plan.vector))

    @property
    def blocks_along(self) -> int:
        segments = self.plan.threads // self.plan.columns
        return math.ceil(self.sizes[1] / (segments * self.plan.steps))

    @property
    def num_parts(self) -> int:
        """Blocks that work on the same channels."""
        return self.sizes[0] * self.blocks_along

    @property
    def num_sums(self) -> int:
        """Gradients of parameters that each channel has: of its taps and of its bias."""
        return self.width + (self.bias is not None)

    @property
    def inputs(self) -> _Inputs:
        _, length, channels = self.sizes
        starts_batch, starts_time = self.starts_strides or (0, 0)
        initial = _Rows() if self.initial_state is None else self.initial_state.rows()
        return _Inputs(
            *(self.x.rows(), initial, 0, 0, 0),
            *(starts_batch, starts_time, length, channels),
            *(self.plan.steps, self.blocks_across, self.blocks_along),
        )

    def kernels(self, file: str, names: tuple[str, ...]) -> dict[str, nvrtc.Kernel]:
        plan, state = self.plan, self.initial_state
        definitions = {
            "X_T": C_NAMES[self.x.dtype],
            "WEIGHT_T": C_NAMES[self.weight],
            "BIAS_T": C_NAMES[self.bias or torch.float32],
            "STATE_T": C_NAMES[torch.float32 if state is None else state.dtype],
            "WIDTH": self.width,
            "HAS_BIAS": int(self.bias is not None),
            "HAS_STATE": int(state is not None),
            "HAS_STARTS": int(self.starts_strides is not None),
            "HAS_SILU": int(self.has_silu),
            "VECTOR": plan.vector,
            "ROWS": plan.rows,
            "COLUMNS": plan.columns,
            "THREADS": plan.threads,
            "MIN_BLOCKS": plan.min_blocks,
            "LANES_IN_TIME": int(self.x.time < self.x.channel),
        }
        return _kernels(file, tuple(f"-D{name}={value}" for name, value in definitions.items()), names, self.device)


@functools.cache
def _kernels(
    file: str, options: tuple[str, ...], names: tuple[str, ...], device: torch.device
) -> dict[str, nvrtc.Kernel]:
    files = ("csrc/elements.cuh", "causal_conv1d/csrc/conv.cuh", f"causal_conv1d/csrc/{file}")
    return nvrtc.load(nvrtc.source(*files), options, names, device)


@functools.lru_cache(maxsize=1024)
def _forward_launch(problem: _Problem) -> _Launch:
    kernel = problem.kernels("forward.cu", ("forward",))["forward"]
    arguments = _ForwardArguments(problem.inputs, problem.output.rows())
    return _Launch(kernel, problem.num_parts * problem.blocks_across, problem.plan.threads, 0, arguments)


@functools.lru_cache(maxsize=1024)
def _backward_launches(problem: _Problem) -> tuple[_Launch, _Launch]:
    """The backward proper, and the sum of its parts."""
    assert problem.dy is not None
    kernels, layout = problem.kernels("backward.cu", ("backward", "reduce_parts")), problem.plan
    _, _, channels = problem.sizes
    num_parts, num_sums = problem.num_parts, problem.num_sums
    dinitial = _Rows() if problem.initial_state is None else problem.initial_state.rows()
    backward = _Launch(
        kernels["backward"],
        num_parts * problem.blocks_across,
        layout.threads,
        layout.threads * layout.vector * num_sums * 4,
        _BackwardArguments(problem.inputs, problem.dy.rows(), problem.output.rows(), dinitial, 0),
    )
    reduce = _Launch(
        kernels["reduce_parts"],
        math.ceil(num_sums * channels / _REDUCE_COLUMNS),
        _REDUCE_COLUMNS * _REDUCE_ROWS,
        0,
        _ReduceArguments(0, 0, 0, num_parts, channels),
    )
    return backward, reduce


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    has_silu: bool,
) -> Tensor:
    x, weight, bias, initial_state = _laid_out(x, weight, bias, initial_state)
    y = torch.empty_like(x)
    launch = _forward_launch(_problem(x, y, None, weight, bias, initial_state, sequence_starts, has_silu))
    arguments = _ForwardArguments.from_buffer_copy(launch.arguments)
    _fill(arguments.inputs, x, weight, bias, initial_state, sequence_starts)
    arguments.y.data = y.data_ptr()
    launch.kernel.launch(launch.num_blocks, launch.num_threads, arguments, launch.shared_bytes)
    return y


def _fake_convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    has_silu: bool,
) -> Tensor:
    return torch.empty_like(x)


def _convolve_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    has_silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, weight, bias, initial_state = _laid_out(x, weight, bias, initial_state)
    dy = _with_short_rows(dy)
    dx, dweight, dbias, dinitial = gradients = _fake_backward(
        dy, x, weight, bias, initial_state, sequence_starts, has_silu
    )
    problem = _problem(x, dx, dy, weight, bias, initial_state, sequence_starts, has_silu)
    backward, reduce = _backward_launches(problem)
    parts = x.new_empty((problem.num_parts, problem.num_sums, x.shape[2]), dtype=torch.float32)
    arguments = _BackwardArguments.from_buffer_copy(backward.arguments)
    _fill(arguments.inputs, x, weight, bias, initial_state, sequence_starts)
    arguments.dy.data, arguments.dx.data = dy.data_ptr(), dx.data_ptr()
    arguments.dinitial.data, arguments.parts = dinitial.data_ptr(), parts.data_ptr()
    backward.kernel.launch(backward.num_blocks, backward.num_threads, arguments, backward.shared_bytes)
    sums = _ReduceArguments.from_buffer_copy(reduce.arguments)
    sums.parts, sums.dweight, sums.dbias = parts.data_ptr(), dweight.data_ptr(), dbias.data_ptr()
    reduce.kernel.launch(reduce.num_blocks, reduce.num_threads, sums)
    return gradients


def _fake_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    has_silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An operator's outputs are tensors: a gradient that nobody takes is an empty one.
    dweight, dbias, dinitial = (
        x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape) for tensor in (weight, bias, initial_state)
    )
    return torch.empty_like(x), dweight, dbias, dinitial


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.has_silu = inputs
    ctx.save_for_backward(*tensors)


def _autograd_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, initial_state, sequence_starts = ctx.saved_tensors
    backward = _convolve_backward if runs_at_once(dy) else _convolution_backward
    dx, dweight, dbias, dinitial = backward(dy, x, weight, bias, initial_state, sequence_starts, ctx.has_silu)
    return (
        *(dx, dweight),
        None if bias is None else dbias,
        None if initial_state is None else dinitial,
        *(None, None),
    )


_convolution = register("causal_conv1d_cuda", _convolve, _fake_convolve)
_convolution_backward = register("causal_conv1d_cuda_backward", _convolve_backward, _fake_backward)
torch.library.register_autograd("seqsuite::causal_conv1d_cuda", _autograd_backward, setup_context=_setup_context)


class _Convolution(torch.autograd.Function):
    """The same for a call that nobody traces, at a third of the cost."""

    # Without a `setup_context` of its own, for which torch would examine the signature in every call.
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        y = _convolve(*inputs)
        _setup_context(ctx, inputs, y)
        return y

    backward = staticmethod(_autograd_backward)


def _problem(
    x: Tensor,
    output: Tensor,
    dy: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    has_silu: bool,
) -> _Problem:
    batch, length, channels = x.shape
    return _Problem(
        (batch, length, channels),
        weight.shape[1],
        _Tensor.of(x),
        _Tensor.of(output),
        None if dy is None else _Tensor.of(dy),
        weight.dtype,
        None if bias is None else bias.dtype,
        None if initial_state is None or weight.shape[1] == 1 else _Tensor.of(initial_state.transpose(1, 2)),
        None if sequence_starts is None else sequence_starts.stride(),  # type: ignore[arg-type]  # it has two axes
        has_silu,
        x.device,
    )


def _fill(
    inputs: _Inputs,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> None:
    inputs.x.data, inputs.weight = x.data_ptr(), weight.data_ptr()
    if bias is not None:
        inputs.bias = bias.data_ptr()
    if initial_state is not None:
        inputs.initial.data = initial_state.data_ptr()
    if sequence_starts is not None:
        inputs.starts = sequence_starts.data_ptr()


def _laid_out(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The inputs with strides that the kernels take: nearly always those that they have."""
    if x.shape[1] > _MAX_LENGTH:
        raise ValueError(f"x has length {x.shape[1]}; the CUDA kernels take at most {_MAX_LENGTH} positions")
    return (
        _with_short_rows(x),
        _dense(weight),
        None if bias is None else _dense(bias),
        None if initial_state is None else initial_state.contiguous(),
    )


def _dense(parameter: Tensor) -> Tensor:
    parameter = parameter.contiguous()
    return parameter if parameter.data_ptr() % _VECTOR_BYTES == 0 else parameter.clone()


def _with_short_rows(tensor: Tensor) -> Tensor:
    is_short = tensor.stride(1) * tensor.element_size() <= _MAX_STRIDE_BYTES
    return tensor if is_short else tensor.contiguous()
