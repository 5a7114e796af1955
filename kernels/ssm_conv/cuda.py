"""The S4D convolution in chunks on the tensor cores of an NVIDIA GPU: what torch sees of the kernels in `csrc`.

Computes from float32, bfloat16 or float16 as exactly as float32 products of 18 bits allow, with any strides. Between
forward and backward only the states at the beginning of every 1024 steps are kept. Gradients repeat bit for bit: every
sum has a fixed order.
"""

# B batch, L length, H channels, N half of the state

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels import nvrtc
from kernels.nvrtc import C_NAMES
from kernels.nvrtc import unavailable as unavailable
from kernels.operators import register
from kernels.ssm_conv import factors
from kernels.ssm_conv.torch_chunked import Chunks
from kernels.tolerances import TOLERANCES as OF_OTHERS

TOLERANCES = OF_OTHERS | {torch.float32: 3e-5}
"""A factor kept to 18 bits is off by up to 4e-6, a product of two and without their low halves by up to 1.2e-5; the
output is two such products deep."""

_STEPS = 16
_SUBS = 4
_ROW_STEPS = _SUBS * _STEPS
_TILE = 16 * _ROW_STEPS
_CHANNEL_BYTES = _SUBS * 1024 + 16
_LARGEST_STATE = 32
"""Complex ones in one kernel; a larger state runs in parts, whose outputs are added."""
_WARPS_A_BLOCK = 4
"""Of the small kernels, one for each channel."""
_LANES = 32


def s4d_conv(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
    initial_state: Tensor | None,
    return_final_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (B, L, H) in u's dtype and the final state (B, H, N)."""
    inputs = (u, delta, A, C, B, D, initial_state)
    needs_gradient = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
    is_wide = torch.float64 in (delta.dtype, *(x.dtype.to_real() for x in (A, C, B) if x is not None))
    real, complex_ = (torch.float64, torch.complex128) if is_wide else (torch.float32, torch.complex64)
    delta_, D_ = delta.to(real), None if D is None else D.float()
    half_state = A.shape[1]
    # Of several parts the sum is rounded, once.
    u_ = u if half_state <= _LARGEST_STATE else u.float()
    convolve = _Convolution.apply if needs_gradient else torch.ops.seqsuite.s4d_conv_cuda
    ys, finals = [], []
    for part in range(0, half_state, _LARGEST_STATE):
        states = slice(part, part + _LARGEST_STATE)
        y, final, _ = convolve(  # type: ignore[no-untyped-call]  # torch's apply has no types
            u_,
            delta_,
            *(None if x is None else x[:, states].to(complex_) for x in (A, C, B)),
            D_ if part == 0 else None,
            None if initial_state is None else initial_state[..., states].to(torch.complex64),
            return_final_state and not needs_gradient,
            needs_gradient,
        )
        ys.append(y)
        finals.append(final)
    y = ys[0] if len(ys) == 1 else torch.stack(ys).sum(0).to(u.dtype)
    if not return_final_state:
        return y, None
    if not needs_gradient:
        return y, torch.cat(finals, -1)
    # The kernels' final state has no gradient: backward in time it would begin within a tile.
    rate, into, _ = factors.discretize(delta, A, C, B)
    return y, Chunks(u.float(), rate, into, initial_state).final_state()


@dataclass(frozen=True)
class Plan:
    """How the work is laid over the GPU; the names are those of the kernels' comments."""

    warps: int
    num_segments: int
    gradient_warps: int
    gradient_segments: int


@functools.cache
def plan(batch: int, length: int, channels: int, item_bytes: int, state_tiles: int, device: torch.device) -> Plan:
    """Blocks of as many channels as fit; segments of the sequence where blocks are fewer than multiprocessors.

    The constants were found by trying (`benchmarks/notes/ssm_conv.md`).
    """
    properties = torch.cuda.get_device_properties(device)
    shared_bytes: int = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    num_tiles = math.ceil(length / _TILE)

    def widest(bytes_of: Callable[[int, int, int], int]) -> int:
        return 8 if bytes_of(8, item_bytes, state_tiles) <= shared_bytes else 4

    def segments(warps: int, blocks: int) -> int:
        wanted = properties.multi_processor_count * blocks // (batch * math.ceil(channels / warps))
        return max(1, min(wanted, num_tiles))

    warps, gradient_warps = widest(_convolve_bytes), widest(_gradients_bytes)
    return Plan(
        warps=warps,
        num_segments=segments(warps, 1),
        gradient_warps=gradient_warps,
        gradient_segments=segments(gradient_warps, _GRADIENT_WAVES),
    )


_GRADIENT_WAVES = 4
"""Blocks of `gradients` for each multiprocessor: the tiles are independent, and the last block to end is waited for."""


def _convolve_bytes(warps: int, item_bytes: int, state_tiles: int) -> int:
    """Shared memory of `convolve`: the tiles, those on their way, states and a table."""
    return warps * (_CHANNEL_BYTES + _TILE * item_bytes + state_tiles * (32 + 512))


def _gradients_bytes(warps: int, item_bytes: int, state_tiles: int) -> int:
    """Shared memory of `gradients`: the tiles of two sequences, those on their way, a table."""
    return warps * (2 * _CHANNEL_BYTES + 2 * _TILE * item_bytes + 2 * state_tiles * 512)


class _Parameters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("delta", "A", "C", "B", "channels", "state")]


def _structure(name: str, words: str) -> type[ctypes.Structure]:
    fields = [(field, _Parameters if field == "parameters" else ctypes.c_int64) for field in words.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


_TablesArguments = _structure(
    "_TablesArguments", "parameters D into_table out_table near_table decay_table row_table step_table"
)
_ConvolveArguments = _structure(
    "_ConvolveArguments",
    "x y x_batch x_time y_batch y_time into_table out_table near_table decay_table row_table step_table "
    "initial final checkpoints batch length channels num_segments tiles_per_segment",
)
_CarryArguments = _structure("_CarryArguments", "parameters initial states batch num_segments segment_steps")
_GradientTablesArguments = _structure("_GradientTablesArguments", "parameters power_table weight_table")
_GradientsArguments = _structure(
    "_GradientsArguments",
    "u dy u_batch u_time dy_batch dy_time power_table decay_table row_table step_table weight_table begins ends parts "
    "batch length channels num_segments tiles_per_segment",
)
_FinishArguments = _structure("_FinishArguments", "parameters parts ddelta dA dC dB dD num_parts")


@dataclass(frozen=True)
class _StateSpace:
    """The parameters, dense, for one direction in time."""

    delta: Tensor
    A: Tensor
    C: Tensor
    B: Tensor | None
    D: Tensor | None
    is_reverse: bool

    @staticmethod
    def of(delta: Tensor, A: Tensor, C: Tensor, B: Tensor | None, D: Tensor | None, is_reverse: bool) -> _StateSpace:
        A, C = (x.resolve_conj().contiguous() for x in (A, C))
        B = None if B is None else B.resolve_conj().contiguous()
        return _StateSpace(delta.contiguous(), A, C, B, None if D is None else D.contiguous(), is_reverse)

    @property
    def channels(self) -> int:
        return self.A.shape[0]

    @property
    def state(self) -> int:
        return self.A.shape[1]

    @property
    def state_tiles(self) -> int:
        return _state_tiles(self.state)

    @property
    def padded(self) -> int:
        return 4 * self.state_tiles

    def parameters(self) -> _Parameters:
        addresses = (_address(x) for x in (self.delta, self.A, self.C, self.B))
        return _Parameters(*addresses, self.channels, self.state)

    def options(self) -> tuple[str, ...]:
        return (
            f"-DSTATE_TILES={self.state_tiles}",
            f"-DSUBS={_SUBS}",
            f"-DREVERSE={int(self.is_reverse)}",
            f"-DREAL={'double' if self.delta.dtype == torch.float64 else 'float'}",
        )

    def launch_small(self, file: str, name: str, arguments: ctypes.Structure) -> None:
        """A kernel with a warp for each channel."""
        kernel = _kernels(("parameters.cuh", file), (name,), self.options(), self.A.device)[name]
        kernel.launch(math.ceil(self.channels / _WARPS_A_BLOCK), _LANES * _WARPS_A_BLOCK, arguments)


@dataclass(frozen=True)
class _Tables:
    """What `tables` makes of a state space."""

    into: Tensor
    out: Tensor
    near: Tensor
    decay: Tensor
    row: Tensor
    step: Tensor

    @staticmethod
    def of(space: _StateSpace) -> _Tables:
        channels, tiles, padded = space.channels, space.state_tiles, space.padded
        words = functools.partial(space.A.new_empty, dtype=torch.int32)
        numbers = functools.partial(space.A.new_empty, dtype=torch.complex64)
        tables = _Tables(
            into=words((channels, tiles, _LANES, 4)),
            out=words((channels, tiles, _LANES, 4)),
            near=words((channels, _LANES, 4)),
            decay=numbers((channels, padded)),
            row=numbers((channels, padded, 4)),
            step=numbers((channels, 2, padded)),
        )
        arguments = _TablesArguments(space.parameters(), _address(space.D), *tables.addresses())
        space.launch_small("tables.cu", "tables", arguments)
        return tables

    def addresses(self) -> tuple[int, ...]:
        return tuple(x.data_ptr() for x in (self.into, self.out, self.near, self.decay, self.row, self.step))


def _run(
    x: Tensor,
    space: _StateSpace,
    tables: _Tables,
    initial: Tensor | None,
    wants_final: bool,
    saves_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state and the checkpoints, the last two empty if not wanted; states are padded."""
    batch, length, channels = x.shape
    layout = plan(batch, length, channels, x.element_size(), space.state_tiles, x.device)
    num_tiles, padded = math.ceil(length / _TILE), space.padded
    num_segments, tiles_per_segment = _even(num_tiles, layout.num_segments)
    y = x.new_empty(x.shape)
    numbers = functools.partial(x.new_empty, dtype=torch.complex64)
    final = numbers((batch if wants_final else 0, channels, padded))
    checkpoints = numbers((batch if saves_states else 0, num_tiles, channels, padded))
    options = (
        *space.options(),
        *_stream_options(layout.warps, x, y),
        f"-DFINAL={int(wants_final)}",
    )
    num_blocks = batch * math.ceil(channels / layout.warps) * num_segments
    shared_bytes = _convolve_bytes(layout.warps, x.element_size(), space.state_tiles)

    def launch(is_summary: bool, initial: Tensor | None, final: Tensor) -> None:
        arguments = _ConvolveArguments(
            *(x.data_ptr(), y.data_ptr(), *x.stride()[:2], *y.stride()[:2], *tables.addresses()),
            *(_address(initial), final.data_ptr(), checkpoints.data_ptr() if saves_states and not is_summary else 0),
            *(batch, length, channels, num_segments, tiles_per_segment),
        )
        files, names = ("tile.cuh", "convolve.cu"), ("convolve",)
        kernel = _kernels(files, names, (*options, f"-DSUMMARY={int(is_summary)}"), x.device)["convolve"]
        kernel.launch(num_blocks, _LANES * layout.warps, arguments, shared_bytes)

    if num_segments > 1:
        states = numbers((batch, num_segments, channels, padded))
        launch(True, None, states)
        addresses = (_address(initial), states.data_ptr())
        kernel = _kernels(("parameters.cuh", "carry.cu"), ("carry",), space.options(), x.device)["carry"]
        kernel.launch(
            math.ceil(batch * channels * padded / 256),
            256,
            _CarryArguments(space.parameters(), *addresses, batch, num_segments, tiles_per_segment * _TILE),
        )
        initial = states
    launch(False, initial, final)
    return y, final, checkpoints


def _convolve(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
    initial: Tensor | None,
    wants_final: bool,
    saves_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    space = _StateSpace.of(delta, A, C, B, D, is_reverse=False)
    if initial is not None:
        initial = pad(initial.resolve_conj(), (0, space.padded - space.state)).contiguous()
    y, final, checkpoints = _run(_rows(u), space, _Tables.of(space), initial, wants_final, saves_states)
    return y, final[..., : space.state].contiguous(), checkpoints


def _fake_convolve(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
    initial: Tensor | None,
    wants_final: bool,
    saves_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, length, channels), state = u.shape, A.shape[1]
    final = u.new_empty((batch if wants_final else 0, channels, state), dtype=torch.complex64)
    checkpoints = (batch if saves_states else 0, -(-length // _TILE), channels, 4 * _state_tiles(state))
    return u.new_empty(u.shape), final, u.new_empty(checkpoints, dtype=torch.complex64)


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _convolve_backward(
    dy: Tensor,
    checkpoints: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
) -> _Gradients:
    batch, length, channels = u.shape
    u, dy = _rows(u), _rows(dy.to(u.dtype))
    # The gradient of the input is the same convolution of dy, backward in time.
    space = _StateSpace.of(delta, A, C, B, D, is_reverse=True)
    tables = _Tables.of(space)
    du, dinitial, ends = _run(dy, space, tables, None, True, True)

    powers = u.new_empty((channels, 2, space.state_tiles, _LANES, 4), dtype=torch.int32)
    weights = u.new_empty((channels, 2, space.padded), dtype=torch.complex64)
    arguments = _GradientTablesArguments(space.parameters(), powers.data_ptr(), weights.data_ptr())
    space.launch_small("tables.cu", "gradient_tables", arguments)
    layout = plan(batch, length, channels, u.element_size(), space.state_tiles, u.device)
    warps = layout.gradient_warps
    num_segments, tiles_per_segment = _even(math.ceil(length / _TILE), layout.gradient_segments)
    parts = u.new_empty((batch * num_segments, channels, 6 * space.padded + _ROW_STEPS), dtype=torch.float32)
    options = (*space.options(), *_stream_options(warps, u, dy))
    _kernels(("tile.cuh", "gradients.cu"), ("gradients",), options, u.device)["gradients"].launch(
        batch * math.ceil(channels / warps) * num_segments,
        _LANES * warps,
        _GradientsArguments(
            *(u.data_ptr(), dy.data_ptr(), *u.stride()[:2], *dy.stride()[:2]),
            *(x.data_ptr() for x in (powers, tables.decay, tables.row, tables.step, weights, checkpoints, ends, parts)),
            *(batch, length, channels, num_segments, tiles_per_segment),
        ),
        _gradients_bytes(warps, u.element_size(), space.state_tiles),
    )
    ddelta, dA, dC = (torch.empty_like(x) for x in (space.delta, space.A, space.C))
    dB = A.new_empty(0) if B is None else torch.empty_like(dA)
    dD = u.new_empty(channels, dtype=torch.float32)
    addresses = (x.data_ptr() for x in (parts, ddelta, dA, dC, dB, dD))
    arguments = _FinishArguments(space.parameters(), *addresses, batch * num_segments)
    space.launch_small("finish.cu", "finish", arguments)
    return du, ddelta, dA, dC, dB, dD, dinitial[..., : space.state].conj_physical()


def _fake_convolve_backward(
    dy: Tensor,
    checkpoints: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    C: Tensor,
    B: Tensor | None,
    D: Tensor | None,
) -> _Gradients:
    parameters = [x.new_empty(x.shape) for x in (delta, A, C)]
    # An operator's outputs are tensors: a gradient that nobody takes is an empty one.
    dB = A.new_empty(0) if B is None else A.new_empty(A.shape)
    dinitial = u.new_empty((u.shape[0], *A.shape), dtype=torch.complex64)
    dD = u.new_empty(u.shape[2], dtype=torch.float32)
    return (u.new_empty(u.shape), *parameters, dB, dD, dinitial)  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *saved, initial, _, _ = inputs
    ctx.save_for_backward(output[2], *saved)
    ctx.has_initial = initial is not None
    ctx.set_materialize_grads(False)


def _autograd_backward(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    checkpoints, u, delta, A, C, B, D = ctx.saved_tensors
    if dy is None:
        return (None,) * 9
    du, ddelta, dA, dC, dB, dD, dinitial = torch.ops.seqsuite.s4d_conv_cuda_backward(
        dy, checkpoints, u, delta, A, C, B, D
    )
    return (
        *(du, ddelta, dA, dC),
        None if B is None else dB,
        None if D is None else dD,
        dinitial if ctx.has_initial else None,
        *(None, None),
    )


register("s4d_conv_cuda", _convolve, _fake_convolve)
register("s4d_conv_cuda_backward", _convolve_backward, _fake_convolve_backward)
torch.library.register_autograd("seqsuite::s4d_conv_cuda", _autograd_backward, setup_context=_setup_context)


class _Convolution(torch.autograd.Function):
    """The operator with the gradient registered above, at half the cost of a call."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor, Tensor] = torch.ops.seqsuite.s4d_conv_cuda(*inputs)
        return outputs

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_autograd_backward)


def _state_tiles(state: int) -> int:
    """Of four complex states each, an even number that is a power of two."""
    return next(tiles for tiles in (2, 4, 8) if state <= 4 * tiles)


def _stream_options(warps: int, *sequences: Tensor) -> tuple[str, ...]:
    dtype = sequences[0].dtype
    return (
        f"-DWARPS={warps}",
        f"-DIN_T={C_NAMES[dtype]}",
        f"-DHAS_LOW={int(dtype != torch.bfloat16)}",
        f"-DVECTOR={int(all(_is_aligned(x) for x in sequences))}",
    )


def _even(num_tiles: int, num_segments: int) -> tuple[int, int]:
    """(segments, tiles of each) where no segment is empty."""
    tiles = math.ceil(num_tiles / num_segments)
    return math.ceil(num_tiles / tiles), tiles


def _is_aligned(x: Tensor) -> bool:
    """Whether four channels can be read at once, at any step."""
    batch, time, _ = x.stride()
    return x.shape[2] % 4 == 0 and batch % 4 == 0 and time % 4 == 0 and x.data_ptr() % (4 * x.element_size()) == 0


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


@functools.cache
def _kernels(
    files: tuple[str, ...], names: tuple[str, ...], options: tuple[str, ...], device: torch.device
) -> dict[str, nvrtc.Kernel]:
    source = nvrtc.source(*(f"ssm_conv/csrc/{file}" for file in ("primitives.cuh", *files)))
    return nvrtc.load(source, options, names, device)
