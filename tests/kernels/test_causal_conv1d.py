"""The causal convolution: every implementation against the sum of taps in float64."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.causal_conv1d import OPERATION, causal_conv1d, causal_conv1d_step
from kernels.dispatch import ImplementationUnavailable, receipt
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients

# B batch, L length, D channels, W width

IMPLEMENTATIONS = [name for name, reason in OPERATION.availability(torch.device("cpu")).items() if reason is None]
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]

reference = partial(causal_conv1d, implementation="reference")


def random_inputs(
    batch: int,
    length: int,
    channels: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    without: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    inputs = {
        "x": torch.randn(batch, length, channels, dtype=dtype),
        "weight": torch.randn(channels, width),
        "bias": torch.randn(channels),
        "initial_state": torch.randn(batch, channels, width - 1, dtype=dtype),
    }
    return {name: tensor for name, tensor in inputs.items() if name not in without}


def assert_agrees_with_reference(inputs: dict[str, Tensor], implementation: str, **options: object) -> None:
    options |= {"return_final_state": True}
    assert_agrees(
        partial(causal_conv1d, implementation=implementation, **options),
        partial(reference, **options),
        inputs,
        inputs["x"].dtype,
    )


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 511])
def test_outputs_and_gradients_agree_with_the_reference_at_every_length(implementation: str, length: int) -> None:
    assert_agrees_with_reference(random_inputs(2, length, 20, 4), implementation, activation="silu")


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("channels", [1, 3, 64, 100])
@pytest.mark.parametrize("width", [1, 2, 7])
def test_outputs_and_gradients_agree_with_the_reference_at_every_width(
    implementation: str, channels: int, width: int
) -> None:
    assert_agrees_with_reference(random_inputs(2, 21, channels, width), implementation, activation="silu")


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_lose_no_more_than_their_own_rounding(implementation: str, dtype: torch.dtype) -> None:
    inputs = random_inputs(2, 70, 40, 4, dtype)
    assert causal_conv1d(**inputs, implementation=implementation).dtype == dtype
    assert_agrees_with_reference(inputs, implementation, activation="silu")


@pytest.mark.parametrize("implementation", FAST)
@given(data=st.data())
def test_every_optional_input_may_be_there_or_not(implementation: str, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    without = tuple(name for name in ("bias", "initial_state") if data.draw(st.booleans(), label=f"without {name}"))
    sizes = (("B", 3), ("L", 40), ("D", 70), ("W", 6))
    batch, length, channels, width = (data.draw(st.integers(1, most), label=name) for name, most in sizes)
    inputs = random_inputs(batch, length, channels, width, without=without)
    activation = data.draw(st.sampled_from([None, "silu"]), label="activation")
    starts = torch.rand(batch, length) < 0.2 if data.draw(st.booleans(), label="starts") else None
    assert_agrees_with_reference(inputs, implementation, activation=activation, sequence_starts=starts)


@pytest.mark.parametrize("implementation", FAST)
def test_strides_do_not_matter(implementation: str) -> None:
    inputs = random_inputs(2, 37, 24, 4)
    strided = {
        "x": inputs["x"].transpose(1, 2).contiguous().transpose(1, 2),
        "weight": inputs["weight"].T.contiguous().T,
        "bias": torch.stack([inputs["bias"]] * 2, dim=1)[:, 0],
        "initial_state": inputs["initial_state"].transpose(1, 2).contiguous().transpose(1, 2),
    }
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    run = partial(causal_conv1d, implementation=implementation, activation="silu")
    expected = outputs_and_gradients(run, inputs)
    actual = outputs_and_gradients(run, strided)
    for name in expected:
        assert_close(name, actual[name], expected[name], torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("middle", [1, 2, 9])
def test_a_state_carried_over_equals_one_long_convolution(implementation: str, middle: int) -> None:
    inputs = random_inputs(2, 20, 24, 4)
    x, initial_state = inputs.pop("x"), inputs.pop("initial_state")
    run = partial(causal_conv1d, **inputs, implementation=implementation, return_final_state=True)
    y, final_state = run(x, initial_state=initial_state)
    y_first, state = run(x[:, :middle], initial_state=initial_state)
    y_second, state = run(x[:, middle:], initial_state=state)
    assert_close("y", torch.cat([y_first, y_second], dim=1), y, torch.float32)
    assert torch.equal(state, final_state)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_documents_equal_separate_convolutions(implementation: str) -> None:
    inputs = random_inputs(1, 30, 24, 4)
    x, state_before = inputs.pop("x"), inputs.pop("initial_state")
    begins = [0, 1, 3, 20, 28]
    starts = torch.zeros(1, 30, dtype=torch.bool)
    starts[0, begins] = True
    run = partial(causal_conv1d, **inputs, implementation=implementation, return_final_state=True)
    y, final_state = run(x, initial_state=state_before, sequence_starts=starts)
    documents = []
    for begin, end in zip(begins, [*begins[1:], 30], strict=True):
        y_document, state = run(x[:, begin:end])
        documents.append(y_document)
    assert_close("y", y, torch.cat(documents, dim=1), torch.float32)
    assert torch.equal(final_state, state)


@pytest.mark.parametrize("activation", [None, "silu"])
def test_steps_one_by_one_equal_the_convolution(activation: str | None) -> None:
    inputs = random_inputs(2, 12, 20, 4)
    x, state = inputs.pop("x"), inputs.pop("initial_state")
    y, final_state = causal_conv1d(x, **inputs, initial_state=state, activation=activation, return_final_state=True)
    for t in range(12):
        y_t, state = causal_conv1d_step(state, x[:, t], inputs["weight"], inputs["bias"], activation)
        assert_close(f"y at {t}", y_t, y[:, t], torch.float32)
    assert torch.equal(state, final_state)


def test_a_step_says_what_ran_and_refuses_a_kernel_that_cannot() -> None:
    inputs = random_inputs(2, 1, 20, 4)
    step = {"state": inputs["initial_state"], "x": inputs["x"][:, 0], "weight": inputs["weight"]}
    with receipt() as ran:
        causal_conv1d_step(**step)
    assert ran == {"causal_conv1d_step": {"torch"}}
    with pytest.raises(ImplementationUnavailable, match="it runs on a CUDA GPU only"):
        causal_conv1d_step(**step, implementation="cuda")
    double = {name: tensor.double() for name, tensor in step.items()}
    with pytest.raises(ValueError, match="an input is float64, which 'cuda' does not take; use 'torch'"):
        causal_conv1d_step(**double, implementation="cuda")


def test_a_step_can_be_differentiated() -> None:
    inputs = random_inputs(2, 1, 20, 4)
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.items()}
    y, state = causal_conv1d_step(leaves["initial_state"], leaves["x"][:, 0], leaves["weight"], leaves["bias"], "silu")
    gradients = torch.autograd.grad(y.sum() + state.sum(), list(leaves.values()))
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.randn(2, 1, 20)}, r"x has shape \(2, 1, 20\); it must be \(batch, channels\)"),
        ({"state": torch.randn(2, 20, 4)}, r"state has shape .* = \(2, 20, 3\)"),
        ({"weight": torch.randn(20, 4, device="meta")}, "weight is on meta and state on cpu"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be 'silu' or None"),
    ],
)
def test_a_bad_input_of_a_step_is_named(changes: dict[str, object], message: str) -> None:
    step = {"state": torch.randn(2, 20, 3), "x": torch.randn(2, 20), "weight": torch.randn(20, 4)}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(causal_conv1d_step)(**step | changes)


def test_the_final_state_is_a_tensor_of_its_own() -> None:
    x = torch.randn(1, 10, 4)
    for width in (2, 4):
        _, state = causal_conv1d(x, torch.randn(4, width), return_final_state=True)
        before = x.clone()
        state.fill_(0)
        assert torch.equal(x, before)


def test_the_reference_is_differentiated_right() -> None:
    inputs = {name: tensor.double() for name, tensor in random_inputs(2, 5, 3, 3).items()}
    starts = torch.tensor([[False, False, True, False, False], [True, False, False, False, True]])

    def run(*tensors: Tensor) -> Tensor:
        named = dict(zip(inputs, tensors, strict=True))
        return causal_conv1d(**named, activation="silu", sequence_starts=starts, implementation="reference")

    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs.values()])


def test_the_cpu_convolution_keeps_the_contract_of_custom_operators() -> None:
    inputs = random_inputs(2, 20, 18, 4)
    x, bias = inputs["x"].requires_grad_(), inputs["bias"].requires_grad_()
    # The operator takes the taps and the state with the channels last.
    weight = inputs["weight"].T.contiguous().requires_grad_()
    state = inputs["initial_state"].transpose(1, 2).contiguous().requires_grad_()
    OPERATION.choose("cpu", torch.device("cpu"))
    operator = torch.ops.seqsuite.causal_conv1d_cpu.default
    torch.library.opcheck(operator, (x, weight, bias, state, torch.rand(2, 20) < 0.2, True))
    torch.library.opcheck(operator, (x, weight, None, None, None, False))


def test_auto_takes_the_cpu_loops_and_says_so() -> None:
    with receipt() as ran:
        causal_conv1d(**random_inputs(1, 4, 3, 2))
    assert ran == {"causal_conv1d": {"cpu"}}


def test_autocast_does_not_change_the_dtype_of_the_result() -> None:
    inputs = random_inputs(2, 20, 18, 4)
    for implementation in FAST:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = causal_conv1d(**inputs, implementation=implementation)
        assert_close("y", y, reference(**inputs), torch.float32)


def _bad(**changes: object) -> dict[str, object]:
    return random_inputs(2, 6, 5, 3) | changes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_bad(x=torch.randn(6, 5)), r"x has shape \(6, 5\); it must be \(batch, length, channels\)"),
        (_bad(x=torch.randn(2, 0, 5)), "its length must be at least 1"),
        (_bad(x=torch.ones(2, 6, 5, dtype=torch.int32)), "x is torch.int32; it must be one of"),
        (_bad(weight=torch.randn(4, 3)), r"weight has shape \(4, 3\); .* = \(5, 3\)"),
        (_bad(bias=torch.randn(4)), r"bias has shape \(4,\)"),
        (_bad(initial_state=torch.randn(2, 5, 3)), r"initial_state has shape .* = \(2, 5, 2\)"),
        (_bad(sequence_starts=torch.zeros(2, 6)), "sequence_starts is torch.float32"),
        (_bad(activation="gelu"), "activation is 'gelu'; it must be 'silu' or None"),
        (_bad(weight=torch.randn(5, 3, device="meta")), "weight is on meta and x on cpu"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(inputs: dict[str, object], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(causal_conv1d)(**inputs)
