"""The selective scan on an NVIDIA GPU: what torch sees of the kernels in `csrc`.

Computes in float32 from float32, bfloat16 or float16, with any strides. Between forward and backward only the states
at chunk boundaries are kept. Gradients repeat bit for bit: every sum has a fixed order.
"""

# B batch, L length, D channels, N state

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import nvrtc

_CSRC = Path(__file__).parent / "csrc"
_C_NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_OLDEST_CAPABILITY = (8, 0)
_PARTS_BUDGET_BYTES = 128 * 2**20
"""For dB and dC before they are added up; a sequence that needs more goes backward in pieces."""
_STEPS = 8
_CHANNELS = 8
_SMALLEST_CHUNK = 32
_LANES = 32


def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    reason = nvrtc.unavailable(device)
    if reason is None and torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    return reason


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) in u's dtype and the final state (B, D, N) in float32."""
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    scan = _Scan.apply if needs_gradient else torch.ops.seqsuite.selective_scan_cuda
    y, final_BDN, _ = scan(  # type: ignore[no-untyped-call]  # torch's apply has no types
        u,
        _for_kernel(delta),
        A.float(),
        _for_kernel(B),
        _for_kernel(C),
        None if D is None else D.float(),
        None if z is None else _for_kernel(z),
        None if delta_bias is None else delta_bias.float(),
        None if initial_state is None else initial_state.float(),
        sequence_starts,
        delta_softplus,
        needs_gradient,
    )
    return y, final_BDN


@dataclass(frozen=True)
class Plan:
    """How the work is laid over the GPU; the names are those of the kernels' comments."""

    forward_segments: int
    forward_columns: int
    forward_min_blocks: int
    backward_segments: int
    backward_min_blocks: int
    channel_groups: int

    def __post_init__(self) -> None:
        if self.chunk < _SMALLEST_CHUNK:
            raise ValueError(
                f"a chunk of {self.chunk} steps is shorter than {_SMALLEST_CHUNK}, which states are kept for"
            )

    @property
    def chunk(self) -> int:
        """Steps between two saved states."""
        return self.backward_segments * _STEPS


@functools.cache
def plan(batch: int, length: int, channels: int, state: int, num_multiprocessors: int) -> Plan:
    """Enough warps for every multiprocessor, and otherwise as few on one channel and as few blocks as can be.

    The constants were found by trying (`benchmarks/notes/selective_scan.md`).
    """
    eights = math.ceil(channels / _CHANNELS)
    warps = batch * eights / num_multiprocessors
    num_groups = _States.of(state).groups
    forward_segments = 1 if warps >= 8 and num_groups == 1 else 8
    forward_blocks = 4 if forward_segments == 1 else 2 if warps > 1 else 1
    # Beyond 8 groups the shared memory of 8 warps is more than a block can have.
    backward_segments, resident_blocks = (4, 2) if warps >= 8 or num_groups > 8 else (8, 1)
    channel_groups = min(math.ceil(warps / resident_blocks), max(1, 8 // num_groups), eights)
    return Plan(
        forward_segments=forward_segments,
        forward_columns=4 if forward_segments == 1 else 1,
        forward_min_blocks=forward_blocks,
        backward_segments=backward_segments,
        backward_min_blocks=resident_blocks,
        channel_groups=channel_groups,
    )


@dataclass(frozen=True)
class _States:
    """How a channel's states are laid over four lanes: `groups` times `per_lane` consecutive ones each."""

    per_lane: int
    groups: int

    @staticmethod
    def of(state: int) -> _States:
        per_lane = next((size for size in (1, 2) if state <= 4 * size), 4)
        return _States(per_lane, -(-state // (4 * per_lane)))

    @property
    def padded(self) -> int:
        return 4 * self.per_lane * self.groups

    @property
    def lane_bytes(self) -> int:
        """Of the states of one group in all lanes of a warp."""
        return _LANES * self.per_lane * 4


class _Rows(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("data", "batch", "time", "last", "advance", "across")]


def _rows(tensor: Tensor | None, steps: int) -> _Rows:
    """`tensor` for a warp that goes `steps` on in time from tile to tile."""
    if tensor is None:
        return _Rows()
    batch, time, last = tensor.stride()
    size = tensor.element_size()
    advance, across = steps * time * size, _CHANNELS * last * size
    return _Rows(tensor.data_ptr(), batch, time, last, advance, across)


def _structure(name: str, rows: str, words: str) -> type[ctypes.Structure]:
    fields = [(field, _Rows) for field in rows.split()] + [(field, ctypes.c_int64) for field in words.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_ForwardArguments = _structure(
    "_ForwardArguments",
    "u delta B C z y",
    "A D bias initial starts starts_batch starts_time final checkpoints batch length channels state",
)
_BackwardArguments = _structure(
    "_BackwardArguments",
    "u delta B C z dout",
    "du ddelta dz A D bias checkpoints dfinal starts starts_batch starts_time dA dD dbias dinitial dBC "
    "batch length channels state channel_groups first_chunk end_chunk adds_to_sums",
)
_ReduceArguments = _structure("_ReduceArguments", "", "parts dB dC num_parts batch steps first_step length state")


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, channels), state = u.shape, A.shape[1]
    _expect_kernel_sizes(length)
    layout, chosen = plan(batch, length, channels, state, _multiprocessors(u.device)), _States.of(state)
    A = A.contiguous()
    D, delta_bias, initial_state = (_contiguous(x) for x in (D, delta_bias, initial_state))
    y, final, checkpoints = _fake_scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, sequence_starts, delta_softplus, save_states
    )
    arguments = _ForwardArguments(
        *(_rows(x, layout.forward_segments * _STEPS) for x in (u, delta, B, C, z, y)),
        *(_address(x) for x in (A, D, delta_bias, initial_state, sequence_starts)),
        *(sequence_starts.stride() if sequence_starts is not None else (0, 0)),
        final.data_ptr(),
        checkpoints.data_ptr() if save_states else 0,
        *(batch, length, channels, state),
    )
    segments, columns = layout.forward_segments, layout.forward_columns
    options = (
        *_options(u, delta, B, C, D, z, delta_bias, sequence_starts, delta_softplus, y, state=state),
        f"-DSEGMENTS={segments}",
        f"-DCOLUMNS={columns}",
        f"-DMIN_BLOCKS={layout.forward_min_blocks}",
        f"-DCHECKPOINT_STEPS={layout.chunk}",
        f"-DSPLIT_OPERANDS={int(torch.float32 in (u.dtype, C.dtype))}",
    )
    warp_bytes = 2 * _ROWS_BYTES + _STEPS * 4 * chosen.per_lane * 4 + 32
    team_bytes = (4 * segments + 2 * chosen.groups) * chosen.lane_bytes if segments > 1 else 0
    _kernels("forward.cu", options, u.device)["forward"].launch(
        batch * math.ceil(channels / (_CHANNELS * columns)),
        _LANES * segments * columns,
        arguments,
        columns * (segments * warp_bytes + team_bytes),
    )
    return y, final, checkpoints


def _fake_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    state = A.shape[1]
    final = u.new_empty((batch, channels, state), dtype=torch.float32)
    if not save_states:
        return torch.empty_like(u), final, final.new_empty(0)
    # Enough for the smallest chunk: the shape must not depend on the plan, so that it can be traced with open sizes.
    shape = (batch, -(-length // _SMALLEST_CHUNK), -(-channels // _CHANNELS) * _CHANNELS, _States.of(state).padded)
    return torch.empty_like(u), final, final.new_empty(shape)


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _scan_backward(
    dy: Tensor,
    dfinal: Tensor | None,
    checkpoints: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
) -> _Gradients:
    (batch, length, channels), state = u.shape, A.shape[1]
    layout, chosen = plan(batch, length, channels, state, _multiprocessors(u.device)), _States.of(state)
    A = A.contiguous()
    D, delta_bias, dfinal = (_contiguous(x) for x in (D, delta_bias, dfinal))
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = gradients = _fake_backward(
        dy, dfinal, checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts, delta_softplus
    )
    # One batch row's share of the gradients of parameters, and one block's of dB and dC; added up below.
    parts_of = functools.partial(u.new_empty, dtype=torch.float32)
    dA_parts, dD_parts, dbias_parts = (x[None] if batch == 1 else parts_of((batch, *x.shape)) for x in (dA, dD, dbias))
    blocks_per_batch = math.ceil(channels / (_CHANNELS * layout.channel_groups))
    step_bytes = blocks_per_batch * batch * 2 * chosen.padded * 4
    chunks_a_piece = max(1, _PARTS_BUDGET_BYTES // (step_bytes * layout.chunk))
    num_chunks = math.ceil(length / layout.chunk)
    dBC_parts = parts_of(step_bytes // 4 * layout.chunk * min(chunks_a_piece, num_chunks))

    segments, groups, slots = layout.backward_segments, layout.channel_groups, layout.channel_groups * chosen.groups
    options = (
        *_options(u, delta, B, C, D, z, delta_bias, sequence_starts, delta_softplus, dy, state=state),
        f"-DSEGMENTS={segments}",
        f"-DMIN_BLOCKS={layout.backward_min_blocks}",
        f"-DSPLIT_OPERANDS={int(torch.float32 in (B.dtype, C.dtype))}",
    )
    kernels = _kernels("backward.cu", options, u.device)
    warp_bytes = 4 * _ROWS_BYTES + 2 * _STEPS * chosen.padded * 4 + 32 + 3 * _PARTS_BYTES
    slot_bytes = (1 + 2 + segments) * chosen.lane_bytes
    group_bytes = 64 + segments * _LANES * 8
    shared_bytes = segments * (warp_bytes + 6 * chosen.lane_bytes) + slots * slot_bytes + groups * group_bytes
    for end_chunk in range(num_chunks, 0, -chunks_a_piece):
        first_chunk, is_last = max(0, end_chunk - chunks_a_piece), end_chunk == num_chunks
        first_step = first_chunk * layout.chunk
        steps = min(end_chunk * layout.chunk, length) - first_step
        arguments = _BackwardArguments(
            *(_rows(x, 0) for x in (u, delta, B, C, z, dy)),
            *(_address(x) for x in (du, ddelta, dz, A, D, delta_bias, checkpoints)),
            *(_address(x) for x in (dfinal if is_last else dinitial, sequence_starts)),
            *(sequence_starts.stride() if sequence_starts is not None else (0, 0)),
            *(x.data_ptr() for x in (dA_parts, dD_parts, dbias_parts, dinitial, dBC_parts)),
            *(batch, length, channels, state, groups, first_chunk, end_chunk, int(not is_last)),
        )
        kernels["backward"].launch(batch * blocks_per_batch, _LANES * segments, arguments, shared_bytes)
        addresses = (x.data_ptr() for x in (dBC_parts, dB, dC))
        kernels["reduce_parts"].launch(
            math.ceil(batch * steps * 2 * chosen.padded / 256),
            256,
            _ReduceArguments(*addresses, blocks_per_batch, batch, steps, first_step, length, state),
        )
    for gradient, parts in ((dA, dA_parts), (dD, dD_parts), (dbias, dbias_parts)):
        if batch > 1 and gradient.numel():
            torch.sum(parts, dim=0, out=gradient)
    return gradients


def _fake_backward(
    dy: Tensor,
    dfinal: Tensor | None,
    checkpoints: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
) -> _Gradients:
    def dense(tensor: Tensor | None) -> Tensor:
        # An operator's outputs are tensors: a gradient that nobody takes is an empty one.
        return A.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    dinitial = A.new_empty((u.shape[0], *A.shape))
    return (*(dense(x) for x in (u, delta, A, B, C, D, z, delta_bias)), dinitial)  # type: ignore[return-value]


def _setup_context(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[object, ...], output: tuple[Tensor, ...]
) -> None:
    u, delta, A, B, C, D, z, delta_bias, initial_state, sequence_starts, delta_softplus, _ = inputs
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, sequence_starts)  # type: ignore[arg-type]
    ctx.has_initial_state = initial_state is not None  # type: ignore[attr-defined]
    ctx.delta_softplus = delta_softplus  # type: ignore[attr-defined]
    ctx.set_materialize_grads(False)


def _autograd_backward(
    ctx: torch.autograd.function.FunctionCtx, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts = ctx.saved_tensors  # type: ignore[attr-defined]
    if dy is None and dfinal is None:
        return (None,) * 12
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = torch.ops.seqsuite.selective_scan_cuda_backward(
        torch.zeros_like(u) if dy is None else dy,
        *(dfinal, checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts),
        ctx.delta_softplus,  # type: ignore[attr-defined]
    )
    return (
        *(du, ddelta, dA, dB, dC),
        None if D is None else dD,
        None if z is None else dz,
        None if delta_bias is None else dbias,
        dinitial if ctx.has_initial_state else None,  # type: ignore[attr-defined]
        *(None, None, None),
    )


# What `torch.library.custom_op` would do, less its search of every call for aliases, which costs more than a launch.
_OPERATOR = "seqsuite::selective_scan_cuda"
for _name, _function, _fake in (
    (_OPERATOR, _scan, _fake_scan),
    (f"{_OPERATOR}_backward", _scan_backward, _fake_backward),
):
    torch.library.define(_name, torch.library.infer_schema(_function, mutates_args=()))
    torch.library.impl(_name, "cuda", _function)
    torch.library.register_fake(_name, _fake)
torch.library.register_autograd(_OPERATOR, _autograd_backward, setup_context=_setup_context)


class _Scan(torch.autograd.Function):
    """The operator with the gradient registered above, at half the cost of a call."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = torch.ops.seqsuite.selective_scan_cuda(*inputs)
        return outputs

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_autograd_backward)


# In a warp's shared memory: a factor by channel and step (`ROW` in tile.cuh), a sum over states (`PART_SIZE`).
_ROWS_BYTES = _CHANNELS * 12 * 4
_PARTS_BYTES = 4 * _ROWS_BYTES


def _options(
    u: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    sequence_starts: Tensor | None,
    delta_softplus: bool,
    *others: Tensor,
    state: int,
) -> tuple[str, ...]:
    chosen = _States.of(state)
    items = [x for x in (u, delta, z, *others) if x is not None and x.numel()]
    flags = {
        "U_T": _C_NAMES[u.dtype],
        "DELTA_T": _C_NAMES[delta.dtype],
        "B_T": _C_NAMES[B.dtype],
        "C_T": _C_NAMES[C.dtype],
        "Z_T": _C_NAMES[u.dtype if z is None else z.dtype],
        "STATES": chosen.per_lane,
        "GROUPS": chosen.groups,
        "SOFTPLUS": int(delta_softplus),
        "HAS_D": int(D is not None),
        "HAS_Z": int(z is not None),
        "HAS_BIAS": int(delta_bias is not None),
        "HAS_STARTS": int(sequence_starts is not None),
        "VECTOR_PAIRS": int(u.shape[2] % 2 == 0 and all(_is_aligned(x, 2) for x in items)),
        "VECTOR_BC": int(
            state == chosen.padded
            and chosen.per_lane > 1
            and _is_aligned(B, chosen.per_lane)
            and _is_aligned(C, chosen.per_lane)
        ),
    }
    return tuple(f"-D{name}={value}" for name, value in flags.items())


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
def _kernels(file: str, options: tuple[str, ...], device: torch.device) -> dict[str, nvrtc.Kernel]:
    source = "".join((_CSRC / part).read_text() for part in ("primitives.cuh", "tile.cuh", file))
    names = {"forward.cu": ["forward"], "backward.cu": ["backward", "reduce_parts"]}[file]
    return nvrtc.load(source, options, names, device)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _expect_kernel_sizes(length: int) -> None:
    if length > 2**30:
        raise ValueError(f"u has length {length}; the CUDA kernels take at most {2**30} steps")


def _for_kernel(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in _C_NAMES else tensor.float()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
