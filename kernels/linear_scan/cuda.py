"""The linear scan on an NVIDIA GPU: what torch sees of the kernels in `csrc`.

Computes in float32 from float32, bfloat16 or float16, with any strides. Device memory sees the projections and the
states, nothing else. Results repeat bit for bit: every sum has a fixed order.
"""

# B batch, L length, D channels

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kernels import nvrtc
from kernels.nvrtc import C_NAMES, in_kernel_dtype
from kernels.nvrtc import unavailable as unavailable
from kernels.operators import register

_LINEAR, _MIN_GRU, _MIN_LSTM = range(3)
_LANES = 32


def linear_scan(
    a: Tensor, b: Tensor, initial_state: Tensor | None, sequence_starts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in b's dtype and the final state (B, D) in float32."""
    return _run(a, b, None, initial_state, sequence_starts, _LINEAR, False)


def min_gru_scan(
    update: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in the candidate's dtype and the final state (B, D) in float32."""
    return _run(update, candidate, None, initial_state, sequence_starts, _MIN_GRU, positive_candidate)


def min_lstm_scan(
    forget: Tensor,
    input: Tensor,
    candidate: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    positive_candidate: bool,
) -> tuple[Tensor, Tensor]:
    """h (B, L, D) in the candidate's dtype and the final state (B, D) in float32."""
    return _run(forget, input, candidate, initial_state, sequence_starts, _MIN_LSTM, positive_candidate)


def _run(
    x0: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    kind: int,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    inputs = (x0, x1, x2, initial_state)
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    scan = _Scan.apply if needs_gradient else torch.ops.seqsuite.linear_scan_cuda
    h, final_state = scan(  # type: ignore[no-untyped-call]  # torch's apply has no types
        in_kernel_dtype(x0),
        in_kernel_dtype(x1),
        None if x2 is None else in_kernel_dtype(x2),
        None if initial_state is None else initial_state.float(),
        sequence_starts,
        kind,
        positive,
    )
    return h, final_state


@dataclass(frozen=True)
class Plan:
    """How the work is laid over the GPU; the names are those of the kernels' comments."""

    steps: int
    channels: int = 2
    warps: int = 8
    min_blocks: int = 2
    group: int = 16

    @property
    def chunk(self) -> int:
        return self.steps * self.warps

    @property
    def tile(self) -> int:
        return _LANES * self.channels


def plan(kernel: str, kind: int, item_bytes: int) -> Plan:
    """As many steps as the registers of a thread hold, since all of them are loaded at once.

    The constants were found by trying (`benchmarks/notes/linear_scan.md`).
    """
    in_two_bytes, in_four_bytes = _MOST_STEPS[kernel][kind]
    return Plan(steps=in_two_bytes if item_bytes <= 2 else in_four_bytes)


_MOST_STEPS = {
    "forward": {_LINEAR: (16, 16), _MIN_GRU: (16, 12), _MIN_LSTM: (12, 8)},
    "backward": {_LINEAR: (16, 8), _MIN_GRU: (8, 6), _MIN_LSTM: (6, 4)},
}


class _Rows(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "time", "last")]


def _rows(tensor: Tensor | None) -> _Rows:
    return _Rows() if tensor is None else _Rows(tensor.data_ptr(), *tensor.stride())


class _Arguments(ctypes.Structure):
    _fields_ = [
        *((name, _Rows) for name in ("x0", "x1", "x2", "h", "dx0", "dx1", "dx2", "dh")),
        *((name, ctypes.c_int64) for name in ("notes", "begin", "end", "tiles", "chunks")),
        *((name, ctypes.c_int64) for name in ("initial", "starts", "starts_batch", "starts_time")),
        *((name, ctypes.c_int64) for name in ("batch", "length", "channels")),
    ]


def _scan(
    x0: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    kind: int,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    h, final_state = _fake_scan(x0, x1, x2, initial_state, sequence_starts, kind, positive)
    _launch("forward", (x0, x1, x2, h), (), initial_state, final_state, None, sequence_starts, kind, positive)
    return h, final_state


def _fake_scan(
    x0: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    kind: int,
    positive: bool,
) -> tuple[Tensor, Tensor]:
    last = x1 if x2 is None else x2
    batch, _, channels = last.shape
    return last.new_empty(last.shape), last.new_empty((batch, channels), dtype=torch.float32)


def _scan_backward(
    dh: Tensor,
    dfinal: Tensor | None,
    h: Tensor,
    x0: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    kind: int,
    positive: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = _fake_backward(dh, dfinal, h, x0, x1, x2, initial_state, sequence_starts, kind, positive)
    dx0, dx1, dx2, dinitial = gradients
    given_dx2 = None if x2 is None else dx2
    rows, drows = (x0, x1, x2, h), (dx0, dx1, given_dx2, dh)
    _launch("backward", rows, drows, dfinal, dinitial, initial_state, sequence_starts, kind, positive)
    return gradients


def _fake_backward(
    dh: Tensor,
    dfinal: Tensor | None,
    h: Tensor,
    x0: Tensor,
    x1: Tensor,
    x2: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    kind: int,
    positive: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # An operator's outputs are tensors: a gradient that nobody takes is an empty one.
    dx0, dx1, dx2 = (x0.new_empty(0) if x is None else x.new_empty(x.shape) for x in (x0, x1, x2))
    return dx0, dx1, dx2, h.new_empty((h.shape[0], h.shape[2]), dtype=torch.float32)


def _launch(
    kernel: str,
    rows: tuple[Tensor | None, ...],
    gradients: tuple[Tensor | None, ...],
    begin: Tensor | None,
    end: Tensor,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    kind: int,
    positive: bool,
) -> None:
    x0, x1, x2, h = rows
    assert x0 is not None and x1 is not None and h is not None
    batch, length, channels = h.shape
    begin, initial_state = (None if x is None else x.contiguous() for x in (begin, initial_state))
    given = [x for x in (*rows, *gradients) if x is not None]
    layout = plan(kernel, kind, max(x.element_size() for x in given))
    tiles, chunks = batch * math.ceil(channels / layout.tile), math.ceil(length / layout.chunk)
    # All ones: not written yet.
    num_notes = (math.ceil(chunks / layout.group) + chunks) * tiles * layout.tile
    notes = torch.full((num_notes,), -1, dtype=torch.int64, device=h.device)
    flags = {
        "KIND": kind,
        "POSITIVE": int(positive),
        "X0_T": C_NAMES[x0.dtype],
        "X1_T": C_NAMES[x1.dtype],
        "X2_T": C_NAMES[h.dtype if x2 is None else x2.dtype],
        "H_T": C_NAMES[h.dtype],
        "HAS_STARTS": int(sequence_starts is not None),
        "VECTORS": int(channels % layout.channels == 0 and all(_is_aligned(x, layout.channels) for x in given)),
        "CHANNELS": layout.channels,
        "STEPS": layout.steps,
        "WARPS": layout.warps,
        "MIN_BLOCKS": layout.min_blocks,
        "GROUP": layout.group,
    }
    arguments = _Arguments(
        *(_rows(x) for x in rows),
        *(_rows(x) for x in gradients or (None,) * 4),
        *(notes.data_ptr(), _address(begin), end.data_ptr(), tiles, chunks),
        *(_address(initial_state), _address(sequence_starts)),
        *((0, 0) if sequence_starts is None else sequence_starts.stride()),
        *(batch, length, channels),
    )
    options = tuple(f"-D{flag}={value}" for flag, value in flags.items())
    _kernel(kernel, options, h.device).launch(tiles * chunks, _LANES * layout.warps, arguments)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x0, x1, x2, initial_state, sequence_starts, kind, positive = inputs
    ctx.save_for_backward(output[0], x0, x1, x2, initial_state, sequence_starts)
    ctx.kind, ctx.positive = kind, positive
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx: Any, dh: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
    h, x0, x1, x2, initial_state, sequence_starts = ctx.saved_tensors
    if dh is None and dfinal is None:
        return (None,) * 7
    dx0, dx1, dx2, dinitial = torch.ops.seqsuite.linear_scan_cuda_backward(
        torch.zeros_like(h) if dh is None else dh,
        *(dfinal, h, x0, x1, x2, initial_state, sequence_starts, ctx.kind, ctx.positive),
    )
    gradients = (dx0, dx1, None if x2 is None else dx2, None if initial_state is None else dinitial)
    return (*gradients, None, None, None)


register("linear_scan_cuda", _scan, _fake_scan)
register("linear_scan_cuda_backward", _scan_backward, _fake_backward)
torch.library.register_autograd("seqsuite::linear_scan_cuda", _autograd_backward, setup_context=_setup_context)


class _Scan(torch.autograd.Function):
    """The operator with the gradient registered above, at half the cost of a call."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = torch.ops.seqsuite.linear_scan_cuda(*inputs)
        return outputs

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_autograd_backward)


def _is_aligned(tensor: Tensor, width: int) -> bool:
    """Whether `width` entries of the last axis can be read at once, in any row."""
    batch, time, last = tensor.stride()
    return (
        last == 1
        and batch % width == 0
        and time % width == 0
        and tensor.data_ptr() % (width * tensor.element_size()) == 0
    )


@functools.cache
def _kernel(name: str, options: tuple[str, ...], device: torch.device) -> nvrtc.Kernel:
    source = nvrtc.source("linear_scan/csrc/chain.cuh", f"linear_scan/csrc/{name}.cu")
    return nvrtc.load(source, options, [name], device)[name]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
