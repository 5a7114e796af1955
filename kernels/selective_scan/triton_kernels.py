"""The portable GPU kernels of the selective scan, in Triton.

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t,   y_t = (<C_t, h_t> + D u_t) silu(z_t)

The recurrence is associative, so time is cut into chunks that run side by side, in three passes: what a chunk makes of
a zero state and what it leaves of any other; the state before every chunk, one chunk after the other; the chunk again
from its true state. The gradient runs the same three passes from the end. One chunk for the whole sequence needs the
last pass only.

A program has one chunk of one batch row for a block of channels, and walks it step by step with the states in
registers. Nothing is added up by two programs: gradients that are sums over channels or chunks come back in parts.
"""

# B batch, M chunks, N state; a block of channels is G groups of W. Last axes of what is stored per channel: D channels.

# Triton compiles these functions; their annotations say which arguments are constants of the compilation.
# Their language is a part of Python: tuples grow by addition, and an `if` on a constant is not an expression.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated, index, misc"
# ruff: noqa: RUF005, RET505, SIM102, SIM108

from __future__ import annotations

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)

# What is not looked at for its alignment: vectors of several channels would spread the states of each over the lanes.
_UNALIGNED = [
    *(f"{name}{axis}" for name in ("u", "delta", "B", "C", "z", "dy") for axis in ("", "_batch", "_time", "_last")),
    *("starts", "starts_batch", "starts_time", "A_ND", "D_D", "bias_D", "state"),
    *("begin_BMND", "checkpoints_BMND", "end_BMND", "decay_BMND", "h_parts", "y_BLD"),
    *("du_BLD", "ddelta_BLD", "dz_BLD", "dA_BMND", "dD_BMD", "dbias_BMD", "dB_parts", "dC_parts"),
]


# The combine rule, one step at a time, and what it is made of.


@triton.jit
def _advance(h_NGW, delta_GW, inflow_GW, rate_NGW, B_N, is_start, HAS_STARTS: tl.constexpr):
    """h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t, from zero where a document starts."""
    if HAS_STARTS:
        h_NGW = tl.where(is_start, 0.0, h_NGW)
    return tl.exp2(delta_GW[None, :, :] * rate_NGW) * h_NGW + inflow_GW[None, :, :] * B_N.to(tl.float32)[:, None, None]


@triton.jit
def _retreat(r_NGW, delta_GW, rate_NGW, dy_GW, C_N, is_start, HAS_STARTS: tl.constexpr):
    """g_t = C_t dy_t + r_{t+1}, the gradient at h_t, and r_t = exp(delta_t A) g_t, which reaches h_{t-1}."""
    g_NGW = dy_GW[None, :, :] * C_N.to(tl.float32)[:, None, None] + r_NGW
    r_NGW = tl.exp2(delta_GW[None, :, :] * rate_NGW) * g_NGW
    if HAS_STARTS:
        r_NGW = tl.where(is_start, 0.0, r_NGW)
    return g_NGW, r_NGW


@triton.jit
def _step_size(delta, bias, exists, SOFTPLUS: tl.constexpr):
    """delta_t, and zero beyond the end, where it leaves every state as it is."""
    delta = delta.to(tl.float32) + bias
    if SOFTPLUS:
        # log(1 + x) as 2 atanh(s): the minimax polynomial in s^2 has a relative error of 4e-9.
        x = tl.exp2(-tl.abs(delta) * _LOG2_E)
        s = x / (x + 2.0)
        square = s * s
        series = ((0.2817833532 * square + 0.2796060267) * square + 0.4002491029) * square + 0.6666631468
        delta = tl.maximum(delta, 0.0) + (series * square + 2.0) * s
    return tl.where(exists, delta, 0.0)


@triton.jit
def _slope(delta):
    """The derivative of the softplus where its value is delta: 1 - exp(-delta), by its series where that cancels."""
    series = delta * (1.0 - delta * (0.5 - delta * (1.0 / 6.0)))
    return tl.where(delta < 0.02, series, 1.0 - tl.exp2(-delta * _LOG2_E))


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp2(-x * _LOG2_E))


# Where things are. Steps beyond the end are read from the last one, which is cheaper than a mask.


@triton.jit
def _place(num_chunks, channels, G: tl.constexpr, W: tl.constexpr):
    """Which row, chunk and block of channels this program has, its first channel, and which of the next ones exist."""
    num_blocks = tl.cdiv(channels, G * W)
    program = tl.program_id(0)
    block = program % num_blocks
    m = program // num_blocks % num_chunks
    b = (program // num_blocks // num_chunks).to(tl.int64)
    first = block.to(tl.int64) * (G * W)
    # Counted from the first: what is added to an address is a constant for each group.
    channel_GW = tl.arange(0, G)[:, None] * W + tl.arange(0, W)[None, :]
    return b, m, block, first, channel_GW, channel_GW < channels - first


@triton.jit
def _state_offsets(channel_GW, exists_GW, channels, state, N: tl.constexpr):
    """Offsets into (N, D) from the first channel on, and whether they exist."""
    n = tl.arange(0, N)
    return n[:, None, None] * channels + channel_GW[None, :, :], (n < state)[:, None, None] & exists_GW[None, :, :]


@triton.jit
def _vector(pointer, channel_GW, exists_GW, IS_GIVEN: tl.constexpr):
    if IS_GIVEN:
        return tl.load(pointer + channel_GW, mask=exists_GW, other=0.0)
    else:
        return tl.zeros(channel_GW.shape, tl.float32)


@triton.jit
def _row(pointer, last, state, N: tl.constexpr, PADDED: tl.constexpr):
    """B_t or C_t; zeros pad it."""
    n = tl.arange(0, N)
    if PADDED:
        return tl.load(pointer + n * last, mask=n < state, other=0.0)
    else:
        return tl.load(pointer + n * last)


# Forward.


@triton.jit(do_not_specialize=["channels", "length", "chunk", "num_chunks"], do_not_specialize_on_alignment=_UNALIGNED)
def forward(
    u, u_batch, u_time, u_last,
    delta, delta_batch, delta_time, delta_last,
    B, B_batch, B_time, B_last,
    C, C_batch, C_time, C_last,
    z, z_batch, z_time, z_last,
    starts, starts_batch, starts_time,
    A_ND, D_D, bias_D, begin_BMND,
    y_BLD, checkpoints_BMND, end_BMND, decay_BMND,
    length, channels, state, chunk, num_chunks,
    N: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, W: tl.constexpr, STEPS: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr, HAS_BEGIN: tl.constexpr, WRITES_Y: tl.constexpr, SAVE_EVERY: tl.constexpr,
):  # fmt: skip
    """The first pass (WRITES_Y false): the end state of a chunk that begins with zero, and what it leaves of another.
    The last pass: y, the true end state and the state before every SAVE_EVERY steps (0: none).

    A is scaled by log2(e) and stored as (N, D), like all states. The tensors with strides are (batch, length, ...).
    """
    b, m, _, first_channel, channel_GW, exists_GW = _place(num_chunks, channels, G, W)
    offsets_NGW, exists_NGW = _state_offsets(channel_GW, exists_GW, channels, state, N)
    state_size = state * channels
    rate_NGW = tl.load(A_ND + first_channel + offsets_NGW, mask=exists_NGW, other=0.0)
    bias_GW = _vector(bias_D, first_channel + channel_GW, exists_GW, HAS_BIAS)
    skip_GW = _vector(D_D, first_channel + channel_GW, exists_GW, HAS_D)

    u += b * u_batch + first_channel * u_last + channel_GW.to(tl.int64) * u_last
    delta += b * delta_batch + first_channel * delta_last + channel_GW.to(tl.int64) * delta_last
    if HAS_Z:
        z += b * z_batch + first_channel * z_last + channel_GW.to(tl.int64) * z_last
    B += b * B_batch
    C += b * C_batch
    if HAS_STARTS:
        starts += b * starts_batch
    y_BLD += b * length * channels + first_channel + channel_GW
    this_chunk = (b * num_chunks + m) * state_size + first_channel

    if HAS_BEGIN:
        h_NGW = tl.load(begin_BMND + this_chunk + offsets_NGW, mask=exists_NGW, other=0.0)
    else:
        h_NGW = tl.zeros([N, G, W], tl.float32)
    total_GW = tl.zeros([G, W], tl.float32)
    keeps = True
    begin = m.to(tl.int64) * chunk
    end = tl.minimum(begin + chunk, length)
    for tile in range(tl.cdiv(end - begin, STEPS)):
        first = begin + tile * STEPS
        if SAVE_EVERY:
            if first % SAVE_EVERY == 0:
                place = (b * tl.cdiv(length, SAVE_EVERY) + first // SAVE_EVERY) * state_size + first_channel
                tl.store(checkpoints_BMND + place + offsets_NGW, h_NGW, mask=exists_NGW)
        # Asked for long before it is needed: a store keeps the compiler from moving later loads before it.
        us, deltas, zs, ys, B_rows, C_rows = (), (), (), (), (), ()
        for i in tl.static_range(STEPS):
            t = tl.minimum(first + i, end - 1)
            B_rows = B_rows + (_row(B + t * B_time, B_last, state, N, PADDED),)
            if WRITES_Y:
                C_rows = C_rows + (_row(C + t * C_time, C_last, state, N, PADDED),)
            us = us + (tl.load(u + t * u_time, mask=exists_GW, other=0.0),)
            deltas = deltas + (tl.load(delta + t * delta_time, mask=exists_GW, other=0.0),)
            if WRITES_Y and HAS_Z:
                zs = zs + (tl.load(z + t * z_time, mask=exists_GW, other=0.0),)
        for i in tl.static_range(STEPS):
            t = tl.minimum(first + i, end - 1)
            is_start = False
            if HAS_STARTS:
                is_start = (first + i < end) & (tl.load(starts + t * starts_time) != 0)
            u_GW = us[i].to(tl.float32)
            delta_GW = _step_size(deltas[i], bias_GW, first + i < end, SOFTPLUS)
            h_NGW = _advance(h_NGW, delta_GW, delta_GW * u_GW, rate_NGW, B_rows[i], is_start, HAS_STARTS)
            if WRITES_Y:
                y_GW = tl.sum(h_NGW * C_rows[i].to(tl.float32)[:, None, None], axis=0) + skip_GW * u_GW
                if HAS_Z:
                    z_GW = zs[i].to(tl.float32)
                    y_GW = y_GW * z_GW * _sigmoid(z_GW)
                ys = ys + (y_GW,)
            else:
                total_GW += delta_GW
                if HAS_STARTS:
                    keeps = keeps & (is_start == 0)
        if WRITES_Y:
            for i in tl.static_range(STEPS):
                tl.store(y_BLD + (first + i) * channels, ys[i], mask=tl.where(first + i < end, exists_GW, False))

    tl.store(end_BMND + this_chunk + offsets_NGW, h_NGW, mask=exists_NGW)
    if not WRITES_Y:
        decay_NGW = tl.where(keeps, tl.exp2(total_GW[None, :, :] * rate_NGW), 0.0)
        tl.store(decay_BMND + this_chunk + offsets_NGW, decay_NGW, mask=exists_NGW)


@triton.jit(do_not_specialize=["num_chunks", "size"])
def carry(
    decay_BMX, end_BMX, begin_BX, begin_BMX, end_BX, num_chunks, size,
    HAS_BEGIN: tl.constexpr, BACKWARD: tl.constexpr, AHEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The state before every chunk and after the last: begin_{m+1} = decay_m begin_m + end_m, in each of X = N D lanes.

    BACKWARD goes from the last chunk to the first.
    """
    num_blocks = tl.cdiv(size, BLOCK)
    b = (tl.program_id(0) // num_blocks).to(tl.int64)
    x = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = x < size
    if HAS_BEGIN:
        h = tl.load(begin_BX + b * size + x, mask=exists, other=0.0)
    else:
        h = tl.zeros([BLOCK], tl.float32)
    for ahead in range(tl.cdiv(num_chunks, AHEAD)):
        decays, ends = (), ()
        for i in tl.static_range(AHEAD):
            m = num_chunks - 1 - ahead * AHEAD - i if BACKWARD else i + ahead * AHEAD
            loads = tl.where(ahead * AHEAD + i < num_chunks, exists, False)
            decays = decays + (tl.load(decay_BMX + (b * num_chunks + m) * size + x, mask=loads, other=1.0),)
            ends = ends + (tl.load(end_BMX + (b * num_chunks + m) * size + x, mask=loads, other=0.0),)
        for i in tl.static_range(AHEAD):
            m = num_chunks - 1 - ahead * AHEAD - i if BACKWARD else i + ahead * AHEAD
            tl.store(
                begin_BMX + (b * num_chunks + m) * size + x,
                h,
                mask=tl.where(ahead * AHEAD + i < num_chunks, exists, False),
            )
            # Nothing that came before a document may reach it, not even what is not finite.
            h = tl.where(decays[i] == 0.0, 0.0, decays[i] * h) + ends[i]
    tl.store(end_BX + b * size + x, h, mask=exists)


# Backward.


@triton.jit(do_not_specialize=["channels", "length", "num_chunks"], do_not_specialize_on_alignment=_UNALIGNED)
def adjoint_ends(
    delta, delta_batch, delta_time, delta_last,
    C, C_batch, C_time, C_last,
    z, z_batch, z_time, z_last,
    dy, dy_batch, dy_time, dy_last,
    starts, starts_batch, starts_time,
    A_ND, bias_D, end_BMND, decay_BMND,
    length, channels, state, num_chunks,
    CHUNK: tl.constexpr, N: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_STARTS: tl.constexpr,
):  # fmt: skip
    """The first pass of the gradient: what leaves a chunk at its first step if nothing came in at its last."""
    b, m, _, first_channel, channel_GW, exists_GW = _place(num_chunks, channels, G, W)
    offsets_NGW, exists_NGW = _state_offsets(channel_GW, exists_GW, channels, state, N)
    rate_NGW = tl.load(A_ND + first_channel + offsets_NGW, mask=exists_NGW, other=0.0)
    bias_GW = _vector(bias_D, first_channel + channel_GW, exists_GW, HAS_BIAS)

    delta += b * delta_batch + first_channel * delta_last + channel_GW.to(tl.int64) * delta_last
    if HAS_Z:
        z += b * z_batch + first_channel * z_last + channel_GW.to(tl.int64) * z_last
    dy += b * dy_batch + first_channel * dy_last + channel_GW.to(tl.int64) * dy_last
    C += b * C_batch
    if HAS_STARTS:
        starts += b * starts_batch

    r_NGW = tl.zeros([N, G, W], tl.float32)
    total_GW = tl.zeros([G, W], tl.float32)
    keeps = True
    begin = m.to(tl.int64) * CHUNK
    num_tiles = tl.cdiv(tl.minimum(CHUNK, length - begin), STEPS)
    for tile in range(num_tiles):
        first = begin + (num_tiles - 1 - tile) * STEPS
        for i in tl.static_range(STEPS - 1, -1, -1):
            t = tl.minimum(first + i, length - 1)
            is_inside = first + i < length
            is_start = False
            if HAS_STARTS:
                is_start = is_inside & (tl.load(starts + t * starts_time) != 0)
            raw_GW = tl.load(delta + t * delta_time, mask=exists_GW, other=0.0)
            delta_GW = _step_size(raw_GW, bias_GW, is_inside, SOFTPLUS)
            dy_GW = tl.where(is_inside, tl.load(dy + t * dy_time, mask=exists_GW, other=0.0).to(tl.float32), 0.0)
            if HAS_Z:
                z_GW = tl.load(z + t * z_time, mask=exists_GW, other=0.0).to(tl.float32)
                dy_GW = dy_GW * z_GW * _sigmoid(z_GW)
            C_N = _row(C + t * C_time, C_last, state, N, PADDED)
            _g_NGW, r_NGW = _retreat(r_NGW, delta_GW, rate_NGW, dy_GW, C_N, is_start, HAS_STARTS)
            total_GW += delta_GW
            if HAS_STARTS:
                keeps = keeps & (is_start == 0)

    this_chunk = (b * num_chunks + m) * state * channels + first_channel
    decay_NGW = tl.where(keeps, tl.exp2(total_GW[None, :, :] * rate_NGW), 0.0)
    tl.store(end_BMND + this_chunk + offsets_NGW, r_NGW, mask=exists_NGW)
    tl.store(decay_BMND + this_chunk + offsets_NGW, decay_NGW, mask=exists_NGW)


@triton.jit(
    do_not_specialize=["channels", "length", "num_chunks", "first_chunk", "piece_chunks"],
    do_not_specialize_on_alignment=_UNALIGNED,
)
def backward(
    u, u_batch, u_time, u_last,
    delta, delta_batch, delta_time, delta_last,
    B, B_batch, B_time, B_last,
    C, C_batch, C_time, C_last,
    z, z_batch, z_time, z_last,
    dy, dy_batch, dy_time, dy_last,
    starts, starts_batch, starts_time,
    A_ND, D_D, bias_D, checkpoints_BMND, begin_BMND, h_parts,
    du_BLD, ddelta_BLD, dz_BLD, dA_BMND, dD_BMD, dbias_BMD, dB_parts, dC_parts, end_BMND,
    length, channels, state, num_chunks, first_chunk, piece_chunks,
    CHUNK: tl.constexpr, N: tl.constexpr, PADDED: tl.constexpr, G: tl.constexpr, W: tl.constexpr,
    STEPS: tl.constexpr, SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_STARTS: tl.constexpr, HAS_BEGIN: tl.constexpr,
):  # fmt: skip
    """The last pass of the gradient, for the `piece_chunks` chunks from `first_chunk` on.

        dC_t = sum over channels of dy_t h_t        dB_t = sum over channels of delta_t u_t g_t
        d(delta_t u_t) = <B_t, g_t>                 d(delta_t) = <A, r_t h_{t-1}>        dA = sum_t delta_t r_t h_{t-1}

    A program walks its chunk once forward, to note the state before every tile of STEPS steps in its share of h_parts
    (programs, tiles, N, G, W), and once backward; there the states of a tile are computed again, into registers. The
    sums over channels come in parts (blocks of channels, B, steps of the piece, N).
    """
    b, m, block, first_channel, channel_GW, exists_GW = _place(piece_chunks, channels, G, W)
    m += first_chunk
    offsets_NGW, exists_NGW = _state_offsets(channel_GW, exists_GW, channels, state, N)
    state_size = state * channels
    rate_NGW = tl.load(A_ND + first_channel + offsets_NGW, mask=exists_NGW, other=0.0)
    bias_GW = _vector(bias_D, first_channel + channel_GW, exists_GW, HAS_BIAS)
    skip_GW = _vector(D_D, first_channel + channel_GW, exists_GW, HAS_D)

    u += b * u_batch + first_channel * u_last + channel_GW.to(tl.int64) * u_last
    delta += b * delta_batch + first_channel * delta_last + channel_GW.to(tl.int64) * delta_last
    if HAS_Z:
        z += b * z_batch + first_channel * z_last + channel_GW.to(tl.int64) * z_last
    dy += b * dy_batch + first_channel * dy_last + channel_GW.to(tl.int64) * dy_last
    B += b * B_batch
    C += b * C_batch
    if HAS_STARTS:
        starts += b * starts_batch
    items_GW = b * length * channels + first_channel + channel_GW
    this_chunk = b * num_chunks + m
    begin = m.to(tl.int64) * CHUNK
    num_tiles = tl.cdiv(tl.minimum(CHUNK, length - begin), STEPS)
    piece_begin = first_chunk.to(tl.int64) * CHUNK
    piece_steps = tl.minimum(piece_chunks * CHUNK, length - piece_begin)
    batch = tl.num_programs(0) // (tl.cdiv(channels, G * W) * piece_chunks)
    parts_N = ((block.to(tl.int64) * batch + b) * piece_steps - piece_begin) * state + tl.arange(0, N)
    parts_exist_N = tl.arange(0, N) < state
    notes_NGW = tl.arange(0, N)[:, None, None] * (G * W) + tl.arange(0, G)[:, None] * W + tl.arange(0, W)
    h_parts += tl.program_id(0).to(tl.int64) * (CHUNK // STEPS * G * N * W) + notes_NGW

    h_NGW = tl.load(
        checkpoints_BMND + this_chunk * state_size + first_channel + offsets_NGW, mask=exists_NGW, other=0.0
    )
    for tile in range(num_tiles - 1):
        tl.store(h_parts + tile * (G * N * W), h_NGW)
        for i in tl.static_range(STEPS):
            t = begin + tile * STEPS + i
            is_start = False
            if HAS_STARTS:
                is_start = tl.load(starts + t * starts_time) != 0
            raw_GW = tl.load(delta + t * delta_time, mask=exists_GW, other=0.0)
            delta_GW = _step_size(raw_GW, bias_GW, exists_GW, SOFTPLUS)
            inflow_GW = delta_GW * tl.load(u + t * u_time, mask=exists_GW, other=0.0).to(tl.float32)
            B_N = _row(B + t * B_time, B_last, state, N, PADDED)
            h_NGW = _advance(h_NGW, delta_GW, inflow_GW, rate_NGW, B_N, is_start, HAS_STARTS)
    tl.store(h_parts + (num_tiles - 1) * (G * N * W), h_NGW)
    tl.debug_barrier()

    if HAS_BEGIN:
        r_NGW = tl.load(begin_BMND + this_chunk * state_size + first_channel + offsets_NGW, mask=exists_NGW, other=0.0)
    else:
        r_NGW = tl.zeros([N, G, W], tl.float32)
    dA_NGW = tl.zeros([N, G, W], tl.float32)
    dD_GW = tl.zeros([G, W], tl.float32)
    dbias_GW = tl.zeros([G, W], tl.float32)
    for tile in range(num_tiles):
        first = begin + (num_tiles - 1 - tile) * STEPS
        hs = (tl.load(h_parts + (num_tiles - 1 - tile) * (G * N * W)),)
        us, raws, dys, zs = (), (), (), ()
        for i in tl.static_range(STEPS):
            t = tl.minimum(first + i, length - 1)
            us = us + (tl.load(u + t * u_time, mask=exists_GW, other=0.0),)
            raws = raws + (tl.load(delta + t * delta_time, mask=exists_GW, other=0.0),)
            dys = dys + (tl.load(dy + t * dy_time, mask=exists_GW, other=0.0),)
            if HAS_Z:
                zs = zs + (tl.load(z + t * z_time, mask=exists_GW, other=0.0),)

        # The states of the tile, once more.
        deltas = ()
        for i in tl.static_range(STEPS):
            t = tl.minimum(first + i, length - 1)
            is_inside = first + i < length
            is_start = False
            if HAS_STARTS:
                is_start = is_inside & (tl.load(starts + t * starts_time) != 0)
            deltas = deltas + (_step_size(raws[i], bias_GW, tl.where(is_inside, exists_GW, False), SOFTPLUS),)
            inflow_GW = deltas[i] * us[i].to(tl.float32)
            B_N = _row(B + t * B_time, B_last, state, N, PADDED)
            hs = hs + (_advance(hs[i], deltas[i], inflow_GW, rate_NGW, B_N, is_start, HAS_STARTS),)

        for i in tl.static_range(STEPS - 1, -1, -1):
            t = tl.minimum(first + i, length - 1)
            is_inside = first + i < length
            is_start = False
            if HAS_STARTS:
                is_start = is_inside & (tl.load(starts + t * starts_time) != 0)
            u_GW = us[i].to(tl.float32)
            delta_GW = deltas[i]
            dout_GW = tl.where(tl.where(is_inside, exists_GW, False), dys[i].to(tl.float32), 0.0)
            dy_GW = dout_GW
            B_N = _row(B + t * B_time, B_last, state, N, PADDED).to(tl.float32)
            C_N = _row(C + t * C_time, C_last, state, N, PADDED).to(tl.float32)
            if HAS_Z:
                z_GW = zs[i].to(tl.float32)
                opening_GW = _sigmoid(z_GW)
                dy_GW = dout_GW * z_GW * opening_GW
                y_GW = tl.sum(hs[i + 1] * C_N[:, None, None], axis=0) + skip_GW * u_GW
                dz_GW = dout_GW * y_GW * opening_GW * (1.0 + z_GW * (1.0 - opening_GW))

            g_NGW, r_NGW = _retreat(r_NGW, delta_GW, rate_NGW, dy_GW, C_N, is_start, HAS_STARTS)
            drate_NGW = r_NGW * hs[i]
            dA_NGW += drate_NGW * delta_GW[None, :, :]
            dinflow_GW = tl.sum(g_NGW * B_N[:, None, None], axis=0)
            # The rates are scaled by log2(e), and so is their share of the gradient.
            ddelta_GW = tl.sum(drate_NGW * rate_NGW, axis=0) * _LN_2 + dinflow_GW * u_GW
            if SOFTPLUS:
                ddelta_GW = ddelta_GW * _slope(delta_GW)
            du_GW = dinflow_GW * delta_GW + skip_GW * dy_GW
            dB_N = tl.sum(tl.sum(g_NGW * (delta_GW * u_GW)[None, :, :], axis=1), axis=1)
            dC_N = tl.sum(tl.sum(hs[i + 1] * dy_GW[None, :, :], axis=1), axis=1)
            dD_GW += dy_GW * u_GW
            dbias_GW += tl.where(is_inside, ddelta_GW, 0.0)

            item = (first + i) * channels
            tl.store(du_BLD + items_GW + item, du_GW, mask=tl.where(is_inside, exists_GW, False))
            tl.store(ddelta_BLD + items_GW + item, ddelta_GW, mask=tl.where(is_inside, exists_GW, False))
            if HAS_Z:
                tl.store(dz_BLD + items_GW + item, dz_GW, mask=tl.where(is_inside, exists_GW, False))
            part = (first + i) * state
            tl.store(dB_parts + parts_N + part, dB_N, mask=tl.where(is_inside, parts_exist_N, False))
            tl.store(dC_parts + parts_N + part, dC_N, mask=tl.where(is_inside, parts_exist_N, False))

    tl.store(end_BMND + this_chunk * state_size + first_channel + offsets_NGW, r_NGW, mask=exists_NGW)
    tl.store(dA_BMND + this_chunk * state_size + first_channel + offsets_NGW, dA_NGW, mask=exists_NGW)
    tl.store(dD_BMD + this_chunk * channels + first_channel + channel_GW, dD_GW, mask=exists_GW)
    tl.store(dbias_BMD + this_chunk * channels + first_channel + channel_GW, dbias_GW, mask=exists_GW)
