"""The residual addition and its norm: one read of x and y, one write of the sum and of its norm.

    forward     s = x + y;   r = 1 / sqrt(mean(s^2) + epsilon);   n = w r s
    backward    with g = w dn:   ds = ds + r g - r^3 s mean(g s);   dw = sum over rows of r s dn

A program takes tiles of whole rows. Numbers are float32 in registers, whatever the tensors hold.
"""

# R rows, D width

# Triton has no types, and takes no annotations but its own.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def forward(
    x,
    y,
    weight,
    total,
    normed,
    num_rows,
    width,
    epsilon,
    HAS_Y: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column_D = tl.arange(0, COLUMNS)
    is_inside_RD = (row_R < num_rows)[:, None] & (column_D < width)[None, :]
    entry_RD = row_R.to(tl.int64)[:, None] * width + column_D[None, :]
    weight_D = tl.load(weight + column_D, column_D < width, 0.0).to(tl.float32)
    s_RD = tl.load(x + entry_RD, is_inside_RD, 0.0).to(tl.float32)
    if HAS_Y:
        s_RD += tl.load(y + entry_RD, is_inside_RD, 0.0).to(tl.float32)
        stored_RD = s_RD.to(total.dtype.element_ty)
        tl.store(total + entry_RD, stored_RD, is_inside_RD)
        s_RD = stored_RD.to(tl.float32)
    r_R = tl.rsqrt(tl.sum(s_RD * s_RD, 1) / width + epsilon)
    n_RD = s_RD * r_R[:, None] * weight_D[None, :]
    tl.store(normed + entry_RD, n_RD.to(normed.dtype.element_ty), is_inside_RD)


@triton.jit
def backward(
    dnormed,
    dtotal,
    total,
    weight,
    dx,
    dy,
    dweight_parts,
    num_rows,
    width,
    epsilon,
    HAS_DTOTAL: tl.constexpr,
    HAS_DY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column_D = tl.arange(0, COLUMNS)
    weight_D = tl.load(weight + column_D, column_D < width, 0.0).to(tl.float32)
    dweight_RD = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first_row in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row_R = first_row + tl.arange(0, ROWS)
        is_inside_RD = (row_R < num_rows)[:, None] & (column_D < width)[None, :]
        entry_RD = row_R.to(tl.int64)[:, None] * width + column_D[None, :]
        s_RD = tl.load(total + entry_RD, is_inside_RD, 0.0).to(tl.float32)
        dn_RD = tl.load(dnormed + entry_RD, is_inside_RD, 0.0).to(tl.float32)
        g_RD = dn_RD * weight_D[None, :]
        r_R = tl.rsqrt(tl.sum(s_RD * s_RD, 1) / width + epsilon)
        pull_R = r_R * r_R * r_R * tl.sum(g_RD * s_RD, 1) / width
        ds_RD = g_RD * r_R[:, None] - s_RD * pull_R[:, None]
        if HAS_DTOTAL:
            ds_RD += tl.load(dtotal + entry_RD, is_inside_RD, 0.0).to(tl.float32)
        tl.store(dx + entry_RD, ds_RD.to(dx.dtype.element_ty), is_inside_RD)
        if HAS_DY:
            tl.store(dy + entry_RD, ds_RD.to(dy.dtype.element_ty), is_inside_RD)
        dweight_RD += s_RD * r_R[:, None] * dn_RD
    part = dweight_parts + tl.program_id(0).to(tl.int64) * width + column_D
    tl.store(part, tl.sum(dweight_RD, 0), column_D < width)
