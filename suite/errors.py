"""Every deliberate error of the suite. `suite.cli` prints its message alone and exits with code 2.

SuiteError                 what was given, what was wanted, the way out
├── UsageError             a name, a key or a value that does not exist or does not fit
├── PluginError            a plugin that cannot be imported or clashes with another
│   └── ContractViolation  a plugin that breaks a promise of `suite.plugin`
├── DeviceError            a device, or an implementation on it, that is not there
├── StoreError             a results folder that cannot be read, written or continued
└── Diverged               training left the finite numbers; becomes a Failure with its step
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SuiteError(Exception):
    """An error that the user can act on; its message stands alone."""


class UsageError(SuiteError):
    """A name, a key or a value that does not exist or does not fit."""


class PluginError(SuiteError):
    """A plugin that cannot be imported or clashes with another."""


class ContractViolation(PluginError):
    """A plugin that breaks a promise of `suite.plugin`; says which one, what was seen and what was promised."""


class DeviceError(SuiteError):
    """A device, or an implementation on it, that is not there."""


class StoreError(SuiteError):
    """A results folder that cannot be read, written or continued."""


class Diverged(SuiteError):
    """The loss left the finite numbers: in training at `step`, or in an evaluation (None)."""

    def __init__(self, step: int | None, loss: str) -> None:
        super().__init__(f"the loss became {loss} " + ("in an evaluation" if step is None else f"at step {step}"))
        self.step = step


def unknown(kind: str, given: str, known: Iterable[str], *, where: str = "") -> UsageError:
    """The error for a name that nobody knows: the nearest known one and the whole list."""
    names = sorted(known)
    nearest = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    place = f" {where}" if where else ""
    return UsageError(f"No {kind} is called '{given}'{place}.{hint} Known: {', '.join(names) or 'none'}")
