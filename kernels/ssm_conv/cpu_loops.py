"""The loops of the CPU convolution, compiled by numba, sixteen channels in a vector.

A task is one batch row and sixteen channels. It walks time in blocks of chunks; in a block every step is a product of
matrices whose entries are vectors, the same in each lane for a channel of its own. Arrays of vectors are flat,
(entries, lanes): entry (column, row) of a matrix lies at `column * step + row`.

A matrix product is cut into pieces of `_PIECE_ROWS` by `_PIECE_COLUMNS` sums, which stay in registers.
"""

# T steps of a chunk, S state (real and imaginary parts), both multiples of a piece's rows

# numba compiles these functions; its annotations know neither vectors nor what a compiled function takes.
# mypy: disable-error-code="call-arg, no-untyped-call, operator, var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, int64, njit, types, void
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.numba_calls import parts
from kernels.simd import LANES, broadcast, fma, load, load_first, store, store_first

STEPS = 16
BLOCK_CHUNKS = 8
BLOCK_STEPS = BLOCK_CHUNKS * STEPS
_PIECE_ROWS = 4
_PIECE_COLUMNS = 4

_ZERO = np.float32(0)
_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_FLOAT_BYTES = 4
_VECTOR_BYTES = LANES * _FLOAT_BYTES
_parts = njit(parts)


@intrinsic
def _add_piece(
    typing: Any,
    to: Any,
    to_step: Any,
    rows: Any,
    row_step: Any,
    columns: Any,
    column_step: Any,
    depth_step: Any,
    depth: Any,
    row: Any,
    column: Any,
) -> Any:
    """The piece of `_add_products` that begins at `row` and `column`; depth is at least 1."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        to, to_step, rows, row_step, columns, column_step, depth_step, depth, row, column = args
        word = to_step.type
        pieces = [(r, c) for c in range(_PIECE_COLUMNS) for r in range(_PIECE_ROWS)]

        def number(value: int) -> ir.Constant:
            return ir.Constant(word, value)

        def vectors(argument: int, array: ir.Value) -> ir.Value:
            data = context.make_array(signature.args[argument])(context, builder, array).data
            return builder.bitcast(data, _VECTOR.as_pointer())

        def address(base: ir.Value, step: ir.Value, times: ir.Value, rest: ir.Value) -> ir.Value:
            return builder.gep(base, [builder.add(builder.mul(step, times), rest)])

        def load_at(place: ir.Value) -> ir.Value:
            return builder.load(place, align=_FLOAT_BYTES)

        to, rows, columns = vectors(0, to), vectors(2, rows), vectors(4, columns)
        targets = [address(to, to_step, builder.add(column, number(c)), builder.add(row, number(r))) for r, c in pieces]
        begins = [load_at(target) for target in targets]
        before = builder.block
        loop, after = builder.append_basic_block("depth"), builder.append_basic_block("summed")
        builder.branch(loop)

        builder.position_at_end(loop)
        k = builder.phi(word)
        sums = [builder.phi(_VECTOR) for _ in pieces]
        row_vectors = [load_at(address(rows, row_step, k, builder.add(row, number(r)))) for r in range(_PIECE_ROWS)]
        column_vectors = [
            load_at(address(columns, column_step, builder.add(column, number(c)), builder.mul(depth_step, k)))
            for c in range(_PIECE_COLUMNS)
        ]
        multiply_add = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        totals = [
            builder.call(multiply_add, [row_vectors[r], column_vectors[c], total])
            for (r, c), total in zip(pieces, sums, strict=True)
        ]
        following = builder.add(k, number(1))
        for phi, begin, end in zip([k, *sums], [number(0), *begins], [following, *totals], strict=True):
            phi.add_incoming(begin, before)
            phi.add_incoming(end, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)

        builder.position_at_end(after)
        for target, total in zip(targets, totals, strict=True):
            builder.store(total, target, align=_FLOAT_BYTES)
        return context.get_dummy_value()

    arguments = (to, to_step, rows, row_step, columns, column_step, depth_step, depth, row, column)
    return types.void(*arguments), emit


@njit(inline="always")
def _add_products(
    to: Any,
    to_step: Any,
    num_rows: Any,
    rows: Any,
    row_step: Any,
    num_columns: Any,
    columns: Any,
    column_step: Any,
    depth_step: Any,
    depth: Any,
) -> None:
    """Adds to to[column to_step + row] the sum over k < depth of rows[k row_step + row] columns[column column_step +
    k depth_step].

    num_rows and num_columns are multiples of those of a piece.
    """
    for row in range(0, num_rows, _PIECE_ROWS):
        for column in range(0, num_columns, _PIECE_COLUMNS):
            _add_piece(to, to_step, rows, row_step, columns, column_step, depth_step, depth, row, column)


@njit(inline="always")
def _scratch(entries: Any) -> Any:
    """(entries, lanes), at an address where no vector crosses a cache line."""
    raw = np.empty((entries + 1) * LANES, np.float32)
    first = (-raw.ctypes.data % _VECTOR_BYTES) // _FLOAT_BYTES
    return raw[first : first + entries * LANES].reshape(entries, LANES)


@njit(inline="always")
def _clear(vectors: Any) -> None:
    zero = broadcast(_ZERO)
    for entry in range(vectors.shape[0]):
        store(vectors, (entry, 0), zero)


@njit(inline="always")
def _copy(to: Any, to_place: Any, vectors: Any, place: Any, count: Any) -> None:
    for n in range(count):
        store(to, (to_place + n, 0), load(vectors, (place + n, 0)))


@njit(inline="always")
def _read_block(x_BLH: Any, b: Any, channel: Any, first_step: Any, to: Any, size: Any) -> None:
    """Into the last entries of each column, after `size` others, one chunk of steps; zeros after the end."""
    length, count = x_BLH.shape[1], x_BLH.shape[2] - channel
    zero = broadcast(_ZERO)
    for chunk in range(BLOCK_CHUNKS):
        for k in range(STEPS):
            t = first_step + chunk * STEPS + k
            entry = (chunk * (size + STEPS) + size + k, 0)
            if t >= length:
                store(to, entry, zero)
            elif count >= LANES:
                store(to, entry, load(x_BLH, (b, t, channel)))
            else:
                store(to, entry, load_first(x_BLH, (b, t, channel), count))


@njit(inline="always")
def _write_block(y_BLH: Any, b: Any, channel: Any, first_step: Any, y: Any) -> None:
    length, count = y_BLH.shape[1], y_BLH.shape[2] - channel
    for i in range(min(BLOCK_STEPS, length - first_step)):
        if count >= LANES:
            store(y_BLH, (b, first_step + i, channel), load(y, (i, 0)))
        else:
            store_first(y_BLH, (b, first_step + i, channel), load(y, (i, 0)), count)


@njit(inline="always")
def _advance(decay: Any, states: Any, place: Any, next_place: Any, added: Any, added_place: Any, sign: Any) -> None:
    """The state at next_place = decay state at place + added; the conjugate of decay if sign is -1."""
    half = decay.shape[0] // 2
    for n in range(half):
        a_real, a_imaginary = load(decay, (n, 0)), load(decay, (half + n, 0)) * sign
        real, imaginary = load(states, (place + n, 0)), load(states, (place + half + n, 0))
        next_real = fma(a_real, real, load(added, (added_place + n, 0))) - a_imaginary * imaginary
        next_imaginary = fma(a_real, imaginary, fma(a_imaginary, real, load(added, (added_place + half + n, 0))))
        store(states, (next_place + n, 0), next_real)
        store(states, (next_place + half + n, 0), next_imaginary)


@njit(inline="always")
def _add_decay_gradient(ddecay: Any, states: Any, dstates: Any, place: Any) -> None:
    half = ddecay.shape[0] // 2
    for n in range(half):
        real, imaginary = load(states, (place + n, 0)), load(states, (place + half + n, 0))
        dreal, dimaginary = load(dstates, (place + n, 0)), load(dstates, (place + half + n, 0))
        store(ddecay, (n, 0), fma(dreal, real, fma(dimaginary, imaginary, load(ddecay, (n, 0)))))
        by_imaginary = fma(dimaginary, real, load(ddecay, (half + n, 0))) - dreal * imaginary
        store(ddecay, (half + n, 0), by_imaginary)


@njit(inline="always")
def _begin_chunks(into: Any, decay: Any, added: Any, operands: Any, size: Any) -> None:
    """From the steps in `operands` and the state in its first column to that at the beginning of every chunk.

    A column of `operands` holds a chunk's state and then its steps; there is one more, for the state after the block.
    """
    column = size + STEPS
    _clear(added)
    _add_products(added, size, size, into, size, BLOCK_CHUNKS, operands[size:], column, 1, STEPS)
    for chunk in range(BLOCK_CHUNKS):
        _advance(decay, operands, chunk * column, (chunk + 1) * column, added, chunk * size, np.float32(1))


# Said outright, so that contiguous and strided inputs share one compilation. It happens when this module is imported.
_READ_3 = float32[:, :, :]
_DENSE_3, _DENSE_4 = float32[:, :, ::1], float32[:, :, :, ::1]


@njit(void(int64, int64, _READ_3, _DENSE_3, _DENSE_3, _DENSE_3, _DENSE_4, _DENSE_3, _DENSE_4), nogil=True, cache=True)
def forward(
    first_task: int,
    end_task: int,
    u_BLH: Any,
    into: Any,
    onto: Any,
    decay: Any,
    state: Any,
    y_BLH: Any,
    begins: Any,
) -> None:
    """Writes y, and in `begins` the state before every block; `state` goes from the first step to the last chunk.

    Args:
        into: (groups, T S, lanes), what step k adds to the state after the chunk, at k S.
        onto: (groups, (S + T) T, lanes), what the state, then the steps, add to the outputs of the chunk.
        decay: (groups, S, lanes), of the state over a chunk.
        state: (batch, groups, S, lanes).
        begins: (batch, groups, blocks S, lanes), empty if not wanted.
    """
    length = u_BLH.shape[1]
    groups, size, _ = decay.shape
    column = size + STEPS
    operands, added = _scratch((BLOCK_CHUNKS + 1) * column), _scratch(BLOCK_CHUNKS * size)
    y = _scratch(BLOCK_CHUNKS * STEPS)
    for task in range(first_task, end_task):
        b, group = divmod(task, groups)
        _copy(operands, BLOCK_CHUNKS * column, state[b, group], 0, size)
        for block, first in enumerate(range(0, length, BLOCK_STEPS)):
            _copy(operands, 0, operands, BLOCK_CHUNKS * column, size)
            if begins.shape[0] > 0:
                _copy(begins[b, group], block * size, operands, 0, size)
            _read_block(u_BLH, b, group * LANES, first, operands, size)
            _begin_chunks(into[group], decay[group], added, operands, size)
            _clear(y)
            _add_products(y, STEPS, STEPS, onto[group], STEPS, BLOCK_CHUNKS, operands, column, 1, column)
            _write_block(y_BLH, b, group * LANES, first, y)
        last_chunk = (length - 1) % BLOCK_STEPS // STEPS
        _copy(state[b, group], 0, operands, last_chunk * column, size)


@njit(
    void(int64, int64, *(_READ_3,) * 2, *(_DENSE_3,) * 4, _DENSE_4, _DENSE_4, _DENSE_3, *(_DENSE_4,) * 3),
    nogil=True,
    cache=True,
)
def backward(
    first_task: int,
    end_task: int,
    u_BLH: Any,
    dy_BLH: Any,
    into: Any,
    into_transposed: Any,
    onto_transposed: Any,
    decay: Any,
    begins: Any,
    dstate: Any,
    du_BLH: Any,
    dinto: Any,
    donto: Any,
    ddecay: Any,
) -> None:
    """Writes the gradients, those of the tables for each batch row.

    Args:
        into_transposed: (groups, (S + T) T, lanes), what the gradient of the state after the chunk, then those of the
            outputs, add to the gradient of step k, at column k.
        onto_transposed: (groups, T S, lanes), what the gradient of output i adds to that of the state, at i S.
        begins: as `forward` wrote it.
        dstate: (batch, groups, S, lanes); goes from the last chunk to the first step.
        dinto, donto, ddecay: (batch, groups, ...), as the tables.
    """
    length = u_BLH.shape[1]
    groups, size, _ = decay.shape
    column = size + STEPS
    operands, doperands = _scratch((BLOCK_CHUNKS + 1) * column), _scratch((BLOCK_CHUNKS + 1) * column)
    added = _scratch(BLOCK_CHUNKS * size)
    du = _scratch(BLOCK_CHUNKS * STEPS)
    after = BLOCK_CHUNKS * column
    num_blocks = _parts(length, BLOCK_STEPS)
    last_chunk = (length - 1) % BLOCK_STEPS // STEPS
    for task in range(first_task, end_task):
        b, group = divmod(task, groups)
        _clear(dinto[b, group])
        _clear(donto[b, group])
        _clear(ddecay[b, group])
        _clear(doperands)
        for block in range(num_blocks - 1, -1, -1):
            first = block * BLOCK_STEPS
            _copy(operands, 0, begins[b, group], block * size, size)
            _read_block(u_BLH, b, group * LANES, first, operands, size)
            _begin_chunks(into[group], decay[group], added, operands, size)

            _read_block(dy_BLH, b, group * LANES, first, doperands, size)
            _clear(added)
            _add_products(
                added, size, size, onto_transposed[group], size, BLOCK_CHUNKS, doperands[size:], column, 1, STEPS
            )
            if block == num_blocks - 1:
                # The state that is handed out is that before the last chunk.
                for n in range(size):
                    place = (last_chunk * size + n, 0)
                    store(added, place, load(added, place) + load(dstate, (b, group, n, 0)))
            # A column holds the gradient of the state after its chunk; the one more is the state before the block.
            _copy(doperands, after - column, doperands, after, size)
            for chunk in range(BLOCK_CHUNKS - 1, -1, -1):
                place = chunk * column
                _add_decay_gradient(ddecay[b, group], operands, doperands, place)
                before = place - column if chunk > 0 else after
                _advance(decay[group], doperands, place, before, added, chunk * size, np.float32(-1))
            _clear(du)
            _add_products(du, STEPS, STEPS, into_transposed[group], STEPS, BLOCK_CHUNKS, doperands, column, 1, column)
            _write_block(du_BLH, b, group * LANES, first, du)
            # Sums over the chunks of the block.
            _add_products(
                dinto[b, group], size, size, doperands, column, STEPS, operands[size:], 1, column, BLOCK_CHUNKS
            )
            _add_products(
                donto[b, group], STEPS, STEPS, doperands[size:], column, column, operands, 1, column, BLOCK_CHUNKS
            )
        _copy(dstate[b, group], 0, doperands, after, size)
