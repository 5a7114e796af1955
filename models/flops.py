"""Floating-point operations that a model does for a token: of its maps, and of what moves along the sequence.

A multiplication and an addition are two. Counted is the arithmetic that the definition asks for, forward, outside the
embedding and the head, whatever the implementation: a state space as its recurrence, causal attention over the tokens
that are seen. Functions of single numbers (activations, norms, gates) are not counted, nor is what is computed once
for a whole batch, such as a kernel.
"""

from __future__ import annotations

import math

from torch import nn

from suite.errors import UsageError


def flops_per_token(module: nn.Module, length: int) -> float:
    """Operations for each token of a sequence of `length`, on average.

    A module with a method `flops_per_token(length)` speaks for all that is in it; linear maps, recurrent cells and what
    consists of them speak for themselves.

    Raises:
        UsageError: a module has weights of its own, more than one for each channel, and does not say what it does.
    """
    if (own := getattr(module, "flops_per_token", None)) is not None:
        return float(own(length))
    if isinstance(module, nn.Linear | nn.RNNBase):
        return map_flops(module)
    if any(parameter.ndim > 1 for parameter in module.parameters(recurse=False)):
        raise UsageError(
            f"{type(module).__name__} does not say how many operations it does. Give it a method "
            "flops_per_token(length), or match by parameters or by state"
        )
    return math.fsum(flops_per_token(child, length) for child in module.children())


def map_flops(*maps: nn.Module) -> float:
    """Operations for each token of linear maps that see every token once."""
    return 2.0 * sum(weight.numel() for each in maps for weight in each.parameters() if weight.ndim == 2)
