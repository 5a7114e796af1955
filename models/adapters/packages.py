"""What adapters ask: that the package is there, is new enough and can be imported, and that there is a GPU for it."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from suite.errors import DeviceError, UsageError


@dataclass(frozen=True)
class Package:
    """A package that models come from."""

    distribution: str
    """What pip calls it."""
    first_version: tuple[int, int]
    """The oldest that the adapter fits."""
    way_out: str
    """How to install it."""

    def get(self, model: str, module: str, name: str) -> Any:
        """`name` of one of its modules, for `model`.

        Raises:
            UsageError: the package is missing, too old or does not fit what else is installed; says what to install.
        """
        try:
            version = importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            raise UsageError(
                f"{model} needs the package {self.distribution}, which is not installed. {self.way_out}"
            ) from None
        if tuple(int(part) for part in version.split(".")[:2]) < self.first_version:
            wanted = ".".join(map(str, self.first_version))
            raise UsageError(
                f"{model} needs {self.distribution} {wanted} or newer; {version} is installed. {self.way_out}"
            )
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"{model}: {self.distribution} {version} cannot be imported: {error}. {self.way_out}"
            ) from error


def expect_gpu(model: str, x: Tensor) -> None:
    """Raises DeviceError if x is not on a GPU."""
    if x.device.type != "cuda":
        raise DeviceError(f"{model} runs on a GPU only, and its input is on the {x.device.type}")
