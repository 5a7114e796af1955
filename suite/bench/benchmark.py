"""What a benchmark must know of an operation, and which operations have one.

Each file in `suite/bench/operations` is named like its operation and holds one subclass of `KernelBenchmark`, made once
as `BENCHMARK`. A new operation is one more file there.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kernels.dispatch import Operation
from suite.bench import operations
from suite.errors import UsageError, unknown

Inputs = dict[str, Tensor]
"""Argument name -> tensor; the gradient of each that is not of whole numbers is part of the benchmark."""


Outputs = Tensor | tuple[Tensor, ...]
"""One tensor or several, all of them with a gradient to go back through."""


@dataclass(frozen=True)
class Shape:
    """Sizes by axis, written `B8_L2048_D2048`; an axis at its usual size is left out."""

    sizes: Mapping[str, int]
    text: str

    def __getitem__(self, axis: str) -> int:
        return self.sizes[axis]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class Work:
    """The least that one pass has to do, whoever does it."""

    bytes: int
    """Inputs read once and outputs written once."""
    special_functions: float = 0.0
    """Exponentials, logarithms, reciprocals."""
    float32_operations: float = 0.0
    """A multiply-add counts once."""
    matrix_flops: float = 0.0
    """Floating-point operations that matrix units can do; a multiply-add counts twice."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Somebody else's implementation of the same operation."""

    name: str
    module: str
    """What must be installed."""
    call: Callable[[Inputs], Outputs]
    """From the same inputs to the same output as the operation's own function."""
    devices: tuple[str, ...] = ("cuda",)
    time_contiguous: tuple[str, ...] = ()
    """Inputs (batch, length, channels) that it wants with time contiguous in memory, and gets so."""

    def unavailable(self, device: torch.device) -> str | None:
        """Why it cannot run on `device`; looks for the package without importing it."""
        if device.type not in self.devices:
            return f"it does not run on {device.type}"
        return None if find_spec(self.module) else f"the package {self.module} is not installed"

    def laid_out(self, inputs: Inputs) -> Inputs:
        """The same numbers as the peer wants them in memory."""
        return {
            name: tensor.mT.contiguous().mT if name in self.time_contiguous else tensor
            for name, tensor in inputs.items()
        }


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One that takes part: an implementation of ours, or a peer."""

    name: str
    is_peer: bool
    call: Callable[[Inputs], Outputs]
    laid_out: Callable[[Inputs], Inputs]
    """The same inputs in memory as it would be given them."""
    unavailable: Callable[[torch.device], str | None]
    """Why it cannot run on a device."""


class KernelBenchmark(ABC):
    """How one operation is fed, what its least work is, and whom it is compared with."""

    operation: ClassVar[Operation]
    dtypes: ClassVar[tuple[str, ...]] = ("float32", "bfloat16", "float16")
    """What its inputs may be; one that knows a single dtype is timed with it, whatever is asked."""
    axes: ClassVar[Mapping[str, int | None]]
    """Letter -> its usual size, None where a shape has to say. B is the batch, L the length."""
    shapes: ClassVar[Mapping[Literal["cuda", "cpu", "quick"], tuple[str, ...]]]
    """What is timed by default; "quick" on either device."""
    check_shapes: ClassVar[tuple[str, ...]]
    """Where implementations are compared with the specification before they are timed. Peers see the first alone."""
    peers: ClassVar[tuple[Peer, ...]] = ()
    baselines: ClassVar[tuple[str, ...]] = ()
    """Peers or implementations that the others are compared with: the first that is there, or was recorded."""

    @property
    def name(self) -> str:
        """The operation's."""
        return self.operation.name

    @property
    def example(self) -> str:
        """A shape as it is typed."""
        return self.shapes["cuda"][0]

    @abstractmethod
    def inputs(self, shape: Shape, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> Inputs:
        """Random inputs laid out in memory as a model makes them; parameters stay in float32."""

    @abstractmethod
    def call(self, inputs: Inputs, implementation: str) -> Outputs:
        """The operation's own function, as a model calls it."""

    @abstractmethod
    def work(self, shape: Shape, bytes_per_value: int) -> tuple[Work, Work]:
        """Of the forward pass and of the backward pass."""

    @abstractmethod
    def of_length(self, length: int) -> str | None:
        """A shape for the table of errors by length: few channels, None where float64 would take too long."""

    def tokens(self, shape: Shape) -> int:
        """Positions of all sequences together."""
        return shape["L"] * shape.sizes.get("B", 1)

    def specification(self, inputs: Inputs) -> Outputs:
        """What every implementation is compared with; the inputs are float64."""
        return self.call(inputs, "reference")

    def contenders(self) -> dict[str, Contender]:
        """All by name, whether they can run here or not."""
        ours = {
            name: Contender(
                name=name,
                is_peer=False,
                call=partial(self.call, implementation=name),
                laid_out=lambda inputs: inputs,
                unavailable=partial(self._unavailable, name),
            )
            for name in self.operation.implementations
        }
        theirs = {
            peer.name: Contender(
                name=peer.name, is_peer=True, call=peer.call, laid_out=peer.laid_out, unavailable=peer.unavailable
            )
            for peer in self.peers
        }
        return ours | theirs

    def parse(self, text: str) -> Shape | None:
        """A shape from its spelling; None if its axes are not this operation's.

        Raises:
            UsageError: it is no shape at all.
        """
        given: dict[str, int] = {}
        for part in text.split("_"):
            found = re.fullmatch(r"([A-Z])([1-9][0-9]*)", part)
            if found is None or found[1] in given:
                raise UsageError(f"'{text}' is no shape: expected axes and sizes, for example {self.example}")
            given[found[1]] = int(found[2])
        sizes = {axis: given.get(axis, usual) for axis, usual in self.axes.items()}
        if not given.keys() <= self.axes.keys() or None in sizes.values():
            return None
        whole = {axis: size for axis, size in sizes.items() if size is not None}
        shown = [f"{axis}{size}" for axis, size in whole.items() if size != self.axes[axis]]
        return Shape(whole, "_".join(shown))

    def _unavailable(self, implementation: str, device: torch.device) -> str | None:
        return self.operation.availability(device)[implementation]


def as_tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    """One output as a tuple of one."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def benchmark_names() -> list[str]:
    """Names of all operations with a benchmark; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(operations.__path__))


def benchmark(name: str) -> KernelBenchmark:
    """The benchmark of an operation.

    Raises:
        UsageError: no operation has that name.
    """
    if name not in benchmark_names():
        raise unknown("operation", name, benchmark_names())
    found: KernelBenchmark = importlib.import_module(f"{operations.__name__}.{name}").BENCHMARK
    return found
