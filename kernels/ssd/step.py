"""One token of the state space: what generation runs, with a state whose size does not grow."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from kernels.dispatch import note


def ssd_step(
    state: Float[Tensor, "batch heads head_size state"],
    x: Float[Tensor, "batch heads head_size"],
    delta: Float[Tensor, "batch heads"],
    A: Float[Tensor, " heads"],
    B: Float[Tensor, "batch groups state"],
    C: Float[Tensor, "batch groups state"],
    D: Float[Tensor, " heads"] | None = None,
    delta_bias: Float[Tensor, " heads"] | None = None,
    *,
    delta_softplus: bool = False,
) -> tuple[Float[Tensor, "batch heads head_size"], Float[Tensor, "batch heads head_size state"]]:
    """The output for one position, in x's dtype, and the state after it, in the dtype of `state`.

    The arguments are those of `ssd` at one position. `state` is not changed.
    """
    note("ssd_step", "torch")
    precision = torch.promote_types(state.dtype, torch.float32)
    heads_per_group = x.shape[1] // B.shape[1]
    x_, delta, A = x.to(precision), delta.to(precision), A.to(precision)
    B, C = (tensor.to(precision).repeat_interleave(heads_per_group, dim=1).unsqueeze(2) for tensor in (B, C))
    if delta_bias is not None:
        delta = delta + delta_bias.to(precision)
    if delta_softplus:
        delta = softplus(delta)

    h = torch.exp(delta * A)[..., None, None] * state + (delta.unsqueeze(-1) * x_).unsqueeze(-1) * B
    y = (h * C).sum(-1)
    if D is not None:
        y = y + D.to(precision).unsqueeze(-1) * x_
    return y.to(x.dtype), h.to(state.dtype)
