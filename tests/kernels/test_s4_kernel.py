"""The S4 kernel: sums over the state equal the dense state space, and so does the recurrence, step by step."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.s4_kernel import S4Step, s4_kernel, s4_state, s4_step
from models.mixers.s4_dplr import hippo_legs
from tests.kernels.comparison import assert_agrees, assert_close

reference = partial(s4_kernel, implementation="reference")


def random_inputs(*, pairs: int = 4, dtype: torch.dtype = torch.complex64) -> dict[str, Tensor]:
    Lambda = torch.complex(-0.1 - torch.rand(3, pairs), 5 * torch.randn(3, pairs)).to(dtype)
    others = {name: torch.randn(3, pairs, dtype=dtype) for name in ("P", "B", "C")}
    return {"delta": (0.05 + 0.2 * torch.rand(3)).to(dtype.to_real()), "Lambda": Lambda, **others}


def legs_inputs(state_size: int) -> dict[str, Tensor]:
    Lambda, P, B = (part.repeat(2, 1) for part in hippo_legs(state_size))
    return {
        "delta": torch.tensor([1e-3, 1e-1]),
        "Lambda": Lambda,
        "P": P,
        "B": B,
        "C": torch.randn(2, state_size // 2, dtype=torch.complex64),
    }


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_entries_and_gradients_are_those_of_the_dense_state_space(length: int) -> None:
    assert_agrees(partial(s4_kernel, length=length), partial(reference, length=length), random_inputs(), torch.float32)


def test_float64_loses_a_ten_billionth_of_what_is_folded_back() -> None:
    inputs = random_inputs(dtype=torch.complex128)
    found, expected = s4_kernel(**inputs, length=100), reference(**inputs, length=100)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()


@pytest.mark.parametrize("length", [5, 1500])
def test_hippo_legs_has_the_kernel_of_its_dense_matrix(length: int) -> None:
    inputs = legs_inputs(64)
    assert_close("K", s4_kernel(**inputs, length=length), reference(**inputs, length=length), torch.float32)


def test_the_weights_serve_every_length() -> None:
    inputs = legs_inputs(16)
    longest = s4_kernel(**inputs, length=1000)
    for length in (1, 10, 999):
        assert_close("K", s4_kernel(**inputs, length=length), longest[:, :length], torch.float32)


def test_steps_convolve_with_the_kernel() -> None:
    inputs = legs_inputs(32)
    step, u = S4Step.of(*inputs.values()), torch.randn(5, 40, 2)
    kernel = reference(**inputs, length=40)
    state = torch.zeros(5, 2, 16, dtype=torch.complex64)
    for t in range(40):
        y, state = s4_step(state, u[:, t], step)
        expected = (u[:, : t + 1].flip(1) * kernel[:, : t + 1].T).sum(1)
        assert_close(f"y at {t}", y, expected, torch.float32)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
def test_the_state_after_a_sequence_is_that_of_its_steps(length: int) -> None:
    inputs = legs_inputs(32)
    step, u = S4Step.of(*inputs.values()), torch.randn(3, length, 2)
    state = torch.zeros(3, 2, 16, dtype=torch.complex64)
    for t in range(length):
        _, state = s4_step(state, u[:, t], step)
    found = s4_state(u, *inputs.values())
    assert found.dtype == state.dtype
    assert_close("state", torch.view_as_real(found), torch.view_as_real(state), torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length is 0; it must be at least 1"),
        ({"P": torch.randn(3, 5, dtype=torch.complex64)}, r"P has shape \(3, 5\); .* = \(3, 4\)"),
        ({"C": torch.randn(3, 4)}, "C is torch.float32; it must be complex"),
        ({"delta": torch.randn(2)}, r"delta has shape \(2,\); it must be \(channels\) = \(3,\)"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(s4_kernel)(**{**random_inputs(), "length": 6, **changes})
