"""Whether an implementation computes what the specification says: the output, and the gradient of every input."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.dispatch import ImplementationUnavailable
from kernels.tolerances import TOLERANCES
from suite.bench.benchmark import Contender, Inputs, KernelBenchmark, Shape, as_tuple
from suite.bench.results import Check
from suite.measure.memory import is_out_of_memory

_PEERS_ALLOWED = 1e-4
"""Peers may take other roads in float32, such as fast exponentials, and still compute the same."""


class Examination:
    """One set of random inputs, and what the specification makes of them in float64 on the CPU."""

    def __init__(
        self, benchmark: KernelBenchmark, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self._benchmark, self._shape, self._drawn_as = benchmark, shape, dtype
        self._inputs = benchmark.inputs(shape, dtype, device, generator)
        wide = {name: _wide(tensor) for name, tensor in self._inputs.items()}
        leaves = leaves_of(wide)
        outputs = as_tuple(benchmark.specification(wide | leaves))
        self._weights = [
            torch.randn(output.shape, generator=generator, device=device, dtype=dtype) for output in outputs
        ]
        self._expected = _named(outputs, leaves, [_wide(weight) for weight in self._weights])

    def check(self, contender: Contender, dtype: torch.dtype) -> Check:
        """How near a contender comes; every error that it raises becomes the check's failure.

        `dtype` is that of the examination or a wider one: the same numbers are then given in it.
        """
        tolerance = self._tolerance(contender, dtype)
        errors: dict[str, float] = {}
        seconds, failure, is_unavailable = None, None, False
        try:
            started = time.perf_counter()
            actual = self._run(contender, dtype)
            seconds = time.perf_counter() - started
            for name, expected in self._expected.items():
                errors[name] = relative_error(name, actual[name], expected)
        except ImplementationUnavailable as unavailable:
            failure, is_unavailable = str(unavailable), True
        except Exception as error:
            failure = "out of memory" if is_out_of_memory(error) else f"{type(error).__name__}: {error}"
        else:
            worst = max(errors, key=lambda name: errors[name])
            if errors[worst] > tolerance:
                failure = f"{worst} is off by {errors[worst]:.1e} of its largest entry; {tolerance:.0e} is allowed"
        return Check(
            operation=self._benchmark.name,
            implementation=contender.name,
            is_peer=contender.is_peer,
            dtype=dtype_name(dtype),
            shape=str(self._shape),
            tolerance=tolerance,
            errors=errors,
            seconds=seconds,
            failure=failure,
            is_unavailable=is_unavailable,
        )

    def _tolerance(self, contender: Contender, dtype: torch.dtype) -> float:
        if contender.is_peer:
            return max(TOLERANCES[dtype], _PEERS_ALLOWED)
        module = self._benchmark.operation.module(contender.name)
        # An implementation that computes with fewer bits by design says how near it comes.
        promised: float = getattr(module, "TOLERANCES", TOLERANCES)[dtype]
        return promised

    def _run(self, contender: Contender, dtype: torch.dtype) -> dict[str, Tensor]:
        inputs = {
            name: tensor.to(dtype) if tensor.dtype == self._drawn_as else tensor
            for name, tensor in self._inputs.items()
        }
        leaves = leaves_of(inputs)
        outputs = as_tuple(contender.call(contender.laid_out(inputs | leaves)))
        return {name: _wide(tensor) for name, tensor in _named(outputs, leaves, self._weights).items()}


def leaves_of(inputs: Inputs) -> Inputs:
    """The inputs that have a gradient, as new leaves on the same memory."""
    return {
        name: tensor.detach().requires_grad_()
        for name, tensor in inputs.items()
        if tensor.is_floating_point() or tensor.is_complex()
    }


def _named(outputs: tuple[Tensor, ...], leaves: Inputs, weights: Sequence[Tensor]) -> dict[str, Tensor]:
    """The outputs, and the gradients of their products with `weights`, by name."""
    cast = [weight.to(output.dtype) for output, weight in zip(outputs, weights, strict=True)]
    gradients = torch.autograd.grad(outputs, list(leaves.values()), cast)
    numbers = [""] if len(outputs) == 1 else [f" {i + 1}" for i in range(len(outputs))]
    named = {f"output{number}": output.detach() for number, output in zip(numbers, outputs, strict=True)}
    return named | {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}


def relative_error(name: str, actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest entry, of two tensors in double precision.

    Raises:
        ValueError: the shape is wrong or an entry is not finite.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"{name} has shape {tuple(actual.shape)}; it must be {tuple(expected.shape)}")
    if not bool(torch.isfinite(actual).all()):
        raise ValueError(f"{name} is not finite everywhere")
    scale = float(expected.abs().max())
    difference = float((actual - expected).abs().max())
    # What must be zero everywhere, such as the gradient of A after one position, is compared as it stands.
    return difference / scale if scale > 0 else difference


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32"."""
    return str(dtype).removeprefix("torch.")


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.detach().to("cpu", torch.complex128)
    return tensor.detach().to("cpu", torch.float64) if tensor.is_floating_point() else tensor.cpu()
