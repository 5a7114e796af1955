"""Sixteen float32 numbers as one value inside numba loops, and the few functions that a scan needs of them.

numba vectorises a loop only if it keeps everything in arrays; a recurrence wants its state in a register. A `Vector`
is LLVM's <16 x float>: one AVX-512 register, two of AVX2, four of NEON. Compiled functions add, subtract, multiply and
divide vectors and float32 numbers as usual, and exchange them with arrays by `load` and `store`.

numba's cache does not see changes in this file: after one, remove the `__pycache__` folders of the operations.
"""

# numba compiles these functions; its annotations know neither vectors nor what a compiled function takes.
# mypy: disable-error-code="call-arg, no-untyped-call, var-annotated"

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_BITS = ir.VectorType(ir.IntType(1), LANES)
_FLOAT_BYTES = 4


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__("Float32x16")


Vector = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, numba_type: types.Type) -> None:
        super().__init__(manager, numba_type, _FLOATS)


def _splat(builder: ir.IRBuilder, scalar: ir.Value) -> ir.Value:
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, ir.Constant(_FLOATS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _pointer(context: Any, builder: ir.IRBuilder, array_type: Any, array: ir.Value, index: ir.Value) -> ir.Value:
    struct = context.make_array(array_type)(context, builder, array)
    indices = cgutils.unpack_tuple(builder, index, array_type.ndim)
    element = cgutils.get_item_pointer(context, builder, array_type, struct, indices, wraparound=False)
    return builder.bitcast(element, _FLOATS.as_pointer())


def _first_lanes(builder: ir.IRBuilder, count: ir.Value) -> ir.Value:
    lane = ir.Constant(_INTS, list(range(LANES)))
    first = builder.insert_element(ir.Constant(_INTS, ir.Undefined), builder.trunc(count, _INT), ir.Constant(_INT, 0))
    counts = builder.shuffle_vector(first, ir.Constant(_INTS, ir.Undefined), ir.Constant(_INTS, [0] * LANES))
    return builder.icmp_signed("<", lane, counts)


@intrinsic
def broadcast(typing: Any, scalar: Any) -> Any:
    """The vector whose lanes are all `scalar`."""
    return Vector(types.float32), lambda context, builder, signature, args: _splat(builder, args[0])


@intrinsic
def broadcast_at(typing: Any, array: Any, index: Any) -> Any:
    """The vector whose lanes are all array[index]; unlike numba's own indexing it knows no index from the end."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        pointer = _pointer(context, builder, signature.args[0], *args)
        return _splat(builder, builder.load(builder.bitcast(pointer, _FLOAT.as_pointer())))

    return Vector(array, index), emit


@intrinsic
def load(typing: Any, array: Any, index: Any) -> Any:
    """The 16 numbers that begin at array[index] (contiguous along the last axis)."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return builder.load(_pointer(context, builder, signature.args[0], *args), align=_FLOAT_BYTES)

    return Vector(array, index), emit


@intrinsic
def store(typing: Any, array: Any, index: Any, vector: Any) -> Any:
    """Writes 16 numbers from array[index] on."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        array, index, vector = args
        builder.store(vector, _pointer(context, builder, signature.args[0], array, index), align=_FLOAT_BYTES)
        return context.get_dummy_value()

    return types.void(array, index, vector), emit


@intrinsic
def load_first(typing: Any, array: Any, index: Any, count: Any) -> Any:
    """Like `load`, but only the first `count` lanes are read; the others are zero."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        array, index, count = args
        pointer = _pointer(context, builder, signature.args[0], array, index)
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)
        align = ir.Constant(_INT, _FLOAT_BYTES)
        name = f"llvm.masked.load.v{LANES}f32.p0"
        return _call(builder, name, _FLOATS, pointer, align, _first_lanes(builder, count), zeros)

    return Vector(array, index, count), emit


@intrinsic
def store_first(typing: Any, array: Any, index: Any, vector: Any, count: Any) -> Any:
    """Like `store`, but only the first `count` lanes are written."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        array, index, vector, count = args
        pointer = _pointer(context, builder, signature.args[0], array, index)
        align = ir.Constant(_INT, _FLOAT_BYTES)
        name = f"llvm.masked.store.v{LANES}f32.p0"
        _call(builder, name, ir.VoidType(), vector, pointer, align, _first_lanes(builder, count))
        return context.get_dummy_value()

    return types.void(array, index, vector, count), emit


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c; each may be a vector or a float32."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vectors = [
            value if kind == Vector else _splat(builder, value)
            for kind, value in zip(signature.args, args, strict=True)
        ]
        return _call(builder, f"llvm.fmuladd.v{LANES}f32", _FLOATS, *vectors)

    return Vector(*(kind if kind == Vector else types.float32 for kind in (a, b, c))), emit


@intrinsic
def minimum(typing: Any, a: Any, b: Any) -> Any:
    """The smaller of each pair; NaN where b is NaN."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        a, b = args
        return builder.select(builder.fcmp_ordered("<", a, b), a, b)

    return Vector(Vector, Vector), emit


@intrinsic
def maximum(typing: Any, a: Any, b: Any) -> Any:
    """The larger of each pair; NaN where b is NaN."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        a, b = args
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return Vector(Vector, Vector), emit


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    """The sum of the 16 lanes, added pairwise."""

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        (vector,) = args
        width = LANES
        while width > 1:
            width //= 2
            lanes = [
                ir.Constant(ir.VectorType(_INT, width), [half * width + i for i in range(width)]) for half in (0, 1)
            ]
            undefined = ir.Constant(vector.type, ir.Undefined)
            low, high = (builder.shuffle_vector(vector, undefined, lane) for lane in lanes)
            vector = builder.fadd(low, high)
        return builder.extract_element(vector, ir.Constant(_INT, 0))

    return types.float32(Vector), emit


@intrinsic
def _add_to_exponent(typing: Any, vector: Any, whole: Any) -> Any:
    # `whole` is n + 1.5 * 2^23: its lowest bits are the integer n, and the shift drops all others.
    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        vector, whole = (builder.bitcast(value, _INTS) for value in args)
        exponent = builder.shl(whole, ir.Constant(_INTS, [23] * LANES))
        return builder.bitcast(builder.add(vector, exponent), _FLOATS)

    return Vector(Vector, Vector), emit


def _define(operation: Any, instruction: str) -> None:
    @intrinsic
    def apply(typing: Any, a: Any, b: Any) -> Any:
        def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            vectors = [
                value if kind == Vector else _splat(builder, value)
                for kind, value in zip(signature.args, args, strict=True)
            ]
            return getattr(builder, instruction)(*vectors)

        return Vector(*(kind if kind == Vector else types.float32 for kind in (a, b))), emit

    # numba wants the annotations of the two signatures to be the same.
    @overload(operation, inline="always")
    def arithmetic(a: Any, b: Any) -> Any:
        def implementation(a: Any, b: Any) -> Any:
            return apply(a, b)

        return implementation if Vector in (a, b) else None


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_operation, _instruction)

_ROUND_TO_WHOLE = np.float32(1.5 * 2**23)
_SMALLEST_EXPONENT = np.float32(-126)
_INFINITE_EXPONENT = np.float32(128)
LOG2_E = np.float32(1.4426950408889634)
LN_2 = np.float32(0.6931471805599453)


@njit(inline="always")
def add_product(array: Any, index: Any, a: Any, b: Any) -> None:
    """Adds a * b to the 16 numbers that begin at array[index]."""
    store(array, index, fma(a, b, load(array, index)))


@njit(inline="always")
def exp2(x: Any) -> Any:
    """2^x to 2 units in the last place; 2^-126 below that, infinity from 128 on."""
    x = maximum(broadcast(_SMALLEST_EXPONENT), minimum(broadcast(_INFINITE_EXPONENT), x))
    whole = x + _ROUND_TO_WHOLE
    rest = x - (whole - _ROUND_TO_WHOLE)
    # Minimax polynomial of degree 5 on [-1/2, 1/2], exact at 0; its relative error is 9e-8.
    power = fma(rest, np.float32(1.326472749e-3), broadcast(np.float32(9.671512642e-3)))
    power = fma(power, rest, np.float32(5.550733742e-2))
    power = fma(power, rest, np.float32(2.402224209e-1))
    power = fma(power, rest, np.float32(6.931469776e-1))
    power = fma(power, rest, np.float32(1))
    return _add_to_exponent(power, whole)


@njit(inline="always")
def log1p_unit(x: Any) -> Any:
    """log(1 + x) for 0 <= x <= 1 to 2 units in the last place, tiny x included."""
    # 2 atanh(s) with s = x / (2 + x) <= 1/3; the minimax polynomial in s^2 has a relative error of 4e-9.
    s = x / (x + np.float32(2))
    square = s * s
    series = fma(square, np.float32(0.2817833532), broadcast(np.float32(0.2796060267)))
    series = fma(series, square, np.float32(0.4002491029))
    series = fma(series, square, np.float32(0.6666631468))
    series = fma(series, square, np.float32(2))
    return series * s


@njit(inline="always")
def softplus(x: Any) -> Any:
    """log(1 + e^x), without overflow and without losing small results."""
    zero = broadcast(np.float32(0))
    return maximum(zero, x) + log1p_unit(exp2(minimum(x, zero - x) * LOG2_E))


@njit(inline="always")
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    one = broadcast(np.float32(1))
    return one / (one + exp2(x * (-LOG2_E)))
