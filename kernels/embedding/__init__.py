"""Embedding: the row of a table that belongs to each token.

    x_r = W[token_r];    dW[v] = sum of dx_r over the rows r whose token is v

`reference.py` is the specification.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.arguments import expect_axes, expect_floating, expect_one_device
from kernels.dispatch import Operation

__all__ = ["OPERATION", "embedding"]

OPERATION = Operation(
    "embedding",
    {
        "one_hot": "kernels.embedding.one_hot",
        "torch": "kernels.embedding.torch_gather",
        "reference": "kernels.embedding.reference",
    },
)

_SMALL_VOCABULARY = 256
"""Up to here a matrix product with one-hot rows adds up the gradient faster than torch sorts the tokens."""


def embedding(
    tokens: Int[Tensor, "*rows"], weight: Float[Tensor, "vocab width"], *, implementation: str = "auto"
) -> Float[Tensor, "*rows width"]:
    """The rows of the weight that the tokens name; differentiable in the weight.

    Args:
        tokens: int64, from 0 to the vocabulary's end. One beyond it raises on a CPU and is a device assert on a GPU.
        weight: the row of each token.
        implementation: a name in `OPERATION.implementations`, or "auto", which takes 'torch' for large vocabularies.

    Raises:
        ValueError: an argument's shape, dtype or device disagrees with the others.
        ImplementationUnavailable: the implementation cannot run on the tokens' device.
    """
    expect_axes("weight", weight, "vocab width")
    expect_floating("weight", weight)
    if tokens.dtype != torch.int64:
        raise ValueError(f"tokens is {tokens.dtype}; it must be torch.int64")
    expect_one_device(tokens=tokens, weight=weight)
    if implementation == "auto" and len(weight) > _SMALL_VOCABULARY:
        implementation = "torch"
    x: Tensor = OPERATION.choose(implementation, tokens.device).embedding(tokens, weight)
    return x
