"""How a cell says how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a cell has come."""

    fraction: float
    note: str
    """The current loss, or what is being measured."""


Listener = Callable[[Progress], None]
