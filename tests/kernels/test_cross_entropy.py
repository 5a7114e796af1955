"""Linear map and cross-entropy in one: every implementation against the sum over single rows in float64."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import kernels.cross_entropy
from kernels.cross_entropy import OPERATION, chunks, linear_cross_entropy
from kernels.dispatch import receipt
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients

IMPLEMENTATIONS = [name for name, reason in OPERATION.availability(torch.device("cpu")).items() if reason is None]
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
CHUNKED = [name for name in FAST if name != "whole"]

IGNORED = -100


@pytest.fixture
def _smallest_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "_CHUNK_BYTES", 1)


def random_inputs(rows: int, vocab: int, width: int = 8, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"x": torch.randn(rows, width, dtype=dtype), "weight": torch.randn(vocab, width)}


def random_targets(rows: int, vocab: int, share_ignored: float = 0.0) -> Tensor:
    targets = torch.randint(vocab, (rows,))
    targets[torch.rand(rows) < share_ignored] = IGNORED
    targets[0] = 0  # at least one is scored
    return targets


def assert_agrees_with_reference(inputs: dict[str, Tensor], targets: Tensor, implementation: str) -> None:
    loss = partial(linear_cross_entropy, targets=targets)
    assert_agrees(
        partial(loss, implementation=implementation),
        partial(loss, implementation="reference"),
        inputs,
        inputs["x"].dtype,
    )


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 300])
def test_loss_and_gradients_agree_with_the_reference_at_every_vocabulary(implementation: str, vocab: int) -> None:
    assert_agrees_with_reference(random_inputs(20, vocab), random_targets(20, vocab, 0.3), implementation)


@pytest.mark.usefixtures("_smallest_chunks")
@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("rows", [1, 127, 128, 129, 256, 300])
def test_the_last_chunk_may_be_of_any_length(implementation: str, rows: int) -> None:
    assert_agrees_with_reference(random_inputs(rows, 9), random_targets(rows, 9, 0.2), implementation)


@pytest.mark.usefixtures("_smallest_chunks")
@pytest.mark.parametrize("implementation", FAST)
def test_a_chunk_without_a_scored_row_adds_nothing(implementation: str) -> None:
    targets = random_targets(300, 9)
    targets[128:256] = IGNORED
    assert_agrees_with_reference(random_inputs(300, 9), targets, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_mean_over_no_scored_row_is_no_number_and_has_no_gradient(implementation: str) -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in random_inputs(5, 7).items()}
    loss = linear_cross_entropy(**inputs, targets=torch.full((5,), IGNORED), implementation=implementation)
    assert math.isnan(loss.item())
    for gradient in torch.autograd.grad(loss, list(inputs.values())):
        assert not gradient.any()


@pytest.mark.parametrize("implementation", FAST)
def test_a_row_of_huge_logits_overflows_nothing(implementation: str) -> None:
    inputs = random_inputs(6, 40)
    inputs["x"][::2] *= 1e4
    loss = partial(linear_cross_entropy, targets=random_targets(6, 40))
    actual = outputs_and_gradients(partial(loss, implementation=implementation), inputs)
    expected = outputs_and_gradients(
        partial(loss, implementation="reference"), {name: tensor.double() for name, tensor in inputs.items()}
    )
    for name, tensor in expected.items():
        assert_close(name, actual[name], tensor, torch.float32)


@pytest.mark.parametrize("implementation", FAST)
def test_the_gradient_scales_with_what_is_made_of_the_loss(implementation: str) -> None:
    inputs, targets = random_inputs(9, 12), random_targets(9, 12)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    run = partial(linear_cross_entropy, *leaves, targets, implementation=implementation)
    once, thrice = torch.autograd.grad(run(), leaves), torch.autograd.grad(3 * run(), leaves)
    for name, one, three in zip(inputs, once, thrice, strict=True):
        assert_close(name, three, 3 * one, torch.float32)


@pytest.mark.parametrize("implementation", FAST)
def test_without_gradients_the_loss_is_the_same(implementation: str) -> None:
    inputs, targets = random_inputs(9, 12), random_targets(9, 12)
    loss = linear_cross_entropy(**inputs, targets=targets, implementation=implementation)
    inputs["x"].requires_grad_()
    again = linear_cross_entropy(**inputs, targets=targets, implementation=implementation)
    assert_close("loss", again, loss, torch.float32)


@pytest.mark.parametrize("implementation", FAST)
def test_under_autocast_the_logits_are_rounded_and_the_loss_is_not(implementation: str) -> None:
    inputs, targets = random_inputs(40, 50), random_targets(40, 50, 0.2)
    leaves = [tensor.requires_grad_() for tensor in inputs.values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*leaves, targets, implementation=implementation)
        expected = functional.cross_entropy(functional.linear(*leaves).float(), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-3)
    gradients = torch.autograd.grad(loss, leaves)
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        assert actual.dtype == torch.float32
        assert float((actual - wanted).norm()) < 2e-2 * float(wanted.norm())


def test_the_whole_gives_the_bits_of_torchs_own_loss() -> None:
    inputs, targets = random_inputs(30, 40), random_targets(30, 40, 0.3)
    loss = linear_cross_entropy(**inputs, targets=targets)
    assert torch.equal(loss, functional.cross_entropy(functional.linear(**_linear(inputs)), targets))


def _linear(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"input": inputs["x"], "weight": inputs["weight"]}


@pytest.mark.parametrize("implementation", CHUNKED)
def test_a_loss_is_differentiated_once(implementation: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in random_inputs(4, 6).values()]
    loss = linear_cross_entropy(*leaves, random_targets(4, 6), implementation=implementation)
    gradient, _ = torch.autograd.grad(loss, leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()


@pytest.mark.parametrize("implementation", [name for name in IMPLEMENTATIONS if name != "triton"])
@pytest.mark.parametrize("target", [-1, 6])
def test_a_target_outside_the_vocabulary_is_refused(implementation: str, target: int) -> None:
    targets = torch.tensor([0, 1, 2, target])
    with pytest.raises(IndexError, match=str(target)):
        linear_cross_entropy(**random_inputs(4, 6), targets=targets, implementation=implementation)


@pytest.mark.skipif("triton" not in FAST, reason="runs in Triton's interpreter, see test_triton_interpreter.py")
@pytest.mark.parametrize("target", [-1, 6])
def test_a_target_outside_the_vocabulary_makes_triton_give_no_number(target: int) -> None:
    targets = torch.tensor([0, 1, 2, target])
    assert linear_cross_entropy(**random_inputs(4, 6), targets=targets, implementation="triton").isnan()


def test_the_reference_is_differentiated_right() -> None:
    targets = torch.tensor([2, IGNORED, 0, 4])
    inputs = [tensor.double().requires_grad_() for tensor in random_inputs(4, 5, width=3).values()]
    loss = partial(linear_cross_entropy, targets=targets, implementation="reference")
    assert torch.autograd.gradcheck(loss, inputs)


def test_float64_is_computed_in_float64_by_chunks_too() -> None:
    inputs = {name: tensor.double() for name, tensor in random_inputs(20, 30).items()}
    assert_agrees_with_reference(inputs, random_targets(20, 30, 0.3), "chunked")


@pytest.mark.parametrize("implementation", CHUNKED)
def test_the_operator_keeps_the_contract_of_custom_operators(implementation: str) -> None:
    inputs, targets = random_inputs(9, 64), random_targets(9, 64)
    softmax = "torch" if implementation == "chunked" else implementation
    operator = torch.ops.seqsuite.linear_cross_entropy.default
    for needs_gradient in (True, False):
        arguments = (*inputs.values(), targets, IGNORED, softmax, needs_gradient)
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_auto_takes_the_whole_only_where_it_is_small_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.cross_entropy, "_WHOLE_BYTES", 4 * 10 * 20)
    for rows, wanted in ((10, "whole"), (11, CHUNKED[0])):
        with receipt() as ran:
            linear_cross_entropy(**random_inputs(rows, 20), targets=random_targets(rows, 20))
        assert ran == {"cross_entropy": {wanted}}


def _bad(**changes: object) -> dict[str, object]:
    return random_inputs(6, 5) | {"targets": random_targets(6, 5)} | changes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_bad(x=torch.randn(2, 3, 8)), r"x has shape \(2, 3, 8\); it must be \(rows, width\)"),
        (_bad(x=torch.randn(0, 8)), "its rows must be at least 1"),
        (_bad(weight=torch.randn(5, 7)), r"weight has shape \(5, 7\); it must be \(vocab, width\) = \(5, 8\)"),
        (_bad(targets=torch.zeros(5, dtype=torch.int64)), r"targets has shape \(5,\); it must be \(rows\) = \(6,\)"),
        (_bad(targets=torch.zeros(6)), "targets is torch.float32; it must be torch.int64"),
        (_bad(x=torch.ones(6, 8, dtype=torch.int32)), "x is torch.int32; it must be one of"),
        (_bad(weight=torch.randn(5, 8, device="meta")), "weight is on meta and x on cpu"),
        (_bad(x=torch.randn(6, 8).double(), implementation="triton"), "x is float64 and 'triton' computes in float32"),
        (_bad(implementation="cuda"), "cross_entropy has no implementation 'cuda'"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(inputs: dict[str, object], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(linear_cross_entropy)(**inputs)
