"""Packed documents: every operation over a whole sequence gives each of them what it gives it alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.attention import causal_attention
from kernels.documents import longest_document, positions_in_documents, run_documents, run_documents_with_states
from kernels.long_conv import long_conv
from kernels.ssd import ssd
from tests.kernels.comparison import assert_agrees, assert_close

LENGTH = 70
STARTS = torch.zeros(2, LENGTH, dtype=torch.bool)
STARTS[0, [0, 3, 4, 64, 65]] = True
STARTS[1, 20] = True
DOCUMENTS = [(0, 0, 3), (0, 3, 4), (0, 4, 64), (0, 64, 65), (0, 65, 70), (1, 0, 20), (1, 20, 70)]
"""(row, first, end)"""


def alone(operation: Callable[..., Tensor], over_time: set[str]) -> Callable[..., Tensor]:
    """The operation on one document after the other, with those of its arguments cut that run over time."""

    def run(**inputs: Tensor) -> Tensor:
        rows: list[list[Tensor]] = [[], []]
        for row, first, end in DOCUMENTS:
            cut = {name: inputs[name][row : row + 1, first:end] for name in over_time}
            if "kernel" in inputs:
                cut["kernel"] = inputs["kernel"][:, : end - first]
            rows[row].append(operation(**inputs | cut))
        return torch.cat([torch.cat(row, dim=1) for row in rows])

    return run


def test_a_state_space_with_one_decay_a_head_starts_anew() -> None:
    inputs = {
        "x": torch.randn(2, LENGTH, 4, 3),
        "delta": torch.randn(2, LENGTH, 4),
        "A": -torch.rand(4) * 4,
        "B": torch.randn(2, LENGTH, 2, 5),
        "C": torch.randn(2, LENGTH, 2, 5),
        "D": torch.randn(4),
        "delta_bias": torch.randn(4) - 2,
    }
    run = partial(ssd, delta_softplus=True)
    expected = alone(partial(run, implementation="reference"), {"x", "delta", "B", "C"})
    for implementation in ("torch", "reference"):
        found = partial(run, sequence_starts=STARTS, implementation=implementation)
        assert_agrees(found, expected, inputs, torch.float32)


@pytest.mark.parametrize("starts_at", [0, 1, 40, 69])
def test_the_state_of_such_a_space_is_that_of_the_last_document(starts_at: int) -> None:
    starts = torch.zeros(2, LENGTH, dtype=torch.bool)
    starts[:, starts_at] = True
    inputs = {
        "x": torch.randn(2, LENGTH, 2, 3),
        "delta": torch.rand(2, LENGTH, 2),
        "A": -torch.rand(2),
        "B": torch.randn(2, LENGTH, 1, 5),
        "C": torch.randn(2, LENGTH, 1, 5),
    }
    options = {"initial_state": torch.randn(2, 2, 3, 5), "return_final_state": True, "sequence_starts": starts}
    results = [ssd(**inputs, **options, implementation=name) for name in ("torch", "reference")]  # type: ignore[call-overload]
    for name, found, expected in zip(("y", "state"), *results, strict=True):
        assert_close(name, found, expected, torch.float32)


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 7}, {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.05])}],
    ids=["all", "window", "alibi"],
)
def test_attention_sees_its_own_document(options: dict[str, Tensor | int]) -> None:
    inputs = {"q": torch.randn(2, LENGTH, 4, 8), "k": torch.randn(2, LENGTH, 2, 8), "v": torch.randn(2, LENGTH, 2, 8)}
    found = partial(causal_attention, sequence_starts=STARTS, **options)  # type: ignore[arg-type]
    expected = alone(partial(causal_attention, implementation="reference", **options), set(inputs))  # type: ignore[arg-type]
    assert_agrees(found, expected, inputs, torch.float32)


def test_a_long_convolution_reaches_back_to_where_its_document_starts() -> None:
    inputs = {"u": torch.randn(2, LENGTH, 3), "kernel": torch.randn(3, LENGTH), "D": torch.randn(3)}
    expected = alone(partial(long_conv, implementation="reference"), {"u"})
    assert_agrees(partial(long_conv, sequence_starts=STARTS), expected, inputs, torch.float32)


def test_few_calls_run_many_documents() -> None:
    shapes: list[tuple[int, ...]] = []

    def run(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape[:2]))
        return x.cumsum(1)

    x = torch.randn(2, LENGTH, 3, 2)
    found = run_documents(run, x, STARTS)
    assert sorted(shapes) == [(1, 3), (1, 5), (1, 20), (2, 1), (2, 60)]
    for row, first, end in DOCUMENTS:
        assert torch.allclose(found[row, first:end], x[row, first:end].cumsum(0))


def test_states_come_in_the_order_of_the_rows() -> None:
    def run(x: Tensor, begin: Tensor | None, wants_state: bool) -> tuple[Tensor, Tensor]:
        y = x.cumsum(1) + (0 if begin is None else begin.unsqueeze(1))
        return y, y[:, -1]

    x, begin = torch.randn(2, LENGTH, 3), torch.randn(2, 3)
    y, state = run_documents_with_states(run, x, STARTS, begin, return_final_state=True)
    assert state is not None
    assert torch.allclose(state, torch.stack([x[0, 65:].sum(0), x[1, 20:].sum(0)]), atol=1e-5)
    assert torch.allclose(y[1, 19], begin[1] + x[1, :20].sum(0), atol=1e-5)
    assert torch.allclose(y[0, 2], x[0, :3].sum(0), atol=1e-5)


def test_what_is_read_of_the_marks_follows_them() -> None:
    starts = STARTS.clone()
    assert longest_document(starts) == 60
    assert positions_in_documents(starts)[0, [0, 2, 3, 4, 63, 69]].tolist() == [0, 2, 0, 0, 59, 4]
    assert positions_in_documents(starts)[1, [0, 19, 20, 69]].tolist() == [0, 19, 0, 49]
    starts[0, 30] = True
    assert longest_document(starts) == 50
