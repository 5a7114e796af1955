"""Softmax and cross-entropy of rows of logits, whose gradient takes their place: read twice, written once.

    loss = log sum_v exp(l_v) - l_target;   dl_v = exp(l_v) / sum_w exp(l_w) - (v == target)

A program takes one row, in blocks. Every few neighbours keep a maximum and a sum of their own on the way (Milakov and
Gimelshein 2018, arXiv:1805.02867), in the registers of one lane; they meet once, at the end of the row. The second read
finds the row in the cache: the first asks it to stay there.
"""

# V entries of a block, or G groups of W neighbours

# Triton has no types, and takes no annotations but its own.
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

NEIGHBOURS = tl.constexpr(8)


@triton.jit
def losses_and_gradients(
    logits,
    targets,
    losses,
    vocab,
    padded,
    stride,
    ignored,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    target = tl.load(targets + row)
    logits += row.to(tl.int64) * stride
    if target == ignored:
        for first in range(0, padded, BLOCK):
            v_V = first + tl.arange(0, BLOCK)
            tl.store(logits + v_V, tl.zeros((BLOCK,), logits.dtype.element_ty), v_V < padded)
        tl.store(losses + row, 0.0)
        return

    largest_G = tl.full((BLOCK // NEIGHBOURS,), float("-inf"), tl.float32)
    sum_G = tl.zeros((BLOCK // NEIGHBOURS,), tl.float32)
    for first in range(0, padded, BLOCK):
        v_GW = first + tl.arange(0, BLOCK // NEIGHBOURS)[:, None] * NEIGHBOURS + tl.arange(0, NEIGHBOURS)[None, :]
        # Loaded up to the padding, whose even size allows wide loads; what lies there counts for nothing.
        l_GW = tl.load(logits + v_GW, v_GW < padded, 0.0, eviction_policy="evict_last").to(tl.float32)
        l_GW = tl.where(v_GW < vocab, l_GW, float("-inf"))
        larger_G = tl.maximum(largest_G, tl.max(l_GW, 1))
        # A group that has seen no logit yet has -inf in both, whose difference is no number.
        reference_G = tl.where(larger_G == float("-inf"), 0.0, larger_G)
        sum_G = sum_G * tl.exp(largest_G - reference_G) + tl.sum(tl.exp(l_GW - reference_G[:, None]), 1)
        largest_G = larger_G
    largest = tl.max(largest_G, 0)
    log_sum = largest + tl.log(tl.sum(sum_G * tl.exp(largest_G - largest), 0))
    is_known = (target >= 0) & (target < vocab)
    target_logit = tl.load(logits + target, is_known, float("nan")).to(tl.float32)
    tl.store(losses + row, log_sum - target_logit)
    # The target's logit has been read by all before any of them is overwritten.
    tl.debug_barrier()

    for first in range(0, padded, BLOCK):
        v_V = first + tl.arange(0, BLOCK)
        l_V = tl.load(logits + v_V, v_V < padded, 0.0, eviction_policy="evict_first").to(tl.float32)
        l_V = tl.where(v_V < vocab, l_V, float("-inf"))
        gradient_V = tl.exp(l_V - log_sum) - tl.where(v_V == target, 1.0, 0.0)
        tl.store(logits + v_V, gradient_V.to(logits.dtype.element_ty), v_V < padded)
