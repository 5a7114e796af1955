"""Turning pairs of channels: every implementation gives the complex product and its gradient."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.dispatch import receipt
from kernels.rotary import rotate
from kernels.triton_launch import is_interpreted
from tests.kernels.comparison import assert_agrees

IMPLEMENTATIONS = ["torch", *(["triton"] if is_interpreted() else [])]
reference = partial(rotate, implementation="reference")


def turns_of(*shape: int) -> Tensor:
    """Numbers of any length, as xPos has them."""
    return torch.randn(*shape, dtype=torch.complex64)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("batch_of_turns", [(), (2,)], ids=["shared", "of_each_row"])
@pytest.mark.parametrize(("length", "heads", "size"), [(1, 1, 2), (5, 3, 6), (33, 2, 64), (2, 40, 66)])
def test_outputs_and_gradients_are_those_of_the_product(
    implementation: str, batch_of_turns: tuple[int, ...], length: int, heads: int, size: int
) -> None:
    turns = turns_of(*batch_of_turns, length, size // 2)
    assert_agrees(
        partial(rotate, turns=turns, implementation=implementation),
        partial(reference, turns=turns),
        {"x": torch.randn(2, length, heads, size)},
        torch.float32,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_loses_no_more_than_its_own_rounding(implementation: str, dtype: torch.dtype) -> None:
    turns = torch.polar(torch.ones(9, 4), torch.randn(9, 4))
    assert_agrees(
        partial(rotate, turns=turns, implementation=implementation),
        partial(reference, turns=turns),
        {"x": torch.randn(2, 9, 3, 8).to(dtype)},
        dtype,
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_heads_may_lie_among_others(implementation: str) -> None:
    maps, turns = torch.randn(2, 7, 5, 8), turns_of(7, 4)
    for x in (maps[:, :, 1:4], maps.transpose(1, 2)[:, :7].transpose(1, 2), maps.transpose(2, 3).contiguous().mT):
        found = rotate(x, turns[: x.shape[1]], implementation=implementation)
        assert torch.allclose(found, reference(x, turns[: x.shape[1]]), atol=1e-6)


def test_float64_is_computed_in_float64_by_torch() -> None:
    x, turns = torch.randn(2, 5, 3, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.complex128)
    with receipt() as ran:
        found = rotate(x, turns)
    assert ran == {"rotary": {"torch"}}
    assert torch.allclose(found, reference(x, turns), rtol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 5, 3, 7)}, r"x has shape \(2, 5, 3, 7\); its size must be even"),
        ({"turns": turns_of(4, 4)}, r"turns has shape \(4, 4\); it must be \(length, frequencies\) = \(5, 4\)"),
        ({"turns": turns_of(3, 5, 4)}, r"turns has shape \(3, 5, 4\); .* = \(2, 5, 4\)"),
        ({"turns": torch.zeros(5, 4)}, "turns is torch.float32; it must be complex"),
        ({"x": torch.zeros(2, 5, 3, 8).double(), "implementation": "triton"}, "x is float64 and 'triton' computes in"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(rotate)(**{"x": torch.zeros(2, 5, 3, 8), "turns": turns_of(5, 4)} | changes)
