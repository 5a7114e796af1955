"""Embedding: every implementation against the specification, and the sums of its gradient against one another."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from kernels.dispatch import receipt
from kernels.embedding import embedding, one_hot
from tests.kernels.comparison import assert_agrees, assert_close


def _tokens(*shape: int, vocab: int) -> Tensor:
    return torch.randint(vocab, shape)


@pytest.mark.parametrize("shape", [(), (1,), (2, 63), (3, 5, 7), (0,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_gradient_agree_with_the_specification(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tokens = _tokens(*shape, vocab=9)
    weight = torch.randn(9, 5).to(dtype)
    for function in (partial(embedding, tokens, implementation="torch"), partial(one_hot.embedding, tokens)):
        assert_agrees(function, partial(embedding, tokens, implementation="reference"), {"weight": weight}, dtype)


def test_a_token_that_never_occurs_has_no_gradient_and_one_that_often_does_the_sum() -> None:
    weight = torch.randn(4, 3, requires_grad=True)
    dx = torch.randn(100, 3)
    tokens = torch.tensor([2] * 99 + [0])
    (gradient,) = torch.autograd.grad(one_hot.embedding(tokens, weight), weight, dx)
    assert_close("gradient", gradient[2], dx[:99].sum(0).double(), torch.float32)
    assert torch.equal(gradient[0], dx[99])
    assert not gradient[[1, 3]].any()


def test_auto_leaves_a_cpu_and_a_large_vocabulary_to_torch() -> None:
    for vocab in (5, 1000):
        with receipt() as ran:
            embedding(_tokens(3, vocab=vocab), torch.randn(vocab, 2))
        assert ran == {"embedding": {"torch"}}


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"tokens is torch.int32; it must be torch.int64"):
        embedding(_tokens(3, vocab=2).int(), torch.randn(2, 2))
    with pytest.raises(ValueError, match="weight"):
        embedding(_tokens(3, vocab=2), torch.randn(2))
