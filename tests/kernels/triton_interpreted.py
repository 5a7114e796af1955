"""The Triton selective scan in Triton's interpreter, on a CPU, against the specification in float64.

`test_selective_scan_triton.py` runs this module in a process of its own: whether Triton interprets or compiles is
decided when it is imported.
"""

# B batch, L length, D channels, N state

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.selective_scan import selective_scan, triton_scan
from tests.kernels.comparison import assert_agrees, assert_close, outputs_and_gradients
from tests.kernels.test_selective_scan import random_inputs

run = partial(selective_scan, implementation="triton", delta_softplus=True, return_final_state=True)
specification = partial(selective_scan, implementation="reference", delta_softplus=True, return_final_state=True)

_CANARIES = 64
_CANARY = -12345.0


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks in few steps, and a backward pass in pieces of one chunk."""
    monkeypatch.setattr(triton_scan, "_CHUNK", 8)
    monkeypatch.setattr(triton_scan, "forward_chunk", lambda *_: 16)
    monkeypatch.setattr(triton_scan, "_PARTS_BUDGET_BYTES", 1)


@pytest.fixture
def _guarded_outputs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every new tensor lies between canaries, which must be alive in the end."""
    guarded: list[Tensor] = []
    new_empty = Tensor.new_empty

    def new_guarded(tensor: Tensor, *sizes: Any, **options: Any) -> Tensor:
        plain = new_empty(tensor, *sizes, **options)
        if not plain.is_floating_point():
            return plain
        buffer = plain.new_full((plain.numel() + 2 * _CANARIES,), _CANARY)
        guarded.append(buffer)
        return buffer[_CANARIES : _CANARIES + plain.numel()].view(plain.shape)

    monkeypatch.setattr(Tensor, "new_empty", new_guarded)
    yield
    assert guarded
    for buffer in guarded:
        assert bool((buffer[:_CANARIES] == _CANARY).all() and (buffer[-_CANARIES:] == _CANARY).all())


def surrounded_by_nan(tensor: Tensor) -> Tensor:
    """The same numbers in the middle of a tensor of NaN, so that one read beyond them shows in the result."""
    padded = torch.full([size + 6 for size in tensor.shape], torch.nan)
    inside = tuple(slice(3, 3 + size) for size in tensor.shape)
    padded[inside] = tensor
    return padded[inside]


@pytest.mark.usefixtures("_short_chunks", "_guarded_outputs")
@pytest.mark.parametrize(("length", "channels", "state"), [(1, 1, 1), (37, 11, 3), (33, 40, 4)])
def test_everything_agrees_with_the_reference_and_nothing_is_read_or_written_outside(
    length: int, channels: int, state: int
) -> None:
    inputs = {name: surrounded_by_nan(tensor) for name, tensor in random_inputs(2, length, channels, state).items()}
    starts = torch.rand(2, length) < 0.1
    assert_agrees(
        partial(run, sequence_starts=starts), partial(specification, sequence_starts=starts), inputs, torch.float32
    )


@pytest.mark.parametrize("without", [("D",), ("z",), ("initial_state",), ("D", "z", "delta_bias", "initial_state")])
def test_optional_inputs_can_be_left_out(without: tuple[str, ...]) -> None:
    inputs = random_inputs(1, 9, 5, 2, without=without)
    assert_agrees(run, specification, inputs, torch.float32)


def test_step_sizes_can_be_taken_as_they_are() -> None:
    inputs = random_inputs(1, 9, 5, 2)
    inputs["delta"], inputs["delta_bias"] = inputs["delta"].abs(), inputs["delta_bias"].abs()
    options: dict[str, Any] = {"delta_softplus": False}
    assert_agrees(partial(run, **options), partial(specification, **options), inputs, torch.float32)


@pytest.mark.parametrize("state", [16, 33])
def test_states_of_several_sizes(state: int) -> None:
    assert_agrees(run, specification, random_inputs(1, 6, 9, state), torch.float32)


def test_the_axes_of_inputs_may_lie_in_any_order() -> None:
    inputs = random_inputs(2, 9, 6, 3)
    run_plain = outputs_and_gradients(run, inputs)
    turned = {
        name: x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.ndim > 1 else x for name, x in inputs.items()
    }
    run_turned = outputs_and_gradients(run, turned)
    for name, expected in run_plain.items():
        assert_close(name, run_turned[name], expected, torch.float32)


def test_a_scan_of_which_only_the_final_state_is_used_has_gradients() -> None:
    def final_state(**inputs: Tensor) -> Tensor:
        return run(**inputs)[1]

    def expected_final_state(**inputs: Tensor) -> Tensor:
        return specification(**inputs)[1]

    assert_agrees(final_state, expected_final_state, random_inputs(1, 9, 5, 2, without=("z", "D")), torch.float32)


@pytest.mark.usefixtures("_short_chunks")
def test_a_nan_reaches_later_positions_of_its_channel_and_document_only() -> None:
    inputs = random_inputs(1, 40, 5, 2)
    inputs["u"][0, 10, 3] = torch.nan
    starts = torch.zeros(1, 40, dtype=torch.bool)
    starts[0, 30] = True
    is_nan = run(**inputs, sequence_starts=starts)[0].isnan()
    assert is_nan[0, 10:30, 3].all()
    is_nan[0, 10:30, 3] = False
    assert not is_nan.any()


def test_every_layout_has_lanes_for_every_state_and_channel() -> None:
    for state, channels in itertools.product((1, 2, 3, 16, 33, 64, 100, 256), (1, 7, 8, 64, 2048)):
        for layout in (triton_scan.forward_layout(channels, state), triton_scan.backward_layout(channels, state)):
            assert layout.groups & (layout.groups - 1) == layout.lanes & (layout.lanes - 1) == 0
            assert layout.num_blocks(channels) * layout.groups * layout.lanes >= channels
