"""From what was typed to what is benchmarked: operations, who takes part, shapes, dtypes, device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from suite.bench.benchmark import Contender, KernelBenchmark, Shape, benchmark, benchmark_names
from suite.errors import DeviceError, UsageError, unknown
from suite.plan import usable_device
from suite.spec import Device

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_USUAL_DTYPE = {"cuda": "bfloat16", "cpu": "float32"}

_ERROR_LENGTHS = (1, 2, 63, 64, 65, 511, 513, 2049, 16384, 131072)
"""Around the sizes of chunks and tiles, and long."""

_LONGEST_QUICK_LENGTH = 600


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was typed; empty where nothing was."""

    operations: Sequence[str] = ()
    implementations: Sequence[str] = ()
    shapes: Sequence[str] = ()
    dtypes: Sequence[str] = ()
    device: str = "auto"
    is_quick: bool = False
    wants_errors: bool = False
    """The errors by length in place of times."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One operation of a plan."""

    benchmark: KernelBenchmark
    contenders: tuple[Contender, ...]
    shapes: tuple[Shape, ...]
    dtypes: tuple[torch.dtype, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one invocation does."""

    parts: tuple[Part, ...]
    device: torch.device
    seed: int
    is_quick: bool


def plan(request: Request, seed: int) -> Plan:
    """Checks every name and fills in what was not asked.

    Raises:
        UsageError: an operation, implementation, dtype, device or shape that does not exist, or that no operation has.
        DeviceError: a device, an implementation or a peer that is not there.
    """
    device = _device(request.device)
    benchmarks = [benchmark(name) for name in dict.fromkeys(request.operations or benchmark_names())]
    _expect_known("implementation", request.implementations, (name for one in benchmarks for name in one.contenders()))
    dtypes = list(dict.fromkeys(request.dtypes)) or [_USUAL_DTYPE[device.type]]
    _expect_known("dtype", dtypes, _DTYPES)
    parts = []
    for one in benchmarks:
        shapes = _shapes(one, request, device)
        contenders = _contenders(one, request, device) if shapes else ()
        known = [name for name in dtypes if name in one.dtypes] or [one.dtypes[0]]
        if contenders and shapes:
            part = Part(
                benchmark=one,
                contenders=contenders,
                shapes=shapes,
                dtypes=tuple(_DTYPES[name] for name in known),
            )
            parts.append(part)
        elif request.operations:
            what, given = ("implementations", request.implementations) if shapes else ("shapes", request.shapes)
            raise UsageError(f"{one.name} has none of the {what} {', '.join(given)}. {_known(one, what)}")
    if not parts:
        raise UsageError(f"No operation has one of the shapes {', '.join(request.shapes)}")
    return Plan(parts=tuple(parts), device=device, seed=seed, is_quick=request.is_quick)


def _device(asked: str) -> torch.device:
    known = get_args(Device)
    if asked not in ("auto", *known):
        raise unknown("device", asked, ("auto", *known))
    return torch.device(usable_device(None if asked == "auto" else asked))  # type: ignore[arg-type]  # checked above


def _expect_known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = set(known)
    for name in given:
        if name not in names:
            raise unknown(kind, name, names)


def _contenders(one: KernelBenchmark, request: Request, device: torch.device) -> tuple[Contender, ...]:
    """Those that were asked for; otherwise all that can run, but for the specification, which nobody would use."""
    everyone = one.contenders()
    if not request.implementations:
        reasons = {name: contender.unavailable(device) for name, contender in everyone.items() if name != "reference"}
        return tuple(everyone[name] for name, reason in reasons.items() if reason is None)
    asked = [everyone[name] for name in dict.fromkeys(request.implementations) if name in everyone]
    for contender in asked:
        reason = contender.unavailable(device)
        if reason is not None:
            raise DeviceError(f"{one.name} cannot run {contender.name} on {device.type}: {reason}")
    return tuple(asked)


def _shapes(one: KernelBenchmark, request: Request, device: torch.device) -> tuple[Shape, ...]:
    if request.shapes:
        texts: Sequence[str] = request.shapes
    elif request.wants_errors:
        lengths = [n for n in _ERROR_LENGTHS if not request.is_quick or n <= _LONGEST_QUICK_LENGTH]
        texts = [text for text in map(one.of_length, lengths) if text is not None]
    else:
        texts = one.shapes["quick" if request.is_quick else "cuda" if device.type == "cuda" else "cpu"]
    parsed = [one.parse(text) for text in dict.fromkeys(texts)]
    return tuple(shape for shape in parsed if shape is not None)


def _known(one: KernelBenchmark, what: str) -> str:
    if what == "shapes":
        return f"Its axes are {', '.join(one.axes)}, for example {one.example}"
    return f"Known: {', '.join(one.contenders())}"
