"""The selective scan: every implementation against the recurrence in float64."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kernels.dispatch import ImplementationUnavailable, receipt
from kernels.selective_scan import OPERATION, selective_scan, selective_scan_step
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients

# B batch, L length, D channels, N state

IMPLEMENTATIONS = [name for name, reason in OPERATION.availability(torch.device("cpu")).items() if reason is None]
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
ACTIVATIONS = ("u", "delta", "B", "C", "z")
OPTIONAL = ("D", "z", "delta_bias", "initial_state")

reference = partial(selective_scan, implementation="reference")


def random_inputs(
    batch: int,
    length: int,
    channels: int,
    state: int,
    dtype: torch.dtype = torch.float32,
    without: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    inputs = {
        "u": torch.randn(batch, length, channels),
        "delta": torch.randn(batch, length, channels) - 1,
        "A": -4 * torch.rand(channels, state) - 0.05,
        "B": torch.randn(batch, length, state),
        "C": torch.randn(batch, length, state),
        "D": torch.randn(channels),
        "z": torch.randn(batch, length, channels),
        "delta_bias": torch.randn(channels),
        "initial_state": torch.randn(batch, channels, state),
    }
    return {
        name: tensor.to(dtype) if name in ACTIVATIONS or dtype == torch.float64 else tensor
        for name, tensor in inputs.items()
        if name not in without
    }


def assert_agrees_with_reference(inputs: dict[str, Tensor], implementation: str, **options: object) -> None:
    options |= {"return_final_state": True}
    assert_agrees(
        partial(selective_scan, implementation=implementation, **options),
        partial(reference, **options),
        inputs,
        inputs["u"].dtype,
    )


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 511, 513])
def test_outputs_and_gradients_agree_with_the_reference_at_every_length(implementation: str, length: int) -> None:
    assert_agrees_with_reference(random_inputs(2, length, 20, 4), implementation, delta_softplus=True)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("channels", [1, 3, 64, 100])
@pytest.mark.parametrize("state", [1, 16, 33])
def test_outputs_and_gradients_agree_with_the_reference_at_every_width(
    implementation: str, channels: int, state: int
) -> None:
    assert_agrees_with_reference(random_inputs(2, 21, channels, state), implementation, delta_softplus=True)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_inputs_lose_no_more_than_their_own_rounding(implementation: str, dtype: torch.dtype) -> None:
    inputs = random_inputs(2, 70, 40, 8, dtype)
    assert selective_scan(**inputs, implementation=implementation).dtype == dtype
    assert_agrees_with_reference(inputs, implementation, delta_softplus=True)


@pytest.mark.parametrize("implementation", FAST)
@given(data=st.data())
def test_every_optional_input_may_be_there_or_not(implementation: str, data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    without = tuple(name for name in OPTIONAL if data.draw(st.booleans(), label=f"without {name}"))
    batch, length, channels = (
        data.draw(st.integers(1, most), label=name) for name, most in (("B", 3), ("L", 40), ("D", 70))
    )
    inputs = random_inputs(batch, length, channels, 3, without=without)
    delta_softplus = data.draw(st.booleans(), label="softplus")
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs()
        inputs.pop("delta_bias", None)
    starts = torch.rand(batch, length) < 0.2 if data.draw(st.booleans(), label="starts") else None
    assert_agrees_with_reference(inputs, implementation, delta_softplus=delta_softplus, sequence_starts=starts)


@pytest.mark.parametrize("implementation", FAST)
def test_strides_do_not_matter(implementation: str) -> None:
    inputs = random_inputs(2, 37, 24, 5)
    strided = {name: _with_strides(tensor) for name, tensor in inputs.items()}
    assert not any(tensor.is_contiguous() for tensor in strided.values())
    run = partial(selective_scan, implementation=implementation, delta_softplus=True)
    expected = outputs_and_gradients(run, inputs)
    actual = outputs_and_gradients(run, strided)
    for name in expected:
        assert_close(name, actual[name], expected[name], torch.float32)


def _with_strides(tensor: Tensor) -> Tensor:
    """The same numbers: vectors with gaps, matrices as a slice of a wider one, the rest with axes swapped in memory."""
    if tensor.ndim == 1:
        return torch.stack([tensor, tensor], dim=1)[:, 0]
    if tensor.ndim == 2:
        return torch.cat([tensor, tensor], dim=1)[:, : tensor.shape[1]]
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


@pytest.mark.parametrize("implementation", FAST)
def test_slices_of_a_projection_need_no_copy_to_be_right(implementation: str) -> None:
    inputs = random_inputs(2, 37, 24, 5)
    projected = torch.cat([inputs["B"], inputs["C"], inputs["u"], inputs["z"]], dim=-1)
    inputs["B"], inputs["C"], inputs["u"], inputs["z"] = projected.split([5, 5, 24, 24], dim=-1)
    assert_agrees_with_reference(inputs, implementation, delta_softplus=True)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_state_carried_over_equals_one_long_scan(implementation: str) -> None:
    inputs = random_inputs(2, 50, 20, 4)
    initial_state = inputs.pop("initial_state")
    run = partial(selective_scan, implementation=implementation, delta_softplus=True, return_final_state=True)
    y, final_state = run(**inputs, initial_state=initial_state)
    halves = []
    state = initial_state
    for part in (slice(0, 19), slice(19, 50)):
        half = {name: tensor[:, part] if name in ACTIVATIONS else tensor for name, tensor in inputs.items()}
        y_half, state = run(**half, initial_state=state)
        halves.append(y_half)
    assert_close("y", torch.cat(halves, dim=1), y, torch.float32)
    assert_close("final state", state, final_state, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_packed_documents_equal_separate_scans(implementation: str) -> None:
    inputs = random_inputs(1, 60, 20, 4, without=("initial_state",))
    begins = [0, 1, 17, 33, 34]
    starts = torch.zeros(1, 60, dtype=torch.bool)
    starts[0, begins] = True
    run = partial(selective_scan, implementation=implementation, delta_softplus=True, return_final_state=True)
    # What came before the first document must not matter either.
    y, final_state = run(**inputs, initial_state=torch.randn(1, 20, 4), sequence_starts=starts)
    documents = []
    for begin, end in zip(begins, [*begins[1:], 60], strict=True):
        document = {name: x[:, begin:end] if name in ACTIVATIONS else x for name, x in inputs.items()}
        y_document, state = run(**document)
        documents.append(y_document)
    assert_close("y", y, torch.cat(documents, dim=1), torch.float32)
    assert_close("final state", final_state, state, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_steps_one_by_one_equal_the_scan(implementation: str) -> None:
    inputs = random_inputs(2, 12, 20, 4)
    state = inputs.pop("initial_state")
    y, final_state = selective_scan(
        **inputs, initial_state=state, delta_softplus=True, return_final_state=True, implementation=implementation
    )
    for t in range(12):
        token = {name: tensor[:, t] if name in ACTIVATIONS else tensor for name, tensor in inputs.items()}
        y_t, state = selective_scan_step(state, **token, delta_softplus=True)
        assert_close(f"y at {t}", y_t, y[:, t], torch.float32)
    assert_close("final state", state, final_state, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_huge_step_sizes_and_gates_overflow_nowhere(implementation: str) -> None:
    inputs = random_inputs(1, 9, 18, 4)
    inputs["delta"] = torch.linspace(-100, 100, 9 * 18).reshape(1, 9, 18)
    inputs["z"] = torch.linspace(100, -100, 9 * 18).reshape(1, 9, 18)
    assert_agrees_with_reference(inputs, implementation, delta_softplus=True)


@pytest.mark.parametrize("implementation", FAST)
def test_a_nan_spreads_to_all_later_positions_of_its_channel_only(implementation: str) -> None:
    inputs = random_inputs(1, 40, 20, 4)
    inputs["delta"][0, 10, 7] = torch.nan
    is_nan = selective_scan(**inputs, delta_softplus=True, implementation=implementation).isnan()
    assert is_nan[0, 10:, 7].all()
    is_nan[0, 10:, 7] = False
    assert not is_nan.any()


def test_the_reference_is_differentiated_right() -> None:
    inputs = random_inputs(2, 5, 3, 2, torch.float64)
    starts = torch.tensor([[False, False, True, False, False], [True, False, False, False, True]])

    def run(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return selective_scan(
            **dict(zip(inputs, tensors, strict=True)),
            delta_softplus=True,
            sequence_starts=starts,
            return_final_state=True,
            implementation="reference",
        )

    assert torch.autograd.gradcheck(run, [tensor.requires_grad_() for tensor in inputs.values()])


@pytest.mark.parametrize("implementation", FAST)
def test_a_scan_of_which_only_the_final_state_is_used_has_gradients(implementation: str) -> None:
    def final_state(implementation: str, **inputs: Tensor) -> Tensor:
        return selective_scan(**inputs, return_final_state=True, implementation=implementation)[1]

    inputs = random_inputs(2, 20, 6, 3, without=("z", "D"))
    inputs["delta"] = inputs["delta"].abs()
    inputs.pop("delta_bias")
    assert_agrees(partial(final_state, implementation), partial(final_state, "reference"), inputs, torch.float32)


def test_the_cpu_scan_repeats_itself_bit_by_bit_with_any_number_of_threads() -> None:
    inputs = random_inputs(2, 100, 150, 8)
    run = partial(selective_scan, implementation="cpu", delta_softplus=True, return_final_state=True)
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
    inputs = random_inputs(2, 20, 18, 3)
    inputs["delta"] = inputs["delta"].abs()
    shared = [inputs[name].requires_grad_() for name in ("u", "delta", "A", "B", "C")]
    optional = [inputs[name].requires_grad_() for name in ("D", "z", "delta_bias")]
    state = inputs["initial_state"].transpose(1, 2).contiguous().requires_grad_()
    starts = torch.rand(2, 20) < 0.2
    operator = _cpu_operator()
    torch.library.opcheck(operator, (*shared, *optional, state, starts, True, True))
    torch.library.opcheck(operator, (*shared, None, None, None, None, None, False, True))


def _cpu_operator() -> torch._ops.OpOverload:
    OPERATION.choose("cpu", torch.device("cpu"))
    return torch.ops.seqsuite.selective_scan_cpu.default


def test_the_cpu_scan_can_be_compiled_and_its_operator_breaks_no_graph() -> None:
    inputs = random_inputs(2, 20, 18, 3)
    run = partial(selective_scan, implementation="cpu", delta_softplus=True, return_final_state=True)
    expected = outputs_and_gradients(run, inputs)

    def run_operator(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        module = OPERATION.choose("cpu", torch.device("cpu"))
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        y, final_state = torch.compile(module.selective_scan, backend="aot_eager", fullgraph=True)(
            *(inputs[name] for name in names), True, inputs["initial_state"], None
        )
        return y, final_state

    for compiled in (torch.compile(run, backend="aot_eager"), run_operator):
        actual = outputs_and_gradients(compiled, inputs)
        for name in expected:
            assert_close(name, actual[name], expected[name], torch.float32)


def test_auto_takes_the_cpu_loops_and_says_so() -> None:
    inputs = random_inputs(1, 4, 3, 2)
    with receipt() as ran:
        selective_scan(**inputs)
    assert ran == {"selective_scan": {"cpu"}}


def test_float64_is_computed_in_float64_and_the_receipt_says_by_what() -> None:
    inputs = random_inputs(2, 80, 5, 3, torch.float64)
    with receipt() as ran:
        y = selective_scan(**inputs, delta_softplus=True)
    assert ran == {"selective_scan": {"torch"}}
    assert_close("y", y, reference(**inputs, delta_softplus=True), torch.float64)


def _bad(**changes: Tensor) -> dict[str, Tensor]:
    return random_inputs(2, 6, 5, 3) | changes


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (_bad(u=torch.randn(6, 5)), r"u has shape \(6, 5\); it must be \(batch, length, channels\)"),
        (_bad(u=torch.randn(2, 0, 5)), r"u has shape \(2, 0, 5\); its length must be at least 1"),
        (_bad(delta=torch.randn(2, 6, 4)), r"delta has shape \(2, 6, 4\); .* = \(2, 6, 5\)"),
        (_bad(delta=torch.ones(2, 6, 5, dtype=torch.int64)), "delta is torch.int64; it must be one of"),
        (_bad(A=torch.randn(5)), r"A has shape \(5,\); it must be \(channels, state\)"),
        (_bad(A=torch.randn(5, 0)), "A .* its state must be at least 1"),
        (_bad(A=torch.randn(5, 257)), "A .* its state must be at most 256"),
        (_bad(A=torch.randn(5, 3, dtype=torch.complex64)), "A is torch.complex64"),
        (_bad(B=torch.randn(2, 6, 4)), r"B has shape .* = \(2, 6, 3\)"),
        (_bad(C=torch.randn(1, 6, 3)), r"C has shape .* = \(2, 6, 3\)"),
        (_bad(D=torch.randn(1)), r"D has shape \(1,\); it must be \(channels\) = \(5,\)"),
        (_bad(z=torch.randn(2, 6)), "z has shape"),
        (_bad(delta_bias=torch.randn(5, 1)), "delta_bias has shape"),
        (_bad(initial_state=torch.randn(2, 3, 5)), r"initial_state has shape .* = \(2, 5, 3\)"),
        (_bad(sequence_starts=torch.zeros(2, 5, dtype=torch.bool)), "sequence_starts has shape"),
        (_bad(sequence_starts=torch.zeros(2, 6)), "sequence_starts is torch.float32; it must be torch.bool"),
        (_bad(z=torch.randn(2, 6, 5, device="meta")), "z is on meta and u on cpu; all must be on one device"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(inputs: dict[str, Tensor], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(selective_scan)(**inputs)


def test_an_unknown_implementation_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no implementation 'fast'. Known: auto, .*cpu"):
        selective_scan(**random_inputs(1, 2, 3, 2), implementation="fast")


def test_the_kernels_refuse_float64() -> None:
    with pytest.raises(ValueError, match="u is float64 and 'cpu' computes in float32"):
        selective_scan(**random_inputs(1, 2, 3, 2, torch.float64), implementation="cpu")


def test_the_cpu_loops_say_that_they_run_on_a_cpu_only() -> None:
    inputs = {name: tensor.to("meta") for name, tensor in random_inputs(1, 2, 3, 2).items()}
    with pytest.raises(ImplementationUnavailable, match="it runs on a CPU only"):
        selective_scan(**inputs, implementation="cpu")
