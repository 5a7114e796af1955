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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import nvrtc
from kernels.nvrtc import C_NAMES, in_kernel_dtype, multiprocessors
from kernels.nvrtc import unavailable as unavailable
from kernels.operators import register, runs_at_once

_PARTS_BUDGET_BYTES = 128 * 2**20
"""For dB and dC before they are added up; a sequence that needs more goes backward in pieces."""
_STEPS = 8
_CHANNELS = 8
_SMALLEST_CHUNK = 32
_LANES = 32
_VECTOR_BYTES = 16


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
    inputs = (
        u,
        in_kernel_dtype(delta),
        A.float(),
        in_kernel_dtype(B),
        in_kernel_dtype(C),
        None if D is None else D.float(),
        None if z is None else in_kernel_dtype(z),
        None if delta_bias is None else delta_bias.float(),
        None if initial_state is None else initial_state.float(),
    )
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    options = (sequence_starts, delta_softplus, needs_gradient)
    if not runs_at_once(u):
        y, final_BDN, _ = torch.ops.seqsuite.selective_scan_cuda(*inputs, *options)
    elif needs_gradient:
        y, final_BDN = _Scan.apply(*inputs, *options)  # type: ignore[no-untyped-call]  # torch's apply has no types
    else:
        y, final_BDN, _ = _scan(*inputs, *options)
    return y, final_BDN


@dataclass(frozen=True)
class Plan:
    """How the work is laid over the GPU; the names are those of the kernels' comments."""

    forward_segments: int
    forward_columns: int
    forward_min_blocks: int
    backward_segments: int
    backward_teams: int
    backward_cluster: int
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
def plan(
    batch: int, length: int, channels: int, state: int, num_multiprocessors: int, has_clusters: bool = True
) -> Plan:
    """Enough warps for every multiprocessor, and otherwise as few on one channel and as few blocks as can be.

    The constants were found by trying (`benchmarks/notes/selective_scan.md`).
    """
    eights = math.ceil(channels / _CHANNELS)
    warps = batch * eights / num_multiprocessors
    num_groups = _States.of(state).groups
    # A multiprocessor has room for 8 warps of the forward and more, if each has 16 channels for itself, or else for one
    # or two rings on 8 channels each.
    if warps >= 12 and num_groups == 1:
        forward_segments, forward_blocks = 1, 12
    else:
        forward_segments, forward_blocks = (4, 2) if warps > 1 else (8, 1)
    # Beyond 8 groups of states the shared memory of 8 warps is more than a block can have.
    if warps >= (12 if has_clusters else 8) or num_groups > 8:
        segments, teams, cluster, resident_blocks, most_groups = 4, 1, 1, 2, 8
    elif not has_clusters:
        segments, teams, cluster, resident_blocks, most_groups = 8, 1, 1, 1, 8
    elif warps >= 8:
        segments, teams, cluster, resident_blocks, most_groups = 4, 1, 2, 2, 16
    else:
        segments, teams, cluster, resident_blocks, most_groups = 4, 2, 2, 1, 20
    channel_groups = min(math.ceil(warps * cluster / resident_blocks), max(1, most_groups // num_groups), eights)
    return Plan(
        forward_segments=forward_segments,
        forward_columns=1,
        forward_min_blocks=forward_blocks,
        backward_segments=segments,
        backward_teams=teams,
        backward_cluster=cluster,
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


class _Tensor(NamedTuple):
    """What a launch depends on in a tensor (batch, length, last), its address apart. Strides count entries."""

    dtype: torch.dtype
    batch: int
    time: int
    last: int
    misalignment: int
    """The address modulo `_VECTOR_BYTES`."""

    @staticmethod
    def of(tensor: Tensor) -> _Tensor:
        batch, time, last = tensor.stride()
        return _Tensor(tensor.dtype, batch, time, last, tensor.data_ptr() % _VECTOR_BYTES)

    def has_vectors(self, width: int) -> bool:
        """Whether `width` entries of the last axis can be read at once, in any row."""
        return (
            self.last == 1
            and self.batch % width == 0
            and self.time % width == 0
            and self.misalignment % (width * self.dtype.itemsize) == 0
        )


class _Problem(NamedTuple):
    """All that decides which kernels run and how, the tensors' addresses apart."""

    plan: Plan
    batch: int
    length: int
    channels: int
    state: int
    u: _Tensor
    delta: _Tensor
    B: _Tensor
    C: _Tensor
    z: _Tensor | None
    dy: _Tensor | None
    """In the backward."""
    has_skip: bool
    has_bias: bool
    starts_strides: tuple[int, ...] | None
    has_softplus: bool
    saves_states: bool
    device: torch.device

    @property
    def states(self) -> _States:
        return _States.of(self.state)

    @property
    def definitions(self) -> dict[str, object]:
        """What both kernels are compiled with."""
        states = self.states
        items = [x for x in (self.u, self.delta, self.z, self.dy) if x is not None]
        return {
            "U_T": C_NAMES[self.u.dtype],
            "DELTA_T": C_NAMES[self.delta.dtype],
            "B_T": C_NAMES[self.B.dtype],
            "C_T": C_NAMES[self.C.dtype],
            "Z_T": C_NAMES[self.u.dtype if self.z is None else self.z.dtype],
            "STATES": states.per_lane,
            "GROUPS": states.groups,
            "SOFTPLUS": int(self.has_softplus),
            "HAS_D": int(self.has_skip),
            "HAS_Z": int(self.z is not None),
            "HAS_BIAS": int(self.has_bias),
            "HAS_STARTS": int(self.starts_strides is not None),
            "VECTOR_PAIRS": int(self.channels % 2 == 0 and all(x.has_vectors(2) for x in items)),
            "VECTOR_BC": int(
                self.state == states.padded
                and states.per_lane > 1
                and self.B.has_vectors(states.per_lane)
                and self.C.has_vectors(states.per_lane)
            ),
        }


def _problem(
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
    dy: Tensor | None,
    save_states: bool,
) -> _Problem:
    (batch, length, channels), state, device = u.shape, A.shape[1], u.device
    return _Problem(
        plan(batch, length, channels, state, multiprocessors(device), _has_clusters(device)),
        batch,
        length,
        channels,
        state,
        _Tensor.of(u),
        _Tensor.of(delta),
        _Tensor.of(B),
        _Tensor.of(C),
        None if z is None else _Tensor.of(z),
        None if dy is None else _Tensor.of(dy),
        D is not None,
        delta_bias is not None,
        None if sequence_starts is None else sequence_starts.stride(),
        delta_softplus,
        save_states,
        device,
    )


_ROW_FIELDS = ("", "_batch", "_time", "_last", "_step", "_across")


def _structure(name: str, rows: str, words: str) -> type[ctypes.Structure]:
    fields = [row + field for row in rows.split() for field in _ROW_FIELDS] + words.split()
    return type(name, (ctypes.Structure,), {"_fields_": [(field, ctypes.c_int64) for field in fields]})


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
_ReduceArguments = _structure(
    "_ReduceArguments",
    "",
    "parts dA_parts dD_parts dbias_parts dB dC dA dD dbias num_parts batch steps first_step length channels state",
)


def _row_fields(**tensors: _Tensor | None) -> dict[str, int]:
    """The fields of each tensor's rows but for the address; `_step` and `_across` count bytes."""
    fields: dict[str, int] = {}
    for name, tensor in tensors.items():
        if tensor is not None:
            size = tensor.dtype.itemsize
            strides = (tensor.batch, tensor.time, tensor.last, tensor.time * size, _CHANNELS * tensor.last * size)
            fields |= {name + field: stride for field, stride in zip(_ROW_FIELDS[1:], strides, strict=True)}
    return fields


@dataclass(frozen=True)
class _Launch:
    """A kernel and everything of its launch but the addresses."""

    kernel: nvrtc.Kernel
    num_blocks: int
    num_threads: int
    shared_bytes: int
    arguments: Any

    def __call__(self, **tensors: Tensor | None) -> None:
        """Runs it on `tensors`, which are named like their arguments; None is left out."""
        arguments = type(self.arguments).from_buffer_copy(self.arguments)
        for name, tensor in tensors.items():
            if tensor is not None:
                setattr(arguments, name, tensor.data_ptr())
        self.kernel.launch(self.num_blocks, self.num_threads, arguments, self.shared_bytes)


@functools.lru_cache(maxsize=1024)
def _forward_launch(problem: _Problem) -> _Launch:
    batch, length, channels = problem.batch, problem.length, problem.channels
    segments, columns, states = problem.plan.forward_segments, problem.plan.forward_columns, problem.states
    if length > 2**30:
        raise ValueError(f"u has length {length}; the CUDA kernels take at most {2**30} steps")
    y = _Tensor(problem.u.dtype, length * channels, channels, 1, 0)
    rows = _row_fields(u=problem.u, delta=problem.delta, B=problem.B, C=problem.C, z=problem.z, y=y)
    definitions = problem.definitions | {
        "SEGMENTS": segments,
        "COLUMNS": columns,
        "MIN_BLOCKS": problem.plan.forward_min_blocks,
        "CHECKPOINT_STEPS": problem.plan.chunk if problem.saves_states else 0,
        "SPLIT_OPERANDS": int(torch.float32 in (problem.u.dtype, problem.C.dtype)),
        "WIDE_STEPS": int(any(rows[name] >= 2**32 for name in rows if name.endswith("_step"))),
    }
    kernel = _kernels("forward.cu", _options(definitions), problem.device)["forward"]
    # A tile is 8 steps of 16 channels, or with several segments 16 steps of 8.
    halves = 1 if segments == 1 else 2
    warp_bytes = 4 * (2 * (_STEPS * _CHANNELS + 4) + halves * _STEPS)
    ring_bytes = segments * states.groups * states.lane_bytes + math.ceil(segments * states.groups / 2) * 16
    starts_batch, starts_time = problem.starts_strides or (0, 0)
    return _Launch(
        kernel,
        batch * math.ceil(channels / (2 * _CHANNELS // halves * columns)),
        _LANES * segments * columns,
        columns * (segments * warp_bytes + (ring_bytes if segments > 1 else 0)),
        _ForwardArguments(
            **rows,
            starts_batch=starts_batch,
            starts_time=starts_time,
            batch=batch,
            length=length,
            channels=channels,
            state=problem.state,
        ),
    )


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
    y, final, checkpoints = _fake_scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, sequence_starts, delta_softplus, save_states
    )
    launch = _forward_launch(
        _problem(u, delta, A, B, C, D, z, delta_bias, sequence_starts, delta_softplus, None, save_states)
    )
    launch(
        u=u,
        delta=delta,
        A=A.contiguous(),
        B=B,
        C=C,
        D=_contiguous(D),
        z=z,
        bias=_contiguous(delta_bias),
        initial=_contiguous(initial_state),
        starts=sequence_starts,
        y=y,
        final=final,
        checkpoints=checkpoints if save_states else None,
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
    y, final = _dense(u), u.new_empty((batch, channels, state), dtype=torch.float32)
    if not save_states:
        return y, final, final.new_empty(0)
    # Enough for the smallest chunk: the shape must not depend on the plan, so that it can be traced with open sizes.
    shape = (batch, -(-length // _SMALLEST_CHUNK), -(-channels // _CHANNELS) * _CHANNELS, _States.of(state).padded)
    return y, final, final.new_empty(shape)


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _BackwardLaunches:
    """By piece of the sequence, the last first: the backward proper, and what adds up its parts of dB and dC."""

    pieces: tuple[tuple[_Launch, _Launch], ...]
    num_parts: int
    """Entries of the parts of one piece."""


@functools.lru_cache(maxsize=1024)
def _backward_launches(problem: _Problem, parts_budget_bytes: int) -> _BackwardLaunches:
    batch, length, channels = problem.batch, problem.length, problem.channels
    layout, states = problem.plan, problem.states
    segments, teams, cluster = layout.backward_segments, layout.backward_teams, layout.backward_cluster
    groups, warps = layout.channel_groups, segments * teams
    definitions = problem.definitions | {
        "SEGMENTS": segments,
        "TEAMS": teams,
        "CLUSTER": cluster,
        "MIN_BLOCKS": layout.backward_min_blocks,
        "SPLIT_OPERANDS": int(torch.float32 in (problem.B.dtype, problem.C.dtype)),
    }
    kernels = _kernels("backward.cu", _options(definitions), problem.device)
    clusters_per_batch = math.ceil(channels / (_CHANNELS * groups))
    step_parts = clusters_per_batch * batch * 2 * states.padded
    chunks_a_piece = max(1, parts_budget_bytes // (4 * step_parts * layout.chunk))
    num_chunks = math.ceil(length / layout.chunk)

    slots = groups * states.groups
    warp_bytes = 4 * _ROWS_BYTES + 2 * _STEPS * states.padded * 4 + 32
    team_bytes = 6 * segments * states.lane_bytes
    slot_bytes = (1 + 2 * teams + warps) * states.lane_bytes + math.ceil(teams / 2) * 16
    group_bytes = 64 + warps * _LANES * 8
    shared_bytes = warps * warp_bytes + teams * team_bytes + slots * slot_bytes + groups * group_bytes

    rows = _row_fields(u=problem.u, delta=problem.delta, B=problem.B, C=problem.C, z=problem.z, dout=problem.dy)
    starts_batch, starts_time = problem.starts_strides or (0, 0)
    pieces = []
    for end_chunk in range(num_chunks, 0, -chunks_a_piece):
        first_chunk = max(0, end_chunk - chunks_a_piece)
        first_step = first_chunk * layout.chunk
        steps = min(end_chunk * layout.chunk, length) - first_step
        arguments = _BackwardArguments(
            **rows,
            starts_batch=starts_batch,
            starts_time=starts_time,
            batch=batch,
            length=length,
            channels=channels,
            state=problem.state,
            channel_groups=groups,
            first_chunk=first_chunk,
            end_chunk=end_chunk,
            adds_to_sums=int(end_chunk < num_chunks),
        )
        sizes = _ReduceArguments(
            num_parts=clusters_per_batch,
            batch=batch,
            steps=steps,
            first_step=first_step,
            length=length,
            channels=channels,
            state=problem.state,
        )
        num_sums = batch * steps * 2 * states.padded
        if first_chunk == 0 and batch > 1:
            num_sums += channels * (problem.state + 1)
        num_blocks = batch * clusters_per_batch * cluster
        pieces.append(
            (
                _Launch(kernels["backward"], num_blocks, _LANES * warps, shared_bytes, arguments),
                _Launch(kernels["reduce_parts"], math.ceil(num_sums / 256), 256, 0, sizes),
            )
        )
    return _BackwardLaunches(tuple(pieces), step_parts * layout.chunk * min(chunks_a_piece, num_chunks))


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
    launches = _backward_launches(
        _problem(u, delta, A, B, C, D, z, delta_bias, sequence_starts, delta_softplus, dy, False), _PARTS_BUDGET_BYTES
    )
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = gradients = _fake_backward(
        dy, dfinal, checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts, delta_softplus
    )
    # One batch row's share of the gradients of parameters, and one block's of dB and dC; added up below.
    batch = u.shape[0]
    dA_parts, dD_parts, dbias_parts = (x if batch == 1 else x.new_empty((batch, *x.shape)) for x in (dA, dD, dbias))
    dBC_parts = dA.new_empty(launches.num_parts)
    inputs = {
        "u": u,
        "delta": delta,
        "A": A.contiguous(),
        "B": B,
        "C": C,
        "D": _contiguous(D),
        "z": z,
        "bias": _contiguous(delta_bias),
        "starts": sequence_starts,
        "checkpoints": checkpoints,
        "dout": dy,
    }
    outputs = {
        "du": du,
        "ddelta": ddelta,
        "dz": dz,
        "dA": dA_parts,
        "dD": dD_parts,
        "dbias": dbias_parts,
        "dinitial": dinitial,
        "dBC": dBC_parts,
    }
    batch_sums = {
        "dA_parts": dA_parts,
        "dD_parts": dD_parts,
        "dbias_parts": dbias_parts,
        "dA": dA,
        "dD": dD,
        "dbias": dbias,
    }
    dlast = _contiguous(dfinal)
    for backward, reduce_parts in launches.pieces:
        backward(**inputs, **outputs, dfinal=dlast)
        is_last = reduce_parts is launches.pieces[-1][1]
        reduce_parts(parts=dBC_parts, dB=dB, dC=dC, **(batch_sums if is_last and batch > 1 else {}))
        dlast = dinitial
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
    def gradient(tensor: Tensor | None) -> Tensor:
        # An operator's outputs are tensors: a gradient that nobody takes is an empty one.
        return A.new_empty(0) if tensor is None else _dense(tensor)

    dinitial = A.new_empty((u.shape[0], *A.shape))
    return (*(gradient(x) for x in (u, delta, A, B, C, D, z, delta_bias)), dinitial)  # type: ignore[return-value]


class _Saved(torch.autograd.function.FunctionCtx):
    """What the forward leaves for the backward."""

    saved_tensors: tuple[Any, ...]
    has_initial_state: bool
    delta_softplus: bool


def _setup_context(ctx: _Saved, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, delta, A, B, C, D, z, delta_bias, initial_state, sequence_starts, delta_softplus, _ = inputs
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, sequence_starts)
    ctx.has_initial_state = initial_state is not None
    ctx.delta_softplus = delta_softplus
    ctx.set_materialize_grads(False)


def _autograd_backward(
    ctx: _Saved, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts = ctx.saved_tensors
    if dy is None and dfinal is None:
        return (None,) * 12
    dy = torch.zeros_like(u) if dy is None else dy
    scan_backward = _scan_backward if runs_at_once(dy) else torch.ops.seqsuite.selective_scan_cuda_backward
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = scan_backward(
        *(dy, dfinal, checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts), ctx.delta_softplus
    )
    return (
        *(du, ddelta, dA, dB, dC),
        None if D is None else dD,
        None if z is None else dz,
        None if delta_bias is None else dbias,
        dinitial if ctx.has_initial_state else None,
        *(None, None, None),
    )


register("selective_scan_cuda", _scan, _fake_scan)
register("selective_scan_cuda_backward", _scan_backward, _fake_backward)
torch.library.register_autograd("seqsuite::selective_scan_cuda", _autograd_backward, setup_context=_setup_context)


class _Scan(torch.autograd.Function):
    """The operator without torch's dispatcher, at a fraction of the cost of a call."""

    # With a `setup_context` of its own, every call would look up the signature of `forward`.
    @staticmethod
    def forward(ctx: _Saved, *inputs: Any) -> tuple[Tensor, Tensor]:
        outputs = _scan(*inputs)
        _setup_context(ctx, inputs, outputs)
        return outputs[:2]

    backward = staticmethod(_autograd_backward)


# In a warp's shared memory of the backward: a factor by channel and step (`ROW` in tile.cuh).
_ROWS_BYTES = _CHANNELS * 12 * 4


def _options(definitions: dict[str, object]) -> tuple[str, ...]:
    return tuple(f"-D{name}={value}" for name, value in definitions.items())


@functools.cache
def _kernels(file: str, options: tuple[str, ...], device: torch.device) -> dict[str, nvrtc.Kernel]:
    source = nvrtc.source(*(f"selective_scan/csrc/{part}" for part in ("primitives.cuh", "tile.cuh", file)))
    names = {"forward.cu": ["forward"], "backward.cu": ["backward", "reduce_parts"]}[file]
    return nvrtc.load(source, options, names, device)


@functools.cache
def _has_clusters(device: torch.device) -> bool:
    """Whether blocks can write into each other's shared memory."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def _dense(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
