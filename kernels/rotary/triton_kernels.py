"""Turning pairs of channels: one read of x and one write of y. The gradient is the turn by the conjugate.

A program takes a tile of tokens and of their pairs. Numbers are float32 in registers, whatever the tensors hold.
"""

# R tokens, P pairs of all heads of a token, 2 the real and the imaginary part

# Triton has no types, and takes no annotations but its own.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate(
    x,
    turns,
    y,
    num_tokens,
    length,
    x_batch,
    x_token,
    x_head,
    turns_batch,
    HEADS: tl.constexpr,
    FREQUENCIES: tl.constexpr,
    CONJUGATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    num_pairs: tl.constexpr = HEADS * FREQUENCIES
    num_tiles = tl.cdiv(num_pairs, COLUMNS)
    token_R = tl.program_id(0) // num_tiles * ROWS + tl.arange(0, ROWS)
    pair_P = tl.program_id(0) % num_tiles * COLUMNS + tl.arange(0, COLUMNS)
    row_R, position_R = (token_R // length).to(tl.int64), (token_R % length).to(tl.int64)
    head_P, frequency_P = (pair_P // FREQUENCIES).to(tl.int64), pair_P % FREQUENCIES
    part_2 = tl.arange(0, 2)[None, None, :]
    is_inside_RP2 = ((token_R < num_tokens)[:, None] & (pair_P < num_pairs)[None, :])[:, :, None]

    x_RP = (row_R * x_batch + position_R * x_token)[:, None] + (head_P * x_head + 2 * frequency_P)[None, :]
    x_RP2 = tl.load(x + x_RP[:, :, None] + part_2, is_inside_RP2, 0.0).to(tl.float32)
    turn_RP = (row_R * turns_batch + position_R * FREQUENCIES)[:, None] + frequency_P[None, :]
    turn_RP2 = tl.load(turns + 2 * turn_RP[:, :, None] + part_2, is_inside_RP2, 0.0)
    real_RP, imaginary_RP = tl.split(x_RP2)
    cos_RP, sin_RP = tl.split(turn_RP2)
    if CONJUGATE:
        sin_RP = -sin_RP
    y_RP2 = tl.join(real_RP * cos_RP - imaginary_RP * sin_RP, real_RP * sin_RP + imaginary_RP * cos_RP)
    y_RP = token_R.to(tl.int64)[:, None] * num_pairs + pair_P[None, :]
    tl.store(y + 2 * y_RP[:, :, None] + part_2, y_RP2.to(y.dtype.element_ty), is_inside_RP2)
