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


_operations: dict[str, Operation] = {}
_loaded: dict[str, ModuleType] = {}


class ImplementationUnavailable(RuntimeError):
    """An implementation was asked for by name and cannot run here, or none can."""


@dataclass(frozen=True)
class Operation:
    """An operation and the modules that implement it."""

    name: str
    implementations: Mapping[str, str]
    """Implementation name -> module path, the one `auto` prefers first."""

    def __post_init__(self) -> None:
        _operations[self.name] = self

    def availability(self, device: torch.device) -> dict[str, str | None]:
        """Implementation name -> why it cannot run on `device`, or None if it can."""
        return {name: self.module(name).unavailable(device) for name in self.implementations}

    def choose(self, implementation: str, device: torch.device) -> ModuleType:
        """The module that runs, noted in the current receipt.

        Raises:
            ValueError: no implementation has that name.
            ImplementationUnavailable: it exists and cannot run on `device`.
        """
        name = _chosen_name(self.name, implementation, device)
        note(self.name, name)
        return _loaded[self.implementations[name]]

    def _choose_name(self, implementation: str, device: torch.device) -> str:
        if implementation == "auto":
            for name in self.implementations:
                if self.module(name).unavailable(device) is None:
                    return name
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.availability(device).items())
            raise ImplementationUnavailable(f"{self.name} has no implementation that runs on {device}. {reasons}")
        if implementation not in self.implementations:
            known = ", ".join(["auto", *self.implementations])
            raise ValueError(f"{self.name} has no implementation {implementation!r}. Known: {known}")
        reason = self.module(implementation).unavailable(device)
        if reason is not None:
            raise ImplementationUnavailable(
                f"{self.name} cannot run its {implementation!r} implementation on {device}: {reason}. "
                "Use 'auto' to take the best one that is there"
            )
        return implementation

    def module(self, name: str) -> ModuleType:
        """That of an implementation, imported once."""
        path = self.implementations[name]
        if path not in _loaded:
            _loaded[path] = importlib.import_module(path)
        return _loaded[path]


def _chosen_name(operation: str, implementation: str, device: torch.device) -> str:
    """`Operation._choose_name`, which torch.compile calls while it traces, in place of tracing imports and probes."""
    return _operations[operation]._choose_name(implementation, device)


def note(operation: str, implementation: str) -> None:
    """Put what runs on the current receipt, if one is being written; torch.compile does it once, while it traces."""
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


# What `torch.compiler.assume_constant_result` does, without the import of the whole compiler that comes with it.
for _function in (_chosen_name, note):
    vars(_function)["_dynamo_marked_constant"] = True
