"""Residual addition and norm: every implementation against the formula in float64, row by row."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.dispatch import receipt
from kernels.rms_norm import OPERATION, add_rms_norm
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients

IMPLEMENTATIONS = [name for name, reason in OPERATION.availability(torch.device("cpu")).items() if reason is None]
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]

EPSILON = 1e-5
reference = partial(add_rms_norm, epsilon=EPSILON, implementation="reference")


def random_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "x": torch.randn(*shape, dtype=dtype),
        "y": torch.randn(*shape, dtype=dtype),
        "weight": torch.randn(shape[-1]),
    }


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 5, 63), (64,), (2, 3, 65), (33, 100), (7, 1030)])
def test_outputs_and_gradients_agree_with_the_reference_at_every_shape(
    implementation: str, shape: tuple[int, ...]
) -> None:
    norm = partial(add_rms_norm, epsilon=EPSILON, implementation=implementation)
    assert_agrees(norm, reference, random_inputs(*shape), torch.float32)


@pytest.mark.parametrize("implementation", FAST)
def test_a_stream_to_which_nothing_is_added_is_returned_as_it_is(implementation: str) -> None:
    inputs = random_inputs(2, 9, 20)
    del inputs["y"]
    norm = partial(add_rms_norm, y=None, epsilon=EPSILON, implementation=implementation)
    assert_agrees(norm, partial(reference, y=None), inputs, torch.float32)
    total, _ = norm(**inputs)
    assert total is inputs["x"]


@pytest.mark.parametrize("implementation", FAST)
def test_a_half_precision_branch_is_added_to_a_float32_stream(implementation: str) -> None:
    inputs = random_inputs(4, 30, 48) | {"y": torch.randn(4, 30, 48, dtype=torch.bfloat16)}
    norm = partial(add_rms_norm, epsilon=EPSILON, implementation=implementation, dtype=torch.bfloat16)
    total, normed = norm(**inputs)
    assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(total, inputs["x"] + inputs["y"])
    gradients = outputs_and_gradients(norm, inputs)
    assert gradients["gradient of x"].dtype == torch.float32
    assert gradients["gradient of y"].dtype == torch.bfloat16
    assert_agrees(norm, reference, inputs, torch.bfloat16)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_stream_loses_no_more_than_its_own_rounding(implementation: str, dtype: torch.dtype) -> None:
    norm = partial(add_rms_norm, epsilon=EPSILON, implementation=implementation)
    assert_agrees(norm, reference, random_inputs(5, 40, dtype=dtype), dtype)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("used", [0, 1])
def test_either_output_can_be_left_unused(implementation: str, used: int) -> None:
    def one_output(implementation: str, **inputs: Tensor) -> Tensor:
        return add_rms_norm(**inputs, epsilon=EPSILON, implementation=implementation)[used]

    inputs = random_inputs(3, 7, 20)
    assert_agrees(partial(one_output, implementation), partial(one_output, "reference"), inputs, torch.float32)


@pytest.mark.parametrize("implementation", FAST)
def test_strides_do_not_matter(implementation: str) -> None:
    inputs = random_inputs(6, 10, 24)
    strided = {name: tensor.mT.contiguous().mT for name, tensor in inputs.items() if name != "weight"}
    strided["weight"] = torch.stack([inputs["weight"]] * 2, dim=1)[:, 0]
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    norm = partial(add_rms_norm, epsilon=EPSILON, implementation=implementation)
    expected, actual = outputs_and_gradients(norm, inputs), outputs_and_gradients(norm, strided)
    for name in expected:
        assert_close(name, actual[name], expected[name], torch.float32)


@pytest.mark.parametrize("implementation", FAST)
def test_under_autocast_the_norm_has_its_dtype_and_the_stream_keeps_its_own(implementation: str) -> None:
    inputs = random_inputs(4, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, normed = add_rms_norm(**inputs, epsilon=EPSILON, implementation=implementation)
    assert (total.dtype, normed.dtype) == (torch.float32, torch.bfloat16)


def test_the_plain_path_gives_the_bits_of_torchs_own_norm() -> None:
    inputs = random_inputs(3, 11, 40)
    total, normed = add_rms_norm(**inputs, epsilon=EPSILON, implementation="torch")
    assert torch.equal(total, inputs["x"] + inputs["y"])
    assert torch.equal(normed, torch.nn.functional.rms_norm(total, (40,), inputs["weight"], EPSILON))


def test_the_reference_is_differentiated_right() -> None:
    inputs = [tensor.double().requires_grad_() for tensor in random_inputs(2, 3, 5).values()]
    assert torch.autograd.gradcheck(reference, inputs)


@pytest.mark.skipif("triton" not in FAST, reason="runs in Triton's interpreter, see test_triton_interpreter.py")
def test_the_triton_operator_keeps_the_contract_of_custom_operators() -> None:
    x, y, weight = random_inputs(3, 9, 20).values()
    OPERATION.choose("triton", x.device)
    operators = torch.ops.seqsuite.add_rms_norm_triton, torch.ops.seqsuite.add_rms_norm_triton_backward
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(operators[0].default, (x, y.to(dtype), weight, EPSILON, dtype))
        torch.library.opcheck(operators[1].default, (y.to(dtype), x, x, weight, EPSILON, dtype))
    torch.library.opcheck(operators[0].default, (x, None, weight, EPSILON, torch.float32))
    torch.library.opcheck(operators[1].default, (y, None, x, weight, EPSILON, torch.float32))


def test_auto_says_what_it_takes() -> None:
    with receipt() as ran:
        add_rms_norm(**random_inputs(2, 3), epsilon=EPSILON)
        add_rms_norm(**random_inputs(2, 3, dtype=torch.float64), epsilon=EPSILON)
    assert ran == {"rms_norm": {FAST[0], "torch"}}


def _bad(**changes: object) -> dict[str, object]:
    return random_inputs(2, 6, 5) | {"epsilon": EPSILON} | changes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_bad(x=torch.zeros(())), r"x has shape \(\); it must be \(..., width\)"),
        (_bad(x=torch.zeros(3, 0)), "with a width of at least 1"),
        (_bad(x=torch.ones(2, 6, 5, dtype=torch.int32)), "x is torch.int32; it must be one of"),
        (_bad(y=torch.randn(6, 5)), r"y has shape \(6, 5\); it must be \(..., width\) = \(2, 6, 5\)"),
        (_bad(weight=torch.randn(4)), r"weight has shape \(4,\); it must be \(width\) = \(5,\)"),
        (_bad(weight=torch.randn(5, device="meta")), "weight is on meta and x on cpu"),
        (_bad(epsilon=-1.0), "epsilon is -1.0; it must be at least 0"),
        (
            _bad(x=torch.randn(2, 6, 5).double(), implementation="triton"),
            "x is float64 and 'triton' computes in float32",
        ),
        (_bad(implementation="cuda"), "rms_norm has no implementation 'cuda'. Known: auto, triton, torch, reference"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(inputs: dict[str, object], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(add_rms_norm)(**inputs)
