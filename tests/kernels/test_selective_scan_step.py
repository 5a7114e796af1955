"""One token of the selective scan: its two ways to give step sizes and rates, what it refuses, and what runs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.dispatch import ImplementationUnavailable, receipt
from kernels.selective_scan import selective_scan_step
from tests.kernels.comparison import assert_close

# B batch, D channels, N state, R rank


def inputs(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    batch, channels, num_states, rank = 2, 20, 4, 3
    tensors = {
        "state": torch.randn(batch, channels, num_states),
        "u": torch.randn(batch, channels),
        "delta": torch.randn(batch, rank),
        "A": torch.randn(channels, num_states),
        "B": torch.randn(batch, num_states),
        "C": torch.randn(batch, num_states),
        "D": torch.randn(channels),
        "z": torch.randn(batch, channels),
        "delta_bias": torch.randn(channels),
        "delta_weight": torch.randn(channels, rank),
    }
    options = {"delta_softplus": True, "log_rates": True}
    return {name: tensor.to(dtype) for name, tensor in tensors.items()} | options


def test_a_step_size_of_low_rank_and_rates_as_logarithms_change_nothing() -> None:
    compact = inputs(torch.float64)
    plain = compact | {
        "delta": compact["delta"] @ compact["delta_weight"].T,
        "delta_weight": None,
        "A": -compact["A"].exp(),
        "log_rates": False,
    }
    for actual, expected in zip(selective_scan_step(**compact), selective_scan_step(**plain), strict=True):
        assert_close("output", actual, expected, torch.float64)


def test_it_says_what_ran_and_refuses_a_kernel_that_cannot() -> None:
    with receipt() as ran:
        selective_scan_step(**inputs())
    assert ran == {"selective_scan_step": {"torch"}}
    with pytest.raises(ImplementationUnavailable, match="it runs on a CUDA GPU only"):
        selective_scan_step(**inputs(), implementation="cuda")
    with pytest.raises(ValueError, match="an input is float64, which 'cuda' does not take; use 'torch'"):
        selective_scan_step(**inputs(torch.float64), implementation="cuda")


def test_it_can_be_differentiated() -> None:
    leaves = {k: v.requires_grad_() if isinstance(v, Tensor) else v for k, v in inputs().items()}
    y, state = selective_scan_step(**leaves)
    tensors = [leaf for leaf in leaves.values() if isinstance(leaf, Tensor)]
    assert all(bool(gradient.abs().sum() > 0) for gradient in torch.autograd.grad(y.sum() + state.sum(), tensors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.randn(2, 1, 20)}, r"u has shape \(2, 1, 20\); it must be \(batch, channels\)"),
        ({"state": torch.randn(2, 20, 5)}, r"state has shape .* = \(2, 20, 4\)"),
        ({"delta": torch.randn(2, 20)}, r"delta has shape \(2, 20\); it must be \(batch, rank\) = \(2, 3\)"),
        ({"delta_weight": None}, r"delta has shape \(2, 3\); it must be \(batch, channels\) = \(2, 20\)"),
        ({"B": torch.ones(2, 4, dtype=torch.int32)}, "B is torch.int32; it must be one of"),
        ({"D": torch.randn(20, device="meta")}, "D is on meta and state on cpu"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, Any], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(selective_scan_step)(**inputs() | changes)
