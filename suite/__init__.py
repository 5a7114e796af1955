"""The suite's public face for plugin authors. Nothing heavy is imported until it is used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suite.plugin import IGNORED, Batch, Branch, Model, Split, Task
    from suite.spec import Budget, Preset, Settings, ShellSettings

__version__ = "0.1.0"

__all__ = [
    "IGNORED",
    "Batch",
    "Branch",
    "Budget",
    "Model",
    "Preset",
    "Settings",
    "ShellSettings",
    "Split",
    "Task",
    "__version__",
]

_HOMES = dict.fromkeys(["IGNORED", "Batch", "Branch", "Model", "Split", "Task"], "suite.plugin") | dict.fromkeys(
    ["Budget", "Preset", "Settings", "ShellSettings"], "suite.spec"
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'suite' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def _refuse_strangers() -> None:
    """The sibling packages have common names; a folder of the user's own would quietly take their place."""
    home = Path(__file__).resolve().parent.parent
    for package in ("kernels", "models", "tasks", "reports"):
        found = find_spec(package)
        origin = Path(found.origin).resolve() if found and found.origin else None
        if origin != home / package / "__init__.py":
            raise ImportError(
                f"The suite needs its own package '{package}' at {home / package}, but Python finds "
                f"{origin or 'none'} first. Rename that folder, or start from another directory"
            )


_refuse_strangers()
