"""Comparing an implementation with the float64 reference: the outputs and the gradient of every input, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from kernels.tolerances import TOLERANCES


def outputs_and_gradients(function: Callable[..., Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `function(**inputs)` returns, and the gradients of its product with fixed random numbers."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    outputs = function(**leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(0)
    loss = sum((_real(y) * _random(_real(y).shape, generator)).sum() for y in outputs)
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    named_outputs = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    return named_outputs | {f"gradient of {name}": g for name, g in zip(leaves, gradients, strict=True)}


def assert_agrees(
    function: Callable[..., Any], specification: Callable[..., Any], inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """`function` of the inputs is as near to `specification` of the same numbers in float64 as dtype allows."""
    actual = outputs_and_gradients(function, inputs)
    expected = outputs_and_gradients(specification, {name: _wide(tensor) for name, tensor in inputs.items()})
    for name in expected:
        assert_close(name, actual[name], expected[name], dtype)


def assert_close(
    name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype, *, size_of_terms: float = 1.0
) -> None:
    """All is finite, and the largest difference is within dtype's tolerance of the largest entry.

    Inputs are of order one, and so is what an entry sums up, if `size_of_terms` does not say otherwise: one that
    happens to cancel is measured against that.
    """
    assert actual.shape == expected.shape, f"{name} has shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
    if expected.numel() == 0:
        return
    assert bool(torch.isfinite(actual).all()), f"{name} is not finite everywhere"
    error = float((_wide(actual) - _wide(expected)).abs().max())
    scale = max(float(expected.abs().max()), size_of_terms)
    assert error <= TOLERANCES[dtype] * scale, f"{name} is off by {error:.2e} where the largest entry is {scale:.2e}"


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.cpu().to(torch.complex128 if tensor.is_complex() else torch.float64)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)
