"""Forward and backward of the loss by chunks of rows: the matrix products, and the operator that autograd sees.

Per chunk: its logits; each row's loss, and over the logits their gradient G; then G W and, added up over the chunks,
G^T x. The backward has only to scale the two. The vocabulary is padded to a multiple of what matrix units like.
"""

# R rows, V vocabulary, P padded vocabulary, D width

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = 576 * 2**20
"""Of logits, at most; on a CPU the whole of what `torch_chunked` holds of a chunk at a time is a few times as much."""
_ROW_MULTIPLE = 128
_VOCAB_MULTIPLE = 64
_SOFTMAX_MODULES = {
    "torch": "kernels.cross_entropy.torch_chunked",
    "triton": "kernels.cross_entropy.triton_chunked",
}


def chunked_loss(x: Tensor, weight: Tensor, targets: Tensor, ignored: int, softmax: str) -> Tensor:
    """The mean over scored rows, with the softmax of the named implementation."""
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    arguments = (x.to(dtype), weight, targets.contiguous(), ignored, softmax, needs_gradient)
    loss: Tensor = (
        _ChunkedLoss.apply(*arguments)  # type: ignore[no-untyped-call]  # torch's apply has no types
        if needs_gradient
        else _operator(*arguments)[0]
    )
    return loss


_Loss = tuple[Tensor, Tensor, Tensor, Tensor]


def _loss(x: Tensor, weight: Tensor, targets: Tensor, ignored: int, softmax: str, needs_gradient: bool) -> _Loss:
    """The loss; of its sum over rows the gradients in x and in weight; and the number of scored rows."""
    losses_and_gradients = importlib.import_module(_SOFTMAX_MODULES[softmax]).losses_and_gradients
    num_rows, vocab = len(x), len(weight)
    weight_PD = _padded(weight, x.dtype)
    precision = torch.promote_types(x.dtype, torch.float32)
    losses_R = x.new_empty(num_rows, dtype=precision)
    dx_RD = torch.empty_like(x) if needs_gradient else x.new_empty(0)
    dweight_PD = weight_PD.new_zeros(weight_PD.shape if needs_gradient else 0, dtype=precision)
    chunk_rows = _chunk_rows(num_rows, len(weight_PD) * x.element_size())
    logits = x.new_empty(chunk_rows, len(weight_PD))
    # The dtypes are chosen; autocast would choose again.
    with torch.autocast(x.device.type, enabled=False):
        for first in range(0, num_rows, chunk_rows):
            rows = slice(first, first + chunk_rows)
            x_RD = x[rows]
            logits_RP = torch.mm(x_RD, weight_PD.T, out=logits[: len(x_RD)])
            losses_and_gradients(logits_RP, vocab, targets[rows], ignored, losses_R[rows])
            if needs_gradient:
                torch.mm(logits_RP, weight_PD, out=dx_RD[rows])
                _add_product(dweight_PD, logits_RP.T, x_RD)
    num_scored = (targets != ignored).sum().to(precision)
    return losses_R.sum() / num_scored, dx_RD, dweight_PD[:vocab], num_scored


def _fake_loss(x: Tensor, weight: Tensor, targets: Tensor, ignored: int, softmax: str, needs_gradient: bool) -> _Loss:
    precision = torch.promote_types(x.dtype, torch.float32)
    scalar = x.new_empty((), dtype=precision)
    if not needs_gradient:
        return scalar, x.new_empty(0), scalar.new_empty(0), scalar.clone()
    return scalar, torch.empty_like(x), torch.empty_like(weight, dtype=precision), scalar.clone()


def _padded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`, with rows of zeros up to a multiple of _VOCAB_MULTIPLE."""
    vocab, width = weight.shape
    padded = -(-vocab // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    weight_PD = weight.new_empty(padded, width, dtype=dtype)
    weight_PD[:vocab] = weight
    weight_PD[vocab:] = 0.0
    return weight_PD


def _chunk_rows(num_rows: int, row_bytes: int) -> int:
    """Rows of a chunk: as few chunks as the budget allows, all of about the same size."""
    most = max(_ROW_MULTIPLE, _CHUNK_BYTES // row_bytes // _ROW_MULTIPLE * _ROW_MULTIPLE)
    num_chunks = -(-num_rows // most)
    rows = -(-num_rows // num_chunks)
    return min(num_rows, -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a b. On a GPU, half-precision factors are added up in float32 from first to last."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.ops.aten.addmm.dtype_out(total, a, b, total.dtype, out=total)
    else:
        total += a @ b


# What `torch.library.custom_op` would do, less its search of every call for aliases and its layer for autograd, which
# cost more than a launch.
_NAME = "seqsuite::linear_cross_entropy"
torch.library.define(_NAME, torch.library.infer_schema(_loss, mutates_args=()))
torch.library.impl(_NAME, ("cuda", "cpu"), _loss)
torch.library.register_fake(_NAME, _fake_loss)
_operator = torch.ops.seqsuite.linear_cross_entropy.default


class _ChunkedLoss(torch.autograd.Function):
    """The operator with its gradient."""

    # Without a `setup_context` of its own, for which torch examines the signature in every call.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *others: Any) -> Tensor:
        loss, *gradients = _operator(x, weight, *others)
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(*gradients)
        return loss  # type: ignore[no-any-return]

    # A second derivative would take for constants what the forward made of x and the weight.
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, num_scored = ctx.saved_tensors
        # Where no row is scored both gradients are zeros, and zero they stay.
        scale = dloss / num_scored.clamp_min(1.0)
        return (dx * scale).to(dx.dtype), (dweight * scale).to(ctx.weight_dtype), None, None, None, None
