"""Turning pairs of channels by Triton on a GPU: against the specification in float64, and as a citizen of torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.dispatch import receipt
from kernels.rotary import rotate
from suite.measure.graph import capture
from tests.kernels.comparison import assert_agrees

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU to test on")


def turns_of(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64, device=CUDA)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("batch_of_turns", [(), (3,)], ids=["shared", "of_each_row"])
@pytest.mark.parametrize(("length", "heads", "size"), [(1, 1, 2), (65, 3, 6), (1000, 4, 64), (33, 40, 130)])
def test_it_agrees_with_the_specification(
    dtype: torch.dtype, batch_of_turns: tuple[int, ...], length: int, heads: int, size: int
) -> None:
    turns = turns_of(*batch_of_turns, length, size // 2)
    assert_agrees(
        partial(rotate, turns=turns, implementation="triton"),
        partial(rotate, turns=turns, implementation="reference"),
        {"x": torch.randn(3, length, heads, size, device=CUDA).to(dtype)},
        dtype,
    )


def test_heads_may_lie_among_others_and_begin_anywhere_in_memory() -> None:
    maps, turns = torch.randn(2, 70, 5, 10, device=CUDA), turns_of(70, 4)
    for x in (maps[:, :, 1:4, :8], maps[:, :, 2:, 1:9], maps.transpose(2, 3)[:, :, :8].mT):
        with receipt() as ran:
            found = rotate(x, turns)
        assert ran == {"rotary": {"triton"}}
        assert torch.allclose(found, rotate(x, turns, implementation="reference"), atol=1e-5)


def _turned_twice(x: Tensor, turns: Tensor) -> list[Tensor]:
    y = rotate(rotate(x, turns, implementation="triton"), turns, implementation="triton")
    return [y.detach(), *torch.autograd.grad(y.square().sum(), x)]


def test_it_can_be_compiled_without_a_break_and_captured_in_a_graph() -> None:
    x, turns = torch.randn(2, 50, 3, 8, device=CUDA, requires_grad=True), turns_of(50, 4)
    expected = _turned_twice(x, turns)
    compiled = torch.compile(rotate, fullgraph=True)(x, turns, implementation="triton")
    assert torch.equal(compiled, rotate(x, turns, implementation="triton"))
    # Of a leaf that the default stream has worked on, the gradient would go back there.
    leaf, captured = x.detach().clone().requires_grad_(), []
    capture(lambda: captured.extend(_turned_twice(leaf, turns)), CUDA)()
    for plain, replayed in zip(expected, captured, strict=True):
        assert torch.equal(plain, replayed)
