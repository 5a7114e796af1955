"""The linear scan, minGRU and minLSTM: every implementation against the recurrence in float64."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import ImplementationUnavailable, receipt
from kernels.linear_scan import (
    OPERATION,
    linear_scan,
    linear_scan_step,
    min_gru_scan,
    min_gru_step,
    min_lstm_scan,
    min_lstm_step,
)
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients

# B batch, L length, D channels

IMPLEMENTATIONS = [name for name, reason in OPERATION.availability(torch.device("cpu")).items() if reason is None]
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
SCANS = {
    linear_scan: ("a", "b"),
    min_gru_scan: ("update", "candidate"),
    min_lstm_scan: ("forget", "input", "candidate"),
}
STEPS: dict[Any, Callable[..., Tensor]] = {
    linear_scan: linear_scan_step,
    min_gru_scan: min_gru_step,
    min_lstm_scan: min_lstm_step,
}

every_scan = pytest.mark.parametrize("scan", SCANS, ids=lambda scan: scan.__name__)
every_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
every_fast_implementation = pytest.mark.parametrize("implementation", FAST)


def random_inputs(
    scan: Callable[..., Any],
    batch: int,
    length: int,
    channels: int,
    dtype: torch.dtype = torch.float32,
    with_state: bool = True,
) -> dict[str, Tensor]:
    inputs = {name: torch.randn(batch, length, channels).to(dtype) for name in SCANS[scan]}
    if scan is linear_scan:
        inputs["a"] = (2 * torch.rand(batch, length, channels) - 1).to(dtype)
    if with_state:
        inputs["initial_state"] = torch.randn(batch, channels).to(torch.promote_types(dtype, torch.float32))
    return inputs


def assert_agrees_with_reference(
    scan: Callable[..., Any], inputs: dict[str, Tensor], implementation: str, **options: object
) -> None:
    options |= {"return_final_state": True}
    assert_agrees(
        partial(scan, implementation=implementation, **options),
        partial(scan, implementation="reference", **options),
        inputs,
        next(iter(inputs.values())).dtype,
    )


@every_scan
@every_fast_implementation
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 300])
def test_outputs_and_gradients_agree_with_the_reference_at_every_length(
    scan: Callable[..., Any], implementation: str, length: int
) -> None:
    assert_agrees_with_reference(scan, random_inputs(scan, 2, length, 20), implementation)


@every_fast_implementation
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 64, 65, 300])
def test_outputs_and_gradients_agree_with_the_reference_at_every_width(implementation: str, channels: int) -> None:
    assert_agrees_with_reference(linear_scan, random_inputs(linear_scan, 2, 21, channels), implementation)


@every_scan
@every_fast_implementation
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_inputs_lose_no_more_than_their_own_rounding(
    scan: Callable[..., Any], implementation: str, dtype: torch.dtype
) -> None:
    inputs = random_inputs(scan, 2, 70, 40, dtype)
    h, final_state = scan(**inputs, implementation=implementation, return_final_state=True)
    assert h.dtype == dtype
    assert final_state.dtype == torch.float32
    assert_agrees_with_reference(scan, inputs, implementation)


@every_scan
@every_fast_implementation
@given(data=st.data())
def test_every_optional_input_may_be_there_or_not(
    scan: Callable[..., Any], implementation: str, data: st.DataObject
) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    batch, length, channels = (
        data.draw(st.integers(1, most), label=name) for name, most in (("B", 3), ("L", 40), ("D", 70))
    )
    inputs = random_inputs(scan, batch, length, channels, with_state=data.draw(st.booleans(), label="initial state"))
    options: dict[str, Any] = {}
    if data.draw(st.booleans(), label="starts"):
        options["sequence_starts"] = torch.rand(batch, length) < 0.2
    if scan is not linear_scan:
        options["positive_candidate"] = data.draw(st.booleans(), label="positive candidate")
    assert_agrees_with_reference(scan, inputs, implementation, **options)


@every_scan
@every_fast_implementation
def test_strides_do_not_matter(scan: Callable[..., Any], implementation: str) -> None:
    inputs = random_inputs(scan, 2, 37, 24)
    strided = {name: x.transpose(0, -1).contiguous().transpose(0, -1) for name, x in inputs.items()}
    assert not any(x.is_contiguous() for x in strided.values())
    run = partial(scan, implementation=implementation)
    expected, actual = outputs_and_gradients(run, inputs), outputs_and_gradients(run, strided)
    for name in expected:
        assert_close(name, actual[name], expected[name], torch.float32)


@every_fast_implementation
def test_slices_of_a_projection_need_no_copy_to_be_right(implementation: str) -> None:
    forget, input_, candidate = torch.randn(2, 37, 60).chunk(3, dim=-1)
    inputs = {"forget": forget, "input": input_, "candidate": candidate}
    assert_agrees_with_reference(min_lstm_scan, inputs, implementation)


@every_scan
@every_implementation
def test_a_state_carried_over_equals_one_long_scan(scan: Callable[..., Any], implementation: str) -> None:
    inputs = random_inputs(scan, 2, 50, 20)
    state = inputs.pop("initial_state")
    run = partial(scan, implementation=implementation, return_final_state=True)
    h, final_state = run(**inputs, initial_state=state)
    halves = []
    for part in (slice(0, 19), slice(19, 50)):
        h_half, state = run(**{name: x[:, part] for name, x in inputs.items()}, initial_state=state)
        halves.append(h_half)
    assert_close("h", torch.cat(halves, dim=1), h, torch.float32)
    assert_close("final state", state, final_state, torch.float32)


@every_scan
@every_implementation
def test_packed_documents_equal_separate_scans(scan: Callable[..., Any], implementation: str) -> None:
    inputs = random_inputs(scan, 1, 60, 20, with_state=False)
    begins = [0, 1, 17, 33, 34]
    starts = torch.zeros(1, 60, dtype=torch.bool)
    starts[0, begins] = True
    run = partial(scan, implementation=implementation, return_final_state=True)
    # What came before the first document must not matter either.
    h, final_state = run(**inputs, initial_state=torch.randn(1, 20), sequence_starts=starts)
    documents, state = [], torch.empty(0)
    for begin, end in zip(begins, [*begins[1:], 60], strict=True):
        h_document, state = run(**{name: x[:, begin:end] for name, x in inputs.items()})
        documents.append(h_document)
    assert_close("h", h, torch.cat(documents, dim=1), torch.float32)
    assert_close("final state", final_state, state, torch.float32)


@every_scan
@every_implementation
def test_steps_one_by_one_equal_the_scan(scan: Callable[..., Any], implementation: str) -> None:
    inputs = random_inputs(scan, 2, 12, 20)
    state = inputs.pop("initial_state")
    h, final_state = scan(**inputs, initial_state=state, return_final_state=True, implementation=implementation)
    for t in range(12):
        state = STEPS[scan](state, *(inputs[name][:, t] for name in SCANS[scan]))
        assert_close(f"h at {t}", state, h[:, t], torch.float32)
    assert_close("final state", state, final_state, torch.float32)


@every_implementation
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_huge_projections_overflow_nowhere(implementation: str, size: float) -> None:
    values = torch.tensor([-size, -1.0, 0.0, 1.0, size])
    forget, input_, candidate = (x.reshape(1, -1, 5) for x in torch.cartesian_prod(values, values, values).T)
    assert_agrees_with_reference(
        min_lstm_scan, {"forget": forget, "input": input_, "candidate": candidate}, implementation
    )
    assert_agrees_with_reference(min_gru_scan, {"update": forget, "candidate": candidate}, implementation)


@every_fast_implementation
def test_a_nan_spreads_to_all_later_positions_of_its_channel_only(implementation: str) -> None:
    inputs = random_inputs(linear_scan, 1, 40, 20)
    inputs["b"][0, 10, 7] = torch.nan
    is_nan = linear_scan(**inputs, implementation=implementation).isnan()
    assert is_nan[0, 10:, 7].all()
    is_nan[0, 10:, 7] = False
    assert not is_nan.any()


@every_scan
def test_the_reference_is_differentiated_right(scan: Callable[..., Any]) -> None:
    inputs = random_inputs(scan, 2, 5, 3, torch.float64)
    starts = torch.tensor([[False, False, True, False, False], [True, False, False, False, True]])

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return scan(  # type: ignore[no-any-return]
            **dict(zip(inputs, tensors, strict=True)),
            sequence_starts=starts,
            return_final_state=True,
            implementation="reference",
        )

    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs.values()])


@every_fast_implementation
def test_a_scan_of_which_only_the_final_state_is_used_has_gradients(implementation: str) -> None:
    def final_state(implementation: str, **inputs: Tensor) -> Tensor:
        return linear_scan(**inputs, return_final_state=True, implementation=implementation)[1]

    inputs = random_inputs(linear_scan, 2, 20, 6)
    assert_agrees(partial(final_state, implementation), partial(final_state, "reference"), inputs, torch.float32)


def test_the_cpu_scan_repeats_itself_bit_by_bit_with_any_number_of_threads() -> None:
    inputs = random_inputs(linear_scan, 2, 100, 300)
    run = partial(linear_scan, implementation="cpu", return_final_state=True)
    once = outputs_and_gradients(run, inputs)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = outputs_and_gradients(run, inputs)
    finally:
        torch.set_num_threads(num_threads)
    for name in once:
        assert torch.equal(once[name], again[name]), name


def test_the_cpu_scan_keeps_the_contract_of_custom_operators() -> None:
    inputs = [x.requires_grad_() for x in random_inputs(linear_scan, 2, 20, 18).values()]
    OPERATION.choose("cpu", torch.device("cpu"))
    operator = torch.ops.seqsuite.linear_scan_cpu.default
    torch.library.opcheck(operator, (*inputs, torch.rand(2, 20) < 0.2))
    torch.library.opcheck(operator, (*inputs[:2], None, None))


@every_scan
def test_the_cpu_scan_can_be_compiled(scan: Callable[..., Any]) -> None:
    inputs = random_inputs(scan, 2, 20, 18)
    run = partial(scan, implementation="cpu", return_final_state=True)
    expected = outputs_and_gradients(run, inputs)
    actual = outputs_and_gradients(torch.compile(run, backend="aot_eager"), inputs)
    for name in expected:
        assert_close(name, actual[name], expected[name], torch.float32)


@every_scan
def test_auto_takes_the_cpu_loops_and_says_so(scan: Callable[..., Any]) -> None:
    with receipt() as ran:
        scan(**random_inputs(scan, 1, 4, 3))
    assert ran == {"linear_scan": {"cpu"}}


@every_scan
def test_float64_is_computed_in_float64_and_the_receipt_says_by_what(scan: Callable[..., Any]) -> None:
    inputs = random_inputs(scan, 2, 80, 5, torch.float64)
    with receipt() as ran:
        h = scan(**inputs)
    assert ran == {"linear_scan": {"torch"}}
    assert_close("h", h, scan(**inputs, implementation="reference"), torch.float64)


def _bad(**changes: Tensor) -> dict[str, Tensor]:
    return random_inputs(linear_scan, 2, 6, 5) | changes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_bad(a=torch.randn(6, 5)), r"a has shape \(6, 5\); it must be \(batch, length, channels\)"),
        (_bad(a=torch.randn(2, 0, 5)), r"a has shape \(2, 0, 5\); its length must be at least 1"),
        (_bad(b=torch.randn(2, 6, 4)), r"b has shape \(2, 6, 4\); .* = \(2, 6, 5\)"),
        (_bad(b=torch.ones(2, 6, 5, dtype=torch.int64)), "b is torch.int64; it must be one of"),
        (_bad(initial_state=torch.randn(5, 2)), r"initial_state has shape .* = \(2, 5\)"),
        (_bad(sequence_starts=torch.zeros(2, 5, dtype=torch.bool)), "sequence_starts has shape"),
        (_bad(sequence_starts=torch.zeros(2, 6)), "sequence_starts is torch.float32; it must be torch.bool"),
        (_bad(b=torch.randn(2, 6, 5, device="meta")), "b is on meta and a on cpu; all must be on one device"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(inputs: dict[str, Tensor], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(linear_scan)(**inputs)


def test_an_unknown_implementation_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no implementation 'fast'. Known: auto, .*cpu"):
        linear_scan(**random_inputs(linear_scan, 1, 2, 3), implementation="fast")


def test_the_kernels_refuse_float64() -> None:
    with pytest.raises(ValueError, match="b is float64 and 'cpu' computes in float32"):
        linear_scan(**random_inputs(linear_scan, 1, 2, 3, torch.float64), implementation="cpu")


def test_what_cannot_run_here_says_why_and_what_to_do() -> None:
    with pytest.raises(ImplementationUnavailable, match=r"cannot run its 'cuda' implementation on cpu: .*Use 'auto'"):
        linear_scan(**random_inputs(linear_scan, 1, 2, 3), implementation="cuda")
