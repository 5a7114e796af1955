"""What `choose` promises: the implementation that was asked for or the best that is there, on the record."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.causal_conv1d import OPERATION, causal_conv1d
from kernels.dispatch import ImplementationUnavailable, receipt

CPU = torch.device("cpu")


def test_auto_takes_the_first_that_can_run_and_the_receipt_says_which() -> None:
    available = [name for name, reason in OPERATION.availability(CPU).items() if reason is None]
    with receipt() as ran:
        module = OPERATION.choose("auto", CPU)
    assert module.__name__ == OPERATION.implementations[available[0]]
    assert ran == {OPERATION.name: {available[0]}}


def test_a_name_that_nobody_knows_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"no implementation 'cudda'\. Known: auto, cuda, cpu, torch, reference"):
        OPERATION.choose("cudda", CPU)


def test_what_cannot_run_here_is_refused_with_the_reason_and_not_put_on_the_receipt() -> None:
    message = r"'cuda' implementation on cpu: .*Use 'auto'"
    with receipt() as ran, pytest.raises(ImplementationUnavailable, match=message):
        OPERATION.choose("cuda", CPU)
    assert ran == {}


@pytest.mark.parametrize("implementation", ["auto", "torch"])
def test_a_choice_does_not_break_a_compiled_graph(implementation: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 4), torch.randn(4, 3)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return 2 * causal_conv1d(x, weight, activation="silu", implementation=implementation)

    with receipt() as ran:
        y = torch.compile(run, fullgraph=True, backend="eager")(x, weight)
    torch.testing.assert_close(y, run(x, weight))
    assert len(ran[OPERATION.name]) == 1
