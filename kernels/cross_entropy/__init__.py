"""Linear map to a vocabulary and cross-entropy in one: the loss of a language model without all its logits.

    logits_r = W x_r;   loss = mean over scored rows r of  log sum_v exp(logits_rv) - logits_{r, target_r}

Logits of a whole batch would be the largest tensor of a training step. Here they live for one chunk of rows at a time:
since a loss is differentiated once, what the backward needs of them, softmax minus target, is multiplied out in the
forward. `reference.py` is the specification.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.arguments import expect_axes, expect_floating, expect_one_device, expect_shape
from kernels.dispatch import Operation

__all__ = ["OPERATION", "linear_cross_entropy"]

OPERATION = Operation(
    "cross_entropy",
    {
        "triton": "kernels.cross_entropy.triton_chunked",
        "chunked": "kernels.cross_entropy.torch_chunked",
        "whole": "kernels.cross_entropy.torch_whole",
        "reference": "kernels.cross_entropy.reference",
    },
)

_WHOLE_BYTES = 128 * 2**20
"""Float32 logits up to this size are held as a whole: there torch's own few kernels are as fast and as small."""


def linear_cross_entropy(
    x: Float[Tensor, "rows width"],
    weight: Float[Tensor, "vocab width"],
    targets: Int[Tensor, " rows"],
    *,
    ignored: int = -100,
    implementation: str = "auto",
) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats over the rows that are scored; differentiable in x and weight, once.

    Under autocast, x and weight are cast first. The logits have their dtype; the softmax, the loss and the sum of the
    weight's gradient over chunks are float32, and float64 where x is.

    Args:
        x: what the last layer hands on.
        weight: the row of each token.
        targets: the token that belongs to each row, or `ignored`. With 'triton', which cannot check without waiting for
            the device, a token outside the vocabulary makes the loss NaN; the others raise.
        ignored: the target of a row that is not scored.
        implementation: a name in `OPERATION.implementations`, or "auto", which takes 'whole' for small vocabularies.

    Returns:
        The loss, float32 (float64 where x is); NaN where no row is scored, with gradients of zero.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on x's device.
    """
    _check(x, weight, targets)
    if implementation == "auto" and x.shape[0] * weight.shape[0] * 4 <= _WHOLE_BYTES:
        implementation = "whole"
    if x.dtype == torch.float64:
        if implementation == "auto":
            implementation = "chunked"
        elif implementation == "triton":
            raise ValueError("x is float64 and 'triton' computes in float32; use 'chunked'")
    loss: Tensor = OPERATION.choose(implementation, x.device).linear_cross_entropy(x, weight, targets, ignored)
    return loss


def _check(x: Tensor, weight: Tensor, targets: Tensor) -> None:
    expect_axes("x", x, "rows width")
    expect_axes("weight", weight, "vocab width")
    expect_shape("weight", weight, "vocab width", (weight.shape[0], x.shape[1]))
    expect_shape("targets", targets, "rows", (x.shape[0],))
    expect_floating("x", x)
    expect_floating("weight", weight)
    if targets.dtype != torch.int64:
        raise ValueError(f"targets is {targets.dtype}; it must be torch.int64")
    expect_one_device(x=x, weight=weight, targets=targets)
