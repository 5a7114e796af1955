"""How step sizes start in every state space here: log-uniform in [0.001, 0.1] (Gu et al. 2021, arXiv:2111.00396)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

_RANGE = (1e-3, 1e-1)


def random_log_step_sizes(number: int) -> Float[Tensor, " {number}"]:
    """log Delta, from torch's generator."""
    return torch.empty(number).uniform_(*map(math.log, _RANGE))


def before_softplus(delta: Float[Tensor, " number"]) -> Float[Tensor, " number"]:
    """What softplus takes to delta."""
    return delta + torch.log(-torch.expm1(-delta))
