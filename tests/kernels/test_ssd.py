"""State space duality: matrix products equal the recurrence, in value and in every gradient, at every length."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.dispatch import receipt
from kernels.ssd import ssd, ssd_step
from tests.kernels.comparison import assert_agrees, assert_close

reference = partial(ssd, implementation="reference")


def random_inputs(length: int, *, groups: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "x": torch.randn(2, length, 4, 3, dtype=dtype),
        "delta": torch.randn(2, length, 4, dtype=dtype),
        "A": -torch.rand(4, dtype=dtype) * 4,
        "B": torch.randn(2, length, groups, 5, dtype=dtype),
        "C": torch.randn(2, length, groups, 5, dtype=dtype),
        "D": torch.randn(4, dtype=dtype),
        "delta_bias": torch.randn(4, dtype=dtype) - 2,
        "initial_state": torch.randn(2, 4, 3, 5, dtype=dtype),
    }


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_outputs_states_and_gradients_are_those_of_the_recurrence(length: int, groups: int) -> None:
    options = {"delta_softplus": True, "return_final_state": True}
    assert_agrees(
        partial(ssd, **options), partial(reference, **options), random_inputs(length, groups=groups), torch.float32
    )


@pytest.mark.parametrize("length", [64 * 64, 64 * 64 + 1, 9000])
def test_many_chunks_are_passed_on_in_groups(length: int) -> None:
    inputs = random_inputs(length, dtype=torch.float64)
    inputs["A"] = inputs["A"] / 100
    found = ssd(**inputs, delta_softplus=True, return_final_state=True)
    expected = reference(**inputs, delta_softplus=True, return_final_state=True)
    for name, y, expected_y in zip(("y", "state"), found, expected, strict=True):
        assert_close(name, y, expected_y, torch.float64)


def test_float64_is_computed_in_float64() -> None:
    # Without a softplus, what makes up a step must be positive, or the state grows beyond all bounds.
    positive = {"delta": torch.rand(2, 65, 4).double(), "delta_bias": torch.rand(4).double()}
    assert_agrees(ssd, reference, random_inputs(65, dtype=torch.float64) | positive, torch.float64)


def test_bfloat16_loses_no_more_than_its_own_rounding() -> None:
    inputs = random_inputs(70)
    narrow = {name: inputs[name].bfloat16() for name in ("x", "B", "C")}
    found = ssd(**inputs | narrow, delta_softplus=True)
    assert found.dtype == torch.bfloat16
    wide = {name: tensor.double() for name, tensor in (inputs | narrow).items()}
    assert_close("y", found, reference(**wide, delta_softplus=True), torch.bfloat16)


def test_a_state_carried_over_equals_one_long_scan() -> None:
    inputs = random_inputs(150)
    whole = ssd(**inputs, delta_softplus=True)
    over_time = ("x", "delta", "B", "C")
    first, second = (
        {name: tensor[:, part] if name in over_time else tensor for name, tensor in inputs.items()}
        for part in (slice(0, 70), slice(70, None))
    )
    y_first, state = ssd(**first, delta_softplus=True, return_final_state=True)
    y_second = ssd(**second | {"initial_state": state}, delta_softplus=True)
    assert_close("y", torch.cat([y_first, y_second], dim=1), whole, torch.float32)


def test_steps_equal_the_scan() -> None:
    inputs = random_inputs(20, groups=2)
    expected = reference(**inputs, delta_softplus=True)
    state = inputs.pop("initial_state")
    for t in range(20):
        step = {name: tensor[:, t] if name in ("x", "delta", "B", "C") else tensor for name, tensor in inputs.items()}
        y, state = ssd_step(state, **step, delta_softplus=True)
        assert_close(f"y at {t}", y, expected[:, t], torch.float32)


def test_the_receipt_names_what_ran() -> None:
    with receipt() as ran:
        ssd(**random_inputs(3))
    assert ran == {"ssd": {"torch"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(2, 6, 4)}, r"x has shape \(2, 6, 4\); it must be \(batch, length, heads, head_size\)"),
        ({"B": torch.randn(2, 6, 3, 5), "C": torch.randn(2, 6, 3, 5)}, "B has 3 groups; .* heads of x, 4"),
        ({"A": torch.randn(3)}, r"A has shape \(3,\); it must be \(heads\) = \(4,\)"),
        ({"delta": torch.ones(2, 6, 4, dtype=torch.int64)}, "delta is torch.int64"),
        ({"C": torch.randn(2, 6, 2, 5, device="meta")}, "C is on meta and x on cpu"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(ssd)(**random_inputs(6) | changes)
