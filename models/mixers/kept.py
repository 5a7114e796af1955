"""What steps compute from the weights alone, kept from step to step while the weights are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Derived = TypeVar("Derived")


class Kept(Generic[Derived]):
    """One value and the versions of the weights that it was computed from.

    In training nothing is kept, since gradients flow through what is computed.
    """

    def __init__(self) -> None:
        self._versions: list[tuple[int, int]] = []
        self._value: Derived | None = None

    def get(self, weights: Sequence[Tensor], compute: Callable[[], Derived]) -> Derived:
        """The value for these weights, computed if it is not there."""
        # The weights of a model that was built in inference mode do not tell when they change.
        if torch.is_grad_enabled() or any(weight.is_inference() for weight in weights):
            return compute()
        versions = [(weight.data_ptr(), weight._version) for weight in weights]
        if self._value is None or self._versions != versions:
            self._versions, self._value = versions, compute()
        return self._value
