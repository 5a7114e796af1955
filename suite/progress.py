"""How a cell says how far it has come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a cell has come."""

    fraction: float | None
    """Of the whole cell, from 0 to 1; None if it is as before."""
    note: str | None
    """The current loss, or what is being measured; None if it is as before, for a mere sign of life."""


Listener = Callable[[Progress], None]
