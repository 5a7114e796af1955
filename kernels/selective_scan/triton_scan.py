"""The selective scan on any GPU that Triton compiles for: what torch sees of the kernels in `triton_kernels`.

Computes in float32 from float32, bfloat16 or float16, with any strides. Between forward and backward only the states
at tile boundaries are kept. Gradients repeat bit for bit: every sum has a fixed order.
"""

# B batch, L length, D channels, N state, M chunks, K tiles of steps

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from kernels import triton_launch

_LOG2_E = math.log2(math.e)
_OLDEST_CAPABILITY = (8, 0)
_PARTS_BUDGET_BYTES = 512 * 2**20
"""For states noted and for dB and dC before they are added up; what needs more goes backward in pieces."""
_CHUNK = 128
"""Steps between two states that the forward pass keeps for the backward pass, which has a program for each."""
_WARPS_PER_MULTIPROCESSOR = 16
"""That the forward pass wants to run."""


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """Why it cannot run on `device`."""
    reason = triton_launch.unavailable(device)
    if reason is not None:
        in_interpreter = "; on a CPU only in Triton's interpreter (TRITON_INTERPRET=1)"
        return reason + in_interpreter if device.type == "cpu" else reason
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    if is_nvidia and torch.cuda.get_device_capability(device) < _OLDEST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    return None


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
    y, final_BND, _ = _scan(
        u,
        _for_kernel(delta),
        A.float(),
        _for_kernel(B),
        _for_kernel(C),
        None if D is None else D.float(),
        None if z is None else _for_kernel(z),
        None if delta_bias is None else delta_bias.float(),
        None if initial_state is None else initial_state.float().transpose(1, 2),
        sequence_starts,
        delta_softplus,
        needs_gradient,
    )
    return y, final_BND.transpose(1, 2)


@dataclass(frozen=True)
class Layout:
    """How a pass is laid over the GPU: a program has `groups` times `lanes` channels and unrolls `steps` steps."""

    groups: int
    lanes: int
    num_warps: int
    steps: int
    max_registers: int | None = None
    """Of a thread on an NVIDIA GPU; fewer let more programs run side by side."""

    def num_blocks(self, channels: int) -> int:
        return math.ceil(channels / (self.groups * self.lanes))


def forward_layout(channels: int, state: int) -> Layout:
    """Sixteen states a lane, in as few registers as let sixteen warps run. Also for the gradient's first pass."""
    return Layout(*_lanes_of(channels, state), steps=4, max_registers=128)


def backward_layout(channels: int, state: int) -> Layout:
    """Sixteen states a lane: a tile of steps fits into registers, and sums over channels begin inside a lane."""
    return Layout(*_lanes_of(channels, state), steps=2)


def _lanes_of(channels: int, state: int) -> tuple[int, int, int]:
    """Groups, lanes and warps that give a lane sixteen states, or fewer where there are not so many channels."""
    padded = _padded(state)
    lanes = max(8, 32 // padded)
    groups = min(max(1, 512 // (padded * lanes)), _padded(math.ceil(channels / lanes)))
    return groups, lanes, max(1, groups * padded * lanes // 512)


def forward_chunk(layout: Layout, batch: int, length: int, channels: int, num_multiprocessors: int) -> int:
    """Steps of a chunk of the forward pass: no more chunks than keep the GPU busy, since a second one costs a pass."""
    warps = batch * layout.num_blocks(channels) * layout.num_warps
    num_chunks = max(1, round(_WARPS_PER_MULTIPROCESSOR * num_multiprocessors / warps))
    return math.ceil(length / num_chunks / _CHUNK) * _CHUNK


def _padded(state: int) -> int:
    return 1 << (state - 1).bit_length()


@functools.cache
def _kernels() -> ModuleType:
    # Importing triton takes most of a second.
    return importlib.import_module("kernels.selective_scan.triton_kernels")


@torch.library.custom_op("seqsuite::selective_scan_triton", mutates_args=())
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
    saves_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels()
    (batch, length, channels), state = u.shape, A.shape[1]
    layout = forward_layout(channels, state)
    chunk = forward_chunk(layout, batch, length, channels, _multiprocessors(u.device))
    num_chunks = math.ceil(length / chunk)
    A_ND = (A.T * _LOG2_E).contiguous()
    D, delta_bias, initial_state = (_contiguous(x) for x in (D, delta_bias, initial_state))
    y, final_state, checkpoints = _new_outputs(u, A, saves_states)

    def run(begin: Tensor | None, end: Tensor, decay: Tensor | None) -> None:
        kernels.forward[(batch * num_chunks * layout.num_blocks(channels),)](
            *(x for tensor in (u, delta, B, C, z) for x in _with_strides(tensor, 3)),
            *_with_strides(sequence_starts, 2),
            *(A_ND, D, delta_bias, begin),
            *(y, checkpoints, end, decay),
            *(length, channels, state, chunk, num_chunks),
            **_constants(layout, state, delta_softplus),
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=delta_bias is not None,
            HAS_STARTS=sequence_starts is not None,
            HAS_BEGIN=begin is not None,
            WRITES_Y=decay is None,
            SAVE_EVERY=_CHUNK if saves_states and decay is None else 0,
        )

    if num_chunks == 1:
        run(initial_state, final_state, None)
    else:
        ends, decays, begins = (A_ND.new_empty(batch, num_chunks, state, channels) for _ in range(3))
        run(None, ends, decays)
        _carry(decays, ends, initial_state, begins, final_state, backward=False)
        run(begins, ends, None)
    return y, final_state, checkpoints


def _carry(decays: Tensor, ends: Tensor, begin: Tensor | None, begins: Tensor, end: Tensor, backward: bool) -> None:
    batch, num_chunks = decays.shape[:2]
    size = decays[0, 0].numel()
    block = 128
    _kernels().carry[(batch * math.ceil(size / block),)](
        *(decays, ends, begin, begins, end, num_chunks, size),
        HAS_BEGIN=begin is not None,
        BACKWARD=backward,
        AHEAD=8,
        BLOCK=block,
        num_warps=4,
    )


def _new_outputs(u: Tensor, A: Tensor, saves_states: bool) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    final_state = A.new_empty(batch, A.shape[1], channels)
    num_chunks = -(-length // _CHUNK)
    checkpoints = A.new_empty(batch if saves_states else 0, num_chunks, A.shape[1], channels)
    return u.new_empty(batch, length, channels), final_state, checkpoints


@_scan.register_fake
def _(
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
    saves_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_outputs(u, A, saves_states)


@torch.library.custom_op("seqsuite::selective_scan_triton_backward", mutates_args=())
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
) -> list[Tensor]:
    kernels = _kernels()
    (batch, length, channels), state = u.shape, A.shape[1]
    layout, first_layout = backward_layout(channels, state), forward_layout(channels, state)
    num_chunks, num_blocks = math.ceil(length / _CHUNK), layout.num_blocks(channels)
    A_ND = (A.T * _LOG2_E).contiguous()
    D, delta_bias, dfinal = (_contiguous(x) for x in (D, delta_bias, dfinal))
    # An operator's outputs are tensors: a gradient that nobody takes is an empty one.
    du, ddelta, dz = (u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, delta, z))
    dB, dC = B.new_empty(B.shape), C.new_empty(C.shape)
    dA_parts, ends = (A_ND.new_empty(batch, num_chunks, state, channels) for _ in range(2))
    dD_parts, dbias_parts = (A_ND.new_empty(batch, num_chunks, channels) for _ in range(2))
    starts = _with_strides(sequence_starts, 2)
    flags = {
        "CHUNK": _CHUNK,
        "HAS_Z": z is not None,
        "HAS_BIAS": delta_bias is not None,
        "HAS_STARTS": sequence_starts is not None,
    }

    begins, dinitial = dfinal, ends
    if num_chunks > 1:
        decays, begins = (A_ND.new_empty(batch, num_chunks, state, channels) for _ in range(2))
        dinitial = A_ND.new_empty(batch, state, channels)
        kernels.adjoint_ends[(batch * num_chunks * first_layout.num_blocks(channels),)](
            *(x for tensor in (delta, C, z, dy) for x in _with_strides(tensor, 3)),
            *(*starts, A_ND, delta_bias, ends, decays),
            *(length, channels, state, num_chunks),
            **_constants(first_layout, state, delta_softplus),
            **flags,
        )
        _carry(decays, ends, dfinal, begins, dinitial, backward=True)

    num_notes = _CHUNK // layout.steps * layout.groups * layout.lanes * _padded(state)
    bytes_per_chunk = batch * num_blocks * 4 * (num_notes + 2 * _CHUNK * state)
    for first_chunk, piece_chunks in _pieces(num_chunks, bytes_per_chunk):
        piece = slice(first_chunk * _CHUNK, min(length, (first_chunk + piece_chunks) * _CHUNK))
        dB_parts, dC_parts = (A_ND.new_empty(num_blocks, batch, piece.stop - piece.start, state) for _ in range(2))
        num_programs = batch * piece_chunks * num_blocks
        h_parts = A_ND.new_empty(num_programs, num_notes)
        kernels.backward[(num_programs,)](
            *(x for tensor in (u, delta, B, C, z, dy) for x in _with_strides(tensor, 3)),
            *(*starts, A_ND, D, delta_bias, checkpoints, begins, h_parts),
            *(du, ddelta, dz, dA_parts, dD_parts, dbias_parts, dB_parts, dC_parts, ends),
            *(length, channels, state, num_chunks, first_chunk, piece_chunks),
            **_constants(layout, state, delta_softplus),
            **flags,
            HAS_D=D is not None,
            HAS_BEGIN=begins is not None,
        )
        dB[:, piece], dC[:, piece] = dB_parts.sum(0), dC_parts.sum(0)
    dA, dD, dbias = (parts.sum((0, 1)) for parts in (dA_parts, dD_parts, dbias_parts))
    return [du, ddelta, dA.T.contiguous(), dB, dC, dD, dz, dbias, dinitial.view(batch, state, channels)]


def _pieces(num_chunks: int, bytes_per_chunk: int) -> Iterator[tuple[int, int]]:
    """First chunk and number of chunks of every piece of the sequence that goes backward at once."""
    most = max(1, _PARTS_BUDGET_BYTES // bytes_per_chunk)
    for first_chunk in range(0, num_chunks, most):
        yield first_chunk, min(most, num_chunks - first_chunk)


@_scan_backward.register_fake
def _(
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
) -> list[Tensor]:
    batch, _, channels = u.shape
    du, ddelta, dz = (u.new_empty(0) if x is None else x.new_empty(x.shape) for x in (u, delta, z))
    vectors = [A.new_empty(channels) for _ in range(2)]
    dinitial = A.new_empty(batch, A.shape[1], channels)
    return [
        du,
        ddelta,
        A.new_empty(A.shape),
        B.new_empty(B.shape),
        C.new_empty(C.shape),
        vectors[0],
        dz,
        vectors[1],
        dinitial,
    ]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    u, delta, A, B, C, D, z, delta_bias, initial_state, sequence_starts, delta_softplus, _ = inputs
    ctx.save_for_backward(output[2], u, delta, A, B, C, D, z, delta_bias, sequence_starts)
    ctx.delta_softplus = delta_softplus
    ctx.has_initial_state = initial_state is not None
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts = ctx.saved_tensors
    if dy is None and dfinal is None:
        return (None,) * 12
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = _scan_backward(
        torch.zeros_like(u) if dy is None else dy,
        *(dfinal, checkpoints, u, delta, A, B, C, D, z, delta_bias, sequence_starts),
        ctx.delta_softplus,
    )
    return (
        *(du, ddelta, dA, dB, dC),
        None if D is None else dD,
        None if z is None else dz,
        None if delta_bias is None else dbias,
        dinitial if ctx.has_initial_state else None,
        *(None, None, None),
    )


_scan.register_autograd(_backward, setup_context=_setup_context)


def _constants(layout: Layout, state: int, delta_softplus: bool) -> dict[str, int | bool | None]:
    return {
        **({"maxnreg": layout.max_registers} if torch.version.hip is None else {}),
        "N": _padded(state),
        "G": layout.groups,
        "W": layout.lanes,
        "PADDED": _padded(state) != state,
        "STEPS": layout.steps,
        "SOFTPLUS": delta_softplus,
        "num_warps": layout.num_warps,
        "enable_fp_fusion": True,
    }


def _with_strides(tensor: Tensor | None, axes: int) -> tuple[Tensor | int | None, ...]:
    return (None, *(0,) * axes) if tensor is None else (tensor, *tensor.stride())


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    # The interpreter runs one program at a time.
    if device.type == "cpu":
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _for_kernel(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
