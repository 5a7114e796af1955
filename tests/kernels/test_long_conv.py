"""The long convolution by FFT against the sum in float64."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.long_conv import long_conv
from tests.kernels.comparison import assert_agrees

reference = partial(long_conv, implementation="reference")


def random_inputs(batch: int, length: int, channels: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    # A kernel of norm one keeps the output of order one at every length.
    kernel = torch.randn(channels, length)
    return {
        "u": torch.randn(batch, length, channels, dtype=dtype),
        "kernel": kernel / kernel.norm(dim=1, keepdim=True),
        "D": torch.randn(channels),
    }


@pytest.mark.parametrize("length", [1, 2, 3, 7, 63, 64, 65, 511, 513])
def test_outputs_and_gradients_agree_with_the_reference_at_every_length(length: int) -> None:
    assert_agrees(long_conv, reference, random_inputs(2, length, 5), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_lose_no_more_than_their_own_rounding(dtype: torch.dtype) -> None:
    inputs = random_inputs(2, 100, 5, dtype)
    if dtype == torch.float64:
        inputs = {name: tensor.double() for name, tensor in inputs.items()}
    assert long_conv(**inputs).dtype == dtype
    assert_agrees(long_conv, reference, inputs, dtype)


def test_the_skip_weight_may_be_left_out_and_strides_do_not_matter() -> None:
    inputs = random_inputs(2, 40, 6)
    del inputs["D"]
    inputs["u"] = inputs["u"].transpose(1, 2).contiguous().transpose(1, 2)
    inputs["kernel"] = inputs["kernel"].T.contiguous().T
    assert_agrees(long_conv, reference, inputs, torch.float32)


def test_the_future_does_not_reach_the_past() -> None:
    inputs = random_inputs(1, 50, 3)
    y = long_conv(**inputs)
    inputs["u"][:, 30:] = 1e3
    assert torch.allclose(long_conv(**inputs)[:, :30], y[:, :30], atol=1e-3)


def test_the_gradients_are_those_of_finite_differences() -> None:
    inputs = [tensor.double().requires_grad_() for tensor in random_inputs(2, 7, 3).values()]
    for implementation in ("fft", "reference"):
        assert torch.autograd.gradcheck(partial(long_conv, implementation=implementation), inputs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.randn(6, 5)}, r"u has shape \(6, 5\)"),
        ({"u": torch.randn(2, 0, 5)}, "its length must be at least 1"),
        ({"kernel": torch.randn(5, 7)}, r"kernel has shape \(5, 7\); .* = \(5, 6\)"),
        ({"kernel": torch.ones(5, 6, dtype=torch.int64)}, "kernel is torch.int64"),
        ({"D": torch.randn(6)}, r"D has shape \(6,\); .* = \(5,\)"),
        ({"D": torch.randn(5, device="meta")}, "D is on meta and u on cpu"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, Tensor], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(long_conv)(**random_inputs(2, 6, 5) | changes)
