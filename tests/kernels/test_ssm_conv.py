"""The S4D convolution by every implementation: against the recurrence in float64 and the kernel it unrolls to."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.dispatch import ImplementationUnavailable, receipt
from kernels.long_conv import long_conv
from kernels.ssm_conv import OPERATION, s4d_conv
from kernels.ssm_kernel import s4d_discretize, s4d_kernel
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients

IMPLEMENTATIONS = ["cpu", "torch", "fft"]
OPTIONAL = ("B", "D", "initial_state")

reference = partial(s4d_conv, implementation="reference")


def random_inputs(
    batch: int, length: int, channels: int, half_state: int, without: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """As S4D-Lin begins: real part -1/2, imaginary parts the multiples of pi, steps from 0.001 to 0.1."""

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=torch.complex64)

    imaginary = math.pi * torch.arange(half_state).expand(channels, half_state)
    inputs = {
        "u": torch.randn(batch, length, channels),
        "delta": torch.exp(math.log(1e-3) + math.log(100.0) * torch.rand(channels)),
        "A": torch.complex(torch.full((channels, half_state), -0.5), imaginary),
        "C": normal(channels, half_state),
        "B": normal(channels, half_state),
        "D": torch.randn(channels),
        "initial_state": normal(batch, channels, half_state),
    }
    return {name: x for name, x in inputs.items() if name not in without}


def wide(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.to(torch.complex128 if x.is_complex() else torch.float64) for name, x in inputs.items()}


def assert_all_agree(inputs: dict[str, Tensor], **options: Any) -> None:
    """Outputs, final state and every gradient of all implementations are those of the reference in float64."""
    function = partial(s4d_conv, return_final_state=True, **options)
    specification = partial(function, implementation="reference")
    expected = outputs_and_gradients(specification, wide(inputs))
    sizes = {"gradient of delta": usual_gradient_of_delta(specification, **wide(inputs))}
    for implementation in IMPLEMENTATIONS:
        actual = outputs_and_gradients(partial(function, implementation=implementation), inputs)
        for name in expected:
            size = sizes.get(name, 1.0)
            assert_close(f"{implementation}: {name}", actual[name], expected[name], torch.float32, size_of_terms=size)


def usual_gradient_of_delta(specification: Callable[..., Any], delta: Tensor, **others: Tensor) -> float:
    """Root mean square, over random losses, of the gradient of the step size, in the channel where it is largest.

    It sums up hundreds, and in one channel or two may happen to be small.
    """
    step_H = 1e-6 * delta
    (y_BLH, h_BHN), (further_BLH, further_BHN) = (
        specification(delta=stepped, **others) for stepped in (delta - step_H, delta + step_H)
    )
    squares_H = (further_BLH - y_BLH).square().sum((0, 1)) + (further_BHN - h_BHN).abs().square().sum((0, 2))
    return float((squares_H.sqrt() / (2 * step_H)).max())


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 511, 513])
def test_outputs_states_and_gradients_agree_with_the_reference_at_every_length(length: int) -> None:
    assert_all_agree(random_inputs(2, length, 5, 4))


def test_a_long_sequence_agrees_with_the_reference() -> None:
    assert_all_agree(random_inputs(1, 2049, 3, 8))


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 33])
def test_any_number_of_channels(channels: int) -> None:
    assert_all_agree(random_inputs(2, 40, channels, 4))


@pytest.mark.parametrize("half_state", [1, 2, 3, 7, 32, 33])
def test_any_size_of_the_state(half_state: int) -> None:
    assert_all_agree(random_inputs(2, 40, 3, half_state))


@pytest.mark.parametrize("without", [*((name,) for name in OPTIONAL), OPTIONAL], ids=str)
def test_optional_inputs_can_be_left_out(without: tuple[str, ...]) -> None:
    assert_all_agree(random_inputs(2, 70, 5, 4, without))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_convolution_is_that_with_the_kernel(implementation: str) -> None:
    inputs = random_inputs(2, 300, 6, 8, without=("initial_state",))
    wide_inputs = wide(inputs)
    u, D = wide_inputs.pop("u"), wide_inputs.pop("D")
    expected = long_conv(u, s4d_kernel(**wide_inputs, length=300), D)
    assert_close("y", s4d_conv(**inputs, implementation=implementation), expected, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_steps_go_on_from_the_final_state_of_any_prefix(implementation: str) -> None:
    inputs = random_inputs(2, 100, 6, 8)
    # The steps in float64: one alone holds few entries, which may all be small where float32 has rounded larger ones.
    wide_inputs = wide(inputs)
    u, B, C, D = (wide_inputs[name] for name in "uBCD")
    y = reference(**wide_inputs)
    A_bar, B_bar = s4d_discretize(wide_inputs["delta"], wide_inputs["A"])
    for prefix in (1, 16, 50, 64):
        _, h = s4d_conv(
            **{**inputs, "u": inputs["u"][:, :prefix]}, return_final_state=True, implementation=implementation
        )
        for t in range(prefix, prefix + 20):
            h = A_bar * h + B_bar * B * u[:, t, :, None]
            step = 2 * (C * h).sum(-1).real + D * u[:, t]
            assert_close(f"y at {t}", step, y[:, t], torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_state_carried_over_equals_one_long_call(implementation: str) -> None:
    inputs = random_inputs(2, 300, 5, 8)
    run = partial(s4d_conv, return_final_state=True, implementation=implementation)
    y, final_state = run(**inputs)
    pieces, state = [], inputs["initial_state"]
    for start, stop in ((0, 77), (77, 78), (78, 206), (206, 300)):
        piece, state = run(**{**inputs, "u": inputs["u"][:, start:stop], "initial_state": state})
        pieces.append(piece)
    assert_close("y", torch.cat(pieces, dim=1), y, torch.float32)
    assert_close("final state", state, final_state, torch.float32)


@pytest.mark.parametrize("starts", [[], [0], [0, 1, 2, 3], [5], [0, 40, 41, 80], [99]], ids=str)
def test_packed_documents_do_not_see_each_other(starts: list[int]) -> None:
    inputs = random_inputs(2, 100, 3, 4)
    sequence_starts = torch.zeros(2, 100, dtype=torch.bool)
    sequence_starts[0, starts] = True
    sequence_starts[1, 33] = True
    packed = partial(s4d_conv, sequence_starts=sequence_starts, return_final_state=True)

    def one_by_one(**inputs: Tensor) -> tuple[Tensor, Tensor]:
        ys, finals = [], []
        for row in range(2):
            state, pieces, begins = inputs["initial_state"][row : row + 1], [], sequence_starts[row].nonzero().flatten()
            for start, stop in itertools.pairwise([*sorted({0, *begins.tolist()}), 100]):
                if sequence_starts[row, start]:
                    state = torch.zeros_like(state)
                document = {**inputs, "u": inputs["u"][row : row + 1, start:stop], "initial_state": state}
                y, state = reference(**document, return_final_state=True)
                pieces.append(y)
            ys.append(torch.cat(pieces, dim=1))
            finals.append(state)
        return torch.cat(ys), torch.cat(finals)

    for implementation in IMPLEMENTATIONS:
        assert_agrees(partial(packed, implementation=implementation), one_by_one, inputs, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_its_own_rounding(implementation: str, dtype: torch.dtype) -> None:
    inputs = random_inputs(2, 100, 5, 4)
    inputs["u"] = inputs["u"].to(dtype)
    assert s4d_conv(**inputs, implementation=implementation).dtype == dtype
    assert_agrees(partial(s4d_conv, implementation=implementation), reference, inputs, dtype)


@pytest.mark.parametrize("implementation", ["torch", "fft"])
def test_float64_is_computed_in_float64(implementation: str) -> None:
    function = partial(s4d_conv, return_final_state=True)
    inputs = wide(random_inputs(2, 150, 3, 4))
    y, final_state = function(**inputs, implementation=implementation)
    assert (y.dtype, final_state.dtype) == (torch.float64, torch.complex128)
    assert_agrees(
        partial(function, implementation=implementation),
        partial(function, implementation="reference"),
        inputs,
        torch.float64,
    )


def test_float64_takes_an_implementation_that_has_it() -> None:
    inputs = wide(random_inputs(1, 8, 2, 2))
    with receipt() as ran:
        s4d_conv(**inputs)
    assert ran == {"s4d_conv": {"torch"}}
    with pytest.raises(ValueError, match="u is float64 and 'cpu' computes in float32"):
        s4d_conv(**inputs, implementation="cpu")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_strides_do_not_matter(implementation: str) -> None:
    inputs = random_inputs(2, 70, 6, 4)
    across = {**inputs, "u": inputs["u"].mT.contiguous().mT}
    padded = {**inputs, "u": torch.cat([inputs["u"], inputs["u"]], dim=-1)[..., :6]}
    for other in (across, padded):
        assert_agrees(partial(s4d_conv, implementation=implementation), reference, other, torch.float32)


@pytest.mark.parametrize("implementation", ["torch", "fft", "reference"])
def test_the_gradients_are_those_of_finite_differences(implementation: str) -> None:
    inputs = wide(random_inputs(2, 7, 2, 2))
    inputs["A"] = inputs["A"] * 0.3

    def function(*leaves: Tensor) -> Any:
        named = dict(zip(inputs, leaves, strict=True))
        return s4d_conv(**named, return_final_state=True, implementation=implementation)

    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs.values()])


def test_states_that_decay_at_once_and_hardly_at_all() -> None:
    inputs = random_inputs(2, 200, 4, 4)
    inputs["delta"] = torch.tensor([1e-6, 1e-3, 1.0, 300.0])
    assert_all_agree(inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_rounds_nothing(implementation: str) -> None:
    inputs = random_inputs(2, 70, 5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = s4d_conv(**inputs, implementation=implementation)
    assert_close("y", y, reference(**wide(inputs)), torch.float32)


def test_auto_takes_the_spectrum_for_short_sequences_and_says_so() -> None:
    ran = {}
    for length in (16, 4096):
        with receipt() as noted:
            s4d_conv(**random_inputs(1, length, 2, 2))
        ran[length] = noted["s4d_conv"]
    assert ran == {16: {"fft"}, 4096: {"cpu"}}


def test_what_needs_a_gpu_says_so() -> None:
    assert OPERATION.availability(torch.device("cpu"))["cuda"] == "it runs on a CUDA GPU only"
    with pytest.raises(ImplementationUnavailable, match="cannot run its 'cuda' implementation on cpu"):
        s4d_conv(**random_inputs(1, 8, 2, 2), implementation="cuda")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.randn(6, 5)}, r"u has shape \(6, 5\); it must be \(batch, length, channels\)"),
        ({"u": torch.randn(2, 0, 5)}, "its length must be at least 1"),
        ({"u": torch.ones(2, 6, 5, dtype=torch.int64)}, "u is torch.int64"),
        ({"delta": torch.rand(4)}, r"delta has shape \(4,\); .* = \(5,\)"),
        ({"A": torch.randn(5, 4)}, "A is torch.float32; it must be complex"),
        ({"A": torch.randn(4, 4, dtype=torch.complex64)}, r"A has shape \(4, 4\); .* = \(5, 4\)"),
        ({"C": torch.randn(5, 3, dtype=torch.complex64)}, r"C has shape \(5, 3\); .* = \(5, 4\)"),
        ({"B": torch.randn(1, 4, dtype=torch.complex64)}, r"B has shape \(1, 4\)"),
        ({"D": torch.randn(5, device="meta")}, "D is on meta and u on cpu"),
        ({"initial_state": torch.randn(2, 5, 4)}, "initial_state is torch.float32; it must be complex"),
        ({"initial_state": torch.randn(1, 5, 4, dtype=torch.complex64)}, r"initial_state has shape \(1, 5, 4\)"),
        ({"sequence_starts": torch.zeros(2, 6)}, "sequence_starts is torch.float32; it must be torch.bool"),
        ({"implementation": "spectral"}, "s4d_conv has no implementation 'spectral'. Known: auto, cuda, cpu"),
    ],
)
def test_a_bad_input_is_named_with_what_it_was_and_must_be(changes: dict[str, Any], message: str) -> None:
    # Unwrapped, because a shape checker installed by tests would speak first.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(s4d_conv)(**random_inputs(2, 6, 5, 4) | changes)
