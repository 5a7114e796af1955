"""The S4D kernel from products of powers against the plain sum, and against the recurrence that it unrolls."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.long_conv import long_conv
from kernels.ssm_kernel import s4d_discretize, s4d_kernel
from tests.kernels.comparison import assert_agrees, assert_close


def random_inputs(channels: int, half_state: int) -> dict[str, Tensor]:
    """As S4D-Lin begins: real part -1/2, imaginary parts the multiples of pi, steps from 0.001 to 0.1."""
    imaginary = math.pi * torch.arange(half_state).expand(channels, half_state)
    return {
        "delta": torch.exp(math.log(1e-3) + math.log(100.0) * torch.rand(channels)),
        "A": torch.complex(torch.full((channels, half_state), -0.5), imaginary),
        "C": torch.randn(channels, half_state, dtype=torch.complex64),
        "B": torch.randn(channels, half_state, dtype=torch.complex64),
    }


@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 511, 1025])
def test_entries_and_gradients_agree_with_the_reference_at_every_length(length: int) -> None:
    kernel = partial(s4d_kernel, length=length)
    assert_agrees(kernel, partial(kernel, implementation="reference"), random_inputs(5, 8), torch.float32)


def test_the_input_matrix_is_one_if_left_out() -> None:
    inputs = random_inputs(5, 8)
    del inputs["B"]
    kernel = partial(s4d_kernel, length=40)
    assert_agrees(kernel, partial(kernel, implementation="reference"), inputs, torch.float32)
    ones = torch.ones_like(inputs["A"])
    assert_close("K", kernel(**inputs, B=ones), kernel(**inputs), torch.float32)


def test_float64_is_computed_in_float64() -> None:
    inputs = {
        name: x.to(torch.complex128 if x.is_complex() else torch.float64) for name, x in random_inputs(3, 4).items()
    }
    kernel = partial(s4d_kernel, length=77)
    assert_agrees(kernel, partial(kernel, implementation="reference"), inputs, torch.float64)


def test_autocast_does_not_round_the_powers() -> None:
    inputs = random_inputs(5, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernel = s4d_kernel(**inputs, length=100)
    assert_close("K", kernel, s4d_kernel(**inputs, length=100, implementation="reference"), torch.float32)


def test_the_convolution_equals_the_recurrence() -> None:
    inputs = random_inputs(6, 8)
    u = torch.randn(2, 200, 6)
    y = long_conv(u, s4d_kernel(**inputs, length=200))
    A_bar, B_bar = s4d_discretize(inputs["delta"].double(), inputs["A"].to(torch.complex128))
    h = torch.zeros(2, 6, 8, dtype=torch.complex128)
    for t in range(200):
        h = A_bar * h + B_bar * inputs["B"] * u[:, t, :, None]
        assert_close(f"y at {t}", y[:, t], 2 * (inputs["C"] * h).sum(-1).real, torch.float32)


def test_the_recurrence_is_that_of_the_zero_order_hold_where_steps_are_tiny() -> None:
    delta, A = torch.tensor([1e-7]), torch.tensor([[-0.5 + 3j]])
    A_bar, B_bar = s4d_discretize(delta, A)
    assert_close("A_bar", A_bar, torch.exp(delta.double()[:, None] * A.to(torch.complex128)), torch.float32)
    assert abs(complex(B_bar[0, 0]) / 1e-7 - 1) < 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length is 0; it must be at least 1"),
        ({"A": torch.randn(5, 8)}, "A is torch.float32; it must be complex"),
        ({"C": torch.randn(5, 7, dtype=torch.complex64)}, r"C has shape \(5, 7\); .* = \(5, 8\)"),
        ({"B": torch.randn(1, 8, dtype=torch.complex64)}, r"B has shape \(1, 8\)"),
        ({"delta": torch.rand(5, 1)}, r"delta has shape \(5, 1\); .* = \(5,\)"),
        ({"delta": torch.ones(5, dtype=torch.int64)}, "delta is torch.int64"),
        ({"C": torch.randn(5, 8, dtype=torch.complex64, device="meta")}, "C is on meta and delta on cpu"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, object], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(s4d_kernel)(**{**random_inputs(5, 8), "length": 10, **changes})
