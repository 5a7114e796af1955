"""Which implementation of an operation runs: asked for by name or chosen by `auto`, and always on the record.

An operation lists its implementations in the order in which `auto` prefers them. Each is a module of its own, imported
only when it is looked at, with a function `unavailable(device)` that says why it cannot run there (None: it can).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

import torch

_receipts: ContextVar[dict[str, set[str]] | None] = ContextVar("receipts", default=None)


class ImplementationUnavailable(RuntimeError):
    """An implementation was asked for by name and cannot run here, or none can."""


@dataclass(frozen=True)
class Operation:
    """An operation and the modules that implement it."""

    name: str
    implementations: Mapping[str, str]
    """Implementation name -> module path, the one `auto` prefers first."""

    def availability(self, device: torch.device) -> dict[str, str | None]:
        """Implementation name -> why it cannot run on `device`, or None if it can."""
        return {name: self._module(name).unavailable(device) for name in self.implementations}

    def choose(self, implementation: str, device: torch.device) -> ModuleType:
        """The module that runs, noted in the current receipt.

        Raises:
            ValueError: no implementation has that name.
            ImplementationUnavailable: it exists and cannot run on `device`.
        """
        if implementation == "auto":
            for name in self.implementations:
                module = self._module(name)
                if module.unavailable(device) is None:
                    return self._noted(name, module)
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.availability(device).items())
            raise ImplementationUnavailable(f"{self.name} has no implementation that runs on {device}. {reasons}")
        if implementation not in self.implementations:
            known = ", ".join(["auto", *self.implementations])
            raise ValueError(f"{self.name} has no implementation {implementation!r}. Known: {known}")
        module = self._module(implementation)
        reason = module.unavailable(device)
        if reason is not None:
            raise ImplementationUnavailable(
                f"{self.name} cannot run its {implementation!r} implementation on {device}: {reason}. "
                "Use 'auto' to take the best one that is there"
            )
        return self._noted(implementation, module)

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(self.implementations[name])

    def _noted(self, name: str, module: ModuleType) -> ModuleType:
        note(self.name, name)
        return module


def note(operation: str, implementation: str) -> None:
    """Put what runs on the current receipt, if one is being written."""
    receipt = _receipts.get()
    if receipt is not None:
        receipt.setdefault(operation, set()).add(implementation)


@contextmanager
def receipt() -> Iterator[dict[str, set[str]]]:
    """Collects, for everything that runs inside, operation name -> implementations that really ran."""
    ran: dict[str, set[str]] = {}
    token = _receipts.set(ran)
    try:
        yield ran
    finally:
        _receipts.reset(token)
